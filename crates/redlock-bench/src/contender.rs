//! The libraries that are compared: one lock-and-unlock cycle each.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use distributed_lock_core::traits::{DistributedLock, LockHandle, LockProvider};
use distributed_lock_redis::RedisLockProvider;
use redlock::RedLock;
use redlock_core::{Config, ConfigBuilder, Redlock, Safety};
use redlock_tests::{all_vote, eventually};
use rslock::LockManager;
use serde::{Serialize, Serializer};

use crate::limit::Limit;
use crate::scenario::Result;

const TTL: Duration = Duration::from_secs(10);

/// For servers that have just been started.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whose locks are measured. The limit has none: see [`Limit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    Ours(Mode),
    Limit,
    Rslock,
    Redlock2,
    DistributedLock,
}

/// This library with its defaults, or in the mode of the published algorithm, which is what the
/// others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Plain,
    Guarded,
}

/// A library, connected to the servers.
#[derive(Clone)]
pub(crate) enum Contender {
    Ours(Redlock),
    Limit(Arc<Limit>),
    Rslock(LockManager),
    Redlock2(Arc<RedLock>),
    DistributedLock(Arc<RedisLockProvider>),
}

impl Contender {
    pub(crate) async fn connect(library: Library, urls: &[String]) -> Result<Self> {
        Ok(match library {
            Library::Ours(mode) => Self::Ours(connect(urls, mode).await?),
            Library::Limit => Self::Limit(Arc::new(Limit::connect(urls, 1).await?)),
            Library::Rslock => Self::Rslock(LockManager::new(urls.to_vec())),
            Library::Redlock2 => Self::Redlock2(Arc::new(RedLock::new(urls.to_vec()))),
            Library::DistributedLock => {
                let settings = RedisLockProvider::builder().urls(urls).expiry(TTL);
                let settings = settings.extension_cadence(TTL / 3).min_validity(TTL * 9 / 10);
                Self::DistributedLock(Arc::new(settings.build().await?))
            }
        })
    }

    /// Locks and unlocks a key that nobody else wants, and says how long it took to lock it.
    pub(crate) async fn cycle(&self, key: &str) -> Result<Duration> {
        let start = Instant::now();
        Ok(match self {
            Self::Ours(redlock) => {
                let guard = redlock.lock(key).await?;
                let locked = start.elapsed();
                guard.release().await;
                locked
            }
            Self::Limit(limit) => {
                let held = limit.lock(key).await?;
                let locked = start.elapsed();
                held.release().await?;
                locked
            }
            Self::Rslock(manager) => {
                let lock = manager.lock(key.as_bytes(), TTL).await?;
                let locked = start.elapsed();
                manager.unlock(&lock).await;
                locked
            }
            Self::Redlock2(redlock) => {
                let (redlock, key) = (Arc::clone(redlock), key.to_owned());
                tokio::task::spawn_blocking(move || {
                    let lock = redlock.lock(key.as_bytes(), 10_000)?.ok_or("not locked")?;
                    let locked = start.elapsed();
                    redlock.unlock(&lock);
                    Result::Ok(locked)
                })
                .await??
            }
            Self::DistributedLock(provider) => {
                let handle = provider.create_lock(key).acquire(None).await?;
                let locked = start.elapsed();
                handle.release().await?;
                locked
            }
        })
    }
}

/// A lock service on servers that were started for the purpose.
pub(crate) async fn connect(urls: &[String], mode: Mode) -> Result<Redlock> {
    set_up(settings(urls, mode)).await
}

/// The same, which misses no server that is only slow: what is counted does not depend on the
/// machine then.
pub(crate) async fn connect_patiently(urls: &[String], mode: Mode) -> Result<Redlock> {
    set_up(settings(urls, mode).node_deadline(TTL / 4)).await
}

pub(crate) fn settings(urls: &[String], mode: Mode) -> ConfigBuilder {
    let safety = match mode {
        Mode::Plain => Safety::Plain,
        Mode::Guarded => Safety::Guarded,
    };
    Config::servers(urls.iter().map(String::as_str)).safety(safety).ttl(TTL)
}

pub(crate) async fn set_up(settings: ConfigBuilder) -> Result<Redlock> {
    let redlock = Redlock::new(settings.build()?);
    eventually(PATIENCE, "servers that vote", async || redlock.provision().await).await;
    all_vote(&redlock).await;
    Ok(redlock)
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "plain",
            Self::Guarded => "guarded",
        })
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ours(mode) => mode.fmt(f),
            Self::Limit => f.pad("limit"),
            Self::Rslock => f.pad("rslock"),
            Self::Redlock2 => f.pad("redlock 2.0"),
            Self::DistributedLock => f.pad("distributed"),
        }
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Library {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

//! The libraries that are compared: one lock-and-unlock cycle each.

use std::error::Error;
use std::time::Duration;

use redlock_core::{Config, ConfigBuilder, Redlock, Safety};
use redlock_tests::{all_vote, eventually};
use rslock::LockManager;
use serde::Serialize;

const TTL: Duration = Duration::from_secs(10);

/// For servers that have just been started.
const PATIENCE: Duration = Duration::from_secs(20);

/// A library, connected to the servers.
#[derive(Clone, Debug)]
pub(crate) enum Contender {
    Ours(Mode, Redlock),
    Rslock(LockManager),
}

/// This library with its defaults, or in the mode of the published algorithm, which is what the
/// others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Plain,
    Guarded,
}

impl Contender {
    pub(crate) async fn all(urls: &[String]) -> Result<Vec<Self>, Box<dyn Error + Send + Sync>> {
        let rslock = LockManager::new(urls.to_vec());
        Ok(vec![
            Self::ours(urls, Mode::Plain).await?,
            Self::ours(urls, Mode::Guarded).await?,
            Self::Rslock(rslock),
        ])
    }

    pub(crate) async fn ours(
        urls: &[String],
        mode: Mode,
    ) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(Self::Ours(mode, connect(urls, mode).await?))
    }

    /// Locks and unlocks a key that nobody else wants.
    pub(crate) async fn cycle(&self, key: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
        match self {
            Self::Ours(_, redlock) => {
                redlock.lock(key).await?.release().await;
            }
            Self::Rslock(manager) => {
                let lock = manager.lock(key.as_bytes(), TTL).await?;
                manager.unlock(&lock).await;
            }
        }
        Ok(())
    }
}

/// A lock service on servers that were started for the purpose.
pub(crate) async fn connect(
    urls: &[String],
    mode: Mode,
) -> Result<Redlock, Box<dyn Error + Send + Sync>> {
    set_up(settings(urls, mode)).await
}

/// The same, which misses no server that is only slow: what is counted does not depend on the
/// machine then.
pub(crate) async fn connect_patiently(
    urls: &[String],
    mode: Mode,
) -> Result<Redlock, Box<dyn Error + Send + Sync>> {
    set_up(settings(urls, mode).node_deadline(TTL / 4)).await
}

fn settings(urls: &[String], mode: Mode) -> ConfigBuilder {
    let safety = match mode {
        Mode::Plain => Safety::Plain,
        Mode::Guarded => Safety::Guarded,
    };
    Config::servers(urls.iter().map(String::as_str)).safety(safety).ttl(TTL)
}

async fn set_up(settings: ConfigBuilder) -> Result<Redlock, Box<dyn Error + Send + Sync>> {
    let redlock = Redlock::new(settings.build()?);
    eventually(PATIENCE, "servers that vote", async || redlock.provision().await).await;
    all_vote(&redlock).await;
    Ok(redlock)
}

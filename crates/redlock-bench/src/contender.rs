//! The libraries that are compared: one lock-and-unlock cycle each.

use std::error::Error;
use std::time::Duration;

use redlock_core::{Config, Redlock, Safety};
use rslock::LockManager;

const TTL: Duration = Duration::from_secs(10);

/// A library, connected to the servers.
#[derive(Clone, Debug)]
pub(crate) enum Contender {
    Ours(Redlock),
    Rslock(LockManager),
}

impl Contender {
    pub(crate) async fn all(urls: &[String]) -> Result<Vec<Self>, Box<dyn Error + Send + Sync>> {
        let rslock = LockManager::new(urls.to_vec());
        Ok(vec![Self::Ours(ours(urls).await?), Self::Rslock(rslock)])
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "redlock-core",
            Self::Rslock(_) => "rslock",
        }
    }

    /// Locks and unlocks a key that nobody else wants.
    pub(crate) async fn cycle(&self, key: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
        match self {
            Self::Ours(redlock) => {
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

/// This library with its defaults.
pub(crate) async fn ours(urls: &[String]) -> Result<Redlock, Box<dyn Error + Send + Sync>> {
    let servers = urls.iter().map(String::as_str);
    Ok(Redlock::connect(Config::servers(servers).safety(Safety::Plain).ttl(TTL).build()?).await?)
}

//! The real backend: one Redis or Valkey server behind a pool of connections.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use twox_hash::XxHash3_64;

use super::guarded::Guarding;
use super::lane::Lane;
use super::last_chance::{Farewell, LAST_CHANCE, LastChance};
use super::mailbox::{Mailbox, Retry};
use super::manager::{Connections, Identities, Manager};
use super::outage::Outage;
use super::watcher::Watcher;
use super::{Command, Node};
use crate::config::{CheckedServer, Config, Safety};
use crate::deference::Deference;
use crate::key::Key;

/// One server, with as many lanes as it has connections.
#[derive(Debug)]
pub(crate) struct RedisNode {
    address: Arc<str>,
    lanes: Box<[Arc<Lane<Connections>>]>,
    watcher: Arc<Watcher>,
}

impl RedisNode {
    /// Connects to nothing yet and needs no runtime: the first command does both.
    pub(crate) fn new(
        server: &CheckedServer,
        config: &Config,
        identities: &Arc<Identities>,
        farewell: &Arc<Farewell>,
    ) -> Self {
        let address: Arc<str> = server.address().into();
        let manager = Manager {
            server: server.clone(),
            address: Arc::clone(&address),
            identities: Arc::clone(identities),
            key_prefix: Arc::clone(&config.key_prefix),
            guarding: match config.safety {
                Safety::Guarded => Some(Arc::new(Guarding::new(config))),
                Safety::Plain => None,
            },
            checks: config.checks,
            told: Arc::default(),
        };
        let outage = Arc::new(Outage::new(Arc::clone(&address)));
        let connections = Connections::new(manager, config.pool_size);
        let retry = Retry { pause: config.reconnection_interval, for_at_most: config.quarantine() };
        let was_connected = Arc::new(AtomicBool::new(false));
        let lanes = (0..config.pool_size).map(|_| {
            Arc::new(Lane {
                mailbox: Mailbox::new(retry),
                connector: connections.clone(),
                address: Arc::clone(&address),
                outage: Arc::clone(&outage),
                deadline: config.node_deadline,
                was_connected: Arc::clone(&was_connected),
                reconnection: config.reconnection_interval,
                abandoned: Mutex::default(),
                last_chance: LastChance::shared(farewell),
            })
        });
        let lanes = lanes.collect();
        let watcher = Watcher::new(server.clone(), config.reconnection_interval);
        Self { lanes, watcher: Arc::new(watcher), address }
    }

    fn lane_of(&self, key: &[u8]) -> &Arc<Lane<Connections>> {
        match &*self.lanes {
            [only] => only,
            lanes => {
                let hash = XxHash3_64::oneshot(key);
                &lanes[(hash % lanes.len() as u64) as usize]
            }
        }
    }
}

impl Node for RedisNode {
    fn address(&self) -> &str {
        &self.address
    }

    fn post(&self, command: Command) {
        self.lane_of(command.key.as_bytes()).post([command]);
    }

    fn post_both(&self, first: Command, second: Command) {
        self.lane_of(first.key.as_bytes()).post([first, second]);
    }

    fn freed<'n>(
        &'n self,
        key: &'n Key,
        deference: &'n Deference<'n>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'n>> {
        Box::pin(self.watcher.freed(key, deference))
    }

    fn unsettled(&self) -> usize {
        self.lanes.iter().map(|lane| lane.mailbox.unsettled()).sum()
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            for lane in &self.lanes {
                lane.mailbox.settled().await;
            }
        })
    }

    fn shut_down(&self) {
        for lane in &self.lanes {
            lane.mailbox.close(Duration::ZERO);
        }
        self.watcher.close();
    }
}

impl Drop for RedisNode {
    fn drop(&mut self) {
        for lane in &self.lanes {
            lane.mailbox.close(LAST_CHANCE);
        }
        self.watcher.close();
        if Handle::try_current().is_err() {
            for lane in &self.lanes {
                lane.wait_for_begun_last_chance();
            }
        }
    }
}

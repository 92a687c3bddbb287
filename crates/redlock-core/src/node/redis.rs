//! The real backend: one Redis or Valkey server behind a pool of connections.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bb8_redis::bb8::Pool;
use twox_hash::XxHash3_64;

use super::connection::{CONNECT_DEADLINE, Causes, Identities, Manager};
use super::guarded::Guarding;
use super::lane::Lane;
use super::mailbox::Mailbox;
use super::watcher::Watcher;
use super::{Command, Node};
use crate::config::{CheckedServer, Config, Safety};
use crate::deference::Deference;
use crate::key::Key;

/// One server, with as many lanes as it has connections.
#[derive(Debug)]
pub(crate) struct RedisNode {
    address: Arc<str>,
    lanes: Box<[Arc<Lane>]>,
    watcher: Arc<Watcher>,
}

impl RedisNode {
    /// Connects to nothing yet and needs no runtime: the first command does both.
    pub(crate) fn new(
        server: &CheckedServer,
        config: &Config,
        identities: &Arc<Identities>,
    ) -> Self {
        let address: Arc<str> = server.address().into();
        let causes = Causes::new();
        let manager = Manager {
            server: server.clone(),
            address: Arc::clone(&address),
            identities: Arc::clone(identities),
            preflight_key: [&config.key_prefix, &b"redlock:preflight"[..]].concat(),
            guarding: match config.safety {
                Safety::Guarded => Some(Arc::new(Guarding::new(config))),
                Safety::Plain => None,
            },
            checks: config.checks,
        };
        let size = u32::try_from(config.pool_size).unwrap_or(u32::MAX);
        let pool = Pool::builder()
            .max_size(size)
            .test_on_check_out(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .retry_connection(false)
            .connection_timeout(2 * CONNECT_DEADLINE)
            .error_sink(Box::new(causes.clone()))
            .build_unchecked(manager);
        let lanes = (0..config.pool_size).map(|_| {
            Arc::new(Lane {
                mailbox: Mailbox::default(),
                pool: pool.clone(),
                causes: causes.clone(),
                address: Arc::clone(&address),
                deadline: config.node_deadline,
                reconnection: config.reconnection_interval,
            })
        });
        let lanes = lanes.collect();
        let interval = config.reconnection_interval;
        let watcher = Watcher::new(server.clone(), Arc::clone(&address), interval);
        Self { lanes, watcher: Arc::new(watcher), address }
    }

    fn lane_of(&self, key: &[u8]) -> &Arc<Lane> {
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
            lane.mailbox.close();
        }
        self.watcher.close();
    }
}

impl Drop for RedisNode {
    fn drop(&mut self) {
        self.shut_down();
    }
}

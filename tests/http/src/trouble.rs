//! What happens to the lock servers.

use std::time::Duration;

use redlock_tests::Fleet;
use tokio::sync::RwLock;
use tokio::time::sleep;

use crate::options::TTL;
use crate::report::Tally;

/// After a fault nothing happens for as long: a server that lost its data votes again.
const CALM: Duration = TTL.saturating_add(Duration::from_millis(500));

/// Lock servers that fail, one after the other, and some of them together.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) fleet: Fleet,
    /// Written while a server does not answer.
    calm: RwLock<()>,
}

impl Trouble {
    pub(crate) fn new(fleet: Fleet) -> Self {
        Self { fleet, calm: RwLock::default() }
    }

    /// Makes trouble until it is dropped; a server that is down then stays so until [`end`](Self::end).
    pub(crate) async fn make(&self, tally: &Tally) {
        loop {
            sleep(CALM).await;
            let server = fastrand::usize(..self.fleet.len());
            let _calm = self.calm.write().await;
            let fault = match fastrand::u8(..6) {
                0 | 1 => {
                    self.fleet.restart(server).await;
                    "killed"
                }
                2 => {
                    let mut connection = self.fleet[server].connection().await;
                    let flushed = redis_flush(&mut connection).await;
                    if flushed { "flushed" } else { "not flushed" }
                }
                3 => {
                    self.fleet.pause(server);
                    sleep(TTL / 2).await;
                    self.fleet.resume(server);
                    "stopped"
                }
                _ => {
                    // No lock can be renewed: those that are held are lost.
                    let other = (server + 1) % self.fleet.len();
                    self.fleet.pause(server);
                    self.fleet.pause(other);
                    sleep(TTL + TTL / 4).await;
                    self.fleet.resume(server);
                    self.fleet.resume(other);
                    "a majority stopped"
                }
            };
            tally.with(|report| *report.faults.entry(fault).or_default() += 1);
        }
    }

    /// All servers answer again.
    pub(crate) fn end(&self) {
        for server in &self.fleet {
            if !server.is_running() {
                server.resume();
            }
        }
    }

    /// On how many servers a key is locked; `None` while one of them does not answer.
    pub(crate) async fn holders(&self, key: &str) -> Option<usize> {
        let _calm = self.calm.try_read().ok()?;
        let mut holders = 0;
        for server in &self.fleet {
            holders += usize::from(server.get(key).await.is_some());
        }
        Some(holders)
    }
}

async fn redis_flush(connection: &mut redis::aio::MultiplexedConnection) -> bool {
    redis::cmd("FLUSHALL").exec_async(connection).await.is_ok()
}

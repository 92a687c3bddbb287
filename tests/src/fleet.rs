//! Several independent Redis servers.

use std::collections::BTreeMap;
use std::ops::Index;
use std::slice::Iter;
use std::time::Duration;

use futures_util::future::join_all;

use crate::{RedisServer, ServerOptions, eventually};

/// What connecting and looking in costs; a lock needs none of them.
pub(crate) const NOT_COUNTED: [&str; 16] = [
    "acl", "auth", "client", "command", "config", "dbsize", "debug", "echo", "flushall", "flushdb",
    "hello", "info", "keys", "ping", "scan", "select",
];

/// Servers that know nothing of each other, as a quorum wants them.
///
/// ```
/// # use redlock_tests::Fleet;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let fleet = Fleet::start(3).await;
/// fleet.kill(0);
/// assert_eq!(fleet.urls().len(), 3);
/// assert_eq!(fleet.total_keys().await, 0);
/// # });
/// ```
#[derive(Debug)]
pub struct Fleet {
    servers: Vec<RedisServer>,
}

impl Fleet {
    /// Starts `n` plain servers at once.
    pub async fn start(n: usize) -> Self {
        Self::start_with(n, RedisServer::options()).await
    }

    /// Starts `n` servers with the same options.
    pub async fn start_with(n: usize, options: ServerOptions) -> Self {
        let servers = join_all((0..n).map(|_| options.clone().start())).await;
        Self { servers }
    }

    /// The URLs of all servers, also of those that are killed.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.iter().map(RedisServer::url).collect()
    }

    /// All servers in order.
    pub fn iter(&self) -> Iter<'_, RedisServer> {
        self.servers.iter()
    }

    /// How many servers there are.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a fleet of none is of no use")]
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// See [`RedisServer::kill`].
    pub fn kill(&self, i: usize) {
        self[i].kill();
    }

    /// See [`RedisServer::pause`].
    pub fn pause(&self, i: usize) {
        self[i].pause();
    }

    /// See [`RedisServer::resume`].
    pub fn resume(&self, i: usize) {
        self[i].resume();
    }

    /// See [`RedisServer::restart`].
    pub async fn restart(&self, i: usize) {
        self[i].restart().await;
    }

    /// The keys of every server that answers, by the server's number.
    pub async fn keys(&self) -> BTreeMap<usize, Vec<String>> {
        let all = join_all(self.iter().map(RedisServer::try_keys)).await;
        all.into_iter().enumerate().filter_map(|(i, keys)| Some((i, keys.ok()?))).collect()
    }

    /// How many keys there are on all servers that answer.
    pub async fn total_keys(&self) -> usize {
        self.keys().await.values().map(Vec::len).sum()
    }

    /// Waits until no server that answers holds a key. Panics at the deadline, naming the keys
    /// that are left.
    pub async fn eventually_empty(&self, deadline: Duration) {
        eventually(deadline, "all servers to be empty", async || {
            let mut left = self.keys().await;
            left.retain(|_, keys| !keys.is_empty());
            if left.is_empty() { Ok(()) } else { Err(format!("keys by server: {left:?}")) }
        })
        .await;
    }

    /// How often each command was called on all servers that answer, without those that only
    /// connect and look in (HELLO, CLIENT, PING, INFO, KEYS, …). The GET, PTTL, SET and DEL of the
    /// harness itself are counted.
    pub async fn commands(&self) -> BTreeMap<String, u64> {
        let mut sums = BTreeMap::new();
        for stats in join_all(self.iter().map(RedisServer::try_command_stats)).await {
            for (name, calls) in stats.unwrap_or_default() {
                let command = name.split('|').next().unwrap_or_default();
                if !NOT_COUNTED.contains(&command) {
                    *sums.entry(name).or_default() += calls;
                }
            }
        }
        sums
    }

    /// Sets the counters of all running servers back to zero.
    pub async fn reset_stats(&self) {
        let running = self.iter().filter(|server| server.is_running());
        join_all(running.map(RedisServer::config_resetstat)).await;
    }
}

impl Index<usize> for Fleet {
    type Output = RedisServer;

    fn index(&self, i: usize) -> &RedisServer {
        &self.servers[i]
    }
}

impl<'a> IntoIterator for &'a Fleet {
    type Item = &'a RedisServer;
    type IntoIter = Iter<'a, RedisServer>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

//! The cluster, and what can be done to its nodes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::{Clock, Moment};
use crate::config::{Config, ConfigBuilder, ConfigError};
use crate::key::{IntoKey, Key};
use crate::node::simulated::{Client, FIRST_MICROS, Mutant, Server, SimulatedNode};
use crate::redlock::Redlock;
use crate::token::Token;

/// Simulated servers, each with faults of its own. Cheap to clone; clones are the same servers.
///
/// See [the module](crate::testing) for examples.
#[derive(Clone)]
pub struct Cluster {
    began: Instant,
    servers: Arc<[Arc<Server>]>,
    mutant: Arc<Mutex<Option<Mutant>>>,
}

impl Cluster {
    /// So many servers, an odd number of them as ever. They are put to use by the first client,
    /// as [`Redlock::provision`] does it.
    ///
    /// # Panics
    ///
    /// Without a runtime of tokio, if that is needed to tell the time.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        let began = Instant::now();
        let server = |node| Arc::new(Server::new(format!("node-{node}:6379/0"), began));
        let servers = (0..nodes).map(server).collect();
        Self { began, servers, mutant: Arc::default() }
    }

    /// Another client of these servers, with connections of its own and the default settings: as
    /// another process would have it.
    #[must_use]
    pub fn redlock(&self) -> Redlock {
        self.connect(Config::in_memory_by(self.clock()))
    }

    /// The same with settings. Those about servers and connections have no effect; clients with
    /// another `max_ttl` are refused by the servers, as ever.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redlock_core::testing::Cluster;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = Cluster::new(3);
    /// let redlock = cluster.redlock_with(|builder| builder.ttl(Duration::from_secs(2)))?;
    /// let guard = redlock.lock("order:42").await?;
    /// assert!(guard.remaining() < Duration::from_secs(2));
    /// guard.release().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for settings that can't work.
    pub fn redlock_with(
        &self,
        set: impl FnOnce(ConfigBuilder) -> ConfigBuilder,
    ) -> Result<Redlock, ConfigError> {
        Ok(self.connect(set(Config::memory().clock(self.clock())).build()?))
    }

    /// One of the servers, counted from zero.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    #[must_use]
    pub fn node(&self, node: usize) -> Node {
        Node { server: Arc::clone(&self.servers[node]) }
    }

    /// All servers.
    #[must_use]
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = Node> + '_ {
        self.servers.iter().map(|server| Node { server: Arc::clone(server) })
    }

    /// Ends all faults. What was held up on its way arrives now; what was lost is lost, and clocks
    /// that were set stay as they are.
    pub fn heal(&self) {
        self.nodes().for_each(|node| node.heal());
    }

    /// The true time on the wall clock, in microseconds since 1970. It begins in the same second
    /// for every cluster.
    #[must_use]
    pub fn unix_micros(&self) -> u64 {
        self.clock().unix_micros()
    }

    /// Has later clients make a mistake.
    #[doc(hidden)]
    pub fn mutate(&self, mutant: Option<Mutant>) {
        *self.mutant.lock() = mutant;
    }

    fn clock(&self) -> TrueClock {
        TrueClock { began: self.began }
    }

    fn connect(&self, config: Config) -> Redlock {
        let client = Client::new(&config, self.servers.len(), *self.mutant.lock());
        let client = Arc::new(client);
        let connect = |(index, server): (usize, &Arc<Server>)| {
            server.provision_once(client.introduction());
            Arc::new(SimulatedNode::new(index, server, &client, &config))
                as Arc<dyn crate::node::Node>
        };
        Redlock::over(self.servers.iter().enumerate().map(connect).collect(), config)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes()).finish()
    }
}

/// Tokio's time, also on the wall.
#[derive(Debug)]
struct TrueClock {
    began: Instant,
}

impl Clock for TrueClock {
    fn now(&self) -> Moment {
        Moment::from_origin(self.began.elapsed())
    }

    fn unix_micros(&self) -> u64 {
        let elapsed = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        FIRST_MICROS.saturating_add(elapsed)
    }
}

/// One server of a [`Cluster`]. A fault lasts until it is taken back, or all are by
/// [`Cluster::heal`].
#[derive(Clone)]
pub struct Node {
    server: Arc<Server>,
}

impl Node {
    /// Stops the server: it keeps its connections and its data, and answers nothing. What is sent
    /// is executed when it goes on.
    pub fn pause(&self) {
        self.server.set_paused(true);
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.server.set_paused(false);
    }

    /// How long everything is on the way that is sent from now on, in either direction.
    pub fn delay(&self, delay: Duration) {
        self.server.set_delay(delay);
    }

    /// Whether what is sent to the server never arrives.
    pub fn lose_requests(&self, lose: bool) {
        self.server.set_lose_requests(lose);
    }

    /// Whether the server does what it is asked, and nobody gets to know.
    pub fn lose_replies(&self, lose: bool) {
        self.server.set_lose_replies(lose);
    }

    /// Holds up the next command for as long, and what follows it on the same connection. A client
    /// gives that connection up in the meantime and closes it by `CLIENT KILL`, so that the command
    /// never arrives. Where it [may not](Self::forbid_kill), the command arrives after those that the
    /// client has sent on its next connection.
    pub fn deliver_late(&self, late: Duration) {
        self.server.set_late(late);
    }

    /// Closes all connections. What has not arrived is lost. Clients connect again at once.
    pub fn cut(&self) {
        self.server.cut_all();
    }

    /// Restarts the server with all its data. It votes at once only for clients that are
    /// configured as [`durable`](ConfigBuilder::durable): nobody else can tell that nothing is
    /// missing.
    pub fn restart(&self) {
        self.server.restart(true);
    }

    /// Restarts the server without its data, as after a crash without persistence. It does not
    /// vote for one `max_ttl` then.
    pub fn restart_empty(&self) {
        self.server.restart(false);
    }

    /// Deletes all data, as `FLUSHALL` does. The server does not vote for one `max_ttl` then.
    pub fn flush(&self) {
        self.server.flush();
    }

    /// Sets the wall clock of the server ahead, or back.
    pub fn step_clock(&self, micros: i64) {
        self.server.step_clock(micros);
    }

    /// Ends all faults of this server, see [`Cluster::heal`].
    pub fn heal(&self) {
        self.server.heal();
    }

    /// The token that the server keeps under `key`, prefix and all: who holds it there.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use redlock_core::testing::Cluster;
    /// let cluster = Cluster::new(3);
    /// let guard = cluster.redlock().lock("order:42").await?;
    /// assert_eq!(cluster.node(0).holder("order:42").as_ref(), Some(guard.token()));
    /// guard.release().await;
    /// assert_eq!(cluster.node(0).holder("order:42"), None);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn holder(&self, key: impl IntoKey) -> Option<Token> {
        let key = key.into_key().ok()?;
        let mut holders = self.holders().into_iter();
        holders.find_map(|(held, token)| (held == key).then_some(token))
    }

    /// All keys that are locked on the server, each with the token of its holder.
    #[must_use]
    pub fn holders(&self) -> Vec<(Key, Token)> {
        self.server.holders()
    }

    /// Commands that were sent and have not arrived.
    #[must_use]
    pub fn on_the_way(&self) -> usize {
        self.server.on_the_way()
    }

    /// Has the server forget the scripts that it was sent, as `SCRIPT FLUSH` does.
    pub fn forget_scripts(&self) {
        self.server.forget_scripts();
    }

    /// Breaks a connection after so many more calls have arrived on any: what was sent behind them
    /// is lost.
    pub fn tear_after(&self, calls: usize) {
        self.server.tear_after(calls);
    }

    /// Forbids new connections the commands `CLIENT ID` and `CLIENT KILL`: what was sent on a
    /// connection that was given up may arrive later.
    pub fn forbid_kill(&self) {
        self.server.forbid_kill();
    }

    /// By how many millionths the server's clock runs too fast.
    #[doc(hidden)]
    pub fn set_clock_rate(&self, ppm: i64) {
        self.server.set_rate(ppm);
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("address", &self.server.address()).finish_non_exhaustive()
    }
}

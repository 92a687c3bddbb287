//! Which servers to lock on, and how.

mod backoff;
mod builder;
mod check;
mod drift;
mod error;
mod group;
mod safety;
mod server;
#[cfg(feature = "serde")]
mod settings;
mod wake_up;

use std::env;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::backoff::Backoff;
pub use self::builder::ConfigBuilder;
use self::check::Place;
pub(crate) use self::check::check_label;
pub(crate) use self::drift::Drift;
pub use self::error::ConfigError;
pub(crate) use self::group::CheckedGroup;
pub use self::group::Group;
pub(crate) use self::safety::Checks;
pub use self::safety::{CheckPolicy, Safety, ServerCheck};
pub use self::server::Server;
pub(crate) use self::server::{Access, CheckedServer};
pub use self::wake_up::WakeUp;
use twox_hash::XxHash3_64;

use crate::clock::Clock;
use crate::ring::RingScheme;

/// The environment variable that [`Config::from_env`] reads.
const SERVERS_VARIABLE: &str = "REDLOCK_SERVERS";

/// A configuration that was checked. Cheap enough to clone.
///
/// ```
/// use std::time::Duration;
/// use redlock_core::Config;
///
/// let config = Config::servers(["redis://10.0.0.1", "redis://10.0.0.2", "redis://10.0.0.3"])
///     .ttl(Duration::from_secs(5))
///     .build()?;
/// assert_eq!(config.node_deadline(), Duration::from_millis(50));
///
/// let error = Config::servers(["redis://10.0.0.1", "redis://10.0.0.2"]).build().unwrap_err();
/// assert_eq!(error.field(), "servers");
/// # Ok::<(), redlock_core::ConfigError>(())
/// ```
///
/// With the feature `serde` it is also deserialized, with [the builder's](ConfigBuilder) names,
/// durations written as `"10s"`, and unknown fields refused:
///
/// ```toml
/// ttl = "10s"
/// retry_interval_base = "50ms"
/// retry_interval_max = "3s"
/// reconnection_interval_base = "100ms"
/// reconnection_interval_max = "750ms"
/// ring = "xxh3"
/// servers = [
///     "redis://10.0.0.1",
///     "rediss://locker:secret@10.0.0.2/1",
///     { host = "10.0.0.3", port = 6379, ssl = true, username = "locker", auth = "secret", database = 1 },
/// ]
/// # or instead of `servers`, groups of them, named or not:
/// # cluster = [{ name = "eu", servers = ["redis://eu-1"] }, ["redis://us-1"]]
/// ```
#[derive(Clone)]
pub struct Config {
    pub(crate) groups: Vec<CheckedGroup>,
    pub(crate) ttl: Duration,
    pub(crate) pool_size: usize,
    pub(crate) drift_factor: f64,
    pub(crate) max_retry: u32,
    pub(crate) retry_interval: Backoff,
    pub(crate) reconnection_interval: Backoff,
    pub(crate) node_deadline: Duration,
    pub(crate) key_prefix: Arc<[u8]>,
    pub(crate) label: Arc<str>,
    pub(crate) ring: RingScheme,
    pub(crate) max_waiters: usize,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) memory: bool,
    pub(crate) safety: Safety,
    pub(crate) max_ttl: Duration,
    pub(crate) epoch: u32,
    pub(crate) fleet: Option<String>,
    pub(crate) durable: bool,
    pub(crate) wake_up: WakeUp,
    pub(crate) max_clock_skew: Option<Duration>,
    pub(crate) checks: Checks,
}

impl Config {
    /// Locks on an odd number of independent servers: one, or better three or five.
    ///
    /// They are URLs or [`Server`]s. What is wrong with them is reported by
    /// [`build`](ConfigBuilder::build).
    pub fn servers(servers: impl IntoIterator<Item: Into<Server>>) -> ConfigBuilder {
        let servers = servers.into_iter().map(Into::into).collect();
        ConfigBuilder::new(vec![Group::unnamed(servers)], Place::Servers)
    }

    /// Spreads the keys over groups of servers. A lock is held on a majority of its group.
    pub fn cluster(groups: impl IntoIterator<Item: Into<Group>>) -> ConfigBuilder {
        ConfigBuilder::new(groups.into_iter().map(Into::into).collect(), Place::Cluster)
    }

    /// Locks within this process only, for demos and tests. Its clock is
    /// [`TokioClock`](crate::TokioClock) unless set.
    pub fn memory() -> ConfigBuilder {
        ConfigBuilder::memory()
    }

    /// Reads the servers from the environment variable `REDLOCK_SERVERS`: URLs with commas
    /// between servers and semicolons between groups. Everything else has its default.
    ///
    /// ```sh
    /// REDLOCK_SERVERS=redis://10.0.0.1,redis://10.0.0.2,redis://10.0.0.3
    /// ```
    ///
    /// A comma or semicolon in a password is written as `%2C` or `%3B`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the variable is not set or what it says can't be used.
    pub fn from_env() -> Result<Self, ConfigError> {
        match env::var(SERVERS_VARIABLE) {
            Ok(list) => Self::from_list(&list),
            Err(env::VarError::NotPresent) => Self::from_list(""),
            Err(env::VarError::NotUnicode(_)) => {
                Err(ConfigError::new(SERVERS_VARIABLE, "(not Unicode)", SERVERS_FIX))
            }
        }
    }

    pub(crate) fn from_list(list: &str) -> Result<Self, ConfigError> {
        if list.trim().is_empty() {
            return Err(ConfigError::new(SERVERS_VARIABLE, "(empty or not set)", SERVERS_FIX));
        }
        let group = |group: &str| Group::unnamed(group.split(',').map(Server::from).collect());
        ConfigBuilder::new(list.split(';').map(group).collect(), Place::Environment).build()
    }

    /// The defaults on the memory backend.
    pub(crate) fn in_memory() -> Self {
        ConfigBuilder::memory().finish(vec![builder::memory_group()])
    }

    /// The same by a clock of the caller's.
    #[cfg(feature = "test-util")]
    pub(crate) fn in_memory_by(clock: impl Clock) -> Self {
        ConfigBuilder::memory().clock(clock).finish(vec![builder::memory_group()])
    }

    /// How much of a lease may be lost to clocks.
    pub(crate) fn drift(&self) -> Drift {
        let max_skew = self.max_clock_skew.unwrap_or_default();
        Drift { factor: self.drift_factor, max_skew }
    }

    /// A TTL in the servers' unit, if it leaves any validity and no server that forgot the lock
    /// would vote within it.
    pub(crate) fn usable_ttl(&self, ttl: Duration) -> Result<Duration, ConfigError> {
        let usable = check::usable_ttl(ttl, self.drift(), self.node_deadline)?;
        if self.safety == Safety::Guarded && usable > self.max_ttl {
            let fix = format!(
                "it is longer than max_ttl, {:?}, after which a server that lost its data votes \
                 again: set a larger max_ttl in all processes, or a shorter ttl",
                self.max_ttl
            );
            return Err(ConfigError::new("ttl", format!("{ttl:?}"), fix));
        }
        Ok(usable)
    }

    /// For how long a server does not vote after it lost its data.
    pub(crate) fn quarantine(&self) -> Duration {
        self.max_ttl.saturating_add(self.drift().of(self.max_ttl))
    }

    /// What must be the same in all processes that share these servers: who votes on which key,
    /// and for how long a lock may last. Sixteen hexadecimal digits.
    pub(crate) fn fingerprint(&self) -> String {
        let mut text = format!("{:?};{}", self.ring, self.max_ttl.as_millis());
        for group in &self.groups {
            if self.groups.len() > 1 {
                text.push_str(&format!(";{:?}", group.name()));
            }
            let mut addresses: Vec<&str> =
                group.servers().iter().map(CheckedServer::address).collect();
            addresses.sort_unstable();
            match &self.fleet {
                Some(fleet) => text.push_str(&format!(";{fleet:?} {}", addresses.len())),
                None => text.push_str(&format!(";{addresses:?}")),
            }
        }
        format!("{:016x}", XxHash3_64::oneshot(text.as_bytes()))
    }

    #[cfg(test)]
    fn addresses(&self) -> Vec<Vec<&str>> {
        let groups = self.groups.iter().map(CheckedGroup::servers);
        groups.map(|servers| servers.iter().map(CheckedServer::address).collect()).collect()
    }

    /// How long a lock lasts if it is not extended.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// How many connections there are to each server.
    #[must_use]
    pub fn pool_size(&self) -> usize {
        self.pool_size
    }

    /// Which share of a lease may be lost to clocks that run at different rates.
    #[must_use]
    pub fn drift_factor(&self) -> f64 {
        self.drift_factor
    }

    /// How often a contended key is tried again.
    #[must_use]
    pub fn max_retry(&self) -> u32 {
        self.max_retry
    }

    /// Limits of the first and of all later pauses between tries.
    #[must_use]
    pub fn retry_interval(&self) -> (Duration, Duration) {
        (self.retry_interval.base, self.retry_interval.cap)
    }

    /// Limits of the first and of all later pauses before a server that is down is tried again.
    #[must_use]
    pub fn reconnection_interval(&self) -> (Duration, Duration) {
        (self.reconnection_interval.base, self.reconnection_interval.cap)
    }

    /// How long one server may take to answer.
    #[must_use]
    pub fn node_deadline(&self) -> Duration {
        self.node_deadline
    }

    /// What is put in front of every key on the servers.
    #[must_use]
    pub fn key_prefix(&self) -> &[u8] {
        &self.key_prefix
    }

    /// Who this process is to those who find a key locked.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// How keys are spread over the groups.
    #[must_use]
    pub fn ring(&self) -> RingScheme {
        self.ring
    }

    /// How much is made sure of.
    #[must_use]
    pub fn safety(&self) -> Safety {
        self.safety
    }

    /// The longest TTL of any lock on these servers.
    #[must_use]
    pub fn max_ttl(&self) -> Duration {
        self.max_ttl
    }

    /// By how much the clock of a server that votes may differ from this process's; `None` if nobody
    /// looks.
    #[must_use]
    pub fn max_clock_skew(&self) -> Option<Duration> {
        self.max_clock_skew
    }

    /// How many requests may wait for one key in this process.
    #[must_use]
    pub fn max_waiters(&self) -> usize {
        self.max_waiters
    }
}

const SERVERS_FIX: &str = "set it to the URLs of an odd number of servers, such as \
                           redis://10.0.0.1,redis://10.0.0.2,redis://10.0.0.3";

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("groups", &self.groups)
            .field("ttl", &self.ttl)
            .field("pool_size", &self.pool_size)
            .field("drift_factor", &self.drift_factor)
            .field("max_retry", &self.max_retry)
            .field("retry_interval", &self.retry_interval)
            .field("reconnection_interval", &self.reconnection_interval)
            .field("node_deadline", &self.node_deadline)
            .field("key_prefix", &String::from_utf8_lossy(&self.key_prefix))
            .field("label", &self.label)
            .field("ring", &self.ring)
            .field("max_waiters", &self.max_waiters)
            .field("clock", &self.clock)
            .field("memory", &self.memory)
            .field("safety", &self.safety)
            .field("max_ttl", &self.max_ttl)
            .field("epoch", &self.epoch)
            .field("fleet", &self.fleet)
            .field("durable", &self.durable)
            .field("wake_up", &self.wake_up)
            .field("max_clock_skew", &self.max_clock_skew)
            .field("checks", &self.checks)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let config = Config::servers(["redis://a", "redis://b", "redis://c"]).build().unwrap();
        let millis = Duration::from_millis;
        assert_eq!(config.ttl(), secs(10));
        assert_eq!(config.pool_size(), 1);
        assert!((config.drift_factor() - 0.01).abs() < f64::EPSILON);
        assert_eq!(config.max_retry(), 3);
        assert_eq!(config.retry_interval(), (millis(50), millis(3000)));
        assert_eq!(config.reconnection_interval(), (millis(100), millis(750)));
        assert_eq!(config.node_deadline(), millis(50));
        assert_eq!(config.key_prefix(), b"");
        assert_eq!(config.ring(), RingScheme::Xxh3);
        assert_eq!(config.max_waiters(), 1024);
        assert_eq!(config.max_clock_skew(), None);
        assert!(config.label().ends_with(&format!("/{}", std::process::id())));
        assert!(!config.memory);
    }

    #[test]
    fn the_memory_backend_takes_the_same_settings() {
        let config = Config::memory().ttl(secs(1)).label("test").build().unwrap();
        assert!(config.memory && config.ttl() == secs(1) && config.label() == "test");
        assert_eq!(config.groups.len(), 1);
        assert!(config.groups[0].servers().is_empty());
        let error = Config::memory().ttl(Duration::ZERO).build().unwrap_err();
        assert_eq!(error.field(), "ttl");
        let default = Config::in_memory();
        assert!(default.memory && default.ttl() == secs(10));
        assert!(default.usable_ttl(default.ttl()).is_ok());
    }

    #[test]
    fn a_list_has_commas_between_servers_and_semicolons_between_groups() {
        let config =
            Config::from_list(" redis://a, redis://b/1 ,rediss://u:p%2C%3B@c:7000").unwrap();
        assert_eq!(config.addresses(), [["a:6379/0", "b:6379/1", "c:7000/0"]]);
        let config = Config::from_list("redis://a;redis://b").unwrap();
        assert_eq!(config.addresses(), [["a:6379/0"], ["b:6379/0"]]);
    }

    #[test]
    fn a_bad_list_names_the_variable_the_value_and_the_fix() {
        for (list, field, value, fix) in [
            ("", "REDLOCK_SERVERS", "(empty or not set)", "redis://10.0.0.1,"),
            (" ", "REDLOCK_SERVERS", "(empty or not set)", "redis://10.0.0.1,"),
            ("redis://a,redis://b", "REDLOCK_SERVERS[0]", "2 servers", "name 1 or 3"),
            ("redis://a;redis://b,b,c", "REDLOCK_SERVERS[1][1]", "b", "redis://host:6379"),
            ("redis://a,redis://u:s3cret@b/x,c", "REDLOCK_SERVERS[0][1]", "u:***@b/x", "number"),
            ("redis://a,redis://b,", "REDLOCK_SERVERS[0][2]", " = :", "redis://host:6379"),
        ] {
            let error = Config::from_list(list).unwrap_err();
            assert_eq!(error.field(), field, "{list}");
            let shown = error.to_string();
            assert!(shown.contains(value) && shown.contains(fix), "{shown}");
            assert!(!shown.contains("s3cret"), "{shown}");
        }
    }

    #[test]
    fn no_password_in_what_a_configuration_shows() {
        let servers = ["redis://u:s3cret@a", "rediss://:s3cret@b/1", "redis://u:s3cret@c:1"];
        let group = Group::named("eu", servers);
        let builder = Config::cluster([group.clone()]);
        let config = builder.clone().build().unwrap();
        for shown in [format!("{group:?}"), format!("{builder:?}"), format!("{config:?}")] {
            assert!(shown.contains("b:6379/1") && !shown.contains("s3cret"), "{shown}");
        }
        let error = Config::cluster([Group::from(servers), Group::from(servers)]).build();
        let error = error.unwrap_err();
        assert_eq!(error.field(), "cluster[1].servers[0]");
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(shown.contains("a:6379/0") && !shown.contains("s3cret"), "{shown}");
        }
    }
}

//! Setting up a configuration, and refusing one that can't work.

use std::sync::Arc;
use std::time::Duration;

use super::check::{
    Place, check_groups, check_interval, check_key_prefix, check_label, check_max_clock_skew,
    check_max_ttl, check_node_deadline, usable_ttl, whole_millis,
};
use super::drift::Drift;
use super::safety::Checks;
use super::{
    Backoff, CheckPolicy, CheckedGroup, Config, ConfigError, Group, Safety, ServerCheck, WakeUp,
};
use crate::clock::{Clock, SystemClock, TokioClock};
use crate::ring::RingScheme;
use crate::token::MAX_LABEL_LEN;

const MAX_POOL_SIZE: usize = 64;
const NODE_DEADLINES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(5)..=Duration::from_millis(50);

/// A configuration in the making: see [`Config::servers`] and [`Config::cluster`].
///
/// Nothing is checked before [`build`](Self::build). What is not set:
///
/// | setting | default |
/// |---|---|
/// | [`ttl`](Self::ttl) | 10 s |
/// | [`max_ttl`](Self::max_ttl) | the TTL |
/// | [`drift_factor`](Self::drift_factor) | 0.01, and 2 ms |
/// | [`max_retry`](Self::max_retry) | 3 rounds after the first |
/// | [`retry_interval`](Self::retry_interval) | 50 ms to 3 s |
/// | [`reconnection_interval`](Self::reconnection_interval) | 100 ms to 750 ms |
/// | [`node_deadline`](Self::node_deadline) | a twentieth of the TTL, 5 ms to 50 ms |
/// | [`pool_size`](Self::pool_size) | 1 connection per server |
/// | [`key_prefix`](Self::key_prefix) | none |
/// | [`label`](Self::label) | host name and process id |
/// | [`ring`](Self::ring) | [`RingScheme::Xxh3`] |
/// | [`max_waiters`](Self::max_waiters) | 1024 per key |
/// | [`wake_up`](Self::wake_up) | [`WakeUp::Push`] |
/// | [`safety`](Self::safety) | [`Safety::Guarded`] |
/// | [`epoch`](Self::epoch), [`fleet`](Self::fleet) | 0, the addresses of the servers |
/// | [`durable`](Self::durable) | `false` |
/// | [`max_clock_skew`](Self::max_clock_skew) | nobody looks at the servers' clocks |
/// | [`check`](Self::check) | refuse, but `Version` warns and `Persistence` is ignored |
#[derive(Clone, Debug)]
#[must_use = "a configuration is made by .build()"]
pub struct ConfigBuilder {
    place: Place,
    groups: Vec<Group>,
    ttl: Duration,
    pool_size: usize,
    drift_factor: f64,
    max_retry: u32,
    pub(super) retry_interval: Backoff,
    pub(super) reconnection_interval: Backoff,
    node_deadline: Option<Duration>,
    key_prefix: String,
    label: Option<String>,
    ring: RingScheme,
    max_waiters: usize,
    clock: Option<Arc<dyn Clock>>,
    safety: Safety,
    max_ttl: Option<Duration>,
    epoch: u32,
    fleet: Option<String>,
    durable: bool,
    wake_up: WakeUp,
    max_clock_skew: Option<Duration>,
    checks: Checks,
}

impl ConfigBuilder {
    pub(super) fn new(groups: Vec<Group>, place: Place) -> Self {
        Self {
            place,
            groups,
            ttl: Duration::from_secs(10),
            pool_size: 1,
            drift_factor: 0.01,
            max_retry: 3,
            retry_interval: Backoff {
                base: Duration::from_millis(50),
                cap: Duration::from_secs(3),
            },
            reconnection_interval: Backoff {
                base: Duration::from_millis(100),
                cap: Duration::from_millis(750),
            },
            node_deadline: None,
            key_prefix: String::new(),
            label: None,
            ring: RingScheme::default(),
            max_waiters: 1024,
            clock: None,
            safety: Safety::default(),
            max_ttl: None,
            epoch: 0,
            fleet: None,
            durable: false,
            wake_up: WakeUp::default(),
            max_clock_skew: None,
            checks: Checks::default(),
        }
    }

    pub(super) fn memory() -> Self {
        Self::new(Vec::new(), Place::Memory)
    }

    /// How long a lock lasts if it is not extended. Default: 10 seconds. Fractions of a
    /// millisecond are cut off.
    ///
    /// It must be longer than the drift of the clocks plus two
    /// [node deadlines](Self::node_deadline), and at most 365 days.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How many connections to keep to each server, 1 to 64. Default: 1. More make locking faster
    /// only where one connection is saturated.
    pub fn pool_size(mut self, connections: usize) -> Self {
        self.pool_size = connections;
        self
    }

    /// Which share of a lease may be lost to clocks that run at different rates, from 0 to below
    /// 1. Default: 0.01. To it, 2 ms are added.
    pub fn drift_factor(mut self, factor: f64) -> Self {
        self.drift_factor = factor;
        self
    }

    /// How many rounds follow the first if that brings no lock, because somebody else has the key or
    /// because too few servers answered in time. Default: 3.
    ///
    /// Each round follows a pause of [`retry_interval`](Self::retry_interval), also while servers are
    /// known to be down, because they may recover during the pause.
    pub fn max_retry(mut self, retries: u32) -> Self {
        self.max_retry = retries;
        self
    }

    /// The pauses between tries: random, at most `base` the first time, then twice as long each
    /// time, at most `cap`. Default: 50 ms to 3 s. The base must be at least 1 ms, and no longer than
    /// the cap, which is at most 365 days.
    pub fn retry_interval(mut self, base: Duration, cap: Duration) -> Self {
        self.retry_interval = Backoff { base, cap };
        self
    }

    /// The pauses before a server that is down is tried again, in the same way and
    /// within the same bounds. Default: 100 ms to 750 ms.
    pub fn reconnection_interval(mut self, base: Duration, cap: Duration) -> Self {
        self.reconnection_interval = Backoff { base, cap };
        self
    }

    /// How long one server may take to answer before it counts as silent: at least 1 ms, and less
    /// than half of the TTL. Default: a twentieth of the TTL, at least 5 ms and at most 50 ms.
    ///
    /// It must be longer than the round trip to the server. The first connection takes several round
    /// trips, so the first commands wait up to 1 second for it.
    pub fn node_deadline(mut self, deadline: Duration) -> Self {
        self.node_deadline = Some(deadline);
        self
    }

    /// What to put in front of every key on the servers, at most 256 bytes. Default: nothing, so
    /// that other Redlock clients contend for the same keys.
    ///
    /// It neither contains [`Key::RESERVED`](crate::Key::RESERVED) nor ends in its beginning.
    pub fn key_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.key_prefix = prefix.into();
        self
    }

    /// Who this process is to those who find a key locked: 1 to 64 visible ASCII characters, no
    /// colon. Default: host name and process id, such as `web-1/4711`.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// How keys are spread over several groups. Default: [`RingScheme::Xxh3`].
    pub fn ring(mut self, scheme: RingScheme) -> Self {
        self.ring = scheme;
        self
    }

    /// How many requests may wait in line for one key in this process, at least 1. Default: 1024.
    /// One more is refused at once as contended.
    pub fn max_waiters(mut self, waiters: usize) -> Self {
        self.max_waiters = waiters;
        self
    }

    /// The clock that leases are measured on. Default: [`SystemClock`].
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// How much is made sure of. Default: [`Safety::Guarded`].
    pub fn safety(mut self, safety: Safety) -> Self {
        self.safety = safety;
        self
    }

    /// The longest TTL of any lock on these servers: a server that lost its data does not vote for
    /// that long, and the drift of the clocks. At least the TTL. Default: the TTL.
    ///
    /// It must be the same in all processes that share locks; see [`epoch`](Self::epoch) for how
    /// to change it. [`Safety::Plain`] has no such limit.
    pub fn max_ttl(mut self, ttl: Duration) -> Self {
        self.max_ttl = Some(ttl);
        self
    }

    /// The number of this configuration, to be raised when servers, groups, ring or
    /// [`max_ttl`](Self::max_ttl) change. Default: 0.
    ///
    /// Each server remembers what it was used for. A process with another list of servers and the
    /// same number, or with a smaller number, is refused there; the first with a larger number
    /// puts the server into quarantine for the longer of both `max_ttl`, and those with a smaller
    /// number are refused from then on.
    ///
    /// That keeps old and new processes apart if they have servers in common without which neither
    /// has a majority: replace, add or remove one server of a group at a time. Otherwise stop all
    /// old processes first. [`Safety::Plain`] knows no epochs.
    pub fn epoch(mut self, epoch: u32) -> Self {
        self.epoch = epoch;
        self
    }

    /// A name for these servers, for when not all processes know them by the same addresses.
    /// Default: their addresses. See [`epoch`](Self::epoch) for what it is compared for.
    pub fn fleet(mut self, name: impl Into<String>) -> Self {
        self.fleet = Some(name.into());
        self
    }

    /// Whether the servers keep whatever they have acknowledged, also when the power fails:
    /// `appendonly yes` with `appendfsync always` on disks that do as they are told. A restart is
    /// no reason for a quarantine then. Default: `false`.
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// How a request that waits for another process learns that the key may be free. Default:
    /// [`WakeUp::Push`].
    pub fn wake_up(mut self, wake_up: WakeUp) -> Self {
        self.wake_up = wake_up;
        self
    }

    /// By how much the wall clock of a server may differ from this process's, at least 1 ms. A server
    /// whose clock differs by more does not vote. Default: nobody looks.
    ///
    /// Servers drop keys by their wall clocks: one whose clock is set forward gives away what is
    /// locked. With this set, such a step does no harm as long as the clocks of fewer than a
    /// majority of the servers are wrong at the same time. Four times as much is taken off every
    /// lease, and the time for which a command is on its way to a server counts as a difference, so
    /// set it to a few times of both: `50ms` suits servers of one region that run NTP. Set it in all
    /// processes that share locks, or in none.
    ///
    /// If a majority of the servers agrees with this process about the time, a server that does not
    /// is also kept from voting for one [`max_ttl`](Self::max_ttl) after its clock is right again: it
    /// may have dropped keys in between. That nobody sees who does not ask that server while its
    /// clock is wrong. A process whose own clock is wrong gets no lock.
    ///
    /// Only for [`Safety::Guarded`].
    pub fn max_clock_skew(mut self, skew: Duration) -> Self {
        self.max_clock_skew = Some(skew);
        self
    }

    /// What becomes of a server that fails a check. Default: it is refused;
    /// [`Version`](ServerCheck::Version) only warns, and
    /// [`Persistence`](ServerCheck::Persistence) is ignored.
    ///
    /// Without the right to ask (`+info`) there is nothing to check.
    pub fn check(mut self, check: ServerCheck, policy: CheckPolicy) -> Self {
        self.checks.set(check, policy);
        self
    }

    /// Checks everything and makes the configuration. No server is contacted.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for the first setting that can't be used.
    pub fn build(self) -> Result<Config, ConfigError> {
        self.check_settings()?;
        let groups = match self.place {
            Place::Memory => vec![memory_group()],
            Place::Servers | Place::Cluster | Place::Environment => {
                check_groups(self.place, &self.groups)?
            }
        };
        Ok(self.finish(groups))
    }

    /// What was checked becomes a configuration.
    pub(super) fn finish(self, groups: Vec<CheckedGroup>) -> Config {
        let memory = self.place == Place::Memory;
        let clock = self.clock.clone().unwrap_or_else(|| match memory {
            true => Arc::new(TokioClock::default()),
            false => Arc::new(SystemClock::new()),
        });
        Config {
            node_deadline: self.effective_node_deadline(),
            ttl: whole_millis(self.ttl),
            groups,
            pool_size: self.pool_size,
            drift_factor: self.drift_factor,
            max_retry: self.max_retry,
            retry_interval: self.retry_interval,
            reconnection_interval: self.reconnection_interval,
            key_prefix: self.key_prefix.into_bytes().into(),
            label: self.label.unwrap_or_else(default_label).into(),
            ring: self.ring,
            max_waiters: self.max_waiters,
            clock,
            memory,
            safety: self.safety,
            max_ttl: whole_millis(self.max_ttl.unwrap_or(self.ttl)),
            epoch: self.epoch,
            fleet: self.fleet,
            durable: self.durable,
            wake_up: self.wake_up,
            max_clock_skew: self.max_clock_skew,
            checks: self.checks,
        }
    }

    fn effective_node_deadline(&self) -> Duration {
        let (least, most) = (*NODE_DEADLINES.start(), *NODE_DEADLINES.end());
        self.node_deadline.unwrap_or_else(|| (self.ttl / 20).clamp(least, most))
    }

    fn check_settings(&self) -> Result<(), ConfigError> {
        if !(0.0..1.0).contains(&self.drift_factor) {
            let fix = "it is a share of the lease, from 0 to below 1; 0.01 suits most clocks";
            return Err(ConfigError::new("drift_factor", self.drift_factor, fix));
        }
        if let Some(deadline) = self.node_deadline {
            check_node_deadline(deadline, self.ttl)?;
        }
        if let Some(skew) = self.max_clock_skew {
            check_max_clock_skew(skew, self.safety)?;
        }
        let max_skew = self.max_clock_skew.unwrap_or_default();
        let drift = Drift { factor: self.drift_factor, max_skew };
        usable_ttl(self.ttl, drift, self.effective_node_deadline())?;
        if let Some(max_ttl) = self.max_ttl {
            check_max_ttl(max_ttl, self.ttl)?;
        }
        if !(1..=MAX_POOL_SIZE).contains(&self.pool_size) {
            let fix = format!("a server needs 1 to {MAX_POOL_SIZE} connections; 1 suits most");
            return Err(ConfigError::new("pool_size", self.pool_size, fix));
        }
        check_interval("retry_interval", self.retry_interval)?;
        check_interval("reconnection_interval", self.reconnection_interval)?;
        check_key_prefix(&self.key_prefix)?;
        if let Some(label) = &self.label {
            check_label(label)?;
        }
        if self.max_waiters == 0 {
            let fix = "nobody could ever wait for a key: allow at least 1";
            return Err(ConfigError::new("max_waiters", 0, fix));
        }
        Ok(())
    }
}

/// The group of the memory backend; it has no servers.
pub(super) fn memory_group() -> CheckedGroup {
    CheckedGroup::new("memory", Vec::new())
}

/// Host name and process id, as far as a label can have them.
fn default_label() -> String {
    let process = std::process::id();
    match host_name() {
        Some(host) => label_of_host(&host, process),
        None => format!("pid/{process}"),
    }
}

fn label_of_host(host: &str, process: u32) -> String {
    let process = format!("/{process}");
    let host = host.chars().map(|c| if c.is_ascii_graphic() && c != ':' { c } else { '-' });
    host.take(MAX_LABEL_LEN - process.len()).chain(process.chars()).collect()
}

#[cfg(target_os = "linux")]
fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    (!name.is_empty()).then_some(name)
}

#[cfg(not(target_os = "linux"))]
fn host_name() -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::token::is_label;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn one() -> ConfigBuilder {
        Config::servers(["redis://a"])
    }

    #[track_caller]
    fn assert_refused(builder: ConfigBuilder, field: &str, value: &str, fix: &str) {
        let error = builder.build().unwrap_err();
        assert_eq!(error.field(), field);
        let shown = error.to_string();
        assert!(shown.starts_with(&format!("{field} = {value}: ")), "{shown}");
        assert!(shown.contains(fix), "{shown}");
    }

    #[test]
    fn a_group_has_an_odd_number_of_servers() {
        let servers = |count| Config::servers((0..count).map(|i| format!("redis://h{i}")));
        assert_refused(servers(0), "servers", "0 servers", "three or five");
        assert_refused(servers(2), "servers", "2 servers", "name 1 or 3");
        assert_refused(servers(4), "servers", "4 servers", "no more failures than one fewer");
        assert_refused(servers(65), "servers", "65 servers", "at most 63");
        assert_refused(servers(64), "servers", "64 servers", "at most 63");
        for count in [1, 3, 5, 63] {
            assert!(servers(count).build().is_ok());
        }
        let even = Config::cluster([vec!["redis://a"], vec!["redis://b", "redis://c"]]);
        assert_refused(even, "cluster[1]", "2 servers", "name 1 or 3");
    }

    #[test]
    fn a_cluster_has_a_group() {
        let none: [Group; 0] = [];
        assert_refused(Config::cluster(none), "cluster", "(empty)", "at least one");
    }

    #[test]
    fn a_server_has_one_vote() {
        let same = ["redis://a/0", "redis://b", "rediss://u:p@A:6379/1"];
        assert_refused(
            Config::servers(same),
            "servers[2]",
            "a:6379/1",
            "same server as servers[0], also if the database differs",
        );
        let across = Config::cluster([Group::named("x", ["redis://a"]), ["redis://a/1"].into()]);
        let first = "same server as cluster[0].servers[0]";
        assert_refused(across, "cluster[1].servers[0]", "a:6379/1", first);
        assert!(Config::servers(["redis://a:1", "redis://a:2", "redis://a:3"]).build().is_ok());
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_has_one_vote() {
        let same = ["unix:///s?db=1", "redis://s", "redis+unix:///s"];
        let builder = Config::servers(same);
        assert_refused(builder, "servers[2]", "unix:/s/0", "same server as servers[0]");
    }

    #[test]
    fn groups_have_different_names() {
        let groups = |name, other| {
            Config::cluster([Group::named(name, ["redis://a"]), Group::named(other, ["redis://b"])])
        };
        assert!(groups("eu", "us").build().is_ok());
        assert_refused(groups("eu", "eu"), "cluster[1].name", "eu", "cluster[0] has the same name");
        assert_refused(groups("eu", ""), "cluster[1].name", "(empty)", "give it a name");
    }

    #[test]
    fn a_bad_server_is_reported_by_its_place() {
        let bad = Config::servers(["redis://a", "bad", "redis://c"]);
        assert_refused(bad, "servers[1]", "***", "redis://host:6379");
        let bad = Config::cluster([["redis://u:secret@a/x"]]);
        assert_refused(bad, "cluster[0].servers[0]", "redis://***", "a number");
    }

    #[test]
    fn a_ttl_leaves_validity() {
        assert_refused(one().ttl(Duration::ZERO), "ttl", "0ns", "at least 1ms");
        assert_refused(one().ttl(Duration::from_micros(999)), "ttl", "999µs", "at least 1ms");
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        assert!(one().ttl(year).build().is_ok());
        assert_refused(one().ttl(year + millis(1)), "ttl", "31536000.001s", "a year");
        let short = one().ttl(millis(100)).node_deadline(millis(49)).drift_factor(0.5);
        assert_refused(short.clone(), "ttl", "100ms", "drift of the clocks, 52ms");
        assert_refused(short.clone(), "ttl", "100ms", "two node deadlines of 49ms");
        assert_refused(short.clone(), "ttl", "100ms", "a ttl of at least 201ms");
        assert!(short.clone().ttl(millis(201)).build().is_ok());
        assert!(short.ttl(millis(200)).build().is_err());
        let default = "two node deadlines of 5ms";
        assert_refused(one().ttl(millis(12)), "ttl", "12ms", default);
        assert!(one().ttl(millis(13)).build().is_ok());
    }

    #[test]
    fn fractions_of_a_millisecond_do_not_count() {
        let config = one().ttl(Duration::from_micros(1_000_999)).build().unwrap();
        assert_eq!(config.ttl(), Duration::from_secs(1));
        assert!(one().ttl(Duration::from_micros(12_999)).build().is_err());
    }

    #[test]
    fn the_node_deadline_follows_the_ttl() {
        let deadline = |ttl| one().ttl(millis(ttl)).build().unwrap().node_deadline();
        assert_eq!(deadline(10_000), millis(50));
        assert_eq!(deadline(1000), millis(50));
        assert_eq!(deadline(400), millis(20));
        assert_eq!(deadline(50), millis(5));
    }

    #[test]
    fn a_node_deadline_fits_the_ttl() {
        assert_refused(one().node_deadline(Duration::ZERO), "node_deadline", "0ns", "milliseconds");
        let half = one().node_deadline(Duration::from_secs(5));
        assert_refused(half, "node_deadline", "5s", "less than half of the ttl, 10s");
        assert!(one().node_deadline(millis(4900)).build().is_ok());
    }

    #[test]
    fn a_drift_factor_is_a_share() {
        for (factor, value) in
            [(1.0, "1"), (-0.1, "-0.1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")]
        {
            assert_refused(one().drift_factor(factor), "drift_factor", value, "from 0 to below 1");
        }
        assert!(one().drift_factor(0.0).build().is_ok());
    }

    #[test]
    fn a_pool_has_one_to_64_connections() {
        assert_refused(one().pool_size(0), "pool_size", "0", "1 to 64");
        assert_refused(one().pool_size(65), "pool_size", "65", "1 to 64");
        assert!(one().pool_size(64).build().is_ok());
    }

    #[test]
    fn pauses_have_a_base_up_to_the_cap() {
        let (base, cap) = (millis(2), millis(1));
        let zero = Duration::ZERO;
        let value = "0ns to 1ms";
        assert_refused(one().retry_interval(zero, cap), "retry_interval", value, "at least 1ms");
        let builder = one().reconnection_interval(zero, cap);
        assert_refused(builder, "reconnection_interval", value, "at least 1ms");
        let value = "2ms to 1ms";
        assert_refused(one().retry_interval(base, cap), "retry_interval", value, "up to the cap");
        let builder = one().reconnection_interval(base, cap);
        assert_refused(builder, "reconnection_interval", value, "up to the cap");
        assert!(one().retry_interval(cap, cap).max_retry(u32::MAX).build().is_ok());
    }

    #[test]
    fn a_prefix_has_at_most_256_bytes() {
        let prefix = |len| one().key_prefix("p".repeat(len));
        assert_refused(prefix(257), "key_prefix", "257 bytes", "at most 256");
        assert_eq!(prefix(256).build().unwrap().key_prefix().len(), 256);
    }

    #[test]
    fn a_prefix_that_some_key_makes_a_name_of_the_library_is_refused() {
        for prefix in ["{redlock}", "a{redlock}:", "{", "app:{redlock"] {
            let builder = one().key_prefix(prefix);
            let value = format!("{prefix:?}");
            assert_refused(builder, "key_prefix", &value, "end the prefix in a colon");
        }
        for prefix in ["redlock:", "{redlock:", "{app}:", "redlock}"] {
            assert_eq!(one().key_prefix(prefix).build().unwrap().key_prefix(), prefix.as_bytes());
        }
    }

    #[test]
    fn a_label_fits_into_a_token() {
        let long = "l".repeat(65);
        for (label, value) in [
            ("", "\"\" (0 bytes)"),
            ("a:b", "\"a:b\" (3 bytes)"),
            ("a b", "\"a b\" (3 bytes)"),
            ("\n", "\"\\n\" (1 bytes)"),
            ("ä", "\"ä\" (2 bytes)"),
            (&long, &format!("\"{}\" (65 bytes)", "l".repeat(64))),
        ] {
            assert_refused(one().label(label), "label", value, "1 to 64 visible ASCII");
        }
        assert_eq!(&*one().label(&long[1..]).build().unwrap().label, &long[1..]);
    }

    #[test]
    fn somebody_may_wait() {
        assert_refused(one().max_waiters(0), "max_waiters", "0", "at least 1");
    }

    #[test]
    fn the_given_clock_is_used() {
        #[derive(Debug)]
        struct Stopped;
        impl Clock for Stopped {
            fn now(&self) -> crate::clock::Moment {
                crate::clock::Moment::from_origin(millis(42))
            }
        }
        let config = one().clock(Stopped).build().unwrap();
        assert_eq!(config.clock.now(), crate::clock::Moment::from_origin(millis(42)));
    }

    #[test]
    fn a_clock_skew_leaves_something_of_the_lease_and_needs_the_guarded_mode() {
        assert_refused(
            one().max_clock_skew(Duration::ZERO),
            "max_clock_skew",
            "0ns",
            "at least 1ms",
        );
        let plain = one().max_clock_skew(millis(50)).safety(Safety::Plain);
        assert_refused(plain, "max_clock_skew", "50ms", "guarded");
        let short = one().ttl(millis(200)).max_clock_skew(millis(50));
        assert_refused(short, "ttl", "200ms", "a smaller max_clock_skew");
        let config = one().max_clock_skew(millis(50)).build().unwrap();
        assert_eq!(config.max_clock_skew(), Some(millis(50)));
        assert_eq!(config.quarantine(), millis(10_302));
    }

    proptest! {
        #[test]
        fn the_default_label_is_a_label(host in "\\PC{0,100}", process: u32) {
            let label = label_of_host(&host, process);
            prop_assert!(is_label(&label), "{}", label);
            let end = format!("/{process}");
            prop_assert!(label.ends_with(&end));
        }

        #[test]
        fn a_usable_ttl_outlives_drift_and_two_deadlines(
            ttl in 0_u64..100_000_000,
            factor in -0.5..1.5,
            deadline in 0_u64..100_000,
        ) {
            let (ttl, deadline) = (Duration::from_micros(ttl), millis(deadline));
            if let Ok(config) = one().ttl(ttl).drift_factor(factor).node_deadline(deadline).build() {
                prop_assert!(config.ttl() <= ttl);
                prop_assert!(config.ttl() > config.drift().of(config.ttl()) + 2 * deadline);
            }
        }

        #[test]
        fn the_advised_ttl_is_accepted(
            factor in 0.0..0.99,
            skew in 0_u64..1_000,
            deadline in 1_u64..100_000,
        ) {
            let drift = Drift { factor, max_skew: millis(skew) };
            let error = usable_ttl(millis(1), drift, millis(deadline)).unwrap_err().to_string();
            let (_, advice) = error.split_once("a ttl of at least ").unwrap();
            let (advice, _) = advice.split_once("ms").unwrap();
            let advised = millis(advice.parse().unwrap());
            prop_assert!(usable_ttl(advised, drift, millis(deadline)).is_ok(), "{}", error);
        }
    }
}

//! What the servers are trusted with, and what is made sure of.

/// How much a lock relies on its servers to remember.
///
/// Both modes keep the token under the same key, so that they exclude each other and other Redlock
/// clients; all processes that share locks should use the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Safety {
    /// The default. A server that lost its data does not vote until every lock that it may have
    /// forgotten has run out: it was restarted, flushed, restored, or is a replica that was
    /// promoted. Every lock carries a [fencing token](crate::FencingToken).
    ///
    /// Each server keeps one key more, the prefix and `{redlock}:node`, of at most a hundred
    /// kilobytes. Servers that were never used are quarantined as well, for one
    /// [`max_ttl`](crate::ConfigBuilder::max_ttl): see [`Redlock::provision`](crate::Redlock::provision)
    /// and [`Redlock::connect`](crate::Redlock::connect).
    #[default]
    Guarded,
    /// The published algorithm, nothing else is stored: a server that restarts without its data
    /// votes at once and may give away what is locked. There are no fencing tokens.
    Plain,
}

/// What is asked of a server when it is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ServerCheck {
    /// It is a primary: a replica forgets writes when it next syncs.
    Role,
    /// It is not another of the servers under a second name: that would count its vote twice.
    Identity,
    /// It is a server by itself: the nodes of a Redis Cluster are not independent.
    Mode,
    /// It never evicts keys: `maxmemory` is 0, or `maxmemory-policy` is `noeviction`.
    Eviction,
    /// It is Redis 6.2 or later, or Valkey: older ones were not tested.
    Version,
    /// It writes an append-only file, so that a restart does not lose every lock.
    Persistence,
}

/// What becomes of a server that fails a [`ServerCheck`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CheckPolicy {
    /// It does not vote, and says why.
    Refuse,
    /// It votes; a warning is logged whenever it is connected to.
    Warn,
    /// It votes.
    Ignore,
}

/// A policy for every check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checks([CheckPolicy; 6]);

impl Default for Checks {
    fn default() -> Self {
        let mut checks = Self([CheckPolicy::Refuse; 6]);
        checks.set(ServerCheck::Version, CheckPolicy::Warn);
        // A server that loses its data is kept from voting, which is all that a lock needs.
        checks.set(ServerCheck::Persistence, CheckPolicy::Ignore);
        checks
    }
}

impl Checks {
    pub(super) fn set(&mut self, check: ServerCheck, policy: CheckPolicy) {
        self.0[check as usize] = policy;
    }

    pub(crate) fn policy(&self, check: ServerCheck) -> CheckPolicy {
        self.0[check as usize]
    }
}

//! Fencing tokens, and what one process knows of them.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use twox_hash::XxHash3_64;

use crate::key::Key;
pub use crate::protocol::fence::FenceBasis;

/// Counters per server. Keys share them: a counter for each key that was ever locked would grow
/// without end.
pub(crate) const BUCKETS: u64 = 1024;

/// A number that is larger for every later lock of a key.
///
/// A process that was paused, or a network that was slow, can still bring a write of somebody who
/// has lost the lock. The store that is written to can tell: it remembers the largest token that
/// it has seen and refuses smaller ones.
///
/// For one key, no two locks have the same token, and a lock that was asked for after another was
/// won has the larger one, *whatever clocks, pauses and networks do*, as long as a majority of the
/// servers keeps its data or stays away for as long as a lock may last. Tokens of different keys
/// say nothing about each other, and there are gaps. A token is below 2^53, so that it survives
/// JSON, a `BIGINT` and a script of Redis.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
/// # let redlock = redlock_core::Redlock::in_memory();
/// let first = redlock.lock("account:7").await?;
/// let earlier = first.fencing_token();
/// first.release().await;
///
/// let second = redlock.lock("account:7").await?;
/// assert!(second.fencing_token() > earlier);
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The token of a number that was [`get`](Self::get) before: from a header, say.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FencingToken {
    type Err = ParseIntError;

    fn from_str(number: &str) -> Result<Self, ParseIntError> {
        number.parse().map(Self)
    }
}

/// A token, and what makes it larger than earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    pub(crate) token: FencingToken,
    pub(crate) basis: FenceBasis,
}

/// Which of the counters of a server is the one of `key`, given with its prefix.
pub(crate) fn bucket_of(key: &Key) -> u64 {
    XxHash3_64::oneshot(key.as_bytes()) % BUCKETS
}

/// The largest tokens that this process has seen, per counter of a group.
///
/// With them, and the wall clock, it proposes what all nodes can agree on in one round trip.
/// Nothing relies on either: a proposal that is too small costs a second one.
#[derive(Debug)]
pub(crate) struct Highest(Box<[AtomicU64]>);

impl Default for Highest {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Highest {
    /// What to raise the counter of `key` to, at the time `unix_micros`.
    pub(crate) fn propose(&self, key: &Key, unix_micros: u64) -> u64 {
        let seen = self.0[bucket_of(key) as usize].load(Ordering::Relaxed);
        unix_micros.max(seen.saturating_add(1))
    }

    pub(crate) fn observe(&self, key: &Key, token: u64) {
        self.0[bucket_of(key) as usize].fetch_max(token, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_is_the_time_or_one_more_than_was_seen() {
        let (highest, key) = (Highest::default(), Key::new("k").unwrap());
        assert_eq!(highest.propose(&key, 100), 100);
        highest.observe(&key, 500);
        highest.observe(&key, 400);
        assert_eq!(highest.propose(&key, 100), 501);
        assert_eq!(highest.propose(&key, 1_000), 1_000);
    }

    /// Processes of different builds must count in the same place.
    #[test]
    fn the_bucket_of_a_key_never_changes() {
        let bucket = |key: &str| bucket_of(&Key::new(key).unwrap());
        assert_eq!([bucket("order:42"), bucket("account:7"), bucket("a")], [197, 842, 543]);
    }

    #[test]
    fn a_token_survives_as_text() {
        let token = FencingToken::new(1_764_000_000_000_000);
        assert_eq!(token.to_string().parse(), Ok(token));
        assert!("-1".parse::<FencingToken>().is_err());
    }
}

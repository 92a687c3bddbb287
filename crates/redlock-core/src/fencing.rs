//! Fencing tokens, and how that which is written to checks them.
//!
//! A lock ends by time. Whoever holds it may be paused right before a write, and the write may be
//! slow on its way: it then arrives when somebody else has the lock. So the [`FencingToken`] of
//! the lock goes along with the write, and the store refuses one that is smaller than what it has
//! seen. A token that nobody checks is worth nothing.
//!
//! # In SQL
//!
//! One more column for what the key of the lock names, say `fence BIGINT NOT NULL DEFAULT 0`,
//! checked and set by the statement that writes:
//!
//! ```sql
//! UPDATE accounts SET balance = $balance, fence = $token
//!  WHERE id = $id AND fence <= $token
//! ```
//!
//! If it affected no row, a later lock has written: roll back, and tell the caller so.
//!
//! - **`<=`, not `<`**: no two locks of a key share a token, so an equal one is of this very lock,
//!   which may well write twice. That the same write does not come twice is the task of a unique
//!   key, not of the token.
//! - **Write before you read**: a holder that decides by what it reads sets `fence` first, in the
//!   same transaction or in one before. Until then an earlier holder can still write, also between
//!   the reading and the writing of the later one.
//! - **A column for each lock**: tokens of different keys say nothing about each other. What is
//!   written under the lock of an account and also under that of a payment has two fences.
//! - **Keep the row**: with a row that is deleted its fence is gone, and a late writer that inserts
//!   where nothing is would not be noticed.
//!
//! The [payments example](https://github.com/redlock-rs/redlock/tree/main/examples/payments) does
//! this on SQLite.
//!
//! # In Redis
//!
//! [`FENCED_HSET`] is `HSET` with that check. The token is one of the fields, so that it is kept,
//! copied and lost together with what it protects.
//!
//! ```no_run
//! use redlock_core::fencing::{FENCED_HSET, FencingToken};
//!
//! /// `false`: a later lock has written.
//! async fn mark_as_paid(
//!     redis: &mut redis::aio::MultiplexedConnection,
//!     token: FencingToken,
//! ) -> redis::RedisResult<bool> {
//!     let write = redis::Script::new(FENCED_HSET);
//!     write.key("invoice:7").arg(token.get()).arg("state").arg("paid").invoke_async(redis).await
//! }
//! ```
//!
//! # Over HTTP
//!
//! The token is sent in a header, `Fencing-Token: 1764000000000000`, and the service that gets the
//! request checks it: `tower_redlock::fencing` has both sides.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use twox_hash::XxHash3_64;

use crate::key::Key;
pub use crate::protocol::fence::FenceBasis;

/// A script that writes fields of a hash in Redis or Valkey, unless a later lock has done so.
///
/// Its key is the hash, its arguments are the token and each field with its value. It answers 1,
/// or 0 if it wrote nothing because the field `fence`, where it keeps the token, is larger. See
/// [the module](self#in-redis) for how to call it.
pub const FENCED_HSET: &str = include_str!("fencing/hset.lua");

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
/// JSON, a `BIGINT` and a script of Redis. [How a store checks it](crate::fencing).
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
/// second.release().await;
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

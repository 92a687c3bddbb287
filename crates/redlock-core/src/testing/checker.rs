//! A checker that knows when two held the same lock.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use crate::fencing::{FenceBasis, FencingToken};
use crate::lease::Lease;
use crate::protocol::tenure::LeaseState;

/// Notes who held which lock, and when. Cheap to clone; clones share what they note.
///
/// A hold lasts from [`enter`](Self::enter) until the [`Hold`] is dropped, or until its lease
/// ends if that comes first: work that is still done then is excluded by no lock.
///
/// See [the module](crate::testing) for an example.
#[derive(Clone, Debug)]
pub struct Checker {
    began: Instant,
    noted: Arc<Mutex<Noted>>,
}

#[derive(Debug, Default)]
struct Noted {
    holds: usize,
    violations: Vec<Violation>,
    keys: BTreeMap<String, Line>,
}

/// What is known of one key.
#[derive(Debug, Default)]
struct Line {
    inside: Vec<(usize, Lease)>,
    largest: Option<FencingToken>,
}

/// What must not happen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// Two held the same lock at once.
    Overlap {
        /// The lock.
        key: String,
        /// When the second came in, since the checker was made.
        at: Duration,
        /// Who was in, by the label of its token.
        first: Arc<str>,
        /// Who came in.
        second: Arc<str>,
    },
    /// A later lock had no larger fencing token, although a majority of the servers remembered
    /// the earlier ones.
    Token {
        /// The lock.
        key: String,
        /// When the second came in, since the checker was made.
        at: Duration,
        /// The largest token before.
        earlier: FencingToken,
        /// The token of the later lock.
        later: FencingToken,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { key, at, first, second } => {
                write!(f, "{key} was held by {first} when {second} got it, at {at:?}")
            }
            Self::Token { key, at, earlier, later } => {
                write!(f, "{key} was got with token {later} after {earlier}, at {at:?}")
            }
        }
    }
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Checker {
    /// A checker that has seen nothing so far.
    #[must_use]
    pub fn new() -> Self {
        Self { began: Instant::now(), noted: Arc::default() }
    }

    /// Notes that somebody works under the lock of `key` from now on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use redlock_core::testing::{Checker, Cluster};
    /// let (cluster, checker) = (Cluster::new(3), Checker::new());
    /// let guard = cluster.redlock().lock("order:42").await?;
    /// let hold = checker.enter("order:42", guard.lease());
    /// // the work
    /// drop(hold);
    /// guard.release().await;
    /// checker.assert_exclusive();
    /// # Ok(()) }
    /// ```
    pub fn enter(&self, key: &str, lease: &Lease) -> Hold {
        let mut noted = self.noted.lock();
        let Noted { violations, holds, keys } = &mut *noted;
        *holds += 1;
        let (number, key, at) = (*holds, key.to_owned(), self.began.elapsed());
        let line = keys.entry(key.clone()).or_default();
        // By the clock of each holder: what it believes is what it acts on.
        for (_, other) in line.inside.iter().filter(|(_, other)| is_valid(other) && is_valid(lease))
        {
            let [first, second] = [other, lease].map(|lease| lease.token().label().into());
            violations.push(Violation::Overlap { key: key.clone(), at, first, second });
        }
        if let Some(later) = lease.fencing_token() {
            // Where a majority forgot the earlier ones, tokens begin anew by the clock.
            let remembered = lease.fence_basis() == Some(FenceBasis::Majority);
            let earlier = line.largest.filter(|earlier| remembered && later <= *earlier);
            if let Some(earlier) = earlier {
                violations.push(Violation::Token { key: key.clone(), at, earlier, later });
            }
            line.largest = Some(later).max(line.largest.filter(|_| remembered));
        }
        line.inside.push((number, lease.clone()));
        drop(noted);
        Hold { noted: Arc::clone(&self.noted), key, number }
    }

    /// How many holds were noted.
    #[must_use]
    pub fn holds(&self) -> usize {
        self.noted.lock().holds
    }

    /// What happened so far that must not happen.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.noted.lock().violations.clone()
    }

    /// Fails if two held the same lock at once, or if the fencing tokens did not grow.
    ///
    /// # Panics
    ///
    /// If that was so; the message says who, what and when.
    #[track_caller]
    pub fn assert_exclusive(&self) {
        let violations = self.violations();
        let all: Vec<String> = violations.iter().map(Violation::to_string).collect();
        assert!(violations.is_empty(), "{} violations:\n{}", all.len(), all.join("\n"));
    }
}

fn is_valid(lease: &Lease) -> bool {
    matches!(lease.state(), LeaseState::Held | LeaseState::Jeopardy)
}

/// Somebody who works under a lock; dropped when they leave.
#[derive(Debug)]
#[must_use = "a hold ends as soon as it is dropped, with `let _` at once: name it"]
pub struct Hold {
    noted: Arc<Mutex<Noted>>,
    key: String,
    number: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(line) = self.noted.lock().keys.get_mut(&self.key) {
            line.inside.retain(|(number, _)| *number != self.number);
        }
    }
}

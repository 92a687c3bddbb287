//! How those who wait for one key in different processes keep out of each other's way.
//!
//! All of them are told at once that it is free, and if three or more ask for it together none may
//! get a majority. So each looks away for a short time, and asks only if it is free then: at random,
//! for a shorter time if it was passed over, and the longer the more there are. How many there are
//! shows in how often asking was in vain.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::fencing::{BUCKETS, bucket_of};
use crate::key::Key;

/// The longest that somebody looks away who has just come and knows of no others.
const LONGEST: Duration = Duration::from_millis(1);

/// It is doubled at most so often.
const MOST_DOUBLINGS: u32 = 6;

/// How many others there are for a key, as a logarithm of sorts. Keys share what is known.
#[derive(Debug)]
pub(crate) struct Crowds(Box<[AtomicU32]>);

impl Default for Crowds {
    fn default() -> Self {
        Self((0..BUCKETS).map(|_| AtomicU32::new(0)).collect())
    }
}

impl Crowds {
    /// For one who may have to wait.
    pub(crate) fn around<'c>(&'c self, full_key: &'c Key) -> Deference<'c> {
        Deference { crowds: self, full_key, passed_over: AtomicU32::new(0) }
    }
}

/// How one who waits behaves.
#[derive(Debug)]
pub(crate) struct Deference<'c> {
    crowds: &'c Crowds,
    full_key: &'c Key,
    passed_over: AtomicU32,
}

impl Deference<'_> {
    /// For how long to look away, in which somebody else may take the key.
    pub(crate) fn pause(&self) -> Duration {
        let longer = self.crowd().load(Ordering::Relaxed);
        let shorter = self.passed_over.load(Ordering::Relaxed).min(2);
        LONGEST.mul_f64(fastrand::f64()) * (1 << longer) / (1 << shorter)
    }

    /// Somebody else took the key meanwhile.
    pub(crate) fn passed_over(&self) {
        self.passed_over.fetch_add(1, Ordering::Relaxed);
    }

    /// The key was asked for as it was free: it was won, or others had seen the same.
    pub(crate) fn asked(&self, won: bool) {
        let crowd = self.crowd().load(Ordering::Relaxed);
        let crowd = if won { crowd.saturating_sub(1) } else { (crowd + 1).min(MOST_DOUBLINGS) };
        self.crowd().store(crowd, Ordering::Relaxed);
    }

    /// Looked up by those who wait only: most locks are had at once.
    fn crowd(&self) -> &AtomicU32 {
        &self.crowds.0[bucket_of(self.full_key) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn longest_of(deference: &Deference<'_>) -> Duration {
        (0..1_000).map(|_| deference.pause()).max().unwrap()
    }

    #[test]
    fn who_was_passed_over_looks_away_for_a_shorter_time_and_in_a_crowd_all_do_for_longer() {
        let (crowds, key) = (Crowds::default(), Key::new("k").unwrap());
        let deference = crowds.around(&key);
        let at_first = longest_of(&deference);
        assert!(at_first <= LONGEST && at_first > LONGEST / 2);
        for _ in 0..10 {
            deference.passed_over();
        }
        assert!(longest_of(&deference) <= LONGEST / 4);
        for _ in 0..100 {
            deference.asked(false);
        }
        let next = crowds.around(&key);
        assert!(longest_of(&next) > 32 * LONGEST && longest_of(&next) <= 64 * LONGEST);
        for _ in 0..MOST_DOUBLINGS {
            next.asked(true);
        }
        assert!(longest_of(&next) <= LONGEST);
    }
}

//! One attempt to take a key: when it began, what it may keep, and until when.

use std::time::Duration;

use super::quorum::Verdict;
use crate::clock::Moment;

/// The terms of one attempt. Its token is used for this attempt only (H12).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    /// Just before the first byte was sent: what servers count later can only be later.
    pub(crate) started: Moment,
    pub(crate) ttl: Duration,
    /// How much the clocks of servers and client may disagree over one TTL.
    pub(crate) drift: Duration,
}

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Ours until then. Anything else is to be released on every node that may have executed it.
    Won { valid_until: Moment },
    /// A majority answered and it is somebody else's.
    Contended,
    /// No majority answered.
    Unavailable,
    /// A majority granted, but it took longer than the lease allows.
    Expired,
}

impl Attempt {
    /// The end of the lease if a majority grants it.
    pub(crate) fn valid_until(&self) -> Moment {
        self.started + self.ttl.saturating_sub(self.drift)
    }

    /// Judges the verdict of the nodes as it is learned at `now`.
    pub(crate) fn judge(&self, verdict: Verdict, now: Moment) -> Outcome {
        match verdict {
            Verdict::Granted if now < self.valid_until() => {
                Outcome::Won { valid_until: self.valid_until() }
            }
            Verdict::Granted => Outcome::Expired,
            Verdict::Denied => Outcome::Contended,
            Verdict::Unavailable => Outcome::Unavailable,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Moment = Moment::from_origin(Duration::from_secs(1_000));

    fn attempt(ttl: Duration, drift: Duration) -> Attempt {
        Attempt { started: START, ttl, drift }
    }

    #[test]
    fn a_majority_that_came_too_late_is_expired() {
        let attempt = attempt(Duration::from_millis(100), Duration::from_millis(3));
        let just_before = START + Duration::from_micros(96_999);
        assert!(matches!(attempt.judge(Verdict::Granted, just_before), Outcome::Won { .. }));
        let end = START + Duration::from_millis(97);
        assert_eq!(attempt.judge(Verdict::Granted, end), Outcome::Expired);
    }

    proptest! {
        #[test]
        fn validity_is_never_longer_than_the_ttl_less_elapsed_time_and_drift(
            ttl in 0_u64..100_000, drift in 0_u64..100_000, elapsed in 0_u64..200_000,
        ) {
            let (ttl, drift) = (Duration::from_millis(ttl), Duration::from_millis(drift));
            let now = START + Duration::from_millis(elapsed);
            let left = ttl.saturating_sub(drift).saturating_sub(Duration::from_millis(elapsed));
            match attempt(ttl, drift).judge(Verdict::Granted, now) {
                Outcome::Won { valid_until } => {
                    prop_assert!(valid_until > now);
                    prop_assert_eq!(valid_until.since(now), left);
                }
                outcome => {
                    prop_assert_eq!(outcome, Outcome::Expired);
                    prop_assert_eq!(left, Duration::ZERO);
                }
            }
        }
    }
}

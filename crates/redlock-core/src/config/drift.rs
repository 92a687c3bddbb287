//! How far the clocks of servers and client may run apart.

use std::time::Duration;

/// What they may differ in addition to the factor, as in the published algorithm: the servers'
/// expiry has a precision of a millisecond.
const CLOCK_PRECISION: Duration = Duration::from_millis(2);

/// Up to how often `max_clock_skew` a lease may be shorter than it seems: whoever set the key and
/// whoever finds it gone each look at a server whose clock may differ from theirs by that much, as
/// theirs may from the right time.
const SKEWS: u32 = 4;

/// How much of a lease may be lost to clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drift {
    /// Which share, as they run at different rates.
    pub(super) factor: f64,
    /// By how much those of servers may be wrong; zero if nobody looks.
    pub(super) max_skew: Duration,
}

impl Drift {
    /// How much of a lease of `ttl` may be lost.
    pub(crate) fn of(self, ttl: Duration) -> Duration {
        let share = Duration::try_from_secs_f64(ttl.as_secs_f64() * self.factor).unwrap_or(ttl);
        share.saturating_add(self.fixed())
    }

    /// What is lost of any lease, however short.
    pub(super) fn fixed(self) -> Duration {
        CLOCK_PRECISION.saturating_add(self.max_skew.saturating_mul(SKEWS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drift(factor: f64, skew: u64) -> Drift {
        Drift { factor, max_skew: Duration::from_millis(skew) }
    }

    #[test]
    fn clocks_that_may_be_wrong_cost_four_times_as_much() {
        assert_eq!(drift(0.25, 50).of(Duration::from_secs(10)), Duration::from_millis(2702));
        assert_eq!(drift(0.0, 50).of(Duration::ZERO), Duration::from_millis(202));
    }

    #[test]
    fn drift_grows_with_the_ttl_and_never_overflows() {
        let secs = Duration::from_secs;
        assert_eq!(drift(0.25, 0).of(secs(10)), Duration::from_millis(2502));
        assert_eq!(drift(0.25, 0).of(Duration::ZERO), Duration::from_millis(2));
        assert!(drift(0.25, 0).of(Duration::MAX) > secs(u64::MAX / 5));
    }
}

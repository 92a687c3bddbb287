//! How far the clocks of servers and client may run apart.

use std::time::Duration;

/// What they may differ in addition to the factor, as in the published algorithm: the servers'
/// expiry has a precision of a millisecond.
pub(super) const CLOCK_PRECISION: Duration = Duration::from_millis(2);

/// Which share of a lease may be lost to clocks that run at different rates.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drift(pub(super) f64);

impl Drift {
    /// How much of a lease of `ttl` may be lost.
    pub(crate) fn of(self, ttl: Duration) -> Duration {
        let share = Duration::try_from_secs_f64(ttl.as_secs_f64() * self.0).unwrap_or(ttl);
        share.saturating_add(CLOCK_PRECISION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_grows_with_the_ttl_and_never_overflows() {
        let secs = Duration::from_secs;
        assert_eq!(Drift(0.25).of(secs(10)), Duration::from_millis(2502));
        assert_eq!(Drift(0.25).of(Duration::ZERO), Duration::from_millis(2));
        assert!(Drift(0.25).of(Duration::MAX) > secs(u64::MAX / 5));
    }
}

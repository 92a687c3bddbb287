//! How long to wait before trying again.

use std::time::Duration;

/// Exponential backoff with full jitter: clients that collided once do not collide again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub(crate) base: Duration,
    pub(crate) cap: Duration,
}

impl Backoff {
    /// A random pause of at most `min(cap, base × 2^attempt)`.
    pub(crate) fn delay(&self, attempt: u32) -> Duration {
        let limit = u64::try_from(self.limit(attempt).as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(fastrand::u64(0..=limit))
    }

    /// The longest that `attempts` pauses can take together.
    pub(crate) fn longest(&self, attempts: u32) -> Duration {
        let mut sum = Duration::ZERO;
        for attempt in 0..attempts {
            let limit = self.limit(attempt);
            if limit == self.cap {
                let rest = self.cap.saturating_mul(attempts - attempt);
                return sum.saturating_add(rest);
            }
            sum = sum.saturating_add(limit);
        }
        sum
    }

    fn limit(&self, attempt: u32) -> Duration {
        let exponential = self.base.as_nanos().saturating_mul(1 << attempt.min(127));
        if exponential < self.cap.as_nanos() {
            Duration::from_nanos_u128(exponential)
        } else {
            self.cap
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn backoff(base: u64, cap: u64) -> Backoff {
        Backoff { base: Duration::from_millis(base), cap: Duration::from_millis(cap) }
    }

    #[test]
    fn the_longest_wait_is_the_sum_of_the_limits() {
        let retry = backoff(50, 3000);
        assert_eq!(retry.longest(0), Duration::ZERO);
        assert_eq!(retry.longest(3), Duration::from_millis(350));
        assert_eq!(
            retry.longest(8),
            Duration::from_millis(50 + 100 + 200 + 400 + 800 + 1600 + 6000)
        );
        assert_eq!(backoff(1, 1).longest(u32::MAX), Duration::from_millis(u32::MAX.into()));
        let slow = Backoff { base: Duration::from_nanos(1), cap: Duration::from_secs(3600) };
        assert!(slow.longest(u32::MAX) > Duration::from_secs(3600) * (u32::MAX - 100));
        let endless = Backoff { base: Duration::MAX, cap: Duration::MAX };
        assert_eq!(endless.longest(2), Duration::MAX);
    }

    #[test]
    fn pauses_are_spread_over_the_whole_range() {
        let retry = backoff(50, 3000);
        let pauses: Vec<_> = (0..1000).map(|_| retry.delay(2)).collect();
        assert!(pauses.iter().any(|pause| *pause < Duration::from_millis(20)));
        assert!(pauses.iter().any(|pause| *pause > Duration::from_millis(180)));
    }

    proptest! {
        #[test]
        fn a_pause_never_exceeds_its_limit(base in 1_u64..5000, more in 0_u64..5000, attempt: u32) {
            let retry = backoff(base, base + more);
            let limit = u128::from(base).saturating_mul(1 << attempt.min(64));
            let pause = retry.delay(attempt);
            prop_assert!(pause <= retry.cap && pause.as_millis() <= limit);
        }
    }
}

//! The one clock that leases are measured on.
//!
//! `std::time::Instant` stops while a machine sleeps, so a lease measured on it would seem valid
//! long after the servers have expired the key. [`SystemClock`] keeps running; tests bring their
//! own [`Clock`].

use std::fmt;
use std::ops::Add;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point on a [`Clock`]: the time since an origin that only that clock knows.
///
/// Moments of different clocks cannot be compared in any useful way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Duration);

impl Moment {
    /// The furthest point there is; no timer is ever due then.
    pub(crate) const NEVER: Self = Self(Duration::MAX);

    /// The moment `since_origin` after the clock's origin.
    #[must_use]
    pub const fn from_origin(since_origin: Duration) -> Self {
        Self(since_origin)
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }
}

/// Where the library reads the time that decides whether a lease is still valid.
///
/// A clock must never run backwards and should never stop. It is read on every lock, so it should
/// be cheap.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> Moment;

    /// The wall clock: microseconds since 1970. It is where fencing tokens begin, so that servers
    /// agree on one at once; nothing else is decided by it.
    fn unix_micros(&self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_1970.as_micros()).unwrap_or_default()
    }
}

impl<C: Clock> Clock for Arc<C> {
    fn now(&self) -> Moment {
        (**self).now()
    }

    fn unix_micros(&self) -> u64 {
        (**self).unix_micros()
    }
}

/// The default clock: it runs on while the machine sleeps, and nobody can set it back.
///
/// On Linux it reads `CLOCK_BOOTTIME`. A forward step of the wall clock moves it forward as well:
/// after a virtual machine was frozen the wall clock is often the only one that noticed, and a
/// lease that ends too early is safe where one that ends too late is not. Elsewhere it is the
/// monotonic clock of the operating system.
#[derive(Debug, Default)]
pub struct SystemClock {
    #[cfg(target_os = "linux")]
    steps: linux::ForwardSteps,
}

impl SystemClock {
    /// A clock whose origin is some point in the past.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Clock for SystemClock {
    #[cfg(target_os = "linux")]
    fn now(&self) -> Moment {
        self.steps.moment(linux::realtime, linux::boottime)
    }

    #[cfg(not(target_os = "linux"))]
    fn now(&self) -> Moment {
        use std::sync::OnceLock;
        use std::time::Instant;
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        Moment(ORIGIN.get_or_init(Instant::now).elapsed())
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use rustix::time::{ClockId, Timespec, clock_gettime};

    use super::Moment;

    pub(super) fn boottime() -> Duration {
        duration(clock_gettime(ClockId::Boottime))
    }

    pub(super) fn realtime() -> Duration {
        duration(clock_gettime(ClockId::Realtime))
    }

    fn duration(time: Timespec) -> Duration {
        Duration::try_from(time).unwrap_or_default()
    }

    /// How far the wall clock has been ahead of where the boot clock would put it, at most.
    #[derive(Debug, Default)]
    pub(super) struct ForwardSteps {
        offset_at_start: OnceLock<i64>,
        furthest: AtomicI64,
    }

    impl ForwardSteps {
        /// Looks at both clocks, at the wall clock first: who is held up in between must not take
        /// that for a step.
        pub(super) fn moment(
            &self,
            realtime: impl FnOnce() -> Duration,
            boottime: impl FnOnce() -> Duration,
        ) -> Moment {
            let real = realtime();
            let boot = boottime();
            Moment(boot + self.observe(boot, real))
        }

        pub(super) fn observe(&self, boot: Duration, real: Duration) -> Duration {
            let offset = nanos(real).saturating_sub(nanos(boot));
            let start = *self.offset_at_start.get_or_init(|| offset);
            let ahead = offset.saturating_sub(start);
            let mut furthest = self.furthest.load(Ordering::Relaxed);
            // Mostly there is nothing to write, and threads that only read don't wait for each other.
            if ahead > furthest {
                furthest = self.furthest.fetch_max(ahead, Ordering::Relaxed).max(ahead);
            }
            Duration::from_nanos(furthest.max(0).unsigned_abs())
        }
    }

    fn nanos(duration: Duration) -> i64 {
        i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
    }
}

/// A clock that follows tokio's time, which tests can pause and advance.
///
/// [`Redlock::in_memory`](crate::Redlock::in_memory) uses it, so leases of the memory backend
/// expire under `tokio::time::pause` as well.
#[derive(Debug)]
pub struct TokioClock {
    origin: tokio::time::Instant,
}

impl Default for TokioClock {
    fn default() -> Self {
        Self { origin: tokio::time::Instant::now() }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Moment {
        Moment(self.origin.elapsed())
    }
}

/// Sleeps until `moment`, looking at the clock at least once a second: tokio's timers stand still
/// in suspend, the clock does not.
pub(crate) async fn sleep_until(clock: &dyn Clock, moment: Moment) {
    if moment == Moment::NEVER {
        return std::future::pending().await;
    }
    loop {
        let left = moment.since(clock.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_moment_before_another_is_no_time_after_it() {
        let early = Moment::from_origin(Duration::from_secs(1));
        let late = early + Duration::from_secs(2);
        assert_eq!(late.since(early), Duration::from_secs(2));
        assert_eq!(early.since(late), Duration::ZERO);
    }

    #[test]
    fn the_system_clock_does_not_run_backwards() {
        let clock = SystemClock::new();
        let mut last = clock.now();
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_forward_step_of_the_wall_clock_moves_on_and_a_step_back_does_not_undo_it() {
        let steps = linux::ForwardSteps::default();
        let (boot, real) = (Duration::from_secs(100), Duration::from_secs(1_000_000));
        assert_eq!(steps.observe(boot, real), Duration::ZERO);
        let stepped = real + Duration::from_secs(60);
        assert_eq!(steps.observe(boot, stepped), Duration::from_secs(60));
        let back = real - Duration::from_secs(500);
        assert_eq!(steps.observe(boot, back), Duration::from_secs(60));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_is_held_up_between_two_looks_has_seen_no_step() {
        let (steps, time) = (linux::ForwardSteps::default(), Cell::new(Duration::from_secs(100)));
        let look = |held_up: Duration| time.replace(time.get() + held_up);
        let moment = |held_up| steps.moment(|| look(held_up), || look(held_up));
        let before = moment(Duration::ZERO);
        moment(Duration::from_millis(20));
        assert_eq!(moment(Duration::ZERO).since(before), Duration::from_millis(40));
    }

    #[tokio::test(start_paused = true)]
    async fn sleeping_ends_when_the_clock_says_so() {
        let clock = TokioClock::default();
        let end = clock.now() + Duration::from_secs(5);
        sleep_until(&clock, end).await;
        assert_eq!(clock.now(), end);
    }
}

//! The clock of a client: it runs too fast or too slow, and its wall clock is wrong.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use redlock_core::{Clock, Moment};
use tokio::time::Instant;

use super::RATE_PPM;

/// What the wall clocks of all clients are wrong about: seconds, days, or everything.
const WRONG_BY_MICROS: [i64; 6] =
    [0, 0, 10_000_000, -10_000_000, 86_400_000_000, -1_000_000_000_000_000];

/// The true time when a clock begins, near that of the cluster.
const FIRST_MICROS: u64 = 1_764_000_000_000_000;

#[derive(Clone, Debug)]
pub(super) struct SkewedClock {
    began: Instant,
    rate_ppm: i64,
    wrong_by: i64,
    frozen: Arc<Mutex<Frozen>>,
}

/// A clock that stands still while an attempt is made, for clients that count from its end.
#[derive(Debug, Default)]
struct Frozen {
    since: Option<Instant>,
    stood_still: Duration,
}

/// By how many millionths a clock runs too fast: as far as it may, or anything in between.
pub(super) fn rate(rng: &mut Rng) -> i64 {
    match rng.bool() {
        true => RATE_PPM * [-1, 1][rng.usize(..2)],
        false => rng.i64(-RATE_PPM..=RATE_PPM),
    }
}

impl SkewedClock {
    pub(super) fn random(rng: &mut Rng) -> Self {
        Self {
            began: Instant::now(),
            rate_ppm: rate(rng),
            wrong_by: WRONG_BY_MICROS[rng.usize(..WRONG_BY_MICROS.len())],
            frozen: Arc::default(),
        }
    }

    pub(super) fn freeze(&self) {
        self.frozen.lock().since = Some(Instant::now());
    }

    /// Goes on where it stood still, or where it would be.
    pub(super) fn thaw(&self, catch_up: bool) {
        let mut frozen = self.frozen.lock();
        if let Some(since) = frozen.since.take()
            && !catch_up
        {
            frozen.stood_still += since.elapsed();
        }
    }
}

impl Clock for SkewedClock {
    fn now(&self) -> Moment {
        let frozen = self.frozen.lock();
        let now = frozen.since.unwrap_or_else(Instant::now);
        let elapsed = now.duration_since(self.began).saturating_sub(frozen.stood_still);
        let nanos = i128::try_from(elapsed.as_nanos()).unwrap();
        let shown = nanos + nanos * i128::from(self.rate_ppm) / 1_000_000;
        Moment::from_origin(Duration::from_nanos_u128(u128::try_from(shown).unwrap()))
    }

    fn unix_micros(&self) -> u64 {
        let elapsed = u64::try_from(self.began.elapsed().as_micros()).unwrap();
        (FIRST_MICROS + elapsed).saturating_add_signed(self.wrong_by)
    }
}

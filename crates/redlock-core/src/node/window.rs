//! The window of a lane: how many batches are on the way at once.

use std::time::Duration;

/// Batches on the way at once, where the network is slow.
const MAX_WINDOW: u128 = 8;

/// A round trip has room for another batch each time that it is longer by this. More and smaller
/// batches made locks slower at a millisecond's distance, as they cost more CPU; where the server
/// answers sooner than this, a second batch would not have gathered before the first is back.
const ROOM_FOR_A_BATCH: Duration = Duration::from_micros(350);

/// How many batches may be on the way, by the shortest round trip of late.
#[derive(Debug, Default)]
pub(super) struct Window {
    shortest: Duration,
    shortest_of_these: Duration,
    seen: u32,
}

impl Window {
    const SAMPLES: u32 = 64;

    pub(super) fn observe(&mut self, round_trip: Duration) {
        if self.seen == 0 || round_trip < self.shortest_of_these {
            self.shortest_of_these = round_trip;
        }
        self.seen += 1;
        let is_first = self.shortest.is_zero();
        if is_first || self.seen == Self::SAMPLES || self.shortest_of_these < self.shortest {
            self.shortest = self.shortest_of_these;
        }
        if self.seen == Self::SAMPLES {
            self.seen = 0;
        }
    }

    pub(super) fn size(&self) -> usize {
        let room = self.shortest.as_micros() / ROOM_FOR_A_BATCH.as_micros();
        room.clamp(1, MAX_WINDOW) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_with_the_distance_and_closes_on_a_fast_network() {
        let window_at = |micros| {
            let mut window = Window::default();
            (0..Window::SAMPLES).for_each(|_| window.observe(Duration::from_micros(micros)));
            window
        };
        assert_eq!(Window::default().size(), 1);
        let windows = [0, 80, 500, 1_150, 2_000, 50_000].map(|micros| window_at(micros).size());
        assert_eq!(windows, [1, 1, 1, 3, 5, 8]);
        let mut window = window_at(2_000);
        window.observe(Duration::from_micros(80));
        assert_eq!(window.size(), 1);
    }
}

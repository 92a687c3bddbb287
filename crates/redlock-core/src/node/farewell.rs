//! The end of a runtime, or of the last handle: what lanes have still to release gets a short, last
//! chance to reach the servers.
//!
//! A runtime that ends drops the tasks of the lanes, with whatever they had to send. A process whose
//! `main` returns does so right after it dropped a guard. The lane's task is then continued for a
//! moment on a thread of its own, and the runtime that ends waits for that.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::lane::{Driver, Lane};

/// For all lanes of a [`Redlock`](crate::Redlock) together.
pub(super) const LAST_CHANCE: Duration = Duration::from_millis(250);

/// Shared by the lanes of one [`Redlock`](crate::Redlock): how long each may keep a runtime that
/// ends.
#[derive(Debug, Default)]
pub(crate) struct Farewell(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Lanes with a task.
    driven: u32,
    /// Set by the first lane that has something left to send.
    until: Option<Instant>,
}

impl Farewell {
    /// A task of a lane begins.
    pub(super) fn begin(&self) {
        let mut state = self.0.lock();
        if state.driven == 0 {
            state.until = None;
        }
        state.driven += 1;
    }

    /// It has ended.
    pub(super) fn end(&self) {
        self.0.lock().driven -= 1;
    }

    /// The part of the time for one lane: the others, whose tasks may end on the same thread after
    /// this one, have theirs even if its server is silent.
    fn share(&self) -> Duration {
        let now = Instant::now();
        let mut state = self.0.lock();
        let until = *state.until.get_or_insert(now + LAST_CHANCE);
        until.saturating_duration_since(now) / state.driven.max(1)
    }
}

impl Lane {
    /// Continues the lane's task on a thread of its own until everything was sent, for
    /// [`LAST_CHANCE`] at most. `None` if it has a task already.
    pub(super) fn last_chance(self: &Arc<Self>) -> Option<Receiver<()>> {
        let driver = Driver::for_the_last_time(self)?;
        let lane = Arc::clone(self);
        let (done, ended) = sync_channel(1);
        let run = move || {
            // Dropped by whatever ends this thread.
            let _done = done;
            let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
            lane.mailbox.linger(LAST_CHANCE);
            runtime.spawn(driver.run());
            let sent = async { timeout(LAST_CHANCE, lane.mailbox.settled()).await };
            let sent = runtime.block_on(sent);
            if sent.is_err() {
                tracing::debug!(node = %lane.address, "not everything was released in time");
            }
            // Nobody waits for the resolver of host names.
            runtime.shutdown_background();
        };
        thread::Builder::new().name("redlock-farewell".into()).spawn(run).ok().map(|_| ended)
    }

    /// The same, and waits for its share. For threads that a runtime does not need: it has ended.
    pub(super) fn wait_for_the_last_chance(self: &Arc<Self>) {
        let share = self.farewell.share();
        if let Some(ended) = self.last_chance() {
            let _sent_or_not = ended.recv_timeout(share);
        }
    }

    /// Waits for a last chance that was given without a runtime.
    pub(super) fn wait_for_the_last_chance_given(&self) {
        let given = self.given.lock().take();
        if let Some(ended) = given {
            let _sent_or_not = ended.recv_timeout(self.farewell.share());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_the_time_and_what_one_leaves_is_for_the_others() {
        let farewell = Farewell::default();
        (0..3).for_each(|_| farewell.begin());
        let first = farewell.share();
        assert!(first <= LAST_CHANCE / 3, "{first:?}");
        farewell.end();
        farewell.end();
        let last = farewell.share();
        assert!(last > first && last <= LAST_CHANCE, "{last:?} after {first:?}");
    }

    #[test]
    fn the_time_begins_anew_when_lanes_are_driven_again() {
        let farewell = Farewell::default();
        farewell.begin();
        farewell.0.lock().until = Some(Instant::now());
        assert_eq!(farewell.share(), Duration::ZERO);
        farewell.end();
        farewell.begin();
        assert!(farewell.share() > Duration::ZERO);
    }
}

//! The end of a runtime, or of the last handle: releases that are pending get a short, last chance to
//! reach the servers.
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
use super::link::Connector;

/// For all lanes of a [`Redlock`](crate::Redlock) together.
pub(super) const LAST_CHANCE: Duration = Duration::from_millis(250);

/// How long each lane of one [`Redlock`](crate::Redlock) may keep a runtime that ends.
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
    /// The part of the time for one lane: the others, whose tasks may end on the same thread after
    /// this one, have theirs even if its server is silent.
    fn share(&self) -> Duration {
        let now = Instant::now();
        let mut state = self.0.lock();
        let until = *state.until.get_or_insert(now + LAST_CHANCE);
        until.saturating_duration_since(now) / state.driven.max(1)
    }
}

/// The last chance of one lane.
#[derive(Debug, Default)]
pub(super) struct LastChance {
    /// `None`: the lane has no life outside of its runtime, as its server has none.
    farewell: Option<Arc<Farewell>>,
    /// Ends with a last chance that was begun without a runtime.
    begun: Mutex<Option<Receiver<()>>>,
}

impl LastChance {
    pub(super) fn shared(farewell: &Arc<Farewell>) -> Self {
        Self { farewell: Some(Arc::clone(farewell)), begun: Mutex::default() }
    }

    /// A task of the lane begins.
    pub(super) fn driver_begins(&self) {
        let Some(farewell) = &self.farewell else { return };
        let mut state = farewell.0.lock();
        if state.driven == 0 {
            state.until = None;
        }
        state.driven += 1;
    }

    pub(super) fn driver_ended(&self) {
        if let Some(farewell) = &self.farewell {
            let mut state = farewell.0.lock();
            state.driven = state.driven.saturating_sub(1);
        }
    }
}

impl<C: Connector> Lane<C> {
    /// Continues the lane's task on a thread of its own, without a runtime that could wait for it.
    pub(super) fn begin_last_chance(self: &Arc<Self>) {
        if let Some(ended) = self.continue_on_a_thread() {
            *self.last_chance.begun.lock() = Some(ended);
        }
    }

    /// The same, and waits for its share. For threads that a runtime does not need: it has ended.
    pub(super) fn wait_for_a_last_chance(self: &Arc<Self>) {
        let Some(farewell) = &self.last_chance.farewell else { return };
        let share = farewell.share();
        if let Some(ended) = self.continue_on_a_thread() {
            let _sent_or_not = ended.recv_timeout(share);
        }
    }

    /// Waits for a last chance that was begun without a runtime.
    pub(super) fn wait_for_begun_last_chance(&self) {
        let begun = self.last_chance.begun.lock().take();
        if let (Some(ended), Some(farewell)) = (begun, &self.last_chance.farewell) {
            let _sent_or_not = ended.recv_timeout(farewell.share());
        }
    }

    /// Sends what is pending, for [`LAST_CHANCE`] at most. `None` if the lane has a task already.
    fn continue_on_a_thread(self: &Arc<Self>) -> Option<Receiver<()>> {
        self.last_chance.farewell.as_ref()?;
        let driver = Driver::for_the_last_time(self)?;
        let lane = Arc::clone(self);
        let (done, ended) = sync_channel(1);
        let run = move || {
            // Dropped by whatever ends this thread.
            let _done = done;
            let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
            lane.mailbox.linger(LAST_CHANCE);
            runtime.spawn(driver.run());
            let all_sent = async {
                // Another runtime may post commands meanwhile: they are sent from here, too.
                while !lane.mailbox.retire() {
                    lane.mailbox.settled().await;
                }
            };
            let sent = async { timeout(LAST_CHANCE, all_sent).await };
            if runtime.block_on(sent).is_err() {
                tracing::debug!(node = %lane.address, "not everything was released in time");
            }
            // The resolver of host names may still run.
            runtime.shutdown_background();
        };
        thread::Builder::new().name("redlock-release".into()).spawn(run).ok().map(|_| ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_share_the_time_and_what_one_leaves_is_for_the_others() {
        let farewell = Arc::new(Farewell::default());
        let lane = LastChance::shared(&farewell);
        (0..3).for_each(|_| lane.driver_begins());
        let first = farewell.share();
        assert!(first <= LAST_CHANCE / 3, "{first:?}");
        lane.driver_ended();
        lane.driver_ended();
        let last = farewell.share();
        assert!(last > first && last <= LAST_CHANCE, "{last:?} after {first:?}");
    }

    #[test]
    fn the_time_begins_anew_when_lanes_are_driven_again() {
        let farewell = Arc::new(Farewell::default());
        let lane = LastChance::shared(&farewell);
        lane.driver_begins();
        farewell.0.lock().until = Some(Instant::now());
        assert_eq!(farewell.share(), Duration::ZERO);
        lane.driver_ended();
        lane.driver_begins();
        assert!(farewell.share() > Duration::ZERO);
    }
}

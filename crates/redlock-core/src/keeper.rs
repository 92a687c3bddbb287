//! The keeper: one task that renews all leases of a `Redlock` and tells when one is lost.
//!
//! Its timers depend on no I/O: the end of a lease is announced whether or not a server answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::clock::{Clock, Moment, sleep_until};
use crate::error::LockError;
use crate::panic::caught;
use crate::protocol::tenure::{Due, LostReason};
use crate::round::Round;
use crate::tenancy::Tenancy;

#[derive(Debug)]
pub(crate) struct Keeper {
    clock: Arc<dyn Clock>,
    /// Locked before a tenure, never after.
    schedule: Mutex<Schedule>,
    /// Something is due before the task meant to look, or the keeper was closed.
    earlier: Notify,
}

#[derive(Debug)]
struct Schedule {
    by_time: BTreeMap<(Moment, u64), Arc<Tenancy>>,
    /// When the task will look at the schedule next.
    next_look: Moment,
    /// A task runs; false again when its runtime has ended.
    driven: bool,
    closed: bool,
}

/// What a look at the schedule found.
struct Look {
    due: Vec<(Arc<Tenancy>, Due)>,
    /// When to look again.
    next: Moment,
}

impl Keeper {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        let schedule = Schedule {
            by_time: BTreeMap::new(),
            next_look: Moment::NEVER,
            driven: false,
            closed: false,
        };
        Self { clock, schedule: Mutex::new(schedule), earlier: Notify::new() }
    }

    /// Looks after a lease from now on, or after its timer has changed.
    pub(crate) fn watch(self: &Arc<Self>, tenancy: &Arc<Tenancy>) {
        let mut schedule = self.schedule.lock();
        schedule.remove(tenancy);
        let Some(due) = tenancy.tenure.lock().next_timer() else { return };
        schedule.insert(due, Arc::clone(tenancy));
        if due < schedule.next_look {
            self.earlier.notify_one();
        }
        if !schedule.driven
            && !schedule.closed
            && let Ok(runtime) = Handle::try_current()
        {
            schedule.driven = true;
            runtime.spawn(Task(Arc::clone(self)).run());
        }
    }

    /// Extends a lease and looks after its new end.
    pub(crate) async fn extend(
        self: &Arc<Self>,
        tenancy: &Arc<Tenancy>,
        ttl: Duration,
    ) -> Result<Duration, LockError> {
        let extension = tenancy.extend(ttl)?;
        // A shorter time to live counts from now on, even if nobody awaits the answer.
        self.watch(tenancy);
        let extended = extension.await;
        self.watch(tenancy);
        extended
    }

    /// Posts the release of a lease, unless that was done.
    pub(crate) fn release(&self, tenancy: &Tenancy) -> Option<Arc<Round>> {
        let round = tenancy.release()?;
        self.forget(tenancy);
        Some(round)
    }

    /// Leaves a lease to whoever has its token.
    pub(crate) fn hand_over(&self, tenancy: &Tenancy) {
        tenancy.hand_over();
        self.forget(tenancy);
    }

    /// Releases all leases that are held.
    pub(crate) fn release_all(&self) {
        for tenancy in self.held() {
            tenancy.lose(LostReason::Closed);
            self.release(&tenancy);
        }
    }

    fn forget(&self, tenancy: &Tenancy) {
        let forgotten = self.schedule.lock().remove(tenancy);
        drop(forgotten);
    }

    fn held(&self) -> Vec<Arc<Tenancy>> {
        self.schedule.lock().by_time.values().cloned().collect()
    }

    /// Ends the task.
    pub(crate) fn close(&self) {
        self.schedule.lock().closed = true;
        self.earlier.notify_one();
    }

    /// Finds what is due, and notes when to look again. `None` once it is closed. A lease that is
    /// held stays in the schedule throughout, so that closing finds it.
    fn look(&self) -> Option<Look> {
        let mut schedule = self.schedule.lock();
        if schedule.closed {
            return None;
        }
        let now = self.clock.now();
        let mut due = Vec::new();
        while let Some(first) = schedule.by_time.first_entry()
            && first.key().0 <= now
        {
            let tenancy = first.remove();
            tenancy.timer.lock().take();
            let (now_due, next_timer) = {
                let mut tenure = tenancy.tenure.lock();
                (tenure.due(now), tenure.next_timer())
            };
            if let Some(next_timer) = next_timer {
                schedule.insert(next_timer, Arc::clone(&tenancy));
            }
            due.push((tenancy, now_due));
        }
        let next = schedule.by_time.first_key_value().map_or(Moment::NEVER, |((due, _), _)| *due);
        schedule.next_look = next;
        Some(Look { due, next })
    }
}

impl Schedule {
    fn insert(&mut self, due: Moment, tenancy: Arc<Tenancy>) {
        *tenancy.timer.lock() = Some(due);
        self.by_time.insert((due, tenancy.hold.id), tenancy);
    }

    fn remove(&mut self, tenancy: &Tenancy) -> Option<Arc<Tenancy>> {
        let due = tenancy.timer.lock().take()?;
        self.by_time.remove(&(due, tenancy.hold.id))
    }
}

/// The keeper's task. A new one is started when its runtime has ended.
struct Task(Arc<Keeper>);

impl Drop for Task {
    fn drop(&mut self) {
        let mut schedule = self.0.schedule.lock();
        schedule.driven = false;
        schedule.next_look = Moment::NEVER;
    }
}

/// Time before the task goes on after a panic, such as one in the clock of the application.
const AFTER_A_PANIC: Duration = Duration::from_millis(10);

impl Task {
    async fn run(self) {
        while caught("the task that renews locks", self.renew()).await.is_err() {
            sleep(AFTER_A_PANIC).await;
        }
    }

    async fn renew(&self) {
        let keeper = &self.0;
        let mut renewals = FuturesUnordered::new();
        while let Some(Look { due, next }) = keeper.look() {
            for (tenancy, due) in due {
                match due {
                    Due::Renewal(ttl) => {
                        let renewal = tenancy.extend(ttl).ok();
                        renewals.extend(renewal.map(|renewal| async {
                            (caught("a renewal", renewal).await, tenancy)
                        }));
                    }
                    Due::Loss(reason) => tenancy.announce(reason),
                    Due::Nothing => {}
                }
            }
            tokio::select! {
                biased;
                () = sleep_until(&*keeper.clock, next) => {}
                () = keeper.earlier.notified() => {}
                Some((_, tenancy)) = renewals.next() => keeper.watch(&tenancy),
            }
        }
        for tenancy in keeper.held() {
            tenancy.lose(LostReason::Closed);
        }
    }
}

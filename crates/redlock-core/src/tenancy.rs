//! A tenancy: one acquisition of a key, from the votes that won it to its end.

use std::fmt;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::Moment;
use crate::config::Config;
use crate::error::LockError;
use crate::fencing::Fence;
use crate::group::Group;
use crate::key::Key;
use crate::mending::mend_if_needed;
use crate::node::Op;
use crate::observe::Hold;
use crate::panic::caught_now;
use crate::posted::{Posted, Site, Wish};
use crate::protocol::quorum::Verdict;
use crate::protocol::tenure::{Extension, LeaseState, LostReason, Tenure};
use crate::queue::{Successor, Turn};
use crate::round::Round;
use crate::token::Token;

/// Shared by the guard, its leases, the keeper and the line of waiters.
pub(crate) struct Tenancy {
    pub(crate) key: Key,
    /// The key as the servers know it.
    pub(crate) full_key: Key,
    pub(crate) token: Token,
    pub(crate) fence: Option<Fence>,
    pub(crate) group: Arc<Group>,
    /// The votes that won it, and those that are still coming in.
    pub(crate) acquired: Arc<Round>,
    pub(crate) config: Arc<Config>,
    pub(crate) tenure: Mutex<Tenure>,
    /// The place at the head of the line, until the lock is released or lost.
    pub(crate) turn: Mutex<Option<Turn<Self>>>,
    /// Notified when its state changes.
    pub(crate) changed: Notify,
    /// When the keeper will look at it next. The keeper's own.
    pub(crate) timer: Mutex<Option<Moment>>,
    /// What is told of it.
    pub(crate) hold: Hold,
}

impl Tenancy {
    /// For how long it is still valid.
    pub(crate) fn remaining(&self) -> Duration {
        self.tenure.lock().remaining(self.config.clock.now())
    }

    pub(crate) fn lost_reason(&self) -> Option<LostReason> {
        self.tenure.lock().lost(self.config.clock.now())
    }

    pub(crate) fn state(&self) -> LeaseState {
        self.tenure.lock().state(self.config.clock.now())
    }

    /// Waits until `look` finds something in the state. Looks at the clock whenever it is polled:
    /// after the process was stopped, whoever polls it first knows, not only the keeper's timer.
    pub(crate) async fn wait_for<T>(&self, look: impl Fn(LeaseState) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let found = poll_fn(|cx| match look(self.state()) {
                Some(found) => Poll::Ready(Some(found)),
                None => changed.as_mut().poll(cx).map(|()| None),
            });
            if let Some(found) = found.await {
                return found;
            }
        }
    }

    /// Posts the release unless that was done, and with it what the next in line wants.
    pub(crate) fn release(&self) -> Option<Arc<Round>> {
        let (turn, successor, (released, posted)) = {
            let mut tenure = self.tenure.lock();
            if tenure.is_released() {
                return None;
            }
            tenure.release();
            self.hold.released();
            let turn = self.turn.lock().take();
            let successor = turn.as_ref().and_then(Turn::successor);
            // Posted under the lock: no renewal can be posted after it.
            let posted = self.post_release(successor.as_ref().map(Successor::wish));
            (turn, successor, posted)
        };
        self.changed.notify_waiters();
        match (turn, successor) {
            (Some(turn), Some(successor)) => turn.hand_over(successor, posted),
            (turn, _) => drop(turn),
        }
        mend_if_needed(&self.group, &self.acquired, &self.full_key, &self.token);
        Some(released)
    }

    fn post_release(&self, next: Option<&Wish>) -> (Arc<Round>, Option<Posted>) {
        let Self { group, full_key, token, acquired, config, .. } = self;
        let site = Site { group, full_key, config };
        let post = |wish| Posted::post_in_place_of(token, acquired, site, wish).ok();
        match next.and_then(post) {
            Some((posted, released)) => (released, Some(posted)),
            // Nobody waits, or this is closed.
            None => (group.release(full_key, token, acquired), None),
        }
    }

    /// Gives the lock up without releasing it: whoever has the token may go on with it.
    pub(crate) fn hand_over(&self) {
        self.tenure.lock().release();
        self.hold.handed_over();
        self.changed.notify_waiters();
        self.end_turn();
    }

    /// Asks every node to extend the key, and says what came of it.
    ///
    /// Not a method with `async`: the command is posted when this is called, in the order in
    /// which renewals, extensions and the release are decided.
    pub(crate) fn extend(
        self: &Arc<Self>,
        ttl: Duration,
    ) -> Result<impl Future<Output = Result<Duration, LockError>> + Send + use<>, LockError> {
        let mut tenure = self.tenure.lock();
        let now = self.config.clock.now();
        if let Some(reason) = tenure.lost(now) {
            return Err(LockError::lost(reason));
        }
        let extension = tenure.extending(now, ttl, self.config.drift().of(ttl));
        let round = self.group.post(Op::Extend { ttl }, &self.full_key, &self.token);
        drop(tenure);
        let tenancy = Arc::clone(self);
        Ok(async move {
            let verdict = round.verdict().await;
            let extended = tenancy.judge(extension, verdict, &round);
            tenancy.hold.extended(&extended);
            extended
        })
    }

    fn judge(
        &self,
        extension: Extension,
        verdict: Verdict,
        round: &Round,
    ) -> Result<Duration, LockError> {
        let mut tenure = self.tenure.lock();
        let now = self.config.clock.now();
        let denied = round.inspect(|ballot| ballot.denied_by_majority());
        let error = match verdict {
            Verdict::Granted => {
                if tenure.extended(extension, now) {
                    self.changed.notify_waiters();
                }
                match tenure.lost(now) {
                    None => return Ok(tenure.remaining(now)),
                    Some(reason) => LockError::lost(reason),
                }
            }
            Verdict::Denied | Verdict::Unavailable if denied => {
                let lost = tenure.lose(LostReason::TakenOver);
                drop(tenure);
                if lost {
                    self.announce(LostReason::TakenOver);
                }
                LockError::lost(LostReason::TakenOver).with_nodes(self.group.report(round))
            }
            Verdict::Denied | Verdict::Unavailable => {
                tenure.not_extended(now);
                drop(tenure);
                self.changed.notify_waiters();
                self.group.unavailable(round)
            }
        };
        Err(error)
    }

    /// Ends a lock that is still held, for a reason of our own.
    pub(crate) fn lose(&self, reason: LostReason) {
        if self.tenure.lock().lose(reason) {
            self.announce(reason);
        }
    }

    /// Tells everybody who waits for it that the lock is lost.
    pub(crate) fn announce(&self, reason: LostReason) {
        // The log belongs to the application. A panic in it keeps the loss from nobody.
        let _told = caught_now("the log", || self.hold.lost(&self.token, reason));
        self.changed.notify_waiters();
        self.end_turn();
    }

    fn end_turn(&self) {
        let turn = self.turn.lock().take();
        drop(turn);
    }
}

impl fmt::Debug for Tenancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenancy")
            .field("key", &self.key)
            .field("token", &self.token)
            .field("tenure", &self.tenure)
            .finish_non_exhaustive()
    }
}

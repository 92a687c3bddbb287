//! A lease: what is known of a lock that is held, for as long as anybody wants to know.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::Moment;
use crate::error::LockError;
use crate::group::{Group, Round};
use crate::key::Key;
use crate::latch::Latch;
use crate::node::Op;
use crate::protocol::quorum::Verdict;
use crate::protocol::tenure::{Due, Extension, LostReason, Tenure};
use crate::queue::Turn;
use crate::redlock::Inner;
use crate::token::Token;

/// A view of a lock that somebody holds: until when it is valid, and whether it was lost.
///
/// Cheap to clone. It does not own the lock: the [`Guard`](crate::Guard) does, and dropping a
/// lease releases nothing. Once the guard is released, nothing remains of the lease.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
/// use redlock_core::Redlock;
///
/// let redlock = Redlock::in_memory();
/// let guard = redlock.lock("order:42").await?;
/// let lease = guard.lease().clone();
/// assert!(lease.remaining() > std::time::Duration::from_secs(9));
/// guard.release().await;
/// assert!(lease.remaining().is_zero());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Lease(pub(crate) Arc<Tenancy>);

/// One acquisition of a key, shared by the guard, its leases, the keeper and the line of waiters.
pub(crate) struct Tenancy {
    pub(crate) inner: Arc<Inner>,
    pub(crate) id: u64,
    pub(crate) key: Key,
    /// The key as the servers know it.
    pub(crate) full_key: Key,
    pub(crate) token: Token,
    pub(crate) group: Arc<Group>,
    /// The votes that won it, and those that are still coming in.
    pub(crate) acquired: Arc<Round>,
    pub(crate) tenure: Mutex<Tenure>,
    pub(crate) turn: Mutex<Option<Turn>>,
    pub(crate) lost: Latch,
    /// When the keeper will look at it next. The keeper's own.
    pub(crate) timer: Mutex<Option<Moment>>,
}

impl Lease {
    /// The key that is locked, without the configured prefix.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.0.key
    }

    /// The token that the servers keep under the key.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.0.token
    }

    /// For how long the lock is still valid; zero once it is lost or released.
    ///
    /// Counted from before the command was sent that a majority confirmed last, less the drift
    /// that the clocks are allowed, on a clock that runs on while the machine sleeps.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.0.tenure.lock().remaining(self.0.inner.now())
    }

    /// The end of the validity as an instant. It moves when the lease is extended, and does not
    /// see a suspension of the machine: prefer [`remaining`](Self::remaining).
    #[must_use]
    pub fn valid_until(&self) -> Instant {
        let now = Instant::now();
        now.checked_add(self.remaining()).unwrap_or(now)
    }

    /// Whether the lock was lost before it was released.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost_reason().is_some()
    }

    /// Why the lock was lost, if it was.
    #[must_use]
    pub fn lost_reason(&self) -> Option<LostReason> {
        self.0.tenure.lock().lost(self.0.inner.now())
    }

    /// Waits until the lock is lost, and says why. Ends no later than the validity does, whether
    /// or not any server answers; never ends if the lock is released first.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn lost(&self) -> LostReason {
        loop {
            if let Some(reason) = self.lost_reason() {
                return reason;
            }
            self.0.lost.raised().await;
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.0.key)
            .field("token", &self.0.token)
            .field("remaining", &self.remaining())
            .field("lost", &self.lost_reason())
            .finish()
    }
}

impl Tenancy {
    /// Posts the release unless that was done, and lets the next in line have its turn.
    pub(crate) fn release(&self) -> Option<Arc<Round>> {
        let round = {
            let mut tenure = self.tenure.lock();
            if tenure.is_released() {
                return None;
            }
            tenure.release();
            // Posted under the lock: no renewal can be posted after it.
            self.group.release(&self.full_key, &self.token, &self.acquired, false)
        };
        self.inner.keeper.forget(self);
        self.end_turn();
        Some(round)
    }

    /// Gives the lock up without releasing it: whoever has the token may go on with it.
    pub(crate) fn hand_over(&self) {
        self.tenure.lock().release();
        self.inner.keeper.forget(self);
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
        let now = self.inner.now();
        if let Some(reason) = tenure.lost(now) {
            return Err(LockError::lost(reason));
        }
        let extension = tenure.extending(now, ttl, self.inner.config.drift(ttl));
        let round = self.group.post(Op::Extend { ttl }, &self.full_key, &self.token);
        drop(tenure);
        let tenancy = Arc::clone(self);
        Ok(async move {
            let verdict = round.verdict().await;
            let result = tenancy.judge(extension, verdict, &round);
            tenancy.inner.keeper.watch(&tenancy);
            result
        })
    }

    fn judge(
        &self,
        extension: Extension,
        verdict: Verdict,
        round: &Round,
    ) -> Result<Duration, LockError> {
        let mut tenure = self.tenure.lock();
        let now = self.inner.now();
        let denied = round.inspect(|ballot| ballot.denied_by_majority());
        let error = match verdict {
            Verdict::Granted => {
                tenure.extended(extension, now);
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
                self.inner.unavailable(&self.group, round)
            }
        };
        Err(error)
    }

    /// Does what was found due; a renewal is returned to be awaited.
    pub(crate) fn act(
        self: &Arc<Self>,
        due: Due,
    ) -> Option<impl Future<Output = Result<Duration, LockError>> + Send + use<>> {
        match due {
            Due::Renewal(ttl) => self.extend(ttl).ok(),
            Due::Loss(reason) => {
                self.announce(reason);
                None
            }
            Due::Nothing => None,
        }
    }

    /// Ends a lock that is still held, for a reason of our own.
    pub(crate) fn lose(&self, reason: LostReason) {
        if self.tenure.lock().lose(reason) {
            self.announce(reason);
        }
    }

    fn announce(&self, reason: LostReason) {
        tracing::warn!(token = ?self.token, %reason, "lock lost");
        self.lost.raise();
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

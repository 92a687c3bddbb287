//! A lease: what is known of a lock that is held, for as long as anybody wants to know.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::LockError;
use crate::fencing::{FenceBasis, FencingToken};
use crate::key::Key;
use crate::protocol::tenure::{LeaseState, LostReason};
use crate::tenancy::Tenancy;
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
        self.0.remaining()
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
        self.0.lost_reason()
    }

    /// Waits until the lock is lost, and says why. Ends no later than the validity does, whether
    /// or not any server answers; never ends if the lock is released first.
    ///
    /// ```
    /// # async fn step() {}
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// let guard = redlock.lock("order:42").await?;
    /// tokio::select! {
    ///     reason = guard.lost() => eprintln!("stopped: {reason}"),
    ///     () = step() => {}
    /// }
    /// guard.release().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn lost(&self) -> LostReason {
        let lost = |state| match state {
            LeaseState::Lost(reason) => Some(reason),
            LeaseState::Held | LeaseState::Jeopardy | LeaseState::Released => None,
        };
        self.0.wait_for(lost).await
    }

    /// How the lease stands.
    #[must_use]
    pub fn state(&self) -> LeaseState {
        self.0.state()
    }

    /// Waits until the lease stands otherwise than `seen`, and says how. Held locks that are in
    /// jeopardy and lost ones are told no later than they are.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// use redlock_core::LeaseState;
    ///
    /// let guard = redlock.lock("order:42").await?;
    /// let lease = guard.lease().clone();
    /// guard.release().await;
    /// assert_eq!(lease.changed(LeaseState::Held).await, LeaseState::Released);
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn changed(&self, seen: LeaseState) -> LeaseState {
        self.0.wait_for(|state| (state != seen).then_some(state)).await
    }

    /// Makes sure that at least `remaining` is left: right before something is done that can't be
    /// undone. It asks no server, and takes no time.
    ///
    /// What was begun may still arrive after the end of the lease, if this process or the network
    /// is stopped in between: let the other side check the [fencing token](Self::fencing_token).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// use std::time::Duration;
    ///
    /// let guard = redlock.lock("order:42").await?;
    /// guard.ensure(Duration::from_secs(2))?;
    /// // charge the customer, which takes up to two seconds
    /// assert!(guard.ensure(Duration::from_secs(3600)).is_err());
    /// guard.release().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Lost`](crate::ErrorKind::Lost) if the lock was lost or released, and
    /// [`Expired`](crate::ErrorKind::Expired) if less than `remaining` is left.
    pub fn ensure(&self, remaining: Duration) -> Result<(), LockError> {
        match self.state() {
            LeaseState::Lost(reason) => Err(LockError::lost(reason)),
            LeaseState::Released => Err(LockError::released()),
            LeaseState::Held | LeaseState::Jeopardy => match self.remaining() {
                left if left < remaining => Err(LockError::too_little(left, remaining)),
                _ => Ok(()),
            },
        }
    }

    /// The number that is larger than those of all earlier locks of this key, for the store that
    /// is written to: see [`FencingToken`]. `None` in [`Safety::Plain`](crate::Safety::Plain).
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        self.0.fence.map(|fence| fence.token)
    }

    /// What makes the fencing token larger than earlier ones. `None` in
    /// [`Safety::Plain`](crate::Safety::Plain).
    #[must_use]
    pub fn fence_basis(&self) -> Option<FenceBasis> {
        self.0.fence.map(|fence| fence.basis)
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("key", &self.0.key)
            .field("token", &self.0.token)
            .field("fencing_token", &self.fencing_token())
            .field("remaining", &self.remaining())
            .field("lost", &self.lost_reason())
            .finish()
    }
}

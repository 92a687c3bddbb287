//! A lease: what is known of a lock that is held, for as long as anybody wants to know.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::key::Key;
use crate::protocol::tenure::LostReason;
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
    /// # Ok(()) }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn lost(&self) -> LostReason {
        self.0.lost().await
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

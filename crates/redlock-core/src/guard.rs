//! The guard: whoever has it has the lock.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::error::LockError;
use crate::lease::Lease;
use crate::observe::Release;
use crate::protocol::quorum::Majority;
use crate::protocol::tenure::LostReason;
use crate::service::Service;
use crate::token::Token;

/// What became of a release. Never an error: the caller's work is done either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Released {
    /// A majority of the nodes deleted the key.
    Released,
    /// The lease had run out or was lost before, or a majority of the nodes says that the key is
    /// not ours.
    AlreadyExpired,
    /// The outcome is unknown, because too few nodes answered in time or a vote was lost. The release
    /// is sent again when a node is back; the key expires with its time to live at the latest.
    Indeterminate,
}

impl Released {
    pub(crate) const fn by(ours: Majority) -> Self {
        match ours {
            Majority::Yes => Self::Released,
            Majority::No => Self::AlreadyExpired,
            Majority::Open => Self::Indeterminate,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::AlreadyExpired => "already_expired",
            Self::Indeterminate => "indeterminate",
        }
    }
}

/// A lock that is held. It owns the lock: [`release`](Self::release) it, or drop it and the
/// release is sent in the background.
///
/// A drop waits for nothing. If the runtime ends right afterwards, as it does at the end of `main`,
/// its end waits until everything is sent, for all locks of a [`Redlock`](crate::Redlock) together
/// 250 ms at most. The same holds without a runtime: the drop of the last handle waits then. A key
/// stays locked for its time to live if its server did not answer by then, or if the process was
/// killed or ended by [`std::process::exit`]. To be sure, await [`release`](Self::release), use
/// [`with_lock`](crate::Redlock::with_lock), or [`close`](crate::Redlock::close) before `main`
/// returns.
///
/// Dereferences to its [`Lease`], which tells until when the lock is valid.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
/// use redlock_core::{Redlock, Released};
///
/// let redlock = Redlock::in_memory();
/// let guard = redlock.lock("order:42").await?;
/// if !guard.is_lost() {
///     // nobody else has order 42 for the next `guard.remaining()`
/// }
/// assert_eq!(guard.release().await, Released::Released);
/// # Ok(()) }
/// ```
#[must_use = "the lock is released as soon as its guard is dropped, with `let _` at once: name it"]
pub struct Guard {
    lease: Lease,
    service: Arc<Service>,
}

impl Guard {
    pub(crate) fn new(lease: Lease, service: Arc<Service>) -> Self {
        Self { lease, service }
    }

    /// The lease of this lock, to be cloned and passed around.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Sets the time to live to `ttl` from now, on a majority of the nodes, and returns for how
    /// long the lock is valid then. Later renewals keep to the new `ttl`. It may be shorter than
    /// before; the lock then counts as valid for no longer than that from the moment of sending.
    /// In [`Safety::Guarded`](crate::Safety::Guarded) servers then keep the key for as long as they
    /// were told before, unless it is released.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// use std::time::Duration;
    ///
    /// let guard = redlock.lock("order:42").await?;
    /// let validity = guard.extend(Duration::from_secs(10)).await?;
    /// assert!(validity > Duration::from_secs(9));
    /// guard.release().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Lost`](crate::ErrorKind::Lost) if the lock has run out or a majority says that it is not
    /// ours; [`Unavailable`](crate::ErrorKind::Unavailable) if no majority confirmed, in which
    /// case the lock stays valid for as long as it was; [`Invalid`](crate::ErrorKind::Invalid) if
    /// `ttl` is too short for the configured drift and node deadline, or longer than
    /// [`max_ttl`](crate::ConfigBuilder::max_ttl).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the servers may or may not extend the key; the lease then keeps
    /// its old end, or the one of a shorter `ttl`.
    pub async fn extend(&self, ttl: Duration) -> Result<Duration, LockError> {
        let ttl = self.service.config.usable_ttl(ttl).map_err(LockError::invalid)?;
        self.service.keeper.extend(&self.lease.0, ttl).await
    }

    /// Releases the lock on all nodes and waits for a majority of them, at most a few node
    /// deadlines.
    ///
    /// # Cancel safety
    ///
    /// The release is sent in any case; dropping the future only stops waiting for it.
    pub async fn release(self) -> Released {
        let lost = self.lease.lost_reason().filter(|reason| *reason != LostReason::Closed);
        let release = self.service.keeper.release(&self.lease.0).map(|_| Release::sent());
        let released = match (lost, self.lease.0.released()) {
            (None, Some(round)) => Released::by(round.ours().await),
            _ => Released::AlreadyExpired,
        };
        if let Some(release) = release {
            release.answered(released.name());
        }
        released
    }

    /// Gives the lock up without releasing it, for another process to go on with: send it the
    /// token, with which it can [`extend`](crate::Redlock::extend) and
    /// [`unlock`](crate::Redlock::unlock) the key. This process renews it no more.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// use redlock_core::{Released, Token};
    ///
    /// let message: String = redlock.lock("order:42").await?.hand_over().to_string();
    ///
    /// // in another process
    /// let token: Token = message.parse()?;
    /// assert_eq!(redlock.unlock("order:42", &token).await?, Released::Released);
    /// # Ok(()) }
    /// ```
    #[must_use = "without the token nobody can release the lock before it expires"]
    pub fn hand_over(self) -> Token {
        self.service.keeper.hand_over(&self.lease.0);
        self.lease.token().clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.service.keeper.release(&self.lease.0).is_some() {
            drop(Release::sent());
        }
    }
}

impl Deref for Guard {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.lease
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("lease", &self.lease).finish_non_exhaustive()
    }
}

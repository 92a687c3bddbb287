//! The fencing token of the lock that a request holds, and why it may not write.

use redlock_core::FencingToken;

/// A fencing token as the databases keep it.
#[derive(Clone, Copy, Debug, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct Fence(i64);

impl Fence {
    pub(crate) fn of(token: Option<FencingToken>) -> Result<Self, WriteError> {
        let number = token.and_then(|token| i64::try_from(token.get()).ok());
        number.map(Self).ok_or(WriteError::NoToken)
    }
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// A later lock has written.
    #[error("a later request has taken the place of this one; send it again")]
    Stale,
    /// Without a token there would be nothing to check.
    #[error("the lock of this request has no fencing token that could be checked")]
    NoToken,
    #[error(transparent)]
    Failed(#[from] sqlx::Error),
}

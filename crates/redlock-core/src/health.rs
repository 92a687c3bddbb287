//! Whether locks can be taken: what the servers say of themselves.

use crate::error::{LockError, NodeReport};
use crate::fencing::bucket_of;
use crate::key::Key;
use crate::node::Op;
use crate::protocol::quorum::majority;
use crate::redlock::Redlock;
use crate::token::Token;

/// How the servers of one group stand.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupHealth {
    /// What each server answered, in the order of the configuration.
    pub nodes: Vec<NodeReport>,
}

impl GroupHealth {
    /// How many servers can vote now.
    #[must_use]
    pub fn voting(&self) -> usize {
        self.nodes.iter().filter(|node| node.answer.is_vote()).count()
    }

    /// Whether a majority of them can: without it nothing can be locked in this group.
    #[must_use]
    pub fn has_majority(&self) -> bool {
        self.voting() >= majority(self.nodes.len())
    }
}

impl Redlock {
    /// Whether locks can be taken now: a majority of every group answers, and may vote. It touches
    /// no lock, and a server that is full answers too. In the guarded mode a server that is new or
    /// lost its data begins its quarantine with the first question, also with this one.
    ///
    /// # Errors
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) with the answers of the first group of which
    /// no majority does; [`Closed`](crate::ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn ready(&self) -> Result<(), LockError> {
        self.service.check_usable()?;
        let key = Key::internal(&self.config().key_prefix, "ready");
        for group in &self.service.groups {
            self.service.ask(Op::Count { bucket: bucket_of(&key) }, group, &key).await?;
        }
        Ok(())
    }

    /// How the servers stand, for a readiness endpoint: of every group, in the order of the
    /// configuration, whether a majority can vote, and what each server answered. Unlike
    /// [`ready`](Self::ready) it waits for all of them, and servers that don't answer are no error. It
    /// waits for a node deadline, or for 1 second if a server was never connected.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// let groups = redlock.health().await?;
    /// assert!(groups.iter().all(|group| group.has_majority()));
    /// assert_eq!(groups[0].voting(), groups[0].nodes.len());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Closed`](crate::ErrorKind::Closed); [`Unavailable`](crate::ErrorKind::Unavailable) if the
    /// operating system gives no random bytes.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn health(&self) -> Result<Vec<GroupHealth>, LockError> {
        self.service.check_usable()?;
        let key = Key::internal(&self.config().key_prefix, "ready");
        let token = Token::generate(&self.config().label).map_err(LockError::no_randomness)?;
        let mut health = Vec::with_capacity(self.service.groups.len());
        for group in &self.service.groups {
            let count = Op::Count { bucket: bucket_of(&key) };
            health.push(GroupHealth { nodes: group.ask_each(count, &key, &token).await });
        }
        Ok(health)
    }
}

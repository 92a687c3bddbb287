//! A node: one server that votes.
//!
//! Commands are posted without waiting. A node answers each of them exactly once, within its
//! deadline, and executes those of one key in the order in which they were posted.

use std::fmt;
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use crate::deference::Deference;
use crate::key::Key;
use crate::round::Seat;
use crate::token::Token;

mod batch;
mod call;
mod connection;
mod dataset;
mod expiring;
#[cfg(feature = "test-util")]
pub(crate) mod fuzzing;
mod guarded;
mod lane;
mod last_chance;
pub(crate) mod link;
mod mailbox;
mod manager;
mod memory;
mod outage;
mod redis;
mod resp;
#[cfg(feature = "test-util")]
pub(crate) mod simulated;
mod stream;
mod survey;
#[cfg(feature = "test-util")]
#[doc(hidden)]
pub mod twin;
mod watcher;
mod window;
mod wire;

pub(crate) use self::connection::CONNECT_DEADLINE;
pub(crate) use self::last_chance::Farewell;
pub(crate) use self::manager::Identities;
pub(crate) use self::memory::MemoryNode;
pub(crate) use self::redis::RedisNode;

/// What the rest of the library knows of a server.
pub(crate) trait Node: fmt::Debug + Send + Sync {
    /// Host, port and database; never a password.
    fn address(&self) -> &str;

    /// Hands over a command. Never blocks and never loses a release: what can't be sent now is a
    /// debt that is settled when the server is back.
    fn post(&self, command: Command);

    /// Hands over two commands at once, in this order: nothing comes between them, and if they are
    /// the release and the acquisition of one key, nobody else gets it in between.
    fn post_both(&self, first: Command, second: Command);

    /// Ends when the key was free, and still is after looking away for a moment; never, if that
    /// can't be told.
    fn freed<'n>(
        &'n self,
        _key: &'n Key,
        _deference: &'n Deference<'n>,
    ) -> Pin<Box<dyn Future<Output = ()> + Send + 'n>> {
        Box::pin(pending())
    }

    /// Commands without an answer, and debts.
    fn unsettled(&self) -> usize;

    /// Ends when nothing is unsettled.
    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Refuses everything from now on, and ends the node's tasks after what is posted already.
    fn shut_down(&self);
}

/// What a node can be asked to do with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "test-util"), allow(unreachable_pub))]
#[allow(clippy::exhaustive_enums, missing_docs, reason = "public to checkers only")]
pub enum Op {
    /// Set the key to the token if nobody holds it, and raise its counter: to `proposal`, or by
    /// one.
    Acquire { ttl: Duration, proposal: u64 },
    /// Set a new time to live if the key holds the token; never create it (H15).
    Extend { ttl: Duration },
    /// Raise the counter of the key to this fencing token if the key holds the token.
    Confirm { fence: u64 },
    /// Say what a counter is. A node that forgot it answers as one that does not hold the key.
    Count { bucket: u64 },
    /// Take a counter from the nodes that remember it, if none was lost since this moment.
    Learn { bucket: u64, value: u64, since: u64 },
    /// Do not vote for as long as any lock may last: the clock was wrong.
    Distrust,
    /// Delete the key if it holds the token.
    Release,
    /// The same; otherwise say who holds it, which a server's own compare-and-delete does not.
    Reclaim,
    /// The same, where what set the key may still be on the way on another connection: the token
    /// is of no use afterwards (H11).
    Void,
    /// Say who holds the key.
    Inspect,
    /// Begin to keep a record of the node, if there is none; `dry`: say only whether there is.
    Provision { dry: bool },
}

impl Op {
    /// Whether losing this command could leave a key behind that nobody owns.
    pub(crate) const fn is_release(self) -> bool {
        matches!(self, Self::Release | Self::Reclaim | Self::Void)
    }
}

/// One operation for one node.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) op: Op,
    pub(crate) key: Key,
    pub(crate) token: Token,
    pub(crate) seat: Seat,
}

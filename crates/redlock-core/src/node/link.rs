//! A connection as a lane uses it: calls go out in order, and replies come back in the same order.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::call::Call;
use super::connection::Cause;
use super::wire::{NativeDelete, Reply, ScriptBy};

/// Makes links to one server.
pub(super) trait Connector: fmt::Debug + Send + Sync + 'static {
    type Link: Link;

    /// Connects, within a deadline of its own, to a server that may vote.
    fn connect(&self) -> impl Future<Output = Result<Self::Link, Cause>> + Send;

    /// Tells the operator which calls to kill earlier connections the server has refused.
    fn could_not_kill(&self, _refusals: &[Reply]) {}

    /// Whether a simulated client makes this mistake in its lanes.
    fn makes(&self, _mistake: LaneMistake) -> bool {
        false
    }
}

/// A connection to a server that was found fit to vote. Dropping it closes it: the server may still
/// run what was sent.
pub(super) trait Link: Send + 'static {
    /// The form in which the server takes commands.
    fn dialect(&self) -> Dialect;

    /// `None` if the user may not ask the server for it.
    fn id(&self) -> Option<&ConnectionId>;

    /// Writes a call behind all earlier ones. It leaves with the next poll.
    fn write(&mut self, call: &Call, by: ScriptBy);

    /// Ready with the replies to `call`, which is the oldest that has none: one for each command.
    fn poll_replies(
        &mut self,
        cx: &mut Context<'_>,
        call: &Call,
        replies: &mut Vec<Reply>,
    ) -> Poll<Result<(), Cause>>;

    /// Ready when the connection breaks while no reply is awaited.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Cause>;
}

/// The form in which a server takes commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    Guarded,
    Plain { native_delete: Option<NativeDelete> },
}

/// Tells one connection of a server from all others that it ever had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConnectionId {
    pub(super) run_id: Arc<str>,
    pub(super) client_id: i64,
}

/// A mistake in a lane, which the simulator has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "test-util"), allow(unreachable_pub, dead_code))]
#[allow(clippy::exhaustive_enums, reason = "public to checkers only")]
pub enum LaneMistake {
    /// A new connection takes commands before earlier connections were killed and pending releases
    /// were made void.
    ReleaseOvertakes,
    /// A batch without an answer in time is given up, and the connection is kept.
    IgnoresMissingAnswer,
    /// The last reply counts for the next batch as well.
    CountsTwice,
    /// Releases on a connection that broke are not sent again.
    ForgetsReleases,
}

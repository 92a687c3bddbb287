//! A batch: commands that go out together.

use std::mem::take;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::time::Instant;

use super::Command;
use super::call::{Call, Calls};
use super::connection::Cause;
use super::link::Link;
use super::mailbox::{Mailbox, PendingRelease};
use super::outage::Standing;
use super::wire::{Reply, ScriptBy};
use crate::protocol::quorum::NodeAnswer;

/// Commands on the way. A batch that is dropped unanswered, by a failure or by the end of the
/// runtime, is lost: its commands are answered and its releases become pending.
pub(super) struct Batch<'l> {
    mailbox: &'l Mailbox,
    /// Those without a reply, the oldest first.
    calls: Calls,
    by: ScriptBy,
    answered: usize,
    /// Why the server can't vote any more.
    unfit: Option<Arc<str>>,
    pub(super) sent: Instant,
    /// The answer to commands whose reply does not come.
    pub(super) fate: NodeAnswer,
    /// What the answers say about the server.
    pub(super) standing: Standing,
}

/// Why a connection is of no further use.
#[derive(Debug)]
pub(super) enum Broken {
    /// It failed.
    Cut(Cause),
    /// The server refuses, and will refuse whatever else this connection asks.
    Unfit(Arc<str>),
}

impl<'l> Batch<'l> {
    /// Writes the commands to the link.
    pub(super) fn write(
        mailbox: &'l Mailbox,
        link: &mut impl Link,
        commands: Vec<Command>,
        by: ScriptBy,
    ) -> Self {
        let mut batch = Self::of(mailbox, by);
        batch.calls = Call::of(commands, by, link.dialect());
        for call in &batch.calls {
            link.write(call, by);
        }
        batch
    }

    /// A batch without commands.
    pub(super) fn of(mailbox: &'l Mailbox, by: ScriptBy) -> Self {
        let fate = NodeAnswer::Failed("its connection task ended".into());
        Self {
            mailbox,
            calls: Calls::new(),
            by,
            answered: 0,
            unfit: None,
            sent: Instant::now(),
            fate,
            standing: Standing::default(),
        }
    }

    /// Reads replies and answers the commands; ready when all are answered.
    pub(super) fn poll_answers(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut impl Link,
        again: &mut Again<'_>,
        replies: &mut Vec<Reply>,
    ) -> Poll<Result<(), Broken>> {
        while let Some(call) = self.calls.front() {
            replies.clear();
            ready!(link.poll_replies(cx, call, replies)).map_err(Broken::Cut)?;
            let Some(call) = self.calls.pop_front() else { break };
            self.answer(call, replies, again);
        }
        Poll::Ready(self.unfit.take().map_or(Ok(()), |cause| Err(Broken::Unfit(cause))))
    }

    /// Answers the commands of a call. A command that the server did not run for want of a script
    /// joins `again`, and so do releases of the same key, which must not come before what they
    /// undo. A release that the server did not run for another reason is pending.
    pub(super) fn answer(&mut self, call: Call, replies: &mut Vec<Reply>, again: &mut Again<'_>) {
        let (by, standing) = (self.by, &mut self.standing);
        let mut refused = Vec::new();
        let mut answer = |command: Command, reply: Reply| {
            let is_sent_again = match &reply {
                Reply::Again => by == ScriptBy::Hash,
                Reply::Vote(_) => command.op.is_release() && again.precedes(&command),
                Reply::Unfit(_) => false,
            };
            if is_sent_again {
                return again.commands.push(command);
            }
            if command.op.is_release() && !reply.is_release() {
                refused.push(PendingRelease::of(&command));
            }
            let answer = match reply {
                Reply::Vote(vote) => {
                    standing.observe(command.op, &vote.answer);
                    vote
                }
                Reply::Again => NodeAnswer::Failed("it forgets scripts at once".into()).into(),
                Reply::Unfit(cause) => {
                    self.unfit = Some(Arc::clone(&cause));
                    NodeAnswer::Refused(cause).into()
                }
            };
            self.answered += 1;
            command.seat.answer(answer);
        };
        let mut replies = replies.drain(..);
        let mut next = || {
            let missing = || NodeAnswer::Failed("its reply has too few answers".into()).into();
            replies.next().unwrap_or_else(|| Reply::Vote(missing()))
        };
        match call {
            Call::Single(command) => answer(command, next()),
            Call::Succession(both, _) => {
                both.into_iter().for_each(|command| answer(command, next()));
            }
            Call::Releases(commands) | Call::Reads(commands) | Call::Guarded(commands) => {
                commands.into_iter().for_each(|command| answer(command, next()));
            }
            Call::PendingReleases(_) | Call::Kill(_) => {}
        }
        if !refused.is_empty() {
            self.mailbox.refused(refused);
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.mailbox.done(self.answered);
        if !self.calls.is_empty() {
            let commands = take(&mut self.calls).into_iter().flat_map(Call::into_commands);
            self.mailbox.lost(commands.collect(), &self.fate);
        }
    }
}

/// Commands that are to be sent again with their script in full, before anything that was not sent
/// so far. What is dropped here is lost, as it is with a batch.
pub(super) struct Again<'l> {
    mailbox: &'l Mailbox,
    commands: Vec<Command>,
}

impl<'l> Again<'l> {
    pub(super) const fn new(mailbox: &'l Mailbox) -> Self {
        Self { mailbox, commands: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    pub(super) fn take(&mut self) -> Vec<Command> {
        take(&mut self.commands)
    }

    fn precedes(&self, later: &Command) -> bool {
        self.commands.iter().any(|command| command.key == later.key)
    }
}

impl Drop for Again<'_> {
    fn drop(&mut self) {
        if !self.is_empty() {
            let fate = NodeAnswer::Failed("its connection ended before it knew the script".into());
            self.mailbox.lost(self.take(), &fate);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::key::Key;
    use crate::node::Op;
    use crate::node::link::Dialect;
    use crate::protocol::quorum::Vote;
    use crate::round::{Round, Seat};
    use crate::token::Token;

    const ACQUIRE: Op = Op::Acquire { ttl: Duration::from_secs(1), proposal: 7 };

    #[test]
    fn a_release_is_sent_again_after_what_it_undoes() {
        let mailbox = Mailbox::default();
        let token: Token = format!("t:{:032x}", 1).parse().unwrap();
        let commands = [(ACQUIRE, "a"), (Op::Release, "a"), (Op::Release, "b")];
        let rounds = commands.map(|(op, key)| {
            let round = Arc::new(Round::new(1));
            let seat = Seat::new(Arc::clone(&round), 0);
            let key = Key::new(key).unwrap();
            mailbox.push([Command { op, key, token: token.clone(), seat }]);
            round
        });
        let mut again = Again::new(&mailbox);
        let mut batch = Batch::of(&mailbox, ScriptBy::Hash);
        let calls = Call::of(mailbox.take(8), ScriptBy::Hash, Dialect::Guarded);
        let released = Reply::Vote(Vote::from(NodeAnswer::NotHeld));
        let replies = [vec![Reply::Again], vec![released.clone(), released]];
        for (call, mut replies) in calls.into_iter().zip(replies) {
            batch.answer(call, &mut replies, &mut again);
        }
        let answers = rounds.map(|round| round.inspect(|ballot| ballot.answers()[0].clone()));
        assert_eq!(answers[2], NodeAnswer::NotHeld);
        let ops: Vec<Op> = again.take().iter().map(|one| one.op).collect();
        assert_eq!(ops, [ACQUIRE, Op::Release]);
    }
}

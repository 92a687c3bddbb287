//! A batch: commands that go out as one pipeline.
//!
//! All releases of a batch are one call of a script, which costs a server about as much as the
//! deletions alone; so are all votes in the guarded mode. Releases are sent after what was posted
//! later, unless that is of the same key: commands of one key never overtake each other. The release
//! of a lock and the acquisition of the next one are in one call, so that nobody else gets the key
//! in between. Reads are a call of their own, after everything else, and write nothing.

use std::future::{pending, poll_fn, ready};
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bb8_redis::redis::{Pipeline, RedisResult, Value};
use tokio::time::Instant;

use super::connection::{Connection, Dialect};
use super::guarded::{self, Guarding};
use super::mailbox::Mailbox;
use super::outage::Standing;
use super::wire::{self, NativeDelete, Reply, ScriptBy};
use super::{Command, Op};
use crate::protocol::quorum::NodeAnswer;

/// Commands on the way. A batch that is dropped unanswered, by a failure or by the end of the
/// runtime, is lost: its commands are answered and its releases become debts.
pub(super) struct Batch<'l> {
    mailbox: &'l Mailbox,
    calls: Vec<Call>,
    by: ScriptBy,
    pub(super) sent: Instant,
    pub(super) replies: Pin<Box<dyn Future<Output = RedisResult<Vec<Value>>> + Send>>,
    /// What is answered if no reply comes.
    pub(super) fate: NodeAnswer,
    /// What its answers say about the server.
    pub(super) standing: Standing,
}

/// What the server is asked in one piece.
enum Call {
    Single(Command),
    Releases(Vec<Command>),
    Reads(Vec<Command>),
    Succession { release: Command, acquire: Command, ttl: Duration },
    Guarded(Vec<Command>),
}

impl<'l> Batch<'l> {
    /// Hands the commands to the connection; what it hands over first is sent first.
    pub(super) async fn send(
        mailbox: &'l Mailbox,
        connection: &Connection,
        commands: Vec<Command>,
        by: ScriptBy,
    ) -> Self {
        let (mut batch, pipeline) = Self::prepare(mailbox, connection.dialect(), commands, by);
        batch.replies = Box::pin(connection.send(pipeline, batch.calls.len()));
        let begun = poll_fn(|cx| Poll::Ready(batch.replies.as_mut().poll(cx))).await;
        if let Poll::Ready(replies) = begun {
            batch.replies = Box::pin(ready(replies));
        }
        batch
    }

    /// A batch that is not sent so far, and what it says to the server.
    pub(super) fn prepare(
        mailbox: &'l Mailbox,
        dialect: &Dialect,
        commands: Vec<Command>,
        by: ScriptBy,
    ) -> (Self, Pipeline) {
        let (calls, pipeline) = match dialect {
            Dialect::Guarded(guarding) => guarded(commands, by, guarding),
            Dialect::Plain { native_delete } => plain(commands, by, *native_delete),
        };
        let fate = NodeAnswer::Failed("its connection task ended".into());
        let replies = Box::pin(pending());
        let standing = Standing::default();
        (Self { mailbox, calls, by, sent: Instant::now(), replies, fate, standing }, pipeline)
    }

    /// Casts the votes. What the server did not run for want of a script joins `again`, and so do
    /// releases of the same keys, which must not come before what they undo. Returns why the
    /// server can't vote any more.
    pub(super) fn count(
        &mut self,
        replies: Vec<Value>,
        again: &mut Again<'_>,
    ) -> Result<(), Arc<str>> {
        let mut unfit = None;
        let mut answered = 0;
        let (by, standing) = (self.by, &mut self.standing);
        let mut cast = |command: Command, reply| match reply {
            Reply::Again if by == ScriptBy::Hash => again.commands.push(command),
            Reply::Vote(_) if command.op.is_release() && again.precedes(&command) => {
                again.commands.push(command);
            }
            Reply::Vote(vote) => {
                answered += 1;
                standing.observe(command.op, &vote.answer);
                command.seat.answer(vote);
            }
            Reply::Again => {
                answered += 1;
                command.seat.answer(NodeAnswer::Failed("it forgets scripts at once".into()));
            }
            Reply::Unfit(cause) => {
                answered += 1;
                command.seat.answer(NodeAnswer::Refused(Arc::clone(&cause)));
                unfit = Some(cause);
            }
        };
        for (call, reply) in take(&mut self.calls).into_iter().zip(replies) {
            match call {
                Call::Single(command) => cast(command, wire::classify(reply)),
                Call::Releases(commands) | Call::Reads(commands) => {
                    let replies = wire::classify_each(reply, commands.len());
                    commands.into_iter().zip(replies).for_each(|(one, reply)| cast(one, reply));
                }
                Call::Succession { release, acquire, .. } => {
                    let commands = [release, acquire];
                    let replies = guarded::classify_each(reply, commands.iter().map(|one| one.op));
                    commands.into_iter().zip(replies).for_each(|(one, reply)| cast(one, reply));
                }
                Call::Guarded(commands) => {
                    let replies = guarded::classify_each(reply, commands.iter().map(|one| one.op));
                    commands.into_iter().zip(replies).for_each(|(one, reply)| cast(one, reply));
                }
            }
        }
        self.mailbox.done(answered);
        unfit.map_or(Ok(()), Err)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
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

impl Call {
    fn into_commands(self) -> Vec<Command> {
        match self {
            Self::Single(command) => vec![command],
            Self::Succession { release, acquire, .. } => vec![release, acquire],
            Self::Releases(commands) | Self::Reads(commands) | Self::Guarded(commands) => commands,
        }
    }
}

/// One call runs all votes. Only the record of a server is begun by itself: looking whether the
/// server may vote would begin it, too.
fn guarded(commands: Vec<Command>, by: ScriptBy, guarding: &Guarding) -> (Vec<Call>, Pipeline) {
    let mut pipeline = Pipeline::with_capacity(2);
    let mut calls = Vec::with_capacity(2);
    let (commands, reads) = without_reads(commands, guarded::is_read);
    let mut votes = Vec::with_capacity(commands.len());
    let mut releases = Vec::new();
    let last = commands.iter().map(|one| (guarded::is_no_vote(one.op), &one.key));
    let may_go_last = wire::may_go_last(last);
    for (command, may_go_last) in commands.into_iter().zip(may_go_last) {
        if let Op::Provision { dry } = command.op {
            guarding.encode_provision(&mut pipeline, dry);
            calls.push(Call::Single(command));
        } else if may_go_last {
            releases.push(command);
        } else {
            votes.push(command);
        }
    }
    if !votes.is_empty() {
        guarding.encode(&mut pipeline, &votes, by);
        calls.push(Call::Guarded(votes));
    }
    for releases in together(releases, by) {
        wire::encode_releases(&mut pipeline, releases.iter().map(wire::held_by), by);
        calls.push(Call::Releases(releases));
    }
    for reads in together(reads, by) {
        wire::encode_reads(&mut pipeline, reads.iter().map(|read| &read.key), by);
        calls.push(Call::Reads(reads));
    }
    (calls, pipeline)
}

/// The commands that may write, and those that only read.
fn without_reads(commands: Vec<Command>, is_read: fn(Op) -> bool) -> (Vec<Command>, Vec<Command>) {
    commands.into_iter().partition(|command| !is_read(command.op))
}

/// One call for all, or one for each if the script is sent in full.
fn together(commands: Vec<Command>, by: ScriptBy) -> Vec<Vec<Command>> {
    match by {
        ScriptBy::Hash if commands.is_empty() => Vec::new(),
        ScriptBy::Hash => vec![commands],
        ScriptBy::Source => commands.into_iter().map(|command| vec![command]).collect(),
    }
}

fn plain(
    commands: Vec<Command>,
    by: ScriptBy,
    native: Option<NativeDelete>,
) -> (Vec<Call>, Pipeline) {
    let calls = calls(commands, by, native);
    let mut pipeline = Pipeline::with_capacity(calls.len());
    for call in &calls {
        match call {
            Call::Single(command) => wire::encode(&mut pipeline, command, by, native),
            Call::Succession { release, acquire, ttl } => {
                wire::encode_succession(&mut pipeline, [release, acquire], *ttl);
            }
            Call::Releases(commands) | Call::Guarded(commands) => {
                let held = commands.iter().map(wire::held_by);
                wire::encode_releases(&mut pipeline, held, by);
            }
            Call::Reads(commands) => {
                wire::encode_reads(&mut pipeline, commands.iter().map(|read| &read.key), by);
            }
        }
    }
    (calls, pipeline)
}

/// Gathers the releases that no later command of their key follows.
fn calls(commands: Vec<Command>, by: ScriptBy, native: Option<NativeDelete>) -> Vec<Call> {
    let (commands, reads) = without_reads(commands, wire::is_plain_read);
    let last = commands.iter().map(|one| (wire::is_release_call(one.op, native), &one.key));
    let may_go_last = wire::may_go_last(last);
    let mut calls = Vec::with_capacity(commands.len());
    let mut releases = Vec::new();
    let mut commands = commands.into_iter().zip(may_go_last).peekable();
    while let Some((command, may_go_last)) = commands.next() {
        let ttl = commands.peek().and_then(|(next, _)| wire::succession(&command, next));
        match ttl.and_then(|ttl| Some((ttl, commands.next()?))) {
            Some((ttl, (acquire, _))) => {
                calls.push(Call::Succession { release: command, acquire, ttl });
            }
            None if may_go_last => releases.push(command),
            None if wire::is_release_call(command.op, native) => {
                calls.push(Call::Releases(vec![command]));
            }
            None => calls.push(Call::Single(command)),
        }
    }
    calls.extend(together(releases, by).into_iter().map(Call::Releases));
    calls.extend(together(reads, by).into_iter().map(Call::Reads));
    calls
}

#[cfg(test)]
mod tests {
    use bb8_redis::redis::parse_redis_value;

    use super::*;
    use crate::config::{Config, Safety};
    use crate::key::Key;
    use crate::round::{Round, Seat};
    use crate::token::Token;

    const ACQUIRE: Op = Op::Acquire { ttl: Duration::from_secs(1), proposal: 7 };

    fn command(op: Op, key: &str) -> Command {
        let token: Token = format!("t:{:032x}", 1).parse().unwrap();
        let seat = Seat::new(Arc::new(Round::new(1)), 0);
        Command { op, key: Key::new(key).unwrap(), token, seat }
    }

    fn guarded() -> Dialect {
        let config = Config::servers(["redis://a", "redis://b", "redis://c"]);
        let config = config.safety(Safety::Guarded).build().unwrap();
        Dialect::Guarded(Arc::new(Guarding::new(&config)))
    }

    /// The operations of each call that these commands become.
    fn calls_of(dialect: &Dialect, commands: &[(Op, &str)], by: ScriptBy) -> Vec<Vec<Op>> {
        let mailbox = Mailbox::default();
        let commands = commands.iter().map(|(op, key)| command(*op, key)).collect();
        let (mut batch, _) = Batch::prepare(&mailbox, dialect, commands, by);
        let ops = |call: Call| call.into_commands().iter().map(|one| one.op).collect();
        take(&mut batch.calls).into_iter().map(ops).collect()
    }

    #[test]
    fn votes_are_one_call_and_releases_another_but_for_those_of_a_key_that_is_asked_for_later() {
        let commands = [
            (Op::Release, "a"),
            (ACQUIRE, "b"),
            (Op::Reclaim, "c"),
            (ACQUIRE, "a"),
            (Op::Inspect, "d"),
            (Op::Void, "e"),
            (Op::Release, "b"),
        ];
        let votes = vec![Op::Release, ACQUIRE, ACQUIRE, Op::Void];
        let together = [votes.clone(), vec![Op::Reclaim, Op::Release], vec![Op::Inspect]];
        assert_eq!(calls_of(&guarded(), &commands, ScriptBy::Hash), together);
        let singly = [votes, vec![Op::Reclaim], vec![Op::Release], vec![Op::Inspect]];
        assert_eq!(calls_of(&guarded(), &commands, ScriptBy::Source), singly);
    }

    #[test]
    fn reads_are_a_call_of_their_own_in_both_modes() {
        let plain = Dialect::Plain { native_delete: Some(NativeDelete::Delex) };
        let commands = [(Op::Inspect, "a"), (ACQUIRE, "a"), (Op::Inspect, "a"), (Op::Release, "b")];
        let reads = vec![Op::Inspect; 2];
        let expected = [vec![ACQUIRE], vec![Op::Release], reads.clone()];
        assert_eq!(calls_of(&guarded(), &commands, ScriptBy::Hash), expected);
        assert_eq!(calls_of(&plain, &commands, ScriptBy::Hash), expected);
        let only = [(Op::Inspect, "a"), (Op::Inspect, "a")];
        assert_eq!(calls_of(&guarded(), &only, ScriptBy::Hash), [reads]);
    }

    #[test]
    fn plain_releases_are_one_call_but_for_those_of_a_key_that_is_asked_for_later() {
        let plain = Dialect::Plain { native_delete: None };
        let commands = [
            (Op::Release, "a"),
            (ACQUIRE, "b"),
            (ACQUIRE, "a"),
            (Op::Release, "c"),
            (ACQUIRE, "c"),
            (Op::Release, "d"),
            (Op::Release, "b"),
        ];
        let votes = [vec![Op::Release], vec![ACQUIRE], vec![ACQUIRE], vec![Op::Release, ACQUIRE]];
        let together = [&votes[..], &[vec![Op::Release; 2]]].concat();
        assert_eq!(calls_of(&plain, &commands, ScriptBy::Hash), together);
        let singly = [&votes[..], &[vec![Op::Release], vec![Op::Release]]].concat();
        assert_eq!(calls_of(&plain, &commands, ScriptBy::Source), singly);
    }

    #[test]
    fn a_release_is_sent_again_after_what_it_undoes() {
        let mailbox = Mailbox::default();
        let commands = [(ACQUIRE, "a"), (Op::Release, "a"), (Op::Release, "b")];
        let rounds = commands.map(|(op, key)| {
            let round = Arc::new(Round::new(1));
            let seat = Seat::new(Arc::clone(&round), 0);
            mailbox.push([Command { seat, ..command(op, key) }]);
            round
        });
        let mut again = Again::new(&mailbox);
        let (mut batch, _) = Batch::prepare(&mailbox, &guarded(), mailbox.take(8), ScriptBy::Hash);
        let replies = ["-NOSCRIPT none\r\n", "*2\r\n:0\r\n:0\r\n"];
        let replies = replies.map(|reply| parse_redis_value(reply.as_bytes()).unwrap());
        batch.count(replies.into(), &mut again).unwrap();
        let answers = rounds.map(|round| round.inspect(|ballot| ballot.answers()[0].clone()));
        assert_eq!(answers[2], NodeAnswer::NotHeld);
        let ops: Vec<Op> = again.take().iter().map(|one| one.op).collect();
        assert_eq!(ops, [ACQUIRE, Op::Release]);
    }
}

//! A call: one or more commands that a server answers together.
//!
//! All releases of a batch are one call of a script, which costs a server about as much as the
//! deletions alone; so are all votes in the guarded mode. Releases go out behind later commands,
//! unless one of these is about the same key: commands of one key never overtake each other. The
//! release of a lock and the acquisition of the next one are one call, so that nobody else gets the
//! key in between. Reads are a call of their own, after everything else, and write nothing.

use std::collections::VecDeque;
use std::time::Duration;

use super::guarded;
use super::link::{ConnectionId, Dialect};
use super::mailbox::PendingRelease;
use super::wire::{self, NativeDelete, ScriptBy};
use super::{Command, Op};

/// One or more commands with one reply.
#[derive(Debug)]
pub(super) enum Call {
    Single(Command),
    Releases(Vec<Command>),
    Reads(Vec<Command>),
    /// A release and the acquisition behind it. In a box, because all calls of a batch have the size
    /// of the largest.
    Succession(Box<[Command; 2]>, Duration),
    Guarded(Vec<Command>),
    /// Releases whose commands were answered long ago. What they undo may still be on the way on
    /// another connection.
    PendingReleases(Vec<PendingRelease>),
    /// Closes an earlier connection, so that nothing more is run that was sent on it.
    Kill(ConnectionId),
}

/// Calls that wait for a reply, the oldest first.
pub(super) type Calls = VecDeque<Call>;

impl Call {
    /// The calls that run `commands` in an order that keeps those of each key.
    pub(super) fn of(commands: Vec<Command>, by: ScriptBy, dialect: Dialect) -> Calls {
        match dialect {
            Dialect::Guarded => guarded(commands, by),
            Dialect::Plain { native_delete } => plain(commands, by, native_delete),
        }
    }

    /// The commands that wait for an answer, in the order of their replies.
    #[cfg(feature = "test-util")]
    pub(super) fn commands(&self) -> impl Iterator<Item = &Command> {
        let (first, second, others): (_, _, &[Command]) = match self {
            Self::Single(command) => (Some(command), None, &[]),
            Self::Succession(both, _) => (None, None, &both[..]),
            Self::Releases(commands) | Self::Reads(commands) | Self::Guarded(commands) => {
                (None, None, commands)
            }
            Self::PendingReleases(_) | Self::Kill(_) => (None, None, &[]),
        };
        first.into_iter().chain(second).chain(others)
    }

    /// The same, to be answered.
    pub(super) fn into_commands(self) -> Vec<Command> {
        match self {
            Self::Single(command) => vec![command],
            Self::Succession(both, _) => (*both).into(),
            Self::Releases(commands) | Self::Reads(commands) | Self::Guarded(commands) => commands,
            Self::PendingReleases(_) | Self::Kill(_) => Vec::new(),
        }
    }
}

/// One call runs all votes. Only the record of a server is begun by a call of its own: checking
/// whether the server may vote would begin it, too.
fn guarded(commands: Vec<Command>, by: ScriptBy) -> Calls {
    let mut calls = Calls::with_capacity(2);
    let (commands, reads) = without_reads(commands, guarded::is_read);
    let last = commands.iter().map(|one| (guarded::is_no_vote(one.op), &one.key));
    let may_go_last = wire::may_go_last(last);
    let later = may_go_last.iter().filter(|may_go_last| **may_go_last).count();
    let mut votes = Vec::with_capacity(commands.len() - later);
    let mut releases = Vec::with_capacity(later);
    for (command, may_go_last) in commands.into_iter().zip(may_go_last) {
        if let Op::Provision { .. } = command.op {
            calls.push_back(Call::Single(command));
        } else if may_go_last {
            releases.push(command);
        } else {
            votes.push(command);
        }
    }
    if !votes.is_empty() {
        calls.push_back(Call::Guarded(votes));
    }
    push(&mut calls, Call::Releases, releases, by);
    push(&mut calls, Call::Reads, reads, by);
    calls
}

/// The commands that may write, and those that only read.
fn without_reads(commands: Vec<Command>, is_read: fn(Op) -> bool) -> (Vec<Command>, Vec<Command>) {
    match commands.iter().any(|command| is_read(command.op)) {
        true => commands.into_iter().partition(|command| !is_read(command.op)),
        false => (commands, Vec::new()),
    }
}

/// Adds one call for all commands, or one for each if the script is sent in full.
fn push(calls: &mut Calls, call: fn(Vec<Command>) -> Call, commands: Vec<Command>, by: ScriptBy) {
    match by {
        ScriptBy::Hash if commands.is_empty() => {}
        ScriptBy::Hash => calls.push_back(call(commands)),
        ScriptBy::Source => calls.extend(commands.into_iter().map(|command| call(vec![command]))),
    }
}

/// Gathers the releases that no later command of their key follows.
fn plain(commands: Vec<Command>, by: ScriptBy, native: Option<NativeDelete>) -> Calls {
    let (commands, reads) = without_reads(commands, wire::is_plain_read);
    let last = commands.iter().map(|one| (wire::is_release_call(one.op, native), &one.key));
    let may_go_last = wire::may_go_last(last);
    let later = may_go_last.iter().filter(|may_go_last| **may_go_last).count();
    let mut calls = Calls::with_capacity(commands.len() - later + 1);
    let mut releases = Vec::with_capacity(later);
    let mut commands = commands.into_iter().zip(may_go_last).peekable();
    while let Some((command, may_go_last)) = commands.next() {
        let ttl = commands.peek().and_then(|(next, _)| wire::succession(&command, next));
        match ttl.and_then(|ttl| Some((ttl, commands.next()?))) {
            Some((ttl, (acquire, _))) => {
                calls.push_back(Call::Succession(Box::new([command, acquire]), ttl));
            }
            None if may_go_last => releases.push(command),
            None if wire::is_release_call(command.op, native) => {
                calls.push_back(Call::Releases(vec![command]));
            }
            None => calls.push_back(Call::Single(command)),
        }
    }
    push(&mut calls, Call::Releases, releases, by);
    push(&mut calls, Call::Reads, reads, by);
    calls
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::key::Key;
    use crate::round::{Round, Seat};
    use crate::token::Token;

    const ACQUIRE: Op = Op::Acquire { ttl: Duration::from_secs(1), proposal: 7 };

    fn command(op: Op, key: &str) -> Command {
        let token: Token = format!("t:{:032x}", 1).parse().unwrap();
        let seat = Seat::new(Arc::new(Round::new(1)), 0);
        Command { op, key: Key::new(key).unwrap(), token, seat }
    }

    /// The operations of each call that these commands become.
    fn calls_of(dialect: Dialect, commands: &[(Op, &str)], by: ScriptBy) -> Vec<Vec<Op>> {
        let commands = commands.iter().map(|(op, key)| command(*op, key)).collect();
        let ops = |call: Call| call.into_commands().iter().map(|one| one.op).collect();
        Call::of(commands, by, dialect).into_iter().map(ops).collect()
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
        assert_eq!(calls_of(Dialect::Guarded, &commands, ScriptBy::Hash), together);
        let singly = [votes, vec![Op::Reclaim], vec![Op::Release], vec![Op::Inspect]];
        assert_eq!(calls_of(Dialect::Guarded, &commands, ScriptBy::Source), singly);
    }

    #[test]
    fn reads_are_a_call_of_their_own_in_both_modes() {
        let plain = Dialect::Plain { native_delete: Some(NativeDelete::Delex) };
        let commands = [(Op::Inspect, "a"), (ACQUIRE, "a"), (Op::Inspect, "a"), (Op::Release, "b")];
        let reads = vec![Op::Inspect; 2];
        let expected = [vec![ACQUIRE], vec![Op::Release], reads.clone()];
        assert_eq!(calls_of(Dialect::Guarded, &commands, ScriptBy::Hash), expected);
        assert_eq!(calls_of(plain, &commands, ScriptBy::Hash), expected);
        let only = [(Op::Inspect, "a"), (Op::Inspect, "a")];
        assert_eq!(calls_of(Dialect::Guarded, &only, ScriptBy::Hash), [reads]);
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
        assert_eq!(calls_of(plain, &commands, ScriptBy::Hash), together);
        let singly = [&votes[..], &[vec![Op::Release], vec![Op::Release]]].concat();
        assert_eq!(calls_of(plain, &commands, ScriptBy::Source), singly);
    }
}

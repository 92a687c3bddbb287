//! A batch: commands that go out as one pipeline.
//!
//! In the guarded mode a batch is one call of a script. In the plain mode all releases of a batch
//! are, which costs a server about as much as the deletions alone. So they are sent after what was
//! posted later, except for commands of the same key, which never overtake each other. The release
//! of a lock and the acquisition of the next one are a call of their own, so that in either mode
//! nobody else gets the key in between.

use std::collections::HashSet;
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
use super::wire::{self, NativeDelete, Reply, ScriptBy};
use super::{Command, Op};
use crate::key::Key;
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
}

/// What the server is asked in one piece.
enum Call {
    Single(Command),
    Releases(Vec<Command>),
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
        (Self { mailbox, calls, by, sent: Instant::now(), replies, fate }, pipeline)
    }

    /// Casts the votes. Returns the commands that are to be sent again, with their script in
    /// full, or why the server can't vote any more.
    pub(super) fn count(&mut self, replies: Vec<Value>) -> Result<Vec<Command>, Arc<str>> {
        let mut again = Vec::new();
        let mut unfit = None;
        let mut answered = 0;
        let by = self.by;
        let mut cast = |command: Command, reply| match reply {
            Reply::Vote(vote) => {
                answered += 1;
                command.seat.answer(vote);
            }
            Reply::Again if by == ScriptBy::Hash => again.push(command),
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
                Call::Releases(commands) => {
                    let replies = wire::classify_each(reply, commands.len());
                    commands.into_iter().zip(replies).for_each(|(one, reply)| cast(one, reply));
                }
                Call::Succession { release, acquire, .. } => {
                    let replies = guarded::classify_each(reply, 2);
                    let commands = [release, acquire].into_iter();
                    commands.zip(replies).for_each(|(one, reply)| cast(one, reply));
                }
                Call::Guarded(commands) => {
                    let replies = guarded::classify_each(reply, commands.len());
                    commands.into_iter().zip(replies).for_each(|(one, reply)| cast(one, reply));
                }
            }
        }
        self.mailbox.done(answered);
        match unfit {
            None => Ok(again),
            Some(cause) => {
                self.mailbox.lost(again, &NodeAnswer::Refused(Arc::clone(&cause)));
                Err(cause)
            }
        }
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

impl Call {
    fn into_commands(self) -> Vec<Command> {
        match self {
            Self::Single(command) => vec![command],
            Self::Succession { release, acquire, .. } => vec![release, acquire],
            Self::Releases(commands) | Self::Guarded(commands) => commands,
        }
    }
}

/// One call runs them all. Only the record of a server is begun by itself: looking whether the
/// server may vote would begin it, too.
fn guarded(commands: Vec<Command>, by: ScriptBy, guarding: &Guarding) -> (Vec<Call>, Pipeline) {
    let mut pipeline = Pipeline::with_capacity(1);
    let mut calls = Vec::with_capacity(1);
    let (provisions, commands): (Vec<_>, Vec<_>) =
        commands.into_iter().partition(|command| matches!(command.op, Op::Provision { .. }));
    for provision in provisions {
        guarding.encode_provision(&mut pipeline, provision.op == Op::Provision { dry: true });
        calls.push(Call::Single(provision));
    }
    if !commands.is_empty() {
        guarding.encode(&mut pipeline, &commands, by);
        calls.push(Call::Guarded(commands));
    }
    (calls, pipeline)
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
                let held = commands.iter().map(wire::named_holder);
                wire::encode_releases(&mut pipeline, held, by);
            }
        }
    }
    (calls, pipeline)
}

/// Gathers the releases, each before the next command of its key.
fn calls(commands: Vec<Command>, by: ScriptBy, native: Option<NativeDelete>) -> Vec<Call> {
    let mut calls = Vec::with_capacity(commands.len());
    let mut releases: Vec<Command> = Vec::new();
    let mut released: HashSet<Key> = HashSet::new();
    let mut commands = commands.into_iter().peekable();
    while let Some(command) = commands.next() {
        let ttl = commands.peek().and_then(|next| wire::succession(&command, next));
        if !wire::is_release_call(command.op, native) || ttl.is_some() {
            if released.contains(&command.key) {
                calls.push(Call::Releases(take(&mut releases)));
                released.clear();
            }
            match ttl.and_then(|ttl| Some((ttl, commands.next()?))) {
                Some((ttl, acquire)) => {
                    calls.push(Call::Succession { release: command, acquire, ttl });
                }
                None => calls.push(Call::Single(command)),
            }
        } else if by == ScriptBy::Source {
            calls.push(Call::Releases(vec![command]));
        } else {
            released.insert(command.key.clone());
            releases.push(command);
        }
    }
    if !releases.is_empty() {
        calls.push(Call::Releases(releases));
    }
    calls
}

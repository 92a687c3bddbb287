//! The guarded mode on the wire: one script call for the votes of a batch, which looks once whether
//! the server may vote and then runs its commands in order. Releases are no votes: they go out in a
//! call of their own.
//!
//! The look happens inside the script, in the dataset itself: no connection, proxy or client can
//! hide that the server behind it was restarted, flushed, restored or promoted (H2, H4, H21).

use std::sync::Arc;

use bb8_redis::redis::{Pipeline, Value};

use super::mailbox::Debt;
use super::wire::{self, GUARDED, PROVISION, Reply, Script, ScriptBy};
use super::{Command, Op};
use crate::clock::Clock;
use crate::config::Config;
use crate::fencing::bucket_of;
use crate::key::Key;
use crate::protocol::quorum::{Counter, NodeAnswer};

/// What every batch tells a server about the configuration.
#[derive(Debug)]
pub(super) struct Guarding {
    /// The key of the server's record.
    record: Key,
    /// What the keys that void a token begin with.
    void: Key,
    quarantine: String,
    epoch: String,
    fingerprint: String,
    durable: &'static str,
    /// What to say of the time, if servers are to be looked at for their clocks: by whose, and by
    /// how many microseconds theirs may differ.
    clock: Option<(Arc<dyn Clock>, String)>,
}

impl Guarding {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            record: Key::internal(&config.key_prefix, "node"),
            void: Key::internal(&config.key_prefix, "void:"),
            quarantine: config.quarantine().as_millis().to_string(),
            epoch: config.epoch.to_string(),
            fingerprint: config.fingerprint(),
            durable: if config.durable { "1" } else { "0" },
            clock: config
                .max_clock_skew
                .map(|skew| (Arc::clone(&config.clock), skew.as_micros().to_string())),
        }
    }

    /// Adds the call that runs `commands` in their order.
    pub(super) fn encode(&self, pipeline: &mut Pipeline, commands: &[Command], by: ScriptBy) {
        let keys = commands.iter().filter(|command| has_key(command.op)).count();
        let counters: Vec<u64> = commands.iter().filter_map(counter_of).collect();
        let size = commands.iter().map(size_of).sum();
        let call = self.invoke(pipeline, &GUARDED, by, (keys, 4 + 6 * commands.len()), size);
        for command in commands.iter().filter(|command| has_key(command.op)) {
            call.arg(command.key.as_bytes());
        }
        self.introduce_to_voter(call);
        call.arg(counters.len()).arg(counters);
        for run in commands.chunk_by(|one, next| are_alike(one.op, next.op)) {
            encode_run(call, run);
        }
    }

    /// Adds the call that pays `debts`: what they undo may still be on the way on another
    /// connection, and is of no effect when it arrives after this (H11).
    pub(super) fn encode_debts(&self, pipeline: &mut Pipeline, debts: &[Debt], by: ScriptBy) {
        let size = |debt: &Debt| debt.key.as_bytes().len() + debt.token.as_str().len() + 16;
        let size = debts.iter().map(size).sum();
        let call = self.invoke(pipeline, &GUARDED, by, (debts.len(), 6 + debts.len()), size);
        for debt in debts {
            call.arg(debt.key.as_bytes());
        }
        self.introduce_to_voter(call);
        call.arg(0).arg("void").arg(debts.len());
        for debt in debts {
            call.arg(debt.token.as_str());
        }
    }

    /// Adds the call that looks for the server's record, and begins one unless it is `dry`.
    pub(super) fn encode_provision(&self, pipeline: &mut Pipeline, dry: bool) {
        let call = self.invoke(pipeline, &PROVISION, ScriptBy::Source, (0, 1), 1);
        self.introduce(call);
        call.arg(if dry { "look" } else { "begin" });
    }

    /// Starts a call on the record and as many keys and arguments more.
    fn invoke<'p>(
        &self,
        pipeline: &'p mut Pipeline,
        script: &'static Script,
        by: ScriptBy,
        (keys, arguments): (usize, usize),
        size: usize,
    ) -> &'p mut Pipeline {
        const INTRODUCTION: usize = 96;
        let size = size + self.record.as_bytes().len() + INTRODUCTION;
        wire::invoke(pipeline, script, by, (1 + keys, 8 + arguments), size)
            .arg(self.record.as_bytes())
    }

    fn introduce(&self, call: &mut Pipeline) {
        call.arg(&self.quarantine).arg(&self.epoch).arg(&self.fingerprint).arg(self.durable);
    }

    /// The same to [`GUARDED`], and what it needs besides.
    fn introduce_to_voter(&self, call: &mut Pipeline) {
        self.introduce(call);
        call.arg(self.void.as_bytes());
        match &self.clock {
            Some((clock, most)) => call.arg(clock.unix_micros()).arg(most),
            None => call.arg("").arg(""),
        };
    }
}

/// Whether it is no vote, and costs a server about as much as the deletion alone if it goes out
/// without a look at whether the server votes.
pub(super) const fn is_no_vote(op: Op) -> bool {
    matches!(op, Op::Release | Op::Reclaim)
}

/// Whether it is a call of [`READ`](wire::READ). The look at whether the server votes could write.
pub(super) const fn is_read(op: Op) -> bool {
    matches!(op, Op::Inspect)
}

/// Adds commands that are alike.
fn encode_run(call: &mut Pipeline, run: &[Command]) {
    let Some(Command { op, .. }) = run.first() else { return };
    call.arg(name_of(*op)).arg(run.len());
    if let Op::Acquire { ttl, .. } | Op::Extend { ttl } = *op {
        call.arg(wire::millis(ttl));
    }
    for Command { op, token, .. } in run {
        let token = token.as_str();
        match *op {
            Op::Acquire { proposal, .. } => call.arg(token).arg(proposal),
            Op::Confirm { fence } => call.arg(token).arg(fence),
            Op::Learn { value, since, .. } => call.arg(value).arg(since),
            Op::Extend { .. } | Op::Release | Op::Reclaim | Op::Void => call.arg(token),
            Op::Count { .. } | Op::Distrust | Op::Inspect | Op::Provision { .. } => &mut *call,
        };
    }
}

/// What the script calls it.
const fn name_of(op: Op) -> &'static str {
    match op {
        Op::Acquire { .. } => "acquire",
        Op::Extend { .. } => "extend",
        Op::Confirm { .. } => "confirm",
        Op::Count { .. } => "count",
        Op::Learn { .. } => "learn",
        Op::Distrust => "distrust",
        Op::Release | Op::Reclaim => "release",
        Op::Void => "void",
        // No part of this call.
        Op::Inspect => "inspect",
        Op::Provision { .. } => "provision",
    }
}

/// Whether they share their name and what comes with it.
fn are_alike(one: Op, next: Op) -> bool {
    match (one, next) {
        (Op::Acquire { ttl, .. }, Op::Acquire { ttl: next, .. })
        | (Op::Extend { ttl }, Op::Extend { ttl: next }) => ttl == next,
        _ => name_of(one) == name_of(next),
    }
}

const fn has_key(op: Op) -> bool {
    !matches!(op, Op::Count { .. } | Op::Learn { .. } | Op::Distrust)
}

fn size_of(command: &Command) -> usize {
    const NUMBERS: usize = 24;
    command.key.as_bytes().len() + command.token.as_str().len() + NUMBERS
}

/// Which counter an operation takes.
fn counter_of(command: &Command) -> Option<u64> {
    match command.op {
        Op::Acquire { .. } | Op::Confirm { .. } => Some(bucket_of(&command.key)),
        Op::Count { bucket } | Op::Learn { bucket, .. } => Some(bucket),
        _ => None,
    }
}

/// What the reply to a call of such commands means for each. An error of the whole call came before
/// the first of them.
pub(super) fn classify_each(reply: Value, ops: impl ExactSizeIterator<Item = Op>) -> Vec<Reply> {
    match reply {
        Value::Array(replies) if replies.len() == ops.len() => {
            replies.into_iter().zip(ops).map(|(reply, op)| classify(reply, op)).collect()
        }
        whole => vec![wire::classify_whole(whole); ops.len()],
    }
}

fn classify(reply: Value, op: Op) -> Reply {
    match (reply, op) {
        // A token, by a server that remembers all earlier ones.
        (Value::Int(token @ 1..), Op::Acquire { .. }) => {
            Reply::Vote(wire::counted(NodeAnswer::Granted, token, Counter::known))
        }
        (other, _) => wire::classify(other),
    }
}

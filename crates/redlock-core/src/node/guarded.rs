//! The guarded mode on the wire: one script call for the votes of a batch, which looks once whether
//! the server may vote and then runs its commands in order. Releases are no votes: they go out in a
//! call of their own.
//!
//! The look happens inside the script, in the dataset itself: no connection, proxy or client can
//! hide that the server behind it was restarted, flushed, restored or promoted (H2, H4, H21).

use std::iter::repeat_n;
use std::sync::Arc;

use super::mailbox::PendingRelease;
use super::resp::{Arguments, Frame, Requests};
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
    pub(super) fn encode(&self, requests: &mut Requests, commands: &[Command], by: ScriptBy) {
        let keys = commands.iter().filter(|command| has_key(command.op)).count();
        let counters = commands.iter().filter_map(counter_of).count();
        let runs = || commands.chunk_by(|one, next| are_alike(one.op, next.op));
        let in_runs: usize = runs().map(arguments_of_run).sum();
        let arguments = INTRODUCTION + 1 + counters + in_runs;
        let mut call = self.invoke(requests, &GUARDED, by, (keys, arguments));
        for command in commands.iter().filter(|command| has_key(command.op)) {
            call.arg(command.key.as_bytes());
        }
        self.introduce_to_voter(&mut call);
        call.number(counters);
        for counter in commands.iter().filter_map(counter_of) {
            call.number(counter);
        }
        for run in runs() {
            encode_run(&mut call, run);
        }
    }

    /// Adds the call that runs pending releases: what they undo may still be on the way on another
    /// connection, and is of no effect when it arrives after this (H11).
    pub(super) fn encode_pending(
        &self,
        requests: &mut Requests,
        releases: &[PendingRelease],
        by: ScriptBy,
    ) {
        let arguments = INTRODUCTION + 3 + releases.len();
        let mut call = self.invoke(requests, &GUARDED, by, (releases.len(), arguments));
        for release in releases {
            call.arg(release.key.as_bytes());
        }
        self.introduce_to_voter(&mut call);
        call.number(0).arg("void").number(releases.len());
        for release in releases {
            call.arg(release.token.as_str());
        }
    }

    /// Adds the call that looks for the server's record, and begins one unless it is `dry`.
    pub(super) fn encode_provision(&self, requests: &mut Requests, dry: bool) {
        let mut call = self.invoke(requests, &PROVISION, ScriptBy::Source, (0, 5));
        self.introduce(&mut call);
        call.arg(if dry { "look" } else { "begin" });
    }

    /// Begins a call on the record and as many keys and arguments more.
    fn invoke<'r>(
        &self,
        requests: &'r mut Requests,
        script: &'static Script,
        by: ScriptBy,
        (keys, arguments): (usize, usize),
    ) -> Arguments<'r> {
        let mut call = wire::invoke(requests, script, by, (1 + keys, arguments));
        call.arg(self.record.as_bytes());
        call
    }

    fn introduce(&self, call: &mut Arguments<'_>) {
        call.arg(&self.quarantine).arg(&self.epoch).arg(&self.fingerprint).arg(self.durable);
    }

    /// The same to [`GUARDED`], and what it needs besides.
    fn introduce_to_voter(&self, call: &mut Arguments<'_>) {
        self.introduce(call);
        call.arg(self.void.as_bytes());
        match &self.clock {
            Some((clock, most)) => call.number(clock.unix_micros()).arg(most),
            None => call.arg("").arg(""),
        };
    }
}

/// How many arguments [`Guarding::introduce_to_voter`] adds.
const INTRODUCTION: usize = 7;

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
fn encode_run(call: &mut Arguments<'_>, run: &[Command]) {
    let Some(Command { op, .. }) = run.first() else { return };
    call.arg(name_of(*op)).number(run.len());
    if let Op::Acquire { ttl, .. } | Op::Extend { ttl } = *op {
        call.number(wire::millis(ttl));
    }
    for Command { op, token, .. } in run {
        let token = token.as_str();
        match *op {
            Op::Acquire { proposal, .. } => call.arg(token).number(proposal),
            Op::Confirm { fence } => call.arg(token).number(fence),
            Op::Learn { value, since, .. } => call.number(value).number(since),
            Op::Extend { .. } | Op::Release | Op::Reclaim | Op::Void => call.arg(token),
            Op::Count { .. } | Op::Distrust | Op::Inspect | Op::Provision { .. } => &mut *call,
        };
    }
}

/// How many arguments [`encode_run`] adds.
fn arguments_of_run(run: &[Command]) -> usize {
    let Some(Command { op, .. }) = run.first() else { return 0 };
    let (shared, each) = match op {
        Op::Acquire { .. } => (3, 2),
        Op::Extend { .. } => (3, 1),
        Op::Confirm { .. } | Op::Learn { .. } => (2, 2),
        Op::Release | Op::Reclaim | Op::Void => (2, 1),
        Op::Count { .. } | Op::Distrust | Op::Inspect | Op::Provision { .. } => (2, 0),
    };
    shared + each * run.len()
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

/// Which counter an operation takes.
fn counter_of(command: &Command) -> Option<u64> {
    match command.op {
        Op::Acquire { .. } | Op::Confirm { .. } => Some(bucket_of(&command.key)),
        Op::Count { bucket } | Op::Learn { bucket, .. } => Some(bucket),
        _ => None,
    }
}

/// Reads the reply to a call of such commands: what it means for each. An error of the whole call
/// came before the first of them.
pub(super) fn classify_each(
    reply: Frame<'_>,
    ops: impl ExactSizeIterator<Item = Op>,
    replies: &mut Vec<Reply>,
) {
    match reply {
        Frame::Array(each) if each.len() == ops.len() => {
            replies.extend(each.zip(ops).map(|(reply, op)| classify(reply, op)));
        }
        whole => replies.extend(repeat_n(wire::classify_whole(whole), ops.len())),
    }
}

fn classify(reply: Frame<'_>, op: Op) -> Reply {
    match (reply, op) {
        // A token, by a server that remembers all earlier ones.
        (Frame::Integer(token @ 1..), Op::Acquire { .. }) => {
            Reply::Vote(wire::counted(NodeAnswer::Granted, token, Counter::known))
        }
        (other, _) => wire::classify(other),
    }
}

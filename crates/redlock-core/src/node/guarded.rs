//! The guarded mode on the wire: one script call per batch, which looks once whether the server may
//! vote and then runs every command of the batch in order.
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

/// What every batch tells a server about the configuration.
#[derive(Debug)]
pub(super) struct Guarding {
    /// The key of the server's record.
    record: Vec<u8>,
    /// What the keys that void a token begin with.
    void: Vec<u8>,
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
        let prefixed = |name: &[u8]| [&config.key_prefix, name].concat();
        Self {
            record: prefixed(b"redlock:node"),
            void: prefixed(b"redlock:void:"),
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
        let keys = commands.iter().map(|command| keys_of(command.op)).sum();
        let counters: Vec<u64> = commands.iter().filter_map(counter_of).collect();
        let size = commands.iter().map(|command| self.size_of(command)).sum();
        let call = self.invoke(pipeline, &GUARDED, by, (keys, 4 + 5 * commands.len()), size);
        for Command { op, key, token, .. } in commands {
            if keys_of(*op) > 0 {
                call.arg(key.as_bytes());
            }
            if keys_of(*op) > 1 {
                call.arg(self.void_of(token.as_str()));
            }
        }
        self.introduce(call);
        call.arg(counters.len());
        for counter in counters {
            call.arg(format!("f{counter}"));
        }
        if let Some((clock, most)) = &self.clock {
            call.arg("clock").arg(clock.unix_micros()).arg(most);
        }
        for Command { op, token, .. } in commands {
            let token = token.as_str();
            match *op {
                Op::Acquire { ttl, proposal } => {
                    call.arg("acquire").arg(token).arg(wire::millis(ttl)).arg(proposal);
                }
                Op::Extend { ttl } => {
                    call.arg("extend").arg(token).arg(wire::millis(ttl));
                }
                Op::Confirm { fence } => {
                    call.arg("confirm").arg(token).arg(fence);
                }
                Op::Count { .. } => {
                    call.arg("count");
                }
                Op::Learn { value, since, .. } => {
                    call.arg("learn").arg(value).arg(since);
                }
                Op::Distrust => {
                    call.arg("distrust");
                }
                Op::Release | Op::Reclaim => {
                    call.arg("release").arg(token);
                }
                Op::Void => {
                    call.arg("void").arg(token);
                }
                Op::Inspect | Op::Provision { .. } => {
                    call.arg("inspect");
                }
            }
        }
    }

    /// Adds the call that pays `debts`: what they undo may still be on the way on another
    /// connection, and is of no effect when it arrives after this (H11).
    pub(super) fn encode_debts(&self, pipeline: &mut Pipeline, debts: &[Debt], by: ScriptBy) {
        let size = |debt: &Debt| debt.key.as_bytes().len() + 2 * debt.token.as_str().len() + 32;
        let size = debts.iter().map(size).sum();
        let counts = (2 * debts.len(), 1 + 2 * debts.len());
        let call = self.invoke(pipeline, &GUARDED, by, counts, size);
        for Debt { key, token } in debts {
            call.arg(key.as_bytes()).arg(self.void_of(token.as_str()));
        }
        self.introduce(call);
        call.arg(0);
        for debt in debts {
            call.arg("void").arg(debt.token.as_str());
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
        const INTRODUCTION: usize = 64;
        let size = size + self.record.len() + INTRODUCTION;
        wire::invoke(pipeline, script, by, (1 + keys, 4 + arguments), size).arg(&self.record)
    }

    fn introduce(&self, call: &mut Pipeline) {
        call.arg(&self.quarantine).arg(&self.epoch).arg(&self.fingerprint).arg(self.durable);
    }

    fn void_of(&self, token: &str) -> Vec<u8> {
        [&self.void, token.as_bytes()].concat()
    }

    fn size_of(&self, command: &Command) -> usize {
        const NAME_AND_NUMBERS: usize = 48;
        let (key, token) = (command.key.as_bytes().len(), command.token.as_str().len());
        let void = if keys_of(command.op) > 1 { self.void.len() + token } else { 0 };
        key + token + void + NAME_AND_NUMBERS
    }
}

/// How many keys an operation takes.
const fn keys_of(op: Op) -> usize {
    match op {
        Op::Acquire { .. } | Op::Void => 2,
        Op::Count { .. } | Op::Learn { .. } | Op::Distrust => 0,
        _ => 1,
    }
}

/// Which counter an operation takes.
fn counter_of(command: &Command) -> Option<u64> {
    match command.op {
        Op::Acquire { .. } | Op::Confirm { .. } => Some(bucket_of(&command.key)),
        Op::Count { bucket } | Op::Learn { bucket, .. } => Some(bucket),
        _ => None,
    }
}

/// What the reply to a call of `count` commands means for each. An error of the whole call came
/// before the first of them.
pub(super) fn classify_each(reply: Value, count: usize) -> Vec<Reply> {
    match reply {
        Value::Array(replies) if replies.len() == count => {
            replies.into_iter().map(wire::classify).collect()
        }
        whole => vec![wire::classify_whole(whole); count],
    }
}

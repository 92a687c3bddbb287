//! Operations as Redis commands, and replies as votes.

use std::iter::once;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bb8_redis::redis::{self, Cmd, Pipeline, ServerError, ServerErrorKind, Value};
use foldhash::{HashSet, HashSetExt};

use super::{Command, Op};
use crate::key::Key;
use crate::protocol::quorum::{Counter, NodeAnswer, Vote};
use crate::token::label_of;

/// A script, by its source and by the hash under which a server that has seen it knows it.
pub(super) struct Script {
    pub(super) source: &'static str,
    hash: LazyLock<String>,
}

impl Script {
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }
}

macro_rules! script {
    ($file:literal) => {
        Script {
            source: include_str!($file),
            hash: LazyLock::new(|| redis::Script::new(include_str!($file)).get_hash().to_owned()),
        }
    };
}

/// Deletes each key if it holds its token; otherwise says who holds it, so that cleaning up after
/// a lost vote also tells for how long the winner may keep the key. An error belongs to one key
/// and does not end the script.
pub(super) static RELEASE: Script = script!("scripts/release.lua");

/// Says who holds each key.
pub(super) static READ: Script = script!("scripts/read.lua");

/// The end of one lock and the beginning of the next: releases and sets the key, with an answer to
/// each. Always sent in full: what follows it could overtake one that is sent again.
static SUCCEED: Script = script!("scripts/succeed.lua");

/// Compare and PEXPIRE: a server that is out of memory still extends, where it would refuse SET.
pub(super) static EXTEND: Script = script!("scripts/extend.lua");

/// Tries the commands that the other scripts run.
pub(super) static PREFLIGHT: Script = script!("scripts/preflight.lua");

/// Everything that the guarded mode asks of a server.
pub(super) static GUARDED: Script = script!("scripts/guarded.lua");

/// Begins the record of a server that was never used.
pub(super) static PROVISION: Script = script!("scripts/provision.lua");

/// How a script is named: by its hash; or in full, for one key at a time, where the server does
/// not know the hash or refused several keys together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScriptBy {
    Hash,
    Source,
}

/// A server's own compare-and-delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NativeDelete {
    /// `DELEX key IFEQ token`: Redis 8.4, Valkey 9.2.
    Delex,
    /// `DELIFEQ key token`: Valkey 9.0.
    Delifeq,
}

impl NativeDelete {
    pub(super) fn encode(self, pipeline: &mut Pipeline, key: &[u8], token: &str) {
        let size = key.len() + token.len();
        match self {
            Self::Delex => call(pipeline, "DELEX", 3, size).arg(key).arg("IFEQ").arg(token),
            Self::Delifeq => call(pipeline, "DELIFEQ", 2, size).arg(key).arg(token),
        };
    }
}

/// Adds a command of the plain mode.
pub(super) fn encode(
    pipeline: &mut Pipeline,
    command: &Command,
    by: ScriptBy,
    native: Option<NativeDelete>,
) {
    let (key, token) = (command.key.as_bytes(), command.token.as_str());
    let size = key.len() + token.len();
    match (command.op, native) {
        (Op::Acquire { ttl, .. }, _) => {
            let set = call(pipeline, "SET", 5, size).arg(key).arg(token);
            set.arg("NX").arg("PX").arg(millis(ttl));
        }
        (Op::Extend { ttl }, _) => {
            let call = invoke(pipeline, &EXTEND, by, (1, 2), size);
            call.arg(key).arg(token).arg(millis(ttl));
        }
        (Op::Release, Some(native)) => native.encode(pipeline, key, token),
        (op, _) if op.is_release() => encode_releases(pipeline, once(held_by(command)), by),
        _ => encode_reads(pipeline, once(&command.key), by),
    }
}

/// Which commands may go out after all others of their batch: those that may by their kind, and that
/// no later command of the same key follows.
pub(super) fn may_go_last<'k>(
    commands: impl DoubleEndedIterator<Item = (bool, &'k Key)> + ExactSizeIterator,
) -> Vec<bool> {
    let mut followed = HashSet::with_capacity(commands.len());
    let from_the_last = commands.rev().map(|(may, key)| followed.insert(key) && may);
    let mut may: Vec<bool> = from_the_last.collect();
    may.reverse();
    may
}

/// For how long the key is set, if these are the release of a lock and the acquisition of the next.
pub(super) fn succession(release: &Command, acquire: &Command) -> Option<Duration> {
    match (release.op, acquire.op) {
        (Op::Release | Op::Reclaim, Op::Acquire { ttl, .. }) if release.key == acquire.key => {
            Some(ttl)
        }
        _ => None,
    }
}

/// Adds the call of [`SUCCEED`] that runs the two.
pub(super) fn encode_succession(
    pipeline: &mut Pipeline,
    [release, acquire]: [&Command; 2],
    ttl: Duration,
) {
    let (key, old, new) = (release.key.as_bytes(), release.token.as_str(), acquire.token.as_str());
    let size = key.len() + old.len() + new.len();
    let call = invoke(pipeline, &SUCCEED, ScriptBy::Source, (1, 3), size);
    call.arg(key).arg(old).arg(new).arg(millis(ttl));
}

/// Whether the operation is a call of [`RELEASE`].
pub(super) fn is_release_call(op: Op, native: Option<NativeDelete>) -> bool {
    op.is_release() && (op != Op::Release || native.is_none())
}

/// Whether the operation is a call of [`READ`] in the plain mode. That mode counts nothing and
/// keeps no record: it says who holds the key.
pub(super) const fn is_plain_read(op: Op) -> bool {
    match op {
        Op::Acquire { .. } | Op::Extend { .. } | Op::Release | Op::Reclaim | Op::Void => false,
        Op::Inspect
        | Op::Confirm { .. }
        | Op::Count { .. }
        | Op::Learn { .. }
        | Op::Distrust
        | Op::Provision { .. } => true,
    }
}

/// The key of a [`RELEASE`], and who must hold it.
pub(super) fn held_by(command: &Command) -> (&Key, &str) {
    (&command.key, command.token.as_str())
}

pub(super) fn encode_reads<'k>(
    pipeline: &mut Pipeline,
    keys: impl ExactSizeIterator<Item = &'k Key> + Clone,
    by: ScriptBy,
) {
    let size = keys.clone().map(|key| key.as_bytes().len()).sum();
    let script = invoke(pipeline, &READ, by, (keys.len(), 0), size);
    for key in keys {
        script.arg(key.as_bytes());
    }
}

pub(super) fn encode_releases<'k>(
    pipeline: &mut Pipeline,
    held: impl ExactSizeIterator<Item = (&'k Key, &'k str)> + Clone,
    by: ScriptBy,
) {
    let size = held.clone().map(|(key, token)| key.as_bytes().len() + token.len()).sum();
    let script = invoke(pipeline, &RELEASE, by, (held.len(), held.len()), size);
    for (key, _) in held.clone() {
        script.arg(key.as_bytes());
    }
    for (_, token) in held {
        script.arg(token);
    }
}

/// Starts the call of a script on so many keys and with so many arguments.
pub(super) fn invoke<'p>(
    pipeline: &'p mut Pipeline,
    script: &'static Script,
    by: ScriptBy,
    (keys, arguments): (usize, usize),
    size: usize,
) -> &'p mut Pipeline {
    let (name, script) = match by {
        ScriptBy::Hash => ("EVALSHA", script.hash()),
        ScriptBy::Source => ("EVAL", script.source),
    };
    let size = script.len() + size;
    call(pipeline, name, 2 + keys + arguments, size).arg(script).arg(keys)
}

/// Starts a command with room for all of it: growing its buffers took longer than filling them.
fn call<'p>(
    pipeline: &'p mut Pipeline,
    name: &str,
    arguments: usize,
    size: usize,
) -> &'p mut Pipeline {
    const NAME_AND_NUMBERS: usize = 32;
    let command = Cmd::with_capacity(1 + arguments, NAME_AND_NUMBERS + size);
    pipeline.add_command(command).arg(name)
}

/// The servers' unit. Rounds down, as the client's own reckoning did.
pub(super) fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

/// What a reply means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Vote(Vote),
    /// To be sent once more, by itself and with the script in full.
    Again,
    /// The server refused, and will refuse whatever else this connection asks.
    Unfit(Arc<str>),
}

pub(super) fn classify(reply: Value) -> Reply {
    let answer = match reply {
        Value::Okay | Value::Int(1) => NodeAnswer::Granted,
        Value::SimpleString(ok) if ok == "OK" => NodeAnswer::Granted,
        Value::Nil => NodeAnswer::Held { label: None, remaining: None },
        Value::Int(0) => NodeAnswer::NotHeld,
        Value::Array(parts) => return Reply::Vote(classify_parts(&parts)),
        whole => return classify_whole(whole),
    };
    Reply::Vote(answer.into())
}

/// What it means if this is the reply to a whole call.
pub(super) fn classify_whole(reply: Value) -> Reply {
    match reply {
        Value::ServerError(error) => classify_error(&error),
        other => Reply::Vote(unexpected(&other).into()),
    }
}

/// What the reply to a call on `count` keys means for each.
pub(super) fn classify_each(reply: Value, count: usize) -> Vec<Reply> {
    let shared = match reply {
        Value::Array(replies) if replies.len() == count => {
            return replies.into_iter().map(classify).collect();
        }
        Value::ServerError(error) => match classify_error(&error) {
            // One key that is not allowed must not keep the others from being released.
            Reply::Vote(_) if count > 1 => Reply::Again,
            shared => shared,
        },
        other => classify_whole(other),
    };
    vec![shared; count]
}

fn unexpected(reply: &Value) -> NodeAnswer {
    NodeAnswer::Failed(format!("unexpected reply {}", kind_of(reply)).into())
}

fn classify_parts(parts: &[Value]) -> Vote {
    let answer = match parts {
        [Value::BulkString(holder), Value::Int(pttl)] => NodeAnswer::Held {
            label: label_of(holder).map(Arc::from),
            // -1: a key without expiry, set by somebody else's hand.
            remaining: u64::try_from(*pttl).ok().map(Duration::from_millis),
        },
        [Value::Int(value), Value::Int(1)] => {
            return counted(NodeAnswer::Granted, *value, Counter::known);
        }
        [Value::Int(value), Value::Int(0)] => {
            return counted(NodeAnswer::Granted, *value, |value| Counter::unknown(value, 0));
        }
        [Value::Int(value), Value::Int(0), Value::Int(since)] => {
            let since = since.unsigned_abs();
            return counted(NodeAnswer::NotHeld, *value, |value| Counter::unknown(value, since));
        }
        _ => NodeAnswer::Failed("unexpected reply array".into()),
    };
    answer.into()
}

pub(super) fn counted(
    answer: NodeAnswer,
    value: i64,
    counter: impl FnOnce(u64) -> Counter,
) -> Vote {
    match u64::try_from(value) {
        Ok(value) => Vote { answer, counter: Some(counter(value)) },
        Err(_) => NodeAnswer::Failed("its counter is below zero".into()).into(),
    }
}

fn classify_error(error: &ServerError) -> Reply {
    use ServerErrorKind::{
        Ask, BusyLoading, ClusterDown, CrossSlot, MasterDown, Moved, NoPerm, NoScript, ReadOnly,
        TryAgain,
    };
    let text = describe(error);
    let answer = match error.kind() {
        Some(NoScript) => return Reply::Again,
        Some(BusyLoading | ReadOnly | MasterDown | ClusterDown | Moved | Ask) => {
            return Reply::Unfit(text);
        }
        Some(NoPerm | TryAgain | CrossSlot) => NodeAnswer::Refused(text),
        _ => match (error.code(), error.details().unwrap_or_default().parse()) {
            ("NOAUTH" | "WRONGPASS", _) => return Reply::Unfit(text),
            ("QUARANTINED", Ok(millis)) => {
                NodeAnswer::Quarantined { ready_in: Duration::from_millis(millis) }
            }
            ("SKEW", _) => match error.details().unwrap_or_default().parse() {
                Ok(millis) => NodeAnswer::skewed(millis),
                Err(_) => NodeAnswer::Refused(text),
            },
            ("OOM" | "MISCONF" | "NOREPLICAS" | "BUSY" | "WRONGTYPE", _)
            | ("EPOCH" | "CONFIG" | "VOID", _) => NodeAnswer::Refused(text),
            // A proxy's "ERR" may hide that the server behind it executed the command.
            _ => NodeAnswer::Failed(text),
        },
    };
    Reply::Vote(answer.into())
}

pub(super) fn describe(error: &ServerError) -> Arc<str> {
    let code = error.code();
    let hint = match code {
        "WRONGTYPE" => "; another program keeps data under this key, set `key_prefix`",
        "READONLY" => "; this is a replica, name an independent primary",
        "MOVED" | "ASK" | "CROSSSLOT" => "; Redis Cluster is not supported, name single servers",
        "NOPERM" => "; grant this right to the user, see the list in the documentation",
        "EPOCH" => ": it is used under this later epoch, this process is out of date",
        "CONFIG" => {
            ": under this epoch it is used with other servers, another ring or max_ttl; configure \
             all processes alike, or raise `epoch`"
        }
        "VOID" => "its release came first",
        _ => "",
    };
    format!("{code} {}{hint}", error.details().unwrap_or_default()).into()
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Int(_) => "integer",
        Value::BulkString(_) => "bulk string",
        Value::SimpleString(_) => "simple string",
        Value::Map(_) => "map",
        Value::Array(_) => "array",
        _ => "of an unknown type",
    }
}

#[cfg(test)]
mod tests {
    use bb8_redis::redis::{RedisResult, parse_redis_value};

    use super::*;

    fn reply(resp: &str) -> Reply {
        let value: RedisResult<Value> = parse_redis_value(resp.as_bytes());
        classify(value.unwrap())
    }

    fn vote(resp: &str) -> NodeAnswer {
        match reply(resp) {
            Reply::Vote(vote) => vote.answer,
            other => panic!("{resp:?} gave {other:?}"),
        }
    }

    #[test]
    fn ok_and_one_are_grants_and_nil_and_zero_are_not() {
        assert_eq!(vote("+OK\r\n"), NodeAnswer::Granted);
        assert_eq!(vote(":1\r\n"), NodeAnswer::Granted);
        assert_eq!(vote(":0\r\n"), NodeAnswer::NotHeld);
        assert_eq!(vote("$-1\r\n"), NodeAnswer::Held { label: None, remaining: None });
    }

    #[test]
    fn a_holder_is_named_by_label_and_time_left() {
        let token = "api-7:00112233445566778899aabbccddeeff";
        let held = vote(&format!("*2\r\n${}\r\n{token}\r\n:8200\r\n", token.len()));
        let expected = NodeAnswer::Held {
            label: Some("api-7".into()),
            remaining: Some(Duration::from_millis(8_200)),
        };
        assert_eq!(held, expected);
    }

    #[test]
    fn a_foreign_value_is_not_repeated() {
        let held = vote("*2\r\n$6\r\nsecret\r\n:-1\r\n");
        assert_eq!(held, NodeAnswer::Held { label: None, remaining: None });
    }

    #[test]
    fn refusals_are_certain_and_other_errors_are_not() {
        for certain in [
            "OOM command not allowed",
            "MISCONF disk",
            "NOREPLICAS few",
            "BUSY script",
            "WRONGTYPE kind",
            "NOPERM no",
            "TRYAGAIN later",
            "CROSSSLOT keys",
        ] {
            let answer = vote(&format!("-{certain}\r\n"));
            assert!(!answer.may_have_executed(), "{certain} gave {answer:?}");
        }
        assert!(vote("-ERR upstream failure\r\n").may_have_executed());
        assert!(vote("-WHATEVER else\r\n").may_have_executed());
    }

    #[test]
    fn a_server_that_can_not_vote_is_unfit() {
        for unfit in [
            "LOADING dataset",
            "READONLY replica",
            "MASTERDOWN link",
            "CLUSTERDOWN x",
            "MOVED 1 a:1",
            "ASK 1 a:1",
            "NOAUTH needed",
            "WRONGPASS bad",
        ] {
            assert!(matches!(reply(&format!("-{unfit}\r\n")), Reply::Unfit(_)), "{unfit}");
        }
        assert_eq!(reply("-NOSCRIPT none\r\n"), Reply::Again);
    }

    #[test]
    fn what_is_no_reply_of_ours_is_a_failure_and_never_a_vote() {
        for strange in [":7\r\n", "+PONG\r\n", "$2\r\nhi\r\n", "*0\r\n", "*1\r\n:1\r\n"] {
            assert!(matches!(vote(strange), NodeAnswer::Failed(_)), "{strange:?}");
        }
    }

    fn refused(reply: &Reply) -> bool {
        matches!(reply, Reply::Vote(Vote { answer: NodeAnswer::Refused(_), .. }))
    }

    fn failed(reply: &Reply) -> bool {
        matches!(reply, Reply::Vote(Vote { answer: NodeAnswer::Failed(_), .. }))
    }

    fn each(resp: &str, count: usize) -> Vec<Reply> {
        let value: RedisResult<Value> = parse_redis_value(resp.as_bytes());
        classify_each(value.unwrap(), count)
    }

    #[test]
    fn every_key_of_a_call_has_an_answer_of_its_own() {
        let replies = each("*3\r\n:1\r\n:0\r\n-WRONGTYPE kind\r\n", 3);
        let votes = [NodeAnswer::Granted, NodeAnswer::NotHeld].map(|answer| answer.into());
        assert_eq!(replies[..2], votes.map(Reply::Vote));
        assert!(refused(&replies[2]), "{:?}", replies[2]);
    }

    #[test]
    fn an_error_about_one_key_is_not_taken_for_all() {
        assert_eq!(each("-NOPERM no\r\n", 2), [Reply::Again, Reply::Again]);
        assert_eq!(each("-NOSCRIPT none\r\n", 1), [Reply::Again]);
        assert!(each("-NOPERM no\r\n", 1).iter().all(refused));
        assert!(matches!(&each("-LOADING x\r\n", 2)[..], [Reply::Unfit(_), Reply::Unfit(_)]));
    }

    #[test]
    fn a_reply_for_another_number_of_keys_is_a_failure_and_never_a_vote() {
        for strange in [":1\r\n", "*1\r\n:1\r\n", "*3\r\n:1\r\n:1\r\n:1\r\n", "+OK\r\n"] {
            let replies = each(strange, 2);
            assert_eq!(replies.len(), 2);
            assert!(replies.iter().all(failed), "{strange:?} gave {replies:?}");
        }
    }
}

//! Operations as Redis commands, and replies as votes.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bb8_redis::redis::{self, Cmd, Pipeline, ServerError, ServerErrorKind, Value};

use super::{Command, Op};
use crate::key::Key;
use crate::protocol::quorum::NodeAnswer;
use crate::token::{Token, label_of};

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

/// Deletes the key if it holds the token; otherwise says who holds it, so that cleaning up after
/// a lost vote also tells for how long the winner may keep the key.
pub(super) static RELEASE: Script = script!("scripts/release.lua");

/// Compare and PEXPIRE: a server that is out of memory still extends, where it would refuse SET.
pub(super) static EXTEND: Script = script!("scripts/extend.lua");

/// Runs every command of the scripts on a key that does not exist, so that a missing right shows
/// when connecting and not when a lock is to be released.
pub(super) static PREFLIGHT: Script = script!("scripts/preflight.lua");

/// How a script is named: by its hash, or in full where the server does not know the hash.
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
        match self {
            Self::Delex => call(pipeline, "DELEX", key, token).arg(key).arg("IFEQ").arg(token),
            Self::Delifeq => call(pipeline, "DELIFEQ", key, token).arg(key).arg(token),
        };
    }
}

pub(super) fn encode(
    pipeline: &mut Pipeline,
    command: &Command,
    by: ScriptBy,
    native: Option<NativeDelete>,
) {
    let (key, token) = (&command.key, command.token.as_str());
    match (command.op, native) {
        (Op::Acquire { ttl }, _) => {
            let key = key.as_bytes();
            let set = call(pipeline, "SET", key, token).arg(key).arg(token);
            set.arg("NX").arg("PX").arg(millis(ttl));
        }
        (Op::Extend { ttl }, _) => {
            invoke(pipeline, &EXTEND, by, key, token).arg(millis(ttl));
        }
        (Op::Release { report: false }, Some(native)) => {
            native.encode(pipeline, key.as_bytes(), token);
        }
        (Op::Release { .. }, _) => encode_release(pipeline, key, &command.token, by),
        // No token is empty: the comparison fails and the answer is who holds the key.
        (Op::Inspect, _) => {
            invoke(pipeline, &RELEASE, by, key, "");
        }
    }
}

pub(super) fn encode_release(pipeline: &mut Pipeline, key: &Key, token: &Token, by: ScriptBy) {
    invoke(pipeline, &RELEASE, by, key, token.as_str());
}

fn invoke<'p>(
    pipeline: &'p mut Pipeline,
    script: &'static Script,
    by: ScriptBy,
    key: &Key,
    token: &str,
) -> &'p mut Pipeline {
    let key = key.as_bytes();
    let script = match by {
        ScriptBy::Hash => call(pipeline, "EVALSHA", key, token).arg(script.hash()),
        ScriptBy::Source => call(pipeline, "EVAL", key, token).arg(script.source),
    };
    script.arg(1).arg(key).arg(token)
}

/// Starts a command with room for all of it: growing its buffers took longer than filling them.
fn call<'p>(pipeline: &'p mut Pipeline, name: &str, key: &[u8], token: &str) -> &'p mut Pipeline {
    const ARGUMENTS: usize = 6;
    const HASH_AND_NUMBERS: usize = 64;
    let size = HASH_AND_NUMBERS + key.len() + token.len();
    pipeline.add_command(Cmd::with_capacity(ARGUMENTS, size)).arg(name)
}

/// The servers' unit. Rounds down, as the client's own reckoning did.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)
}

/// What a reply means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Vote(NodeAnswer),
    /// The script is to be sent in full.
    NoScript,
    /// The server refused, and will refuse whatever else this connection asks.
    Unfit(Arc<str>),
}

pub(super) fn classify(reply: Value) -> Reply {
    Reply::Vote(match reply {
        Value::Okay | Value::Int(1) => NodeAnswer::Granted,
        Value::SimpleString(ok) if ok == "OK" => NodeAnswer::Granted,
        Value::Nil => NodeAnswer::Held { label: None, remaining: None },
        Value::Int(0) => NodeAnswer::NotHeld,
        Value::Array(parts) => return Reply::Vote(held(&parts)),
        Value::ServerError(error) => return classify_error(&error),
        other => NodeAnswer::Failed(format!("unexpected reply {}", kind_of(&other)).into()),
    })
}

fn held(parts: &[Value]) -> NodeAnswer {
    match parts {
        [Value::BulkString(holder), Value::Int(pttl)] => NodeAnswer::Held {
            label: label_of(holder).map(Arc::from),
            // -1: a key without expiry, set by somebody else's hand.
            remaining: u64::try_from(*pttl).ok().map(Duration::from_millis),
        },
        _ => NodeAnswer::Failed("unexpected reply array".into()),
    }
}

fn classify_error(error: &ServerError) -> Reply {
    use ServerErrorKind::{
        Ask, BusyLoading, ClusterDown, CrossSlot, MasterDown, Moved, NoPerm, NoScript, ReadOnly,
        TryAgain,
    };
    let text = describe(error);
    match error.kind() {
        Some(NoScript) => Reply::NoScript,
        Some(BusyLoading | ReadOnly | MasterDown | ClusterDown | Moved | Ask) => Reply::Unfit(text),
        Some(NoPerm | TryAgain | CrossSlot) => Reply::Vote(NodeAnswer::Refused(text)),
        _ => match error.code() {
            "NOAUTH" | "WRONGPASS" => Reply::Unfit(text),
            "OOM" | "MISCONF" | "NOREPLICAS" | "BUSY" | "WRONGTYPE" => {
                Reply::Vote(NodeAnswer::Refused(text))
            }
            // A proxy's "ERR" may hide that the server behind it executed the command.
            _ => Reply::Vote(NodeAnswer::Failed(text)),
        },
    }
}

pub(super) fn describe(error: &ServerError) -> Arc<str> {
    let code = error.code();
    let hint = match code {
        "WRONGTYPE" => "; another program keeps data under this key, set `key_prefix`",
        "READONLY" => "; this is a replica, name an independent primary",
        "MOVED" | "ASK" | "CROSSSLOT" => "; Redis Cluster is not supported, name single servers",
        "NOPERM" => "; grant this right to the user, see the list in the documentation",
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
            Reply::Vote(answer) => answer,
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
        assert_eq!(reply("-NOSCRIPT none\r\n"), Reply::NoScript);
    }

    #[test]
    fn what_is_no_reply_of_ours_is_a_failure_and_never_a_vote() {
        for strange in [":7\r\n", "+PONG\r\n", "$2\r\nhi\r\n", "*0\r\n", "*1\r\n:1\r\n"] {
            assert!(matches!(vote(strange), NodeAnswer::Failed(_)), "{strange:?}");
        }
    }
}

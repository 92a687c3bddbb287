//! Operations as Redis commands, and replies as votes.

use std::iter::{once, repeat_n};
use std::str;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base16ct::lower;
use foldhash::{HashSet, HashSetExt};
use sha1::{Digest, Sha1};
use smallvec::SmallVec;

use super::call::Call;
use super::guarded::{self, Guarding};
use super::link::{ConnectionId, Dialect};
use super::resp::{Arguments, Elements, Frame, Requests};
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
            hash: LazyLock::new(|| lower::encode_string(&Sha1::digest(include_str!($file)))),
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
    pub(super) fn encode(self, requests: &mut Requests, key: &[u8], token: &str) {
        match self {
            Self::Delex => {
                requests.command(4).arg("DELEX").arg(key).arg("IFEQ").arg(token);
            }
            Self::Delifeq => {
                requests.command(3).arg("DELIFEQ").arg(key).arg(token);
            }
        }
    }
}

/// Adds a call.
pub(super) fn encode_call(
    requests: &mut Requests,
    call: &Call,
    by: ScriptBy,
    dialect: Dialect,
    guarding: Option<&Guarding>,
) {
    let native = match dialect {
        Dialect::Plain { native_delete } => native_delete,
        Dialect::Guarded => None,
    };
    match (call, guarding) {
        (Call::Single(Command { op: Op::Provision { dry }, .. }), Some(guarding)) => {
            guarding.encode_provision(requests, *dry);
        }
        (Call::Single(command), _) => encode(requests, command, by, native),
        (Call::Succession(both, ttl), _) => {
            encode_succession(requests, both, *ttl);
        }
        (Call::Guarded(commands), Some(guarding)) => guarding.encode(requests, commands, by),
        (Call::Releases(commands) | Call::Guarded(commands), _) => {
            encode_releases(requests, commands.iter().map(held_by), by);
        }
        (Call::Reads(commands), _) => {
            encode_reads(requests, commands.iter().map(|read| &read.key), by);
        }
        (Call::PendingReleases(releases), Some(guarding)) => {
            guarding.encode_pending(requests, releases, by);
        }
        (Call::PendingReleases(releases), None) => {
            let held = releases.iter().map(|release| (&release.key, release.token.as_str()));
            encode_releases(requests, held, by);
        }
        (Call::Kill(ConnectionId { client_id, .. }), _) => {
            requests.command(4).arg("CLIENT").arg("KILL").arg("ID").number(*client_id);
        }
    }
}

/// Reads the reply to a call: what it means for each of its commands.
pub(super) fn classify_call(call: &Call, reply: Frame<'_>, replies: &mut Vec<Reply>) {
    match call {
        Call::Single(_) => replies.push(classify(reply)),
        Call::Releases(commands) | Call::Reads(commands) => {
            classify_each(reply, commands.len(), replies);
        }
        Call::Succession(both, _) => {
            guarded::classify_each(reply, both.iter().map(|one| one.op), replies);
        }
        Call::Guarded(commands) => {
            guarded::classify_each(reply, commands.iter().map(|one| one.op), replies);
        }
        Call::PendingReleases(releases) => classify_each(reply, releases.len(), replies),
        Call::Kill(_) => {
            if let Frame::Error(error) = reply {
                replies.push(Reply::Vote(NodeAnswer::Refused(describe(error)).into()));
            }
        }
    }
}

/// Adds a command of the plain mode.
pub(super) fn encode(
    requests: &mut Requests,
    command: &Command,
    by: ScriptBy,
    native: Option<NativeDelete>,
) {
    let (key, token) = (command.key.as_bytes(), command.token.as_str());
    match (command.op, native) {
        (Op::Acquire { ttl, .. }, _) => {
            let mut set = requests.command(6);
            set.arg("SET").arg(key).arg(token).arg("NX").arg("PX").number(millis(ttl));
        }
        (Op::Extend { ttl }, _) => {
            invoke(requests, &EXTEND, by, (1, 2)).arg(key).arg(token).number(millis(ttl));
        }
        (Op::Release, Some(native)) => native.encode(requests, key, token),
        (op, _) if op.is_release() => encode_releases(requests, once(held_by(command)), by),
        _ => encode_reads(requests, once(&command.key), by),
    }
}

/// Which commands may go out after all others of their batch: those that may by their kind, and that
/// no later command of the same key follows.
pub(super) fn may_go_last<'k>(
    commands: impl DoubleEndedIterator<Item = (bool, &'k Key)> + ExactSizeIterator,
) -> SmallVec<[bool; FEW]> {
    let mut may: SmallVec<[bool; FEW]>;
    if commands.len() <= FEW {
        let mut followed = SmallVec::<[&Key; FEW]>::new();
        let from_the_last = commands.rev().map(|(may, key)| {
            let is_last = !followed.contains(&key);
            followed.push(key);
            is_last && may
        });
        may = from_the_last.collect();
    } else {
        let mut followed = HashSet::with_capacity(commands.len());
        may = commands.rev().map(|(may, key)| followed.insert(key) && may).collect();
    }
    may.reverse();
    may
}

/// So many keys are compared sooner than they are hashed.
const FEW: usize = 8;

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
    requests: &mut Requests,
    [release, acquire]: &[Command; 2],
    ttl: Duration,
) {
    let mut call = invoke(requests, &SUCCEED, ScriptBy::Source, (1, 3));
    call.arg(release.key.as_bytes()).arg(release.token.as_str());
    call.arg(acquire.token.as_str()).number(millis(ttl));
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
    requests: &mut Requests,
    keys: impl ExactSizeIterator<Item = &'k Key>,
    by: ScriptBy,
) {
    let mut script = invoke(requests, &READ, by, (keys.len(), 0));
    for key in keys {
        script.arg(key.as_bytes());
    }
}

pub(super) fn encode_releases<'k>(
    requests: &mut Requests,
    held: impl ExactSizeIterator<Item = (&'k Key, &'k str)> + Clone,
    by: ScriptBy,
) {
    let mut script = invoke(requests, &RELEASE, by, (held.len(), held.len()));
    for (key, _) in held.clone() {
        script.arg(key.as_bytes());
    }
    for (_, token) in held {
        script.arg(token);
    }
}

/// Begins the call of a script on so many keys and with so many arguments.
pub(super) fn invoke<'r>(
    requests: &'r mut Requests,
    script: &'static Script,
    by: ScriptBy,
    (keys, arguments): (usize, usize),
) -> Arguments<'r> {
    let (name, script) = match by {
        ScriptBy::Hash => ("EVALSHA", script.hash()),
        ScriptBy::Source => ("EVAL", script.source),
    };
    let mut call = requests.command(3 + keys + arguments);
    call.arg(name).arg(script).number(keys);
    call
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

impl Reply {
    /// Whether nothing of a token is left on its key, if this is the reply to its release. Data of
    /// another type is another program's.
    pub(super) fn is_release(&self) -> bool {
        match self {
            Self::Vote(Vote { answer: NodeAnswer::Refused(why), .. }) => {
                why.starts_with("WRONGTYPE")
            }
            Self::Vote(vote) => vote.answer.is_vote(),
            Self::Again | Self::Unfit(_) => false,
        }
    }

    /// The words of a server that did not execute a command.
    pub(super) fn refusal(&self) -> Option<Arc<str>> {
        match self {
            Self::Vote(vote) => match &vote.answer {
                NodeAnswer::Refused(why) | NodeAnswer::Failed(why) => Some(Arc::clone(why)),
                _ => None,
            },
            Self::Unfit(why) => Some(Arc::clone(why)),
            Self::Again => None,
        }
    }
}

pub(super) fn classify(reply: Frame<'_>) -> Reply {
    let answer = match reply {
        Frame::Integer(1) | Frame::Simple(b"OK") => NodeAnswer::Granted,
        Frame::Nil => NodeAnswer::Held { label: None, remaining: None },
        Frame::Integer(0) => NodeAnswer::NotHeld,
        Frame::Array(parts) => return Reply::Vote(classify_parts(parts)),
        whole => return classify_whole(whole),
    };
    Reply::Vote(answer.into())
}

/// What it means if this is the reply to a whole call.
pub(super) fn classify_whole(reply: Frame<'_>) -> Reply {
    match reply {
        Frame::Error(error) => classify_error(error),
        other => Reply::Vote(unexpected(&other).into()),
    }
}

/// Reads the reply to a call on `count` keys: what it means for each.
pub(super) fn classify_each(reply: Frame<'_>, count: usize, replies: &mut Vec<Reply>) {
    let shared = match reply {
        Frame::Array(each) if each.len() == count => return replies.extend(each.map(classify)),
        Frame::Error(error) => match classify_error(error) {
            // One key that is not allowed must not keep the others from being released.
            Reply::Vote(_) if count > 1 => Reply::Again,
            shared => shared,
        },
        other => classify_whole(other),
    };
    replies.extend(repeat_n(shared, count));
}

fn unexpected(reply: &Frame<'_>) -> NodeAnswer {
    NodeAnswer::Failed(format!("unexpected reply {}", reply.kind()).into())
}

fn classify_parts(mut parts: Elements<'_>) -> Vote {
    let count = parts.len();
    let answer = match (count, parts.next(), parts.next(), parts.next()) {
        (2, Some(Frame::Bulk(holder)), Some(Frame::Integer(pttl)), None) => NodeAnswer::Held {
            label: label_of(holder).map(Arc::from),
            // -1: a key without expiry, set by somebody else's hand.
            remaining: u64::try_from(pttl).ok().map(Duration::from_millis),
        },
        (2, Some(Frame::Integer(value)), Some(Frame::Integer(1)), None) => {
            return counted(NodeAnswer::Granted, value, Counter::known);
        }
        (2, Some(Frame::Integer(value)), Some(Frame::Integer(0)), None) => {
            return counted(NodeAnswer::Granted, value, |value| Counter::unknown(value, 0));
        }
        (3, Some(Frame::Integer(value)), Some(Frame::Integer(0)), Some(Frame::Integer(since))) => {
            let since = since.unsigned_abs();
            return counted(NodeAnswer::NotHeld, value, |value| Counter::unknown(value, since));
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

fn classify_error(error: &[u8]) -> Reply {
    let (code, details) = split_error(error);
    let text = describe(error);
    let answer = match code {
        "NOSCRIPT" => return Reply::Again,
        "LOADING" | "READONLY" | "MASTERDOWN" | "CLUSTERDOWN" | "MOVED" | "ASK" | "NOAUTH"
        | "WRONGPASS" => return Reply::Unfit(text),
        "QUARANTINED" => match details.parse() {
            Ok(millis) => NodeAnswer::Quarantined { ready_in: Duration::from_millis(millis) },
            Err(_) => NodeAnswer::Failed(text),
        },
        "SKEW" => match details.parse() {
            Ok(millis) => NodeAnswer::skewed(millis),
            Err(_) => NodeAnswer::Refused(text),
        },
        "NOPERM" | "TRYAGAIN" | "CROSSSLOT" | "OOM" | "MISCONF" | "NOREPLICAS" | "BUSY"
        | "WRONGTYPE" | "EPOCH" | "CONFIG" | "VOID" => NodeAnswer::Refused(text),
        // A proxy's "ERR" may hide that the server behind it executed the command.
        _ => NodeAnswer::Failed(text),
    };
    Reply::Vote(answer.into())
}

/// The code of an error, and what comes after it.
fn split_error(error: &[u8]) -> (&str, &str) {
    let text = match str::from_utf8(error) {
        Ok(text) => text,
        Err(invalid) => {
            str::from_utf8(error.get(..invalid.valid_up_to()).unwrap_or_default()).unwrap_or("")
        }
    };
    text.split_once(' ').unwrap_or((text, ""))
}

/// An error of a server in words for its operator.
pub(super) fn describe(error: &[u8]) -> Arc<str> {
    let (code, details) = split_error(error);
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
    format!("{code} {details}{hint}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(resp: &str) -> Frame<'_> {
        Frame::take(&mut resp.as_bytes())
    }

    fn reply(resp: &str) -> Reply {
        classify(frame(resp))
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
    fn a_release_is_done_if_the_token_is_not_on_the_key() {
        let done = [":1\r\n", ":0\r\n", "*2\r\n$1\r\nx\r\n:-1\r\n", "-WRONGTYPE kind\r\n"];
        assert!(done.into_iter().all(|resp| reply(resp).is_release()));
        let refused =
            ["-NOPERM no\r\n", "-BUSY x\r\n", "-READONLY x\r\n", "-ERR x\r\n", "+PONG\r\n"];
        assert!(!refused.into_iter().any(|resp| reply(resp).is_release()));
        let refusal = reply("-NOPERM no\r\n").refusal().unwrap();
        assert!(refusal.starts_with("NOPERM no"), "{refusal}");
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
        let mut replies = Vec::new();
        classify_each(frame(resp), count, &mut replies);
        replies
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

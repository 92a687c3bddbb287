//! What the bytes of a server go through, without the server.

use std::hint::black_box;
use std::iter::repeat_n;
use std::time::Duration;

use super::resp::{Frame, Scan};
use super::survey::Survey;
use super::wire::{self, Reply};
use super::{Op, guarded};
use crate::error::{LockError, NodeReport};
use crate::protocol::fence;
use crate::protocol::quorum::Vote;

const ACQUIRE: Op = Op::Acquire { ttl: Duration::from_secs(1), proposal: 1 };

/// Reads a reply to a call of `count` commands, in each way in which it may be read, and reports
/// it in an error.
pub fn reply(resp: &[u8], count: usize) {
    let Ok(Some(end)) = Scan::default().end(resp) else { return };
    let frame = Frame::take(&mut &resp[..end]);
    let mut each = Vec::new();
    wire::classify_each(frame, count, &mut each);
    let mut guarded = Vec::new();
    guarded::classify_each(frame, repeat_n(ACQUIRE, count), &mut guarded);
    let readings = [vec![wire::classify(frame)], vec![wire::classify_whole(frame)], each, guarded];
    for replies in readings {
        let votes: Vec<Vote> = replies.into_iter().filter_map(vote).collect();
        let counters: Vec<_> = votes.iter().filter_map(|vote| vote.counter).collect();
        let count = votes.len().max(1);
        black_box(fence::after_grants(count, &counters));
        black_box(fence::after_reads(count, &counters, &counters, 1));
        let nodes: Vec<_> =
            votes.into_iter().map(|vote| NodeReport::new("node", vote.answer)).collect();
        if nodes.is_empty() {
            continue;
        }
        for error in [
            LockError::contended(nodes.clone()),
            LockError::unavailable(nodes, Duration::from_secs(1)),
        ] {
            black_box((error.retry_after(), error.to_string(), format!("{error:?}")));
        }
    }
}

fn vote(reply: Reply) -> Option<Vote> {
    match reply {
        Reply::Vote(vote) => Some(vote),
        Reply::Again | Reply::Unfit(_) => None,
    }
}

/// What speaks against the vote of a server that answers INFO with these sections.
#[must_use]
pub fn info(sections: &[&[u8]]) -> Vec<String> {
    let mut survey = Survey::default();
    sections.iter().for_each(|section| survey.add(&Frame::Bulk(section)));
    let _run = survey.run_id();
    survey.objections().into_iter().map(|(_, objection)| objection).collect()
}

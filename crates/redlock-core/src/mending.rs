//! Teaching a node that lost its counters what the others remember.
//!
//! Until it knows them again such a node is of no use for a fencing token, and a second node that
//! fails would take keys away from everybody that have not been locked in between.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::fencing::BUCKETS;
use crate::group::Group;
use crate::key::Key;
use crate::node::Op;
use crate::protocol::fence::to_learn;
use crate::protocol::quorum::Counter;
use crate::round::Round;
use crate::token::Token;

/// Counters that are asked for at once.
const STRIDE: u64 = 128;

/// Time between the end of one mending and the next: what could not be taught, as too few of those
/// who remember are there, is not asked for all the time.
const PAUSE: Duration = Duration::from_secs(1);

/// The turn of the one task that mends a group. It ends also if its runtime does.
struct Turn(Arc<Group>);

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.next_lesson.lock() = Some(Instant::now() + PAUSE);
    }
}

/// Mends `group` in the background if a node that `acquired` a lock did not know its counter. It
/// needs some key and token to ask with.
///
/// The task ends by itself: each of its commands has a deadline, and all are refused once the group
/// is closed.
pub(crate) fn mend_if_needed(group: &Arc<Group>, acquired: &Round, key: &Key, token: &Token) {
    let is_lost = acquired.inspect(|ballot| ballot.counters().any(|(_, of)| !of.known));
    if is_lost
        && let Ok(runtime) = Handle::try_current()
        && group.next_lesson.lock().take_if(|next| *next <= Instant::now()).is_some()
    {
        let turn = Turn(Arc::clone(group));
        let (key, token) = (key.clone(), token.clone());
        runtime.spawn(async move {
            for first in (0..BUCKETS).step_by(STRIDE as usize) {
                mend(&turn.0, first..(first + STRIDE).min(BUCKETS), &key, &token).await;
            }
        });
    }
}

/// Who remembers is asked once more after a node has said that it does not: what was told before
/// may be older than a lock that relied on what the node has forgotten (M21 of the models).
async fn mend(group: &Group, buckets: Range<u64>, key: &Key, token: &Token) {
    let mut taught = Vec::new();
    let told = count(group, buckets, key, token).await;
    let lost: Vec<_> = told.into_iter().filter(|(_, counters)| any_unknown(counters)).collect();
    let again = count(group, lost.iter().map(|(bucket, _)| *bucket), key, token).await;
    for ((bucket, before), (_, now)) in lost.into_iter().zip(again) {
        let reads: Vec<Counter> = now.into_iter().flatten().collect();
        let Some(value) = to_learn(group.nodes().len(), &reads) else { continue };
        for (node, counter) in before.into_iter().enumerate() {
            if let Some(Counter { known: false, since, .. }) = counter {
                let learn = Op::Learn { bucket, value, since };
                taught.push(group.post_alone(node, learn, key, token));
            }
        }
    }
    for round in taught {
        round.verdict().await;
    }
}

/// The counters of all nodes, bucket by bucket; `None` where a node did not tell.
async fn count(
    group: &Group,
    buckets: impl IntoIterator<Item = u64>,
    key: &Key,
    token: &Token,
) -> Vec<(u64, Vec<Option<Counter>>)> {
    let ask = |bucket| {
        let alone = |node| group.post_alone(node, Op::Count { bucket }, key, token);
        (bucket, (0..group.nodes().len()).map(alone).collect::<Vec<_>>())
    };
    let asked: Vec<(u64, Vec<Arc<Round>>)> = buckets.into_iter().map(ask).collect();
    let mut told = Vec::with_capacity(asked.len());
    for (bucket, rounds) in asked {
        let mut counters = Vec::with_capacity(rounds.len());
        for round in rounds {
            round.verdict().await;
            counters.push(round.counters().first().map(|(_, counter)| *counter));
        }
        told.push((bucket, counters));
    }
    told
}

fn any_unknown(counters: &[Option<Counter>]) -> bool {
    counters.iter().flatten().any(|counter| !counter.known)
}

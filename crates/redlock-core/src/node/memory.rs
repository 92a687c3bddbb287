//! The in-process backend: the same semantics without a server, for demos and users' own tests.

use std::collections::HashMap;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Command, Node, Op};
use crate::clock::{Clock, Moment};
use crate::fencing::bucket_of;
use crate::key::Key;
use crate::protocol::quorum::{Counter, NodeAnswer, Vote};
use crate::token::Token;

/// A node whose keys live in this process.
#[derive(Debug)]
pub(crate) struct MemoryNode {
    clock: Arc<dyn Clock>,
    keys: Mutex<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    held: HashMap<Key, Held>,
    /// Expired keys are swept out when this many are held, so that memory follows what is alive.
    sweep_at: usize,
    counters: HashMap<u64, u64>,
}

#[derive(Debug)]
struct Held {
    token: Token,
    expires: Moment,
}

impl MemoryNode {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, keys: Mutex::default() }
    }

    fn execute(&self, op: Op, key: &Key, token: &Token) -> Vote {
        let now = self.clock.now();
        let mut keys = self.keys.lock();
        let holder = keys.held.get_mut(key).filter(|held| now < held.expires);
        let answer = match (op, holder) {
            (Op::Acquire { ttl, proposal }, None) => {
                let held = Held { token: token.clone(), expires: now + ttl };
                keys.insert(key.clone(), held, now);
                return keys.count(key, |last| proposal.max(last + 1));
            }
            (Op::Extend { ttl }, Some(held)) if held.token == *token => {
                held.expires = now + ttl;
                NodeAnswer::Granted
            }
            (Op::Confirm { fence }, Some(held)) if held.token == *token => {
                return keys.count(key, |last| fence.max(last));
            }
            (Op::Count { .. }, _) => return keys.count(key, |last| last),
            (Op::Release | Op::Reclaim, Some(held)) if held.token == *token => {
                keys.held.remove(key);
                NodeAnswer::Granted
            }
            (_, Some(held)) => NodeAnswer::Held {
                label: Some(held.token.label().into()),
                remaining: Some(held.expires.since(now)),
            },
            (_, None) => NodeAnswer::NotHeld,
        };
        answer.into()
    }
}

impl Keys {
    fn insert(&mut self, key: Key, held: Held, now: Moment) {
        if self.held.len() >= self.sweep_at {
            self.held.retain(|_, held| now < held.expires);
            self.sweep_at = (2 * self.held.len()).max(64);
        }
        self.held.insert(key, held);
    }
}

impl Keys {
    /// Moves the counter of `key`, and tells it. This process has seen every lock there was.
    fn count(&mut self, key: &Key, next: impl FnOnce(u64) -> u64) -> Vote {
        let counter = self.counters.entry(bucket_of(key)).or_default();
        *counter = next(*counter);
        Vote { answer: NodeAnswer::Granted, counter: Some(Counter::known(*counter)) }
    }
}

impl Node for MemoryNode {
    fn address(&self) -> &str {
        "memory"
    }

    fn post(&self, command: Command) {
        let answer = self.execute(command.op, &command.key, &command.token);
        command.seat.answer(answer);
    }

    fn unsettled(&self) -> usize {
        0
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(ready(()))
    }

    fn shut_down(&self) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::TokioClock;

    #[tokio::test(start_paused = true)]
    async fn keys_expire_and_what_expired_does_not_pile_up() {
        let node = MemoryNode::new(Arc::new(TokioClock::default()));
        let ttl = Duration::from_millis(10);
        for round in 0..100_u32 {
            for index in 0..50_u32 {
                let key = Key::new(format!("{round}:{index}")).unwrap();
                let token = Token::generate("test").unwrap();
                let acquire = Op::Acquire { ttl, proposal: 0 };
                assert_eq!(node.execute(acquire, &key, &token).answer, NodeAnswer::Granted);
            }
            tokio::time::advance(ttl).await;
        }
        assert!(node.keys.lock().held.len() <= 128);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_token_that_holds_a_key_extends_or_releases_it() {
        let node = MemoryNode::new(Arc::new(TokioClock::default()));
        let (ttl, key) = (Duration::from_secs(1), Key::new("k").unwrap());
        let (mine, other) = (Token::generate("me").unwrap(), Token::generate("you").unwrap());
        let acquire = Op::Acquire { ttl, proposal: 0 };
        let answer = |op, token| node.execute(op, &key, token).answer;
        assert_eq!(answer(Op::Extend { ttl }, &mine), NodeAnswer::NotHeld);
        assert_eq!(answer(acquire, &mine), NodeAnswer::Granted);
        tokio::time::advance(ttl / 4).await;
        let held = NodeAnswer::Held { label: Some("me".into()), remaining: Some(ttl * 3 / 4) };
        for op in [acquire, Op::Extend { ttl }, Op::Confirm { fence: 9 }, Op::Release, Op::Inspect]
        {
            assert_eq!(answer(op, &other), held);
        }
        assert_eq!(answer(Op::Release, &mine), NodeAnswer::Granted);
        assert_eq!(answer(Op::Release, &mine), NodeAnswer::NotHeld);
    }

    #[tokio::test(start_paused = true)]
    async fn every_grant_raises_the_counter() {
        let node = MemoryNode::new(Arc::new(TokioClock::default()));
        let (key, token) = (Key::new("k").unwrap(), Token::generate("me").unwrap());
        let value = |op| node.execute(op, &key, &token).counter.unwrap().value;
        let acquire = |proposal| Op::Acquire { ttl: Duration::from_secs(1), proposal };
        assert_eq!(value(acquire(0)), 1);
        node.execute(Op::Release, &key, &token);
        assert_eq!(value(acquire(50)), 50);
        assert_eq!((value(Op::Confirm { fence: 70 }), value(Op::Confirm { fence: 60 })), (70, 70));
        node.execute(Op::Release, &key, &token);
        assert_eq!((value(acquire(60)), value(Op::Count { bucket: bucket_of(&key) })), (71, 71));
    }
}

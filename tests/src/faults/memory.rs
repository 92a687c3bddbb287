//! Which server knows which counters, and since when not: what somebody who looks into them sees.
//!
//! A server that loses its data knows its counters again when it was taught them or a token was
//! confirmed. Where a majority does not know one, only wall clocks put the tokens in order.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{RedisResult, cmd};
use serde::Serialize;
use tokio::time::sleep;
use twox_hash::XxHash3_64;

use crate::{Beginnings, Fleet, Stamp};

/// Keys of one remainder share a counter.
const COUNTERS: u64 = 1024;

/// How often a server that forgot something is looked at. One that was not is taken to know
/// nothing, so this is how long too many tokens are excused.
const LOOK: Duration = Duration::from_millis(50);

/// What the servers did not know, and when.
#[derive(Debug)]
pub(super) struct Memory {
    counters: Vec<u64>,
    nodes: Vec<Mutex<Node>>,
}

#[derive(Debug, Default)]
struct Node {
    /// Counters that it does not know, and since when.
    unknown: BTreeMap<u64, Stamp>,
    /// Raised with every loss. What was seen before it says nothing about now.
    losses: u64,
    /// Whether one is just being carried out.
    is_losing: bool,
    gaps: Vec<Gap>,
}

/// A server did not know a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Gap {
    pub(super) node: usize,
    pub(super) counter: u64,
    pub(super) from: Stamp,
    pub(super) to: Stamp,
}

/// The counter of a key.
pub(super) fn counter_of(key: &str) -> u64 {
    XxHash3_64::oneshot(key.as_bytes()) % COUNTERS
}

impl Memory {
    /// Servers that know everything, of which only the counters of these keys matter.
    pub(super) fn new(nodes: usize, keys: impl Iterator<Item = String>) -> Self {
        let mut counters: Vec<u64> = keys.map(|key| counter_of(&key)).collect();
        counters.sort_unstable();
        counters.dedup();
        Self { counters, nodes: (0..nodes).map(|_| Mutex::default()).collect() }
    }

    /// To be called before a server loses its data.
    pub(super) fn begins_to_lose(&self, node: usize) {
        let mut node = self.nodes[node].lock();
        let now = Stamp::now();
        for counter in &self.counters {
            node.unknown.entry(*counter).or_insert(now);
        }
        node.losses += 1;
        node.is_losing = true;
    }

    /// To be called when it has lost them.
    pub(super) fn has_lost(&self, node: usize) {
        self.nodes[node].lock().is_losing = false;
    }

    /// Looks, again and again, what the servers know again.
    pub(super) async fn watch(&self, fleet: &Fleet, node: usize) {
        loop {
            sleep(LOOK).await;
            // It is out of order: nobody is told what it knows.
            let _cannot_tell = self.look(fleet, node).await;
        }
    }

    async fn look(&self, fleet: &Fleet, node: usize) -> RedisResult<()> {
        let (losses, unknown) = {
            let node = self.nodes[node].lock();
            if node.is_losing || node.unknown.is_empty() {
                return Ok(());
            }
            (node.losses, node.unknown.keys().copied().collect::<Vec<_>>())
        };
        let info: String = fleet[node].try_ask(cmd("INFO").arg("server")).await?;
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        let mut ask = cmd("HMGET");
        ask.arg("{redlock}:node").arg("run").arg("all");
        for counter in &unknown {
            ask.arg(counter);
        }
        let fields: Vec<Option<String>> = fleet[node].try_ask(&ask).await?;
        let [kept_run, all, known @ ..] = &fields[..] else { return Ok(()) };
        // A record of another process is a copy, or what is left of this server's own.
        if kept_run.as_deref() == run.map(str::trim) {
            let known = unknown.iter().zip(known);
            let known = known.filter(|(_, value)| all.is_some() || value.is_some());
            self.knows(node, losses, known.map(|(counter, _)| *counter));
        }
        Ok(())
    }

    fn knows(&self, number: usize, losses: u64, counters: impl Iterator<Item = u64>) {
        let mut node = self.nodes[number].lock();
        if node.losses != losses {
            return;
        }
        let to = Stamp::now();
        for counter in counters {
            if let Some(from) = node.unknown.remove(&counter) {
                node.gaps.push(Gap { node: number, counter, from, to });
            }
        }
    }

    /// When a server did not know a counter, also up to now.
    pub(super) fn gaps(&self) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let node = node.lock();
            gaps.extend(&node.gaps);
            let open = node.unknown.iter();
            let to = Stamp::END;
            gaps.extend(open.map(|(counter, from)| Gap {
                node: number,
                counter: *counter,
                from: *from,
                to,
            }));
        }
        gaps
    }

    /// When a majority did not know the counter of a key.
    pub(super) fn beginnings(&self, keys: impl Iterator<Item = String>) -> Beginnings {
        let majority = self.nodes.len() / 2 + 1;
        let mut of_counters: BTreeMap<u64, Vec<Gap>> = BTreeMap::new();
        for gap in self.gaps() {
            of_counters.entry(gap.counter).or_default().push(gap);
        }
        let of_counters: BTreeMap<_, _> = of_counters
            .into_iter()
            .map(|(counter, gaps)| (counter, at_once(&gaps, majority)))
            .collect();
        let of_key = |key: String| {
            let gaps = of_counters.get(&counter_of(&key)).cloned().unwrap_or_default();
            (key, gaps)
        };
        Beginnings::of(keys.map(of_key))
    }
}

/// From when to when at least so many of the gaps were there at a time.
fn at_once(gaps: &[Gap], majority: usize) -> Vec<(Stamp, Stamp)> {
    let begin = gaps.iter().map(|gap| (gap.from, false));
    let end = gaps.iter().map(|gap| (gap.to, true));
    let mut turns: Vec<_> = begin.chain(end).collect();
    // One that begins in the instant when another one ends is there together with it.
    turns.sort_unstable();
    let (mut there, mut since) = (0, None);
    let mut found = Vec::new();
    for (at, is_end) in turns {
        there = if is_end { there - 1 } else { there + 1 };
        match since {
            None if there >= majority => since = Some(at),
            Some(from) if there < majority => {
                found.push((from, at));
                since = None;
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Stamp {
        Stamp::default() + Duration::from_millis(millis)
    }

    #[test]
    fn only_what_a_majority_does_not_know_at_a_time_begins_anew() {
        let gap = |node, from, to| Gap { node, counter: 7, from: at(from), to: at(to) };
        assert_eq!(at_once(&[gap(0, 10, 20), gap(1, 30, 40)], 2), []);
        assert_eq!(at_once(&[gap(0, 10, 20), gap(1, 15, 40)], 2), [(at(15), at(20))]);
        assert_eq!(
            at_once(&[gap(0, 10, 20), gap(1, 15, 40), gap(2, 12, 18)], 3),
            [(at(15), at(18))]
        );
        let twice = [gap(0, 10, 50), gap(1, 15, 20), gap(2, 30, 40)];
        assert_eq!(at_once(&twice, 2), [(at(15), at(20)), (at(30), at(40))]);
    }

    #[tokio::test]
    async fn a_server_that_was_flushed_knows_a_counter_again_when_its_own_record_has_it() {
        let fleet = Fleet::start(1).await;
        let keys = || ["a".to_owned(), "b".to_owned()].into_iter();
        let memory = Memory::new(1, keys());
        let unknown = || memory.gaps().iter().filter(|gap| gap.to == Stamp::END).count();
        assert_eq!(unknown(), 0);
        memory.begins_to_lose(0);
        memory.look(&fleet, 0).await.unwrap();
        memory.has_lost(0);
        memory.look(&fleet, 0).await.unwrap();
        assert_eq!(unknown(), 2, "there is no record");

        let counter = counter_of("a");
        let record = async |run: &str| {
            let mut set = cmd("HSET");
            set.arg("{redlock}:node").arg("run").arg(run).arg(counter).arg(9);
            fleet[0].try_ask::<()>(&set).await.unwrap();
            memory.look(&fleet, 0).await.unwrap();
        };
        record("another").await;
        assert_eq!(unknown(), 2, "it is a copy");
        let info: String = fleet[0].try_ask(cmd("INFO").arg("server")).await.unwrap();
        record(info.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap()).await;
        assert_eq!(unknown(), 1);
        memory.begins_to_lose(0);
        assert_eq!(unknown(), 2, "it was lost again");
        assert!(memory.beginnings(keys()).of_key("a").len() == 2);
    }
}

//! What does not depend on the machine: commands and reads per cycle, and keys left behind.

use std::fmt;
use std::future::IntoFuture;
use std::task::{Context, Waker};
use std::time::Duration;

use redlock_tests::Fleet;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::contender::{Mode, connect_patiently};
use crate::goal::{Bound, Goal};
use crate::scenario::{Result, Scale, Scenario};

/// What is done to a key, by a client or by a script.
const ON_KEYS: [&str; 7] = ["set", "get", "del", "pttl", "pexpire", "delex", "delifeq"];

/// Calls of a script; one may serve many keys.
const SCRIPT_CALLS: [&str; 2] = ["evalsha", "eval"];

const NODES: usize = 3;
const TASKS: usize = 64;
const CYCLES: usize = 50_000;

/// After so many all nodes have a chance to catch up. One that has to wait for a processor falls
/// behind the majority, and of more than 8,192 commands it would be spared the rest.
const CYCLES_AT_ONCE: usize = 2_500;

const DROPPED: usize = 1_000;

/// One for each mode.
#[derive(Debug, Serialize)]
pub(crate) struct Counters {
    nodes: usize,
    cycles: Vec<Cycles>,
    dropped: Vec<Dropped>,
}

/// Counted by the servers over [`CYCLES`] cycles of [`TASKS`] tasks.
#[derive(Debug, Serialize)]
struct Cycles {
    mode: Mode,
    cycles: usize,
    tasks: usize,
    /// SET, and the script's GET and DEL, on each node: what a lock can't do without.
    key_commands_per_cycle: f64,
    /// One per node for a lock that is alone; fewer where releases go together.
    script_calls_per_cycle: f64,
    /// Both together.
    commands_per_cycle: f64,
    /// How often the servers read from a socket: batching is what lowers it.
    server_reads_per_cycle: f64,
    orphans: usize,
}

/// Futures that were dropped while their commands were on the way.
#[derive(Debug, Serialize)]
struct Dropped {
    mode: Mode,
    futures: usize,
    orphans: usize,
}

pub(crate) async fn measure(_: Scale) -> Result<Counters> {
    let fleet = Fleet::start(NODES).await;
    let (mut cycles, mut dropped) = (Vec::new(), Vec::new());
    for mode in [Mode::Plain, Mode::Guarded] {
        cycles.push(count(&fleet, mode).await?);
        dropped.push(drop_futures(&fleet, mode).await?);
    }
    Ok(Counters { nodes: NODES, cycles, dropped })
}

impl Scenario for Counters {
    fn goals(&self) -> Vec<Goal> {
        let nodes = self.nodes as f64;
        let cycles = self.cycles.iter().flat_map(|row| {
            let goal = |what: &str, wanted, seen| {
                Goal::exact(format!("{}: {what} per cycle", row.mode), wanted, seen)
            };
            let script_calls = match row.mode {
                Mode::Plain => nodes,
                Mode::Guarded => 2.0 * nodes,
            };
            let error = (row.key_commands_per_cycle - 3.0 * nodes).abs();
            [
                goal(
                    "commands on keys, more or fewer than three for each node,",
                    Bound::AtMost(0.005),
                    error,
                ),
                goal("script calls", Bound::AtMost(script_calls), row.script_calls_per_cycle),
                goal("server reads", Bound::AtMost(0.3), row.server_reads_per_cycle),
                goal("orphans", Bound::AtMost(0.0), row.orphans as f64),
            ]
        });
        let dropped = self.dropped.iter().map(|row| {
            let name = format!("{}: orphans of dropped futures", row.mode);
            Goal::exact(name, Bound::AtMost(0.0), row.orphans as f64)
        });
        cycles.chain(dropped).collect()
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} nodes, counted by the servers", self.nodes)?;
        for row in &self.cycles {
            writeln!(
                f,
                "{}: {} cycles of {} tasks, per cycle: {:.2} commands on keys, {:.2} script calls \
                 and {:.2} server reads; {} orphans",
                row.mode,
                row.cycles,
                row.tasks,
                row.key_commands_per_cycle,
                row.script_calls_per_cycle,
                row.server_reads_per_cycle,
                row.orphans,
            )?;
        }
        for Dropped { mode, futures, orphans } in &self.dropped {
            writeln!(f, "{mode}: {futures} futures dropped: {orphans} orphans")?;
        }
        Ok(())
    }
}

async fn count(fleet: &Fleet, mode: Mode) -> Result<Cycles> {
    let redlock = connect_patiently(&fleet.urls(), mode).await?;
    let before = Totals::of(fleet).await;
    for first in (0..CYCLES).step_by(CYCLES_AT_ONCE) {
        let mut running = JoinSet::new();
        for task in 0..TASKS {
            let redlock = redlock.clone();
            running.spawn(async move {
                for cycle in (first + task..first + CYCLES_AT_ONCE).step_by(TASKS) {
                    redlock.lock(format!("count:{cycle}")).await?.release().await;
                }
                Result::Ok(())
            });
        }
        while let Some(done) = running.join_next().await {
            done??;
        }
        // Answered by each node when it has done all else. It counts, too: as one GET in 2,500.
        redlock.health().await?;
    }
    redlock.close(Duration::from_secs(5)).await;
    let after = Totals::of(fleet).await;
    let per_cycle = |count: u64| count as f64 / CYCLES as f64;
    Ok(Cycles {
        mode,
        cycles: CYCLES,
        tasks: TASKS,
        key_commands_per_cycle: per_cycle(after.on_keys - before.on_keys),
        script_calls_per_cycle: per_cycle(after.script_calls - before.script_calls),
        commands_per_cycle: per_cycle(after.commands() - before.commands()),
        server_reads_per_cycle: per_cycle(after.reads - before.reads),
        orphans: fleet.total_keys().await,
    })
}

async fn drop_futures(fleet: &Fleet, mode: Mode) -> Result<Dropped> {
    let redlock = connect_patiently(&fleet.urls(), mode).await?;
    for index in 0..DROPPED {
        let mut locking = redlock.lock(format!("dropped:{index}")).into_future();
        // Polled for the last time before, between or after its answers.
        for _ in 0..fastrand::usize(1..4) {
            if locking.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    redlock.close(Duration::from_secs(5)).await;
    Ok(Dropped { mode, futures: DROPPED, orphans: fleet.total_keys().await })
}

/// What the servers have counted so far.
#[derive(Default)]
struct Totals {
    on_keys: u64,
    script_calls: u64,
    reads: u64,
}

impl Totals {
    async fn of(fleet: &Fleet) -> Self {
        let mut totals = Self::default();
        for server in fleet.iter() {
            let calls = server.command_stats().await;
            let sum =
                |names: &[&str]| names.iter().filter_map(|name| calls.get(*name)).sum::<u64>();
            totals.on_keys += sum(&ON_KEYS);
            totals.script_calls += sum(&SCRIPT_CALLS);
            totals.reads += server.reads_processed().await;
        }
        totals
    }

    fn commands(&self) -> u64 {
        self.on_keys + self.script_calls
    }
}

//! What does not depend on the machine: commands and reads per cycle, and keys left behind.

use std::error::Error;
use std::future::IntoFuture;
use std::task::{Context, Waker};

use redlock_tests::Fleet;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::contender::{Mode, connect_patiently};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What is done to a key, by a client or by a script.
const ON_KEYS: [&str; 7] = ["set", "get", "del", "pttl", "pexpire", "delex", "delifeq"];

/// Calls of a script; one may serve many keys.
const SCRIPT_CALLS: [&str; 2] = ["evalsha", "eval"];

const TASKS: usize = 64;
const CYCLES: usize = 50_000;
const DROPPED: usize = 1_000;

/// Counted by the servers over [`CYCLES`] cycles of [`TASKS`] tasks.
#[derive(Debug, Serialize)]
pub(crate) struct Counters {
    pub(crate) mode: Mode,
    pub(crate) cycles: usize,
    pub(crate) tasks: usize,
    /// SET, and the script's GET and DEL, on each node: what a lock can't do without.
    pub(crate) key_commands_per_cycle: f64,
    /// One per node for a lock that is alone; fewer where releases go together.
    pub(crate) script_calls_per_cycle: f64,
    /// Both together.
    pub(crate) commands_per_cycle: f64,
    /// How often the servers read from a socket: batching is what lowers it.
    pub(crate) server_reads_per_cycle: f64,
    pub(crate) orphans: usize,
}

/// Futures that were dropped while their commands were on the way.
#[derive(Debug, Serialize)]
pub(crate) struct Dropped {
    pub(crate) mode: Mode,
    pub(crate) futures: usize,
    pub(crate) orphans: usize,
}

pub(crate) async fn count(fleet: &Fleet, mode: Mode) -> Result<Counters> {
    let redlock = connect_patiently(&fleet.urls(), mode).await?;
    let before = Totals::of(fleet).await;
    let mut running = JoinSet::new();
    for task in 0..TASKS {
        let redlock = redlock.clone();
        running.spawn(async move {
            for cycle in (task..CYCLES).step_by(TASKS) {
                redlock.lock(format!("count:{cycle}")).await?.release().await;
            }
            Result::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    redlock.close(std::time::Duration::from_secs(5)).await;
    let after = Totals::of(fleet).await;
    let per_cycle = |count: u64| count as f64 / CYCLES as f64;
    Ok(Counters {
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

pub(crate) async fn drop_futures(fleet: &Fleet, mode: Mode) -> Result<Dropped> {
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
    redlock.close(std::time::Duration::from_secs(5)).await;
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

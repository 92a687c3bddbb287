//! What it costs to hold many locks: memory here and on the servers, renewals, and what a cycle
//! allocates.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redlock_core::{Guard, LeaseState, Redlock, Renew};
use redlock_tests::Fleet;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::allocations;
use crate::contender::{Contender, Library, Mode, connect_patiently, set_up, settings};
use crate::goal::{Bound, Goal};
use crate::load::cpu_time_of;
use crate::scenario::{Result, Scale, Scenario};

const NODES: usize = 3;
const LEASES: usize = 100_000;
const TTL: Duration = Duration::from_secs(30);

/// So many at a time are taken and given back.
const TASKS: usize = 64;

/// Cycles whose allocations are counted.
const CYCLES: usize = 5_120;

/// Long enough to see every lease renewed twice: it is after a third of its TTL, or sooner.
const HELD_FOR: Duration = Duration::from_secs(2 * TTL.as_secs() / 3 + 3);

const PATIENCE: Duration = Duration::from_secs(60);

/// Libraries that work on the threads of whoever calls them: others are not seen.
const COUNTED: [Library; 4] = [
    Library::Ours(Mode::Plain),
    Library::Ours(Mode::Guarded),
    Library::Rslock,
    Library::DistributedLock,
];

#[derive(Debug, Serialize)]
pub(crate) struct Leases {
    cycles: Vec<Cycle>,
    held: Vec<Held>,
}

/// What one lock and unlock allocates in the client.
#[derive(Debug, Serialize)]
struct Cycle {
    contender: Library,
    tasks: usize,
    allocations: f64,
    bytes: f64,
}

/// Many leases held by one process, in one thread.
#[derive(Debug, Serialize)]
struct Held {
    mode: Mode,
    leases: usize,
    /// Per lease, in the client, if allocations are counted.
    client_bytes: Option<f64>,
    client_allocations: Option<f64>,
    /// Per lease, on each server.
    server_bytes: f64,
    renewals: Renewals,
}

#[derive(Debug, Serialize)]
struct Renewals {
    seconds: f64,
    all: usize,
    /// Of the lease that was renewed least often.
    fewest: u32,
    /// Leases of which one was not confirmed in time.
    missed: usize,
    lost: usize,
    /// Per renewal.
    client_cpu_micros: f64,
    /// Per renewal, of each server.
    server_cpu_micros: f64,
}

pub(crate) async fn measure(_: Scale) -> Result<Leases> {
    let fleet = Arc::new(Fleet::start(NODES).await);
    let mut cycles = Vec::new();
    for library in COUNTED.into_iter().filter(|_| allocations::COUNTED) {
        let fleet = Arc::clone(&fleet);
        let counted = on_one_thread(move |runtime| count_cycles(runtime, &fleet, library));
        cycles.extend(counted.await?);
    }
    let mut held = Vec::new();
    for mode in [Mode::Plain, Mode::Guarded] {
        let fleet = Fleet::start(NODES).await;
        held.push(on_one_thread(move |runtime| hold(runtime, &fleet, mode)).await?);
    }
    Ok(Leases { cycles, held })
}

/// Allocations are counted by thread.
async fn on_one_thread<T: Send + 'static>(
    work: impl FnOnce(&Runtime) -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(move || work(&Builder::new_current_thread().enable_all().build()?)).await?
}

fn count_cycles(runtime: &Runtime, fleet: &Fleet, library: Library) -> Result<[Cycle; 2]> {
    let contender = runtime.block_on(connect(library, &fleet.urls()))?;
    let count = |tasks: usize| {
        let keys: Vec<String> = (0..CYCLES).map(|cycle| format!("cycle:{cycle}")).collect();
        let task = async |keys: &[String]| {
            for key in keys {
                contender.cycle(key).await?;
            }
            Result::Ok(())
        };
        let all = || join_all(keys.chunks(CYCLES / tasks).map(task));
        // What is allocated once is none of a cycle's.
        runtime.block_on(all()).into_iter().collect::<Result<()>>()?;
        let (done, allocated) = allocations::during(|| runtime.block_on(all()))?;
        done.into_iter().collect::<Result<()>>()?;
        let allocated = allocated.ok_or("nothing was counted")?;
        let per_cycle = |count: u64| count as f64 / CYCLES as f64;
        let (allocations, bytes) = (per_cycle(allocated.allocations), per_cycle(allocated.bytes));
        Result::Ok(Cycle { contender: library, tasks, allocations, bytes })
    };
    Ok([count(1)?, count(TASKS)?])
}

/// With a deadline that no cycle misses: one that is tried twice allocates more.
async fn connect(library: Library, urls: &[String]) -> Result<Contender> {
    match library {
        Library::Ours(mode) => Ok(Contender::Ours(connect_patiently(urls, mode).await?)),
        _ => Contender::connect(library, urls).await,
    }
}

fn hold(runtime: &Runtime, fleet: &Fleet, mode: Mode) -> Result<Held> {
    let redlock = runtime.block_on(set_up(settings(&fleet.urls(), mode).ttl(TTL)))?;
    let keys: Vec<String> = (0..LEASES).map(|lease| format!("lease:{lease}")).collect();
    let before = runtime.block_on(used_memory(fleet));
    let lock_all = || runtime.block_on(lock_all(&redlock, &keys));
    let (guards, allocated) = allocations::during(lock_all)?;
    let guards = guards?;
    let after = runtime.block_on(used_memory(fleet));
    let renewals = runtime.block_on(watch(&guards, fleet));
    drop(guards);
    if runtime.block_on(redlock.close(PATIENCE)).unreleased > 0 {
        return Err("leases were left behind".into());
    }
    let per_lease = |sum: f64| sum / LEASES as f64;
    Ok(Held {
        mode,
        leases: LEASES,
        client_bytes: allocated.map(|allocated| per_lease(allocated.kept_bytes as f64)),
        client_allocations: allocated.map(|allocated| per_lease(allocated.kept_allocations as f64)),
        server_bytes: per_lease(after - before) / NODES as f64,
        renewals,
    })
}

async fn lock_all(redlock: &Redlock, keys: &[String]) -> Result<Vec<Vec<Guard>>> {
    let task = async |keys: &[String]| {
        let mut guards = Vec::with_capacity(keys.len());
        for key in keys {
            guards.push(redlock.lock(key).wait(PATIENCE).renew(Renew::Yes).await?);
        }
        Result::Ok(guards)
    };
    join_all(keys.chunks(LEASES.div_ceil(TASKS)).map(task)).await.into_iter().collect()
}

/// Looks at all leases again and again: a renewal moves the end of a lease, and one that is not
/// confirmed shows until the next, which is seconds later. Looks at few at a time, as the thread is
/// that of the renewals.
async fn watch(guards: &[Vec<Guard>], fleet: &Fleet) -> Renewals {
    let guards = guards.iter().flatten();
    let mut leases: Vec<Seen<'_>> = guards.map(Seen::new).collect();
    let (client, servers) = (thread_cpu_time(), cpu_time_of(fleet));
    let start = Instant::now();
    while start.elapsed() < HELD_FOR {
        for some in leases.chunks_mut(LEASES / 100) {
            some.iter_mut().for_each(Seen::look);
            sleep(Duration::from_millis(10)).await;
        }
    }
    let (client, servers) = (thread_cpu_time() - client, cpu_time_of(fleet) - servers);
    let all: usize = leases.iter().map(|lease| lease.renewals as usize).sum();
    let per_renewal = |time: Duration| time.as_secs_f64() * 1e6 / all as f64;
    Renewals {
        seconds: start.elapsed().as_secs_f64(),
        all,
        fewest: leases.iter().map(|lease| lease.renewals).min().unwrap_or_default(),
        missed: leases.iter().filter(|lease| lease.missed).count(),
        lost: leases.iter().filter(|lease| lease.guard.is_lost()).count(),
        client_cpu_micros: per_renewal(client),
        server_cpu_micros: per_renewal(servers) / NODES as f64,
    }
}

/// What was seen of one lease.
struct Seen<'g> {
    guard: &'g Guard,
    remaining: Duration,
    renewals: u32,
    missed: bool,
}

impl<'g> Seen<'g> {
    fn new(guard: &'g Guard) -> Self {
        Self { guard, remaining: guard.remaining(), renewals: 0, missed: false }
    }

    fn look(&mut self) {
        let remaining = self.guard.remaining();
        self.renewals += u32::from(remaining > self.remaining);
        self.remaining = remaining;
        self.missed |= self.guard.state() != LeaseState::Held;
    }
}

/// Of all servers.
async fn used_memory(fleet: &Fleet) -> f64 {
    let used = join_all(fleet.iter().map(|server| server.used_memory())).await;
    used.into_iter().sum::<u64>() as f64
}

fn thread_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

impl Scenario for Leases {
    fn goals(&self) -> Vec<Goal> {
        use Bound::{AtLeast, AtMost};
        let mut goals = Vec::new();
        for Held { mode, leases, client_bytes, renewals, .. } in &self.held {
            let mut goal = |what: &str, wanted, seen| {
                goals.push(Goal::new(format!("{mode}: {what}, {leases} leases"), wanted, seen));
            };
            if let Some(bytes) = *client_bytes {
                goal("bytes of a held lease", AtMost(1024.0), bytes);
            }
            goal("missed a renewal", AtMost(0.0), renewals.missed as f64);
            goal("fewest renewals in two periods", AtLeast(2.0), renewals.fewest.into());
        }
        goals
    }
}

impl fmt::Display for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cycles.is_empty() {
            writeln!(f, "allocations are counted with --features allocations")?;
        } else {
            writeln!(f, "a lock and unlock in the client, one thread")?;
            writeln!(f, "{:>6} {:>17} {:>12} {:>8}", "tasks", "", "allocations", "bytes")?;
        }
        for Cycle { contender, tasks, allocations, bytes } in &self.cycles {
            writeln!(f, "{tasks:>6} {contender:>17} {allocations:>12.1} {bytes:>8.0}")?;
        }
        for held in &self.held {
            let Held { mode, leases, server_bytes, renewals, .. } = held;
            let ttl = TTL.as_secs();
            write!(f, "{mode}: {leases} leases of {ttl} s held, each: ")?;
            if let Some((bytes, allocations)) = held.client_bytes.zip(held.client_allocations) {
                write!(f, "{bytes:.0} bytes in {allocations:.1} allocations here, ")?;
            }
            writeln!(f, "{server_bytes:.0} bytes on a server")?;
            let Renewals { seconds, all, fewest, missed, lost, .. } = renewals;
            writeln!(
                f,
                "{mode}: {all} renewals in {seconds:.0} s, at least {fewest} of each; {missed} \
                 missed one, {lost} lost; a renewal: {:.1} µs CPU here, {:.1} µs on a server",
                renewals.client_cpu_micros, renewals.server_cpu_micros,
            )?;
        }
        Ok(())
    }
}

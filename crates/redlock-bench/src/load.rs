//! Tasks that lock and unlock keys of their own, as fast as they can.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use redlock_tests::Fleet;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::contender::Contender;
use crate::scenario::Result;

/// What one contender did in one turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) cycles_per_second: f64,
    /// Of this process, per cycle.
    pub(crate) client_cpu_micros: f64,
    /// Of all servers together, per cycle.
    pub(crate) server_cpu_micros: f64,
    /// Until the key was locked.
    pub(crate) lock: Latency,
    /// Until it was unlocked again.
    pub(crate) cycle: Latency,
    /// Cycles that ended with an error.
    pub(crate) failed: u64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50_micros: f64,
    pub(crate) p90_micros: f64,
    pub(crate) p99_micros: f64,
    pub(crate) slowest_micros: f64,
}

/// `tasks` tasks that each lock and unlock keys of their own for `length`.
pub(crate) async fn load(
    fleet: &Fleet,
    contender: &Contender,
    tasks: usize,
    length: Duration,
) -> Result<Figures> {
    let (client, servers, start) = (own_cpu_time(), cpu_time_of(fleet), Instant::now());
    let seen = run(contender, tasks, start + length).await?;
    let elapsed = start.elapsed();
    let (client, servers) = (own_cpu_time() - client, cpu_time_of(fleet) - servers);
    let cycles = seen.cycle.len() as f64;
    Ok(Figures {
        cycles_per_second: cycles / elapsed.as_secs_f64(),
        client_cpu_micros: client.as_secs_f64() * 1e6 / cycles,
        server_cpu_micros: servers.as_secs_f64() * 1e6 / cycles,
        lock: Latency::of(&seen.lock),
        cycle: Latency::of(&seen.cycle),
        failed: seen.failed,
    })
}

impl Latency {
    fn of(nanos: &Histogram<u64>) -> Self {
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Self {
            p50_micros: micros(nanos.value_at_quantile(0.5)),
            p90_micros: micros(nanos.value_at_quantile(0.9)),
            p99_micros: micros(nanos.value_at_quantile(0.99)),
            slowest_micros: micros(nanos.max()),
        }
    }
}

/// Nanoseconds of each cycle.
struct Seen {
    lock: Histogram<u64>,
    cycle: Histogram<u64>,
    failed: u64,
}

impl Seen {
    fn new() -> Result<Self> {
        Ok(Self { lock: Histogram::new(3)?, cycle: Histogram::new(3)?, failed: 0 })
    }
}

async fn run(contender: &Contender, tasks: usize, end: Instant) -> Result<Seen> {
    // No turn is held up by keys that another one left for a moment.
    let turn = fastrand::u32(..);
    let mut running = JoinSet::new();
    for task in 0..tasks {
        let contender = contender.clone();
        running.spawn(async move {
            let mut seen = Seen::new()?;
            for cycle in 0_u64.. {
                let start = Instant::now();
                if start >= end {
                    break;
                }
                match contender.cycle(&format!("bench:{turn:x}:{task}:{cycle}")).await {
                    Ok(locked) => {
                        seen.lock.record(nanos(locked))?;
                        seen.cycle.record(nanos(start.elapsed()))?;
                    }
                    Err(_) => seen.failed += 1,
                }
            }
            Result::Ok(seen)
        });
    }
    let mut all = Seen::new()?;
    while let Some(done) = running.join_next().await {
        let seen = done??;
        all.lock.add(seen.lock)?;
        all.cycle.add(seen.cycle)?;
        all.failed += seen.failed;
    }
    Ok(all)
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Of this process, all threads.
pub(crate) fn own_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Of all servers that run: the kernel counts it by the nanosecond, and nobody has to be asked.
pub(crate) fn cpu_time_of(fleet: &Fleet) -> Duration {
    let running = fleet.iter().filter(|server| server.is_running());
    let nanos = running.filter_map(|server| {
        let stat = std::fs::read_to_string(format!("/proc/{}/schedstat", server.pid())).ok()?;
        stat.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

//! What a long run measures, and what of it must not grow. `--bin soak` is such a run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::{RedisResult, cmd};
use redlock_core::ErrorKind;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{Fleet, RedisServer};

/// Fields of a server's record: a counter for each bucket, as many provisional ones at worst until
/// it is taught, and what it knows of itself.
const RECORD: u64 = 1024 + 16;

/// More file descriptors, tasks or connections than before that are not yet a leak: a lock that is
/// just under way, a connection that is replaced.
const SLACK: u64 = 32;

/// What is taken for noise.
const MIB: f64 = 1024.0 * 1024.0;
const NOISE: Duration = Duration::from_millis(2);

/// One look at everything that could grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sample {
    /// When, in seconds from the start.
    pub at: f64,
    /// Resident memory of this process, in bytes.
    pub memory: u64,
    /// Its open file descriptors.
    pub files: u64,
    /// Its tasks.
    pub tasks: u64,
    /// The connections of the server that has most.
    pub connections: u64,
    /// The fields of the largest record of a server.
    pub record: u64,
    /// Tokens that are void on the server that has most.
    pub voids: u64,
    /// How long the last of them has still to live, in seconds; for ever is `f64::MAX`.
    pub void_left: f64,
}

impl Sample {
    /// Looks now; `None` if a server cannot be asked, as it has a fault.
    pub async fn take(fleet: &Fleet, at: Duration, tasks: usize) -> Option<Self> {
        let mut sample = Self { at: at.as_secs_f64(), tasks: tasks as u64, ..Self::default() };
        for server in fleet.iter() {
            sample.look_into(server).await.ok()?;
        }
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        sample.memory = 1024 * memory.split_whitespace().next()?.parse::<u64>().ok()?;
        sample.files = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
        Some(sample)
    }

    async fn look_into(&mut self, server: &RedisServer) -> RedisResult<()> {
        let clients: String = server.try_ask(cmd("INFO").arg("clients")).await?;
        let connected = clients.lines().find_map(|line| line.strip_prefix("connected_clients:"));
        let connected = connected.and_then(|count| count.trim().parse().ok()).unwrap_or(u64::MAX);
        self.connections = self.connections.max(connected);
        let fields = server.try_ask::<u64>(cmd("HLEN").arg("{redlock}:node")).await?;
        self.record = self.record.max(fields);
        let voids: Vec<String> = server.try_ask(cmd("KEYS").arg("{redlock}:void:*")).await?;
        self.voids = self.voids.max(voids.len() as u64);
        for void in voids {
            let left = match server.try_ask::<i64>(cmd("PTTL").arg(void)).await? {
                -1 => f64::MAX,
                millis => millis as f64 / 1000.0,
            };
            self.void_left = self.void_left.max(left);
        }
        Ok(())
    }
}

/// Makes one server fail for a moment; `choice` says how.
pub async fn disturb(server: &RedisServer, choice: usize) {
    match choice % 5 {
        0 => server.restart().await,
        1 => {
            server.pause();
            sleep(Duration::from_millis(500)).await;
            server.resume();
        }
        2 => server.flush_scripts().await,
        3 => {
            let mut kill = cmd("CLIENT");
            kill.arg("KILL").arg("TYPE").arg("normal");
            // It answers, or ends the connection that asked.
            let _killed: RedisResult<i64> = server.try_ask(&kill).await;
        }
        _ => server.try_ask::<()>(&cmd("FLUSHALL")).await.expect("the server is flushed"),
    }
}

/// How long locks took, quarter by quarter of a run, in memory that does not grow.
#[derive(Debug)]
pub struct Latencies {
    /// By quarter, then by twentieths of a millisecond.
    counts: Vec<Vec<AtomicU64>>,
    contended: AtomicU64,
    failed: AtomicU64,
    left_out: AtomicU64,
}

const STEP: Duration = Duration::from_micros(50);
const STEPS: usize = 25_000;

impl Latencies {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        let quarter = || (0..STEPS).map(|_| AtomicU64::new(0)).collect();
        Self {
            counts: (0..4).map(|_| quarter()).collect(),
            contended: AtomicU64::default(),
            failed: AtomicU64::default(),
            left_out: AtomicU64::default(),
        }
    }

    /// A lock was had after so long.
    pub fn acquired(&self, quarter: usize, took: Duration) {
        let step = took.as_micros() / STEP.as_micros();
        let step = usize::try_from(step).unwrap_or(STEPS).min(STEPS - 1);
        self.counts[quarter.min(3)][step].fetch_add(1, Ordering::Relaxed);
    }

    /// A lock was not had.
    pub fn failed(&self, why: ErrorKind) {
        let count = if why == ErrorKind::Contended { &self.contended } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// A lock was not even asked for.
    pub fn left_out(&self) {
        self.left_out.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, quarter: usize) -> u64 {
        self.counts[quarter].iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    fn p99(&self, quarter: usize) -> Duration {
        let all = self.count(quarter);
        let mut seen = 0;
        for (step, count) in self.counts[quarter].iter().enumerate() {
            seen += count.load(Ordering::Relaxed);
            if 100 * seen >= 99 * all {
                return STEP * u32::try_from(step + 1).expect("a few thousand");
            }
        }
        Duration::ZERO
    }

    /// What came of it.
    #[must_use]
    pub fn summary(&self) -> Value {
        let millis = |quarter| self.p99(quarter).as_secs_f64() * 1000.0;
        json!({
            "acquired": (0..4).map(|quarter| self.count(quarter)).sum::<u64>(),
            "contended": self.contended.load(Ordering::Relaxed),
            "failed": self.failed.load(Ordering::Relaxed),
            "left_out": self.left_out.load(Ordering::Relaxed),
            "p99_ms_by_quarter": (0..4).map(millis).collect::<Vec<_>>(),
        })
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}

/// What must not be passed.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// MiB an hour.
    pub memory: f64,
    /// A share of the 99th percentile.
    pub slower: f64,
    /// How long a void token may have to live.
    pub void: Duration,
}

impl Bounds {
    /// What was passed.
    #[must_use]
    pub fn broken_by(&self, samples: &[Sample], latencies: &Latencies) -> Vec<String> {
        let warm = warm(samples);
        if warm.len() < 8 {
            return vec![format!("{} samples are too few to judge", warm.len())];
        }
        let mut broken = Vec::new();
        let slope = slope(warm);
        let grown = slope * (warm[warm.len() - 1].at - warm[0].at);
        if slope * 3600.0 > self.memory * MIB && grown > 2.0 * MIB {
            broken.push(format!("memory grows by {:.2} MiB an hour", slope * 3600.0 / MIB));
        }
        let (first, last) = (&warm[..warm.len() / 4], &warm[warm.len() - warm.len() / 4..]);
        let mut grows = |what: &str, of: fn(&Sample) -> u64| {
            let (before, after) = (most(first, of), most(last, of));
            if after > before + SLACK {
                broken.push(format!("{after} {what} at the end, {before} at the start"));
            }
        };
        grows("file descriptors", |sample| sample.files);
        grows("tasks", |sample| sample.tasks);
        grows("connections", |sample| sample.connections);
        let record = most(samples, |sample| sample.record);
        if record > RECORD {
            broken.push(format!("a server's record has {record} fields"));
        }
        let left = samples.iter().map(|sample| sample.void_left).fold(0.0, f64::max);
        if left > self.void.as_secs_f64() {
            broken.push(format!("a void token has {left:.1} s to live"));
        }
        let (start, end) = (latencies.p99(0), latencies.p99(3));
        if latencies.count(0) == 0 || latencies.count(3) == 0 {
            broken.push("no lock was had at the start or at the end".to_owned());
        } else if end > start.mul_f64(1.0 + self.slower) + NOISE {
            broken.push(format!("99 of 100 locks took {start:?} at the start, {end:?} at the end"));
        }
        broken
    }

    /// What was measured, warm-up apart.
    #[must_use]
    pub fn measured(&self, samples: &[Sample]) -> Value {
        let warm = warm(samples);
        json!({
            "samples": samples.len(),
            "memory_mib_per_hour": slope(warm) * 3600.0 / MIB,
            "memory_bound_mib_per_hour": self.memory,
            "first": warm.first(),
            "last": warm.last(),
            "most_fields": most(samples, |sample| sample.record),
            "most_voids": most(samples, |sample| sample.voids),
            "longest_void_s": samples.iter().map(|sample| sample.void_left).fold(0.0, f64::max),
            "most_connections": most(samples, |sample| sample.connections),
            "most_files": most(samples, |sample| sample.files),
            "most_tasks": most(samples, |sample| sample.tasks),
        })
    }
}

/// Without the first fifth: caches fill, connections are made.
fn warm(samples: &[Sample]) -> &[Sample] {
    &samples[samples.len() / 5..]
}

fn most(samples: &[Sample], of: impl Fn(&Sample) -> u64) -> u64 {
    samples.iter().map(of).max().unwrap_or_default()
}

/// How many bytes the memory grows in a second: the line that fits best.
fn slope(samples: &[Sample]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (time, memory) = (mean(|sample| sample.at), mean(|sample| sample.memory as f64));
    let (mut both, mut square) = (0.0, 0.0);
    for sample in samples {
        both += (sample.at - time) * (sample.memory as f64 - memory);
        square += (sample.at - time).powi(2);
    }
    if square == 0.0 { 0.0 } else { both / square }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { memory: 1.0, slower: 0.1, void: Duration::from_secs(3) };

    fn samples(change: impl Fn(u64, &mut Sample)) -> Vec<Sample> {
        let sample = |number: u64| {
            let at = 60.0 * number as f64;
            let steady = Sample { at, memory: 20 << 20, files: 20, ..Sample::default() };
            let mut sample = Sample { tasks: 40, connections: 9, record: 1030, ..steady };
            change(number, &mut sample);
            sample
        };
        (0..100).map(sample).collect()
    }

    fn latencies(at_the_end: Duration) -> Latencies {
        let latencies = Latencies::new();
        latencies.acquired(0, Duration::from_millis(10));
        latencies.acquired(3, at_the_end);
        latencies
    }

    fn broken(change: impl Fn(u64, &mut Sample)) -> Vec<String> {
        BOUNDS.broken_by(&samples(change), &latencies(Duration::from_millis(10)))
    }

    #[test]
    fn what_stays_as_it_is_breaks_no_bound() {
        assert_eq!(broken(|_, _| ()), Vec::<String>::new());
        assert_eq!(
            broken(|number, sample| sample.memory += (number % 7) << 20),
            Vec::<String>::new()
        );
    }

    #[test]
    fn whatever_grows_is_found() {
        let found = |change: fn(u64, &mut Sample), what: &str| {
            let broken = broken(change);
            assert!(broken.len() == 1 && broken[0].contains(what), "{what}: {broken:?}");
        };
        found(|number, sample| sample.memory += number << 16, "memory");
        found(|number, sample| sample.files += number, "file descriptors");
        found(|number, sample| sample.tasks += number, "tasks");
        found(|number, sample| sample.connections += number, "connections");
        found(|number, sample| sample.record += number, "record");
        found(|_, sample| sample.void_left = f64::MAX, "void");
    }

    #[test]
    fn locks_that_take_longer_at_the_end_are_found() {
        let broken = BOUNDS.broken_by(&samples(|_, _| ()), &latencies(Duration::from_millis(14)));
        assert!(broken.len() == 1 && broken[0].contains("99 of 100"), "{broken:?}");
    }

    #[test]
    fn too_few_samples_are_no_proof() {
        assert_eq!(BOUNDS.broken_by(&[], &latencies(Duration::ZERO)).len(), 1);
    }
}

//! Locks at a steady rate for hours, with a fault now and then: does anything grow?
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use humantime::Duration as HumanDuration;
use redlock_core::{Config, Redlock};
use redlock_tests::soak::{Bounds, Latencies, Sample, disturb};
use redlock_tests::{Fleet, eventually};
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

/// Locks and unlocks at a steady rate, with a fault now and then, and looks whether memory, file
/// descriptors, tasks, connections, what the servers keep, or the time that a lock takes grows.
/// Prints JSON, and exits with 1 if a bound is broken.
#[derive(Debug, Parser)]
#[command(name = "soak")]
struct Options {
    /// For how long; eight hours unless set.
    #[arg(long, default_value_t = 8 * 3600, value_parser = clap::value_parser!(u64).range(20..))]
    seconds: u64,
    /// Servers.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Locks a second.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rate: u64,
    /// Keys that are locked.
    #[arg(long, default_value_t = 5000)]
    keys: usize,
    /// The time to live of a lock.
    #[arg(long, default_value = "2s")]
    ttl: HumanDuration,
    /// For how long a lock is held.
    #[arg(long, default_value = "5ms")]
    hold: HumanDuration,
    /// A fault begins this often.
    #[arg(long, default_value = "20s")]
    every: HumanDuration,
    /// How many MiB the resident memory may grow in an hour. What is less than 2 MiB in the whole
    /// run is taken for noise.
    #[arg(long, default_value_t = 1.0)]
    memory: f64,
    /// How much the 99th percentile of the time for a lock may grow from the first quarter of the
    /// run to the last, as a share of it. What is less than 2 ms is taken for noise.
    #[arg(long, default_value_t = 0.1)]
    slower: f64,
}

/// Locks that may be under way at a time. What comes on top is counted and left out.
const UNDER_WAY: usize = 512;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let options = Options::parse();
    let fleet = Arc::new(Fleet::start(options.nodes).await);
    let ttl: Duration = *options.ttl;
    let config = Config::servers(fleet.urls().iter().map(String::as_str)).ttl(ttl);
    let config = config.node_deadline((ttl / 8).min(Duration::from_millis(100))).build();
    let redlock = Redlock::new(config.expect("a configuration"));
    eventually(Duration::from_secs(20), "the servers to be provisioned", async || {
        redlock.provision().await
    })
    .await;

    let length = Duration::from_secs(options.seconds);
    let began = Instant::now();
    let samples = tokio::spawn(sample(Arc::clone(&fleet), began, length));
    let faults = tokio::spawn(inject(Arc::clone(&fleet), began + length, *options.every));
    let latencies = load(&options, &redlock, began, length).await;
    let samples = samples.await.expect("samples");
    let faults = faults.await.expect("faults");
    let closed = redlock.close(Duration::from_secs(10)).await;

    let bounds = Bounds {
        memory: options.memory,
        slower: options.slower,
        void: ttl + ttl / 10 + Duration::from_millis(100),
    };
    let mut broken = bounds.broken_by(&samples, &latencies);
    if closed.unreleased > 0 {
        broken.push(format!("{} locks were not released at the end", closed.unreleased));
    }
    let report = json!({
        "seconds": began.elapsed().as_secs_f64(),
        "rate": options.rate,
        "faults": faults,
        "locks": latencies.summary(),
        "measured": bounds.measured(&samples),
        "broken": broken,
    });
    println!("{report:#}");
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn load(
    options: &Options,
    redlock: &Redlock,
    began: Instant,
    length: Duration,
) -> Arc<Latencies> {
    let latencies = Arc::new(Latencies::new());
    let mut tick = interval(Duration::from_secs(1) / u32::try_from(options.rate).unwrap());
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut under_way = JoinSet::new();
    while began.elapsed() < length {
        tick.tick().await;
        while under_way.try_join_next().is_some() {}
        if under_way.len() >= UNDER_WAY {
            latencies.left_out();
            continue;
        }
        let (redlock, latencies) = (redlock.clone(), Arc::clone(&latencies));
        let key = format!("key-{}", fastrand::usize(..options.keys));
        let hold: Duration = *options.hold;
        under_way.spawn(async move {
            let asked = Instant::now();
            match redlock.lock(&key).wait(Duration::from_secs(1)).await {
                Ok(guard) => {
                    let quarter = 4 * asked.duration_since(began).as_millis() / length.as_millis();
                    latencies.acquired(quarter as usize, asked.elapsed());
                    sleep(hold).await;
                    let _outcome = guard.release().await;
                }
                Err(error) => latencies.failed(error.kind()),
            }
        });
    }
    while under_way.join_next().await.is_some() {}
    latencies
}

async fn sample(fleet: Arc<Fleet>, began: Instant, length: Duration) -> Vec<Sample> {
    // All of it at once, or it would be what grows.
    let pause = (length / 200).clamp(Duration::from_millis(500), Duration::from_secs(30));
    let mut samples = Vec::with_capacity(256);
    while began.elapsed() < length {
        sleep(pause).await;
        let tasks = Handle::current().metrics().num_alive_tasks();
        if let Some(sample) = Sample::take(&fleet, began.elapsed(), tasks).await {
            samples.push(sample);
        }
    }
    samples
}

async fn inject(fleet: Arc<Fleet>, until: Instant, every: Duration) -> usize {
    let mut count = 0;
    while Instant::now() + 2 * every < until {
        sleep(every).await;
        disturb(&fleet[count % fleet.len()], count).await;
        count += 1;
    }
    count
}

//! Rounds: every contender runs the same load for the same time, in shuffled order.

use std::error::Error;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use redlock_tests::Fleet;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::contender::{Contender, Mode};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What one contender did in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    cycles_per_second: f64,
    cpu_micros_per_cycle: f64,
    p50_micros: f64,
}

/// This library against rslock, by the median of the ratios of paired rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) mode: Mode,
    pub(crate) tasks: usize,
    pub(crate) rounds: usize,
    pub(crate) rate_ratio: f64,
    pub(crate) client_cpu_ratio: f64,
    pub(crate) p50_ratio: f64,
    /// Absolute figures of this library, medians; they say something about this machine only.
    pub(crate) cycles_per_second: f64,
    pub(crate) p50_micros: f64,
}

/// One task, one of the nodes stopped in its tracks.
#[derive(Debug, Serialize)]
pub(crate) struct Hung {
    pub(crate) mode: Mode,
    pub(crate) cycles: u64,
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
    pub(crate) slowest_millis: f64,
}

pub(crate) async fn compare(
    contenders: &[Contender],
    tasks: usize,
    rounds: usize,
    length: Duration,
) -> Result<Vec<Comparison>> {
    let mut theirs = Vec::with_capacity(rounds);
    let mut ours = [(Mode::Plain, Vec::new()), (Mode::Guarded, Vec::new())];
    for _ in 0..rounds {
        let mut order: Vec<&Contender> = contenders.iter().collect();
        fastrand::shuffle(&mut order);
        for contender in order {
            let figures = run(contender, tasks, length).await?;
            match contender {
                Contender::Rslock(_) => theirs.push(figures),
                Contender::Ours(mode, _) => {
                    let own = ours.iter_mut().find(|(of, _)| of == mode);
                    own.ok_or("a mode that is not compared")?.1.push(figures);
                }
            }
        }
    }
    Ok(ours.map(|(mode, ours)| comparison(mode, tasks, &ours, &theirs)).into())
}

fn comparison(mode: Mode, tasks: usize, ours: &[Figures], theirs: &[Figures]) -> Comparison {
    let pairs: Vec<(Figures, Figures)> = ours.iter().copied().zip(theirs.iter().copied()).collect();
    let ratio = |of: fn(&Figures) -> f64| median(pairs.iter().map(|(a, b)| of(a) / of(b)));
    Comparison {
        mode,
        tasks,
        rounds: pairs.len(),
        rate_ratio: ratio(|figures| figures.cycles_per_second),
        client_cpu_ratio: ratio(|figures| figures.cpu_micros_per_cycle),
        p50_ratio: ratio(|figures| figures.p50_micros),
        cycles_per_second: median(pairs.iter().map(|(ours, _)| ours.cycles_per_second)),
        p50_micros: median(pairs.iter().map(|(ours, _)| ours.p50_micros)),
    }
}

/// `tasks` tasks that each lock and unlock keys of their own for `length`.
pub(crate) async fn run(contender: &Contender, tasks: usize, length: Duration) -> Result<Figures> {
    let cpu = cpu_time();
    let start = Instant::now();
    let histogram = load(contender, tasks, length).await?;
    let (elapsed, cpu) = (start.elapsed(), cpu_time().saturating_sub(cpu));
    let cycles = histogram.len() as f64;
    Ok(Figures {
        cycles_per_second: cycles / elapsed.as_secs_f64(),
        cpu_micros_per_cycle: cpu.as_secs_f64() * 1e6 / cycles,
        p50_micros: histogram.value_at_quantile(0.5) as f64 / 1e3,
    })
}

/// Latencies with one node that accepts connections and answers nothing.
pub(crate) async fn with_hung_node(fleet: &Fleet, mode: Mode, length: Duration) -> Result<Hung> {
    let contender = Contender::ours(&fleet.urls(), mode).await?;
    contender.cycle("warm-up").await?;
    fleet.pause(0);
    let measured = load(&contender, 1, length).await;
    fleet.resume(0);
    let histogram = measured?;
    Ok(Hung {
        mode,
        cycles: histogram.len(),
        p50_micros: histogram.value_at_quantile(0.5) as f64 / 1e3,
        p99_micros: histogram.value_at_quantile(0.99) as f64 / 1e3,
        slowest_millis: histogram.max() as f64 / 1e6,
    })
}

/// Nanoseconds per cycle.
async fn load(contender: &Contender, tasks: usize, length: Duration) -> Result<Histogram<u64>> {
    let end = Instant::now() + length;
    let mut running = JoinSet::new();
    for task in 0..tasks {
        let contender = contender.clone();
        running.spawn(async move {
            let mut histogram = Histogram::<u64>::new(3)?;
            for cycle in 0_u64.. {
                let start = Instant::now();
                if start >= end {
                    break;
                }
                contender.cycle(&format!("bench:{task}:{cycle}")).await?;
                let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                histogram.record(nanos)?;
            }
            Result::Ok(histogram)
        });
    }
    let mut all = Histogram::<u64>::new(3)?;
    while let Some(done) = running.join_next().await {
        all.add(done??)?;
    }
    Ok(all)
}

fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

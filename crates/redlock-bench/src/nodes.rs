//! One node of three hangs, is dead, or comes back: what the others' locks notice of it.

mod restart;

use std::fmt;

use redlock_tests::{Fleet, all_vote};
use serde::Serialize;

use self::restart::Restart;
use crate::contender::{Contender, Library, Mode};
use crate::goal::{Bound, Goal};
use crate::interleave::{Rounds, interleave};
use crate::load::{Figures, Latency, load};
use crate::plots::{Axis, Line, Plot};
use crate::scenario::{Result, Scale, Scenario};

const NODES: usize = 3;
const ALONE: usize = 1;
const MANY: usize = 64;

#[derive(Debug, Serialize)]
pub(crate) struct Nodes {
    rounds: usize,
    #[serde(skip)]
    quick: bool,
    hung: Vec<Hung>,
    restarts: Vec<Restart>,
}

/// Servers of which one is stopped in its tracks, against the same when none is.
#[derive(Debug, Serialize)]
struct Hung {
    contender: Library,
    tasks: usize,
    rate_ratio: f64,
    p50_ratio: f64,
    p99_ratio: f64,
    healthy: Latency,
    hung: Latency,
    /// How much more memory the process has after a turn than before it, at most.
    grown_mebibytes: f64,
    failed: u64,
}

pub(crate) async fn measure(scale: Scale) -> Result<Nodes> {
    let (plain, guarded) = (Library::Ours(Mode::Plain), Library::Ours(Mode::Guarded));
    let (mut hung, mut restarts) = (Vec::new(), Vec::new());
    let all: &[Library] =
        if scale.quick { &[plain, guarded] } else { &[plain, guarded, Library::Rslock] };
    for &library in all {
        let fleet = Fleet::start(NODES).await;
        let contender = Contender::connect(library, &fleet.urls()).await?;
        for tasks in [ALONE, MANY] {
            hung.push(hang(&fleet, library, &contender, tasks, scale).await?);
        }
    }
    if !scale.quick {
        for mode in [Mode::Plain, Mode::Guarded] {
            restarts.push(restart::measure(mode, MANY, scale).await?);
        }
    }
    Ok(Nodes { rounds: scale.rounds, quick: scale.quick, hung, restarts })
}

async fn hang(
    fleet: &Fleet,
    library: Library,
    contender: &Contender,
    tasks: usize,
    scale: Scale,
) -> Result<Hung> {
    const HEALTHY: usize = 0;
    const HUNG: usize = 1;
    load(fleet, contender, tasks, scale.length / 2).await?;
    let mut grown: f64 = 0.0;
    let turns = interleave(2, scale.rounds, async |turn| {
        if turn == HEALTHY {
            return load(fleet, contender, tasks, scale.length).await;
        }
        let before = memory_mebibytes()?;
        fleet.pause(0);
        let figures = load(fleet, contender, tasks, scale.length).await;
        fleet.resume(0);
        grown = grown.max(memory_mebibytes()? - before);
        if let Contender::Ours(redlock) = contender {
            all_vote(redlock).await;
        }
        figures
    });
    let turns = turns.await?;
    Ok(Hung {
        contender: library,
        tasks,
        rate_ratio: turns.ratio(HUNG, HEALTHY, |figures| figures.cycles_per_second),
        p50_ratio: turns.ratio(HUNG, HEALTHY, |figures| figures.cycle.p50_micros),
        p99_ratio: turns.ratio(HUNG, HEALTHY, |figures| figures.cycle.p99_micros),
        healthy: latency(&turns, HEALTHY),
        hung: latency(&turns, HUNG),
        grown_mebibytes: grown,
        failed: turns.of(HUNG).iter().map(|figures| figures.failed).sum(),
    })
}

/// Medians of all rounds, and the slowest cycle of any.
fn latency(turns: &Rounds<Figures>, turn: usize) -> Latency {
    let slowest = turns.of(turn).iter().map(|figures| figures.cycle.slowest_micros);
    Latency {
        p50_micros: turns.median(turn, |figures| figures.cycle.p50_micros),
        p90_micros: turns.median(turn, |figures| figures.cycle.p90_micros),
        p99_micros: turns.median(turn, |figures| figures.cycle.p99_micros),
        slowest_micros: slowest.fold(0.0, f64::max),
    }
}

/// What this process has in memory.
fn memory_mebibytes() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes = kibibytes.ok_or("no VmRSS")?.trim().trim_end_matches(" kB");
    Ok(kibibytes.parse::<f64>()? / 1024.0)
}

impl Scenario for Nodes {
    fn goals(&self) -> Vec<Goal> {
        use Bound::{AtLeast, AtMost};
        let ours = self.hung.iter().filter(|row| matches!(row.contender, Library::Ours(_)));
        let hung = ours.flat_map(|row| {
            let goal = |what: &str, wanted, seen| {
                let name = format!("{}: one node hung: {what}, {} tasks", row.contender, row.tasks);
                Goal::new(name, wanted, seen)
            };
            let sure = match row.tasks {
                ALONE => goal("p50 to healthy", AtMost(1.2), row.p50_ratio),
                _ => goal("memory grown by MiB", AtMost(16.0), row.grown_mebibytes),
            };
            // Both other nodes have to answer: where processors are busy, one of them waits for
            // its turn often enough to decide these. A change is not refused for them.
            let noisy = match row.tasks {
                ALONE => vec![
                    goal("p99 to healthy", AtMost(2.0), row.p99_ratio),
                    goal("slowest in ms", AtMost(50.0), row.hung.slowest_micros / 1e3),
                ],
                _ => vec![goal("rate to healthy", AtLeast(0.7), row.rate_ratio)],
            };
            [sure].into_iter().chain(noisy.into_iter().filter(|_| !self.quick))
        });
        hung.chain(self.restarts.iter().flat_map(Restart::goals)).collect()
    }

    fn plots(&self) -> Vec<Plot> {
        let alone = self.hung.iter().filter(|row| row.tasks == ALONE);
        let lines = alone.flat_map(|row| {
            [("healthy", &row.healthy), ("hung", &row.hung)].map(|(state, latency)| Line {
                name: format!("{}, {state}", row.contender),
                points: vec![
                    (2.0, latency.p50_micros / 1e3),
                    (10.0, latency.p90_micros / 1e3),
                    (100.0, latency.p99_micros / 1e3),
                ],
            })
        });
        vec![Plot {
            file: "hung-node",
            title: "One of three nodes hung: lock and unlock, one task".to_owned(),
            x: Axis::Logarithmic("one cycle of so many is slower"),
            y: Axis::Logarithmic("milliseconds"),
            lines: lines.collect(),
        }]
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "one of {NODES} nodes hung; x is the ratio to healthy, of {} rounds",
            self.rounds
        )?;
        writeln!(
            f,
            "{:>9} {:>5} {:>8} {:>8} {:>8} {:>9} {:>9} {:>11} {:>10}",
            "", "tasks", "rate", "p50", "p99", "p50 µs", "p99 µs", "slowest ms", "grown MiB"
        )?;
        for row in &self.hung {
            writeln!(
                f,
                "{:>9} {:>5} {:>7.2}x {:>7.2}x {:>7.2}x {:>9.0} {:>9.0} {:>11.1} {:>10.1}",
                row.contender,
                row.tasks,
                row.rate_ratio,
                row.p50_ratio,
                row.p99_ratio,
                row.hung.p50_micros,
                row.hung.p99_micros,
                row.hung.slowest_micros / 1e3,
                row.grown_mebibytes,
            )?;
        }
        self.restarts.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

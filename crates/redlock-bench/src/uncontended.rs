//! Locks that nobody else wants: what a cycle costs, against the others and against what the
//! servers can do at best.

use std::fmt;
use std::time::Duration;

use redlock_tests::Fleet;
use serde::Serialize;

use crate::contender::{Contender, Library, Mode};
use crate::goal::{Bound, Goal};
use crate::interleave::interleave;
use crate::load::{Figures, load};
use crate::plots::{Axis, Line, Plot};
use crate::scenario::{Result, Scale, Scenario};

const PLAIN: Library = Library::Ours(Mode::Plain);
const GUARDED: Library = Library::Ours(Mode::Guarded);

/// All ratios are to rslock, which is the fastest of the others.
const REFERENCE: Library = Library::Rslock;

#[derive(Debug, Serialize)]
pub(crate) struct Uncontended {
    rounds: usize,
    rows: Vec<Row>,
}

/// One library: medians of all rounds.
#[derive(Debug, Serialize)]
struct Row {
    nodes: usize,
    tasks: usize,
    library: Library,
    rate_ratio: f64,
    client_cpu_ratio: f64,
    server_cpu_ratio: f64,
    p50_ratio: f64,
    cycles_per_second: f64,
    client_cpu_micros: f64,
    server_cpu_micros: f64,
    p50_micros: f64,
    p99_micros: f64,
}

pub(crate) async fn measure(scale: Scale) -> Result<Uncontended> {
    let all: &[Library] = if scale.quick {
        &[PLAIN, GUARDED, Library::Limit, REFERENCE]
    } else {
        &[PLAIN, GUARDED, Library::Limit, REFERENCE, Library::DistributedLock, Library::Redlock2]
    };
    let groups: &[usize] = if scale.quick { &[3] } else { &[1, 3, 5] };
    let concurrency: &[usize] = if scale.quick { &[1, 64] } else { &[1, 16, 64, 256] };
    let mut rows = Vec::new();
    for &nodes in groups {
        let fleet = Fleet::start(nodes).await;
        let mut contenders = Vec::new();
        for &library in all {
            let contender = Contender::connect(library, &fleet.urls()).await?;
            load(&fleet, &contender, 8, Duration::from_millis(100)).await?;
            contenders.push(contender);
        }
        for &tasks in concurrency {
            let rounds = interleave(all.len(), scale.rounds, async |turn| {
                load(&fleet, &contenders[turn], tasks, scale.length).await
            });
            let rounds = rounds.await?;
            let reference = all.iter().position(|library| *library == REFERENCE);
            let reference = reference.ok_or("nobody to compare with")?;
            rows.extend(all.iter().enumerate().map(|(turn, &library)| {
                let ratio = |of: fn(&Figures) -> f64| rounds.ratio(turn, reference, of);
                let median = |of: fn(&Figures) -> f64| rounds.median(turn, of);
                Row {
                    nodes,
                    tasks,
                    library,
                    rate_ratio: ratio(|figures| figures.cycles_per_second),
                    client_cpu_ratio: ratio(|figures| figures.client_cpu_micros),
                    server_cpu_ratio: ratio(|figures| figures.server_cpu_micros),
                    p50_ratio: ratio(|figures| figures.cycle.p50_micros),
                    cycles_per_second: median(|figures| figures.cycles_per_second),
                    client_cpu_micros: median(|figures| figures.client_cpu_micros),
                    server_cpu_micros: median(|figures| figures.server_cpu_micros),
                    p50_micros: median(|figures| figures.cycle.p50_micros),
                    p99_micros: median(|figures| figures.cycle.p99_micros),
                }
            }));
        }
    }
    Ok(Uncontended { rounds: scale.rounds, rows })
}

impl Uncontended {
    fn row(&self, nodes: usize, tasks: usize, library: Library) -> Option<&Row> {
        let wanted = (nodes, tasks, library);
        self.rows.iter().find(|row| (row.nodes, row.tasks, row.library) == wanted)
    }
}

impl Scenario for Uncontended {
    fn goals(&self) -> Vec<Goal> {
        use Bound::{AtLeast, AtMost};
        type Of = fn(&Row) -> f64;
        let rate: Of = |row| row.rate_ratio;
        let p50: Of = |row| row.p50_ratio;
        let client_cpu: Of = |row| row.client_cpu_ratio;
        let goals = [
            (1, 64, PLAIN, "rate", rate, AtLeast(1.5)),
            (3, 1, PLAIN, "p50", p50, AtMost(0.85)),
            (3, 64, PLAIN, "rate", rate, AtLeast(2.5)),
            (3, 64, PLAIN, "client CPU", client_cpu, AtMost(0.4)),
            (3, 256, PLAIN, "rate", rate, AtLeast(3.0)),
            (5, 64, PLAIN, "rate", rate, AtLeast(2.4)),
            (3, 64, GUARDED, "rate", rate, AtLeast(1.5)),
        ];
        let seen = goals.into_iter().filter_map(|(nodes, tasks, library, what, of, wanted)| {
            let seen = of(self.row(nodes, tasks, library)?);
            let name = format!("{library}: {what} to rslock's, {tasks} tasks, {nodes} nodes");
            Some(Goal::new(name, wanted, seen))
        });
        seen.collect()
    }

    fn plots(&self) -> Vec<Plot> {
        let mut lines: Vec<Line> = Vec::new();
        for row in self.rows.iter().filter(|row| row.nodes == 3) {
            let (name, point) =
                (row.library.to_string(), (row.tasks as f64, row.cycles_per_second));
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { name, points: vec![point] }),
            }
        }
        vec![Plot {
            file: "throughput",
            title: "Locks and unlocks per second, 3 nodes".to_owned(),
            x: Axis::Logarithmic("tasks"),
            y: Axis::Logarithmic("cycles per second"),
            lines,
        }]
    }
}

impl fmt::Display for Uncontended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "medians of {} paired rounds; x is the ratio to rslock", self.rounds)?;
        writeln!(
            f,
            "{:>5} {:>5} {:>16} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9} {:>9}",
            "nodes",
            "tasks",
            "",
            "rate",
            "p50",
            "CPU",
            "srv CPU",
            "cycles/s",
            "p50 µs",
            "CPU µs",
            "srv µs",
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "{:>5} {:>5} {:>16} {:>7.2}x {:>7.2}x {:>7.2}x {:>7.2}x {:>9.0} {:>9.0} {:>9.1} {:>9.1}",
                row.nodes,
                row.tasks,
                row.library,
                row.rate_ratio,
                row.p50_ratio,
                row.client_cpu_ratio,
                row.server_cpu_ratio,
                row.cycles_per_second,
                row.p50_micros,
                row.client_cpu_micros,
                row.server_cpu_micros,
            )?;
        }
        Ok(())
    }
}

//! Locks that nobody else wants: what a cycle costs, against the others and against what the
//! servers can do at best.

mod table;

use std::time::Duration;

use redlock_tests::Fleet;
use serde::Serialize;

use crate::contender::{Contender, Library, Mode};
use crate::goal::{Bound, Goal};
use crate::interleave::{Rounds, interleave};
use crate::load::{Figures, load};
use crate::plots::{Axis, Line, Plot};
use crate::scenario::{Result, Scale, Scenario};

const PLAIN: Library = Library::Ours(Mode::Plain);
const GUARDED: Library = Library::Ours(Mode::Guarded);

/// All ratios are to rslock, which is the fastest of the others.
const REFERENCE: Library = Library::Rslock;

const GATED: [Library; 4] = [PLAIN, GUARDED, Library::Limit, REFERENCE];
const CONCURRENCY: [usize; 4] = [1, 16, 64, 256];
const ALL: [Library; 6] =
    [PLAIN, GUARDED, Library::Limit, REFERENCE, Library::DistributedLock, Library::Redlock2];

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
    contender: Library,
    rate: Figure,
    p50_micros: Figure,
    client_cpu_micros: Figure,
    server_cpu_micros: Figure,
    /// Of the rate.
    ratio_to_limit: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Figure {
    /// To rslock.
    ratio: f64,
    /// Says something about this machine only.
    absolute: f64,
}

pub(crate) async fn measure(scale: Scale) -> Result<Uncontended> {
    let libraries: &[Library] = if scale.quick { &GATED } else { &ALL };
    let groups: &[usize] = if scale.quick { &[1, 3] } else { &[1, 3, 5] };
    let mut rows = Vec::new();
    for &nodes in groups {
        let fleet = Fleet::start(nodes).await;
        let mut contenders = Vec::new();
        for &library in libraries {
            let contender = Contender::connect(library, &fleet.urls()).await?;
            load(&fleet, &contender, 8, Duration::from_millis(100)).await?;
            contenders.push(contender);
        }
        for tasks in CONCURRENCY {
            let rounds = interleave(contenders.len(), scale.rounds, async |turn| {
                load(&fleet, &contenders[turn], tasks, scale.length).await
            });
            let rounds = rounds.await?;
            let reference = turn_of(libraries, REFERENCE)?;
            let limit = turn_of(libraries, Library::Limit)?;
            rows.extend(libraries.iter().enumerate().map(|(turn, &library)| {
                let figure = |of| figure(&rounds, turn, reference, of);
                Row {
                    nodes,
                    tasks,
                    contender: library,
                    rate: figure(|figures| figures.cycles_per_second),
                    p50_micros: figure(|figures| figures.cycle.p50_micros),
                    client_cpu_micros: figure(|figures| figures.client_cpu_micros),
                    server_cpu_micros: figure(|figures| figures.server_cpu_micros),
                    ratio_to_limit: rounds.ratio(turn, limit, |figures| figures.cycles_per_second),
                }
            }));
        }
    }
    Ok(Uncontended { rounds: scale.rounds, rows })
}

fn turn_of(libraries: &[Library], wanted: Library) -> Result<usize> {
    Ok(libraries.iter().position(|library| *library == wanted).ok_or("nobody to compare with")?)
}

fn figure(
    rounds: &Rounds<Figures>,
    turn: usize,
    reference: usize,
    of: fn(&Figures) -> f64,
) -> Figure {
    Figure { ratio: rounds.ratio(turn, reference, of), absolute: rounds.median(turn, of) }
}

impl Scenario for Uncontended {
    fn goals(&self) -> Vec<Goal> {
        use Bound::{AtLeast, AtMost};
        type Of = fn(&Row) -> f64;
        let rate: (&str, Of) = ("rate to rslock's", |row| row.rate.ratio);
        let p50: (&str, Of) = ("p50 to rslock's", |row| row.p50_micros.ratio);
        let cpu: (&str, Of) = ("client CPU to rslock's", |row| row.client_cpu_micros.ratio);
        let to_limit: (&str, Of) = ("rate to the limit's", |row| row.ratio_to_limit);
        let goals = [
            (1, 1, PLAIN, rate, AtLeast(1.3)),
            // One server and a client that waits for each batch take turns on two cores.
            (1, 16, PLAIN, rate, AtLeast(1.0)),
            (1, 64, PLAIN, rate, AtLeast(1.3)),
            (1, 256, PLAIN, rate, AtLeast(1.3)),
            (3, 1, PLAIN, p50, AtMost(0.7)),
            (3, 64, PLAIN, rate, AtLeast(3.0)),
            (3, 64, PLAIN, cpu, AtMost(0.25)),
            (3, 64, PLAIN, to_limit, AtLeast(0.75)),
            (3, 256, PLAIN, rate, AtLeast(4.0)),
            (3, 256, PLAIN, to_limit, AtLeast(0.75)),
            (5, 64, PLAIN, rate, AtLeast(2.4)),
            (3, 64, GUARDED, rate, AtLeast(1.5)),
        ];
        let seen = goals.into_iter().filter_map(|(nodes, tasks, library, (what, of), wanted)| {
            let mut rows = self.rows.iter();
            let row =
                rows.find(|row| (row.nodes, row.tasks, row.contender) == (nodes, tasks, library))?;
            let name = format!("{library}: {what}, tasks {tasks}, nodes {nodes}");
            Some(Goal::new(name, wanted, of(row)))
        });
        seen.collect()
    }

    fn plots(&self) -> Vec<Plot> {
        let lines = ALL.map(|library| {
            let rows = self.rows.iter().filter(|row| row.nodes == 3 && row.contender == library);
            Line {
                name: library.to_string(),
                points: rows.map(|row| (row.tasks as f64, row.rate.absolute)).collect(),
            }
        });
        vec![Plot {
            file: "throughput",
            title: "Locks and unlocks per second, 3 nodes".to_owned(),
            x: Axis::Logarithmic("tasks"),
            y: Axis::Logarithmic("cycles per second"),
            lines: lines.into_iter().filter(|line| !line.points.is_empty()).collect(),
        }]
    }
}

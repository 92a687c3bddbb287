//! Servers that are a round trip of a millisecond away: how many round trips a lock takes.

use std::fmt;
use std::time::{Duration, Instant};

use redis::Client;
use redis::aio::MultiplexedConnection;
use redlock_tests::Fleet;
use serde::Serialize;

use crate::contender::{Contender, Library, Mode};
use crate::distance::Distance;
use crate::goal::{Bound, Goal};
use crate::interleave::{interleave, median};
use crate::limit::Limit;
use crate::load::load;
use crate::scenario::{Result, Scale, Scenario};

const GROUPS: &[usize] = &[1, 3, 5];
/// For so many the goals are set.
const USUAL: usize = 3;
const ONE_WAY: Duration = Duration::from_micros(500);
/// Batches that the limit has on the way at once: fewer made it slower.
const WINDOW: usize = 8;

const CONCURRENCY: &[usize] = &[1, 16, 64, 256];

const GATED: &[Library] =
    &[Library::Ours(Mode::Plain), Library::Ours(Mode::Guarded), Library::Limit, Library::Rslock];
const OTHERS: &[Library] = &[Library::DistributedLock, Library::Redlock2];

#[derive(Debug, Serialize)]
pub(crate) struct Delayed {
    rounds: usize,
    round_trip_micros: f64,
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    nodes: usize,
    tasks: usize,
    contender: Library,
    lock_round_trips: f64,
    cycle_round_trips: f64,
    lock_p50_micros: f64,
    cycles_per_second: f64,
}

/// What happened in one turn: to a library, or to somebody who only sends PING.
#[derive(Debug)]
struct Turn {
    lock_micros: f64,
    cycle_micros: f64,
    cycles_per_second: f64,
}

pub(crate) async fn measure(scale: Scale) -> Result<Delayed> {
    let (mut rows, mut round_trips) = (Vec::new(), Vec::new());
    let (groups, concurrency, others): (&[usize], &[usize], &[Library]) =
        if scale.quick { (&[USUAL], &[64, 256], &[]) } else { (GROUPS, CONCURRENCY, OTHERS) };
    let libraries = [GATED, others].concat();
    for &nodes in groups {
        let fleet = Fleet::start(nodes).await;
        let distance = Distance::to(&fleet, ONE_WAY).await?;
        let mut contenders = Vec::new();
        for &library in &libraries {
            let contender = match library {
                Library::Limit => {
                    Contender::Limit(Limit::connect(distance.urls(), WINDOW).await?.into())
                }
                _ => Contender::connect(library, distance.urls()).await?,
            };
            load(&fleet, &contender, 8, Duration::from_millis(100)).await?;
            contenders.push(contender);
        }
        let pinging = Client::open(distance.urls()[0].as_str())?;
        let mut pinging = pinging.get_multiplexed_async_connection().await?;
        let ping = contenders.len();

        for &tasks in concurrency {
            let turns =
                interleave(ping + 1, scale.rounds, async |turn| match contenders.get(turn) {
                    None => round_trip(&mut pinging).await,
                    Some(contender) => {
                        let figures = load(&fleet, contender, tasks, scale.length).await?;
                        Ok(Turn {
                            lock_micros: figures.lock.p50_micros,
                            cycle_micros: figures.cycle.p50_micros,
                            cycles_per_second: figures.cycles_per_second,
                        })
                    }
                });
            let turns = turns.await?;
            round_trips.push(turns.median(ping, |turn| turn.lock_micros));
            rows.extend(libraries.iter().enumerate().map(|(turn, &library)| Row {
                nodes,
                tasks,
                contender: library,
                lock_round_trips: turns.ratio(turn, ping, |turn| turn.lock_micros),
                cycle_round_trips: turns.ratio(turn, ping, |turn| turn.cycle_micros),
                lock_p50_micros: turns.median(turn, |turn| turn.lock_micros),
                cycles_per_second: turns.median(turn, |turn| turn.cycles_per_second),
            }));
        }
    }
    Ok(Delayed { rounds: scale.rounds, round_trip_micros: median(round_trips), rows })
}

/// The median of a hundred: nothing else is on the way meanwhile.
async fn round_trip(connection: &mut MultiplexedConnection) -> Result<Turn> {
    let mut micros = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        redis::cmd("PING").exec_async(connection).await?;
        micros.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let micros = median(micros);
    Ok(Turn { lock_micros: micros, cycle_micros: micros, cycles_per_second: 1e6 / micros })
}

impl Scenario for Delayed {
    fn goals(&self) -> Vec<Goal> {
        let usual = self.rows.iter().filter(|row| row.nodes == USUAL);
        let ours = usual.filter(|row| matches!(row.contender, Library::Ours(_)));
        let goal = ours.map(|Row { tasks, contender, lock_round_trips, .. }| {
            let name = format!("{contender}: p50 of a lock in round trips of 1 ms, {tasks} tasks");
            let most = match (contender, *tasks > 64) {
                (Library::Ours(Mode::Guarded), true) => 2.0,
                (_, true) => 1.5,
                (_, false) => 1.2,
            };
            Goal::new(name, Bound::AtMost(most), *lock_round_trips)
        });
        goal.collect()
    }
}

impl fmt::Display for Delayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "nodes {} µs away in each direction; a bare PING takes {:.0} µs; medians of {} paired rounds",
            ONE_WAY.as_micros(),
            self.round_trip_micros,
            self.rounds,
        )?;
        writeln!(
            f,
            "{:>5} {:>5} {:>11} {:>10} {:>10} {:>12} {:>9}",
            "nodes", "tasks", "", "lock/PING", "cycle/PING", "lock p50 µs", "cycles/s"
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "{:>5} {:>5} {:>11} {:>10.2} {:>10.2} {:>12.0} {:>9.0}",
                row.nodes,
                row.tasks,
                row.contender,
                row.lock_round_trips,
                row.cycle_round_trips,
                row.lock_p50_micros,
                row.cycles_per_second,
            )?;
        }
        Ok(())
    }
}

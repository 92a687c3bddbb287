//! One key that many want: how long they wait, who gets it, and what it costs the servers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use redlock_tests::{Fleet, Monitor};
use serde::Serialize;

use crate::contender::Library;
use crate::goal::{Bound, Goal};
use crate::interleave::interleave;
use crate::plots::{Axis, Line, Plot};
use crate::scenario::{Result, Scale, Scenario};
use crate::worker::{Hold, Job, Locks, Worker, now};

const NODES: usize = 3;

/// Everybody wants the key once.
const DRAIN: Load = Load { clients: 64, inside: Duration::from_millis(5), again: Duration::ZERO };

/// Everybody comes again and again.
const LOOP: Load =
    Load { clients: 0, inside: Duration::from_millis(1), again: Duration::from_secs(1) };

#[derive(Debug, Serialize)]
pub(crate) struct Contention {
    rounds: usize,
    /// Everybody wants the key once and stays for 5 ms.
    drains: Vec<Row>,
    /// Everybody comes again and again and stays for 1 ms.
    loops: Vec<Row>,
}

/// Clients in a number of processes: medians of all rounds.
#[derive(Debug, Serialize)]
struct Row {
    contender: Library,
    processes: usize,
    clients: usize,
    locks: f64,
    /// Until all were done, to what they spent inside.
    over_ideal: f64,
    /// From the end of one hold to the begin of the next.
    hand_off_p50_millis: f64,
    /// That clients sent to the servers, those that scripts run apart.
    commands_per_lock: f64,
    waited_p50_millis: f64,
    waited_p99_millis: f64,
    /// How often the luckiest client had the key, to the unluckiest.
    most_to_least: f64,
    /// Holds of those who had asked before somebody of their process who had it earlier.
    overtaken: f64,
}

/// What the clients of all processes together do.
#[derive(Clone, Copy, Debug)]
struct Load {
    clients: usize,
    inside: Duration,
    again: Duration,
}

pub(crate) async fn measure(scale: Scale) -> Result<Contention> {
    use Locks::{Ours, Rslock};
    let fleet = Fleet::start(NODES).await;
    let rounds = scale.rounds;
    if scale.quick {
        let drains = rows(&fleet, &[(Ours, 1), (Ours, 8)], DRAIN, rounds).await?;
        return Ok(Contention { rounds, drains, loops: Vec::new() });
    }
    let mut found = Contention { rounds, drains: Vec::new(), loops: Vec::new() };
    for (clients, processes) in [(2, &[1, 2][..]), (8, &[1, 4]), (64, &[1, 2, 4, 8])] {
        let ours = processes.iter().map(|&processes| (Ours, processes));
        let theirs = [1, several(clients)].map(|processes| (Rslock, processes));
        let crowds: Vec<_> = ours.chain(theirs).collect();
        let (once, again) = (Load { clients, ..DRAIN }, Load { clients, ..LOOP });
        found.drains.extend(rows(&fleet, &crowds, once, rounds).await?);
        found.loops.extend(rows(&fleet, &crowds, again, rounds).await?);
    }
    Ok(found)
}

/// Processes that one plots and compares: four, if there are so many clients.
fn several(clients: usize) -> usize {
    clients.min(4)
}

/// The same load with the clients in so many processes, in interleaved rounds.
async fn rows(
    fleet: &Fleet,
    crowds: &[(Locks, usize)],
    load: Load,
    rounds: usize,
) -> Result<Vec<Row>> {
    let rounds = interleave(crowds.len(), rounds, async |turn| {
        let (locks, processes) = crowds[turn];
        contend(fleet, locks, processes, load).await
    });
    let rounds = rounds.await?;
    let row = |(turn, &(locks, processes)): (usize, &(Locks, usize))| {
        let median = |of: fn(&Course) -> f64| rounds.median(turn, of);
        Row {
            contender: locks.into(),
            processes,
            clients: load.clients,
            locks: median(|course| course.holds.len() as f64),
            over_ideal: median(Course::over_ideal),
            hand_off_p50_millis: median(Course::hand_off),
            commands_per_lock: median(|course| course.commands as f64 / course.holds.len() as f64),
            waited_p50_millis: median(|course| course.waited(0.5)),
            waited_p99_millis: median(|course| course.waited(0.99)),
            most_to_least: median(Course::most_to_least),
            overtaken: median(|course| course.overtaken() as f64),
        }
    };
    Ok(crowds.iter().enumerate().map(row).collect())
}

async fn contend(fleet: &Fleet, locks: Locks, processes: usize, load: Load) -> Result<Course> {
    let Load { clients, inside, again } = load;
    let job = Job { locks, servers: fleet.urls(), clients: clients / processes, inside, again };
    let mut workers = Vec::with_capacity(processes);
    for _ in 0..processes {
        workers.push(Worker::start(&job).await?);
    }
    let monitor = Monitor::start(fleet).await;
    let began = now();
    for worker in &mut workers {
        worker.begin().await?;
    }
    let mut holds = Vec::new();
    for (process, worker) in workers.into_iter().enumerate() {
        holds.extend(worker.holds().await?.into_iter().map(|hold| (process, hold)));
    }
    holds.sort_unstable_by_key(|(_, hold)| hold.from);
    let commands = monitor.commands(fleet).await.values().sum();
    Ok(Course { began, holds, commands })
}

impl Scenario for Contention {
    fn goals(&self) -> Vec<Goal> {
        use Bound::AtMost;
        let mut goals = Vec::new();
        let ours = |row: &&Row| row.contender == Locks::Ours.into();
        for row in self.drains.iter().filter(ours).filter(|row| row.clients == DRAIN.clients) {
            let commands = match row.processes {
                1 => 3.5,
                8 => 12.0,
                _ => continue,
            };
            let mut goal = |what, wanted, seen| {
                let name = format!("{what}, 64 who want a key once, processes: {}", row.processes);
                goals.push(Goal::new(name, AtMost(wanted), seen));
            };
            goal("time to the ideal", 1.15, row.over_ideal);
            goal("p50 of the hand-off in ms", 1.5, row.hand_off_p50_millis);
            goal("commands per lock", commands, row.commands_per_lock);
            if row.processes == 1 {
                goal("overtaken", 0.0, row.overtaken);
            }
        }
        for row in self.loops.iter().filter(ours).filter(|row| row.processes == 1) {
            let name = format!("locks of one client to another's, {} clients", row.clients);
            goals.push(Goal::new(name, AtMost(1.5), row.most_to_least));
        }
        goals
    }

    fn plots(&self) -> Vec<Plot> {
        let mut lines: Vec<Line> = Vec::new();
        for row in &self.loops {
            let processes = match row.processes {
                1 => "1 process",
                some if some == several(row.clients) => "4 processes",
                _ => continue,
            };
            for (share, waited) in [("p50", row.waited_p50_millis), ("p99", row.waited_p99_millis)]
            {
                let name = format!("{}, {processes}, {share}", row.contender);
                let point = (row.clients as f64, waited);
                match lines.iter_mut().find(|line| line.name == name) {
                    Some(line) => line.points.push(point),
                    None => lines.push(Line { name, points: vec![point] }),
                }
            }
        }
        vec![Plot {
            file: "waiting",
            title: "Waiting for one key that all want again and again".to_owned(),
            x: Axis::Logarithmic("clients"),
            y: Axis::Logarithmic("milliseconds"),
            lines,
        }]
    }
}

impl fmt::Display for Contention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "each wants the key once, for 5 ms; medians of {} rounds", self.rounds)?;
        write_table(f, &self.drains)?;
        if self.loops.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "each wants the key again and again, for 1 ms; medians of {} rounds",
            self.rounds
        )?;
        write_table(f, &self.loops)
    }
}

fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    writeln!(
        f,
        "{:>8} {:>7} {:>9} {:>7} {:>11} {:>14} {:>9} {:>9} {:>10} {:>9}",
        "clients",
        "procs",
        "",
        "/ideal",
        "hand-off ms",
        "commands/lock",
        "p50 ms",
        "p99 ms",
        "most/least",
        "overtaken",
    )?;
    for row in rows {
        writeln!(
            f,
            "{:>8} {:>7} {:>9} {:>6.2}x {:>11.2} {:>14.2} {:>9.1} {:>9.1} {:>10.2} {:>9}",
            row.clients,
            row.processes,
            row.contender,
            row.over_ideal,
            row.hand_off_p50_millis,
            row.commands_per_lock,
            row.waited_p50_millis,
            row.waited_p99_millis,
            row.most_to_least,
            row.overtaken,
        )?;
    }
    Ok(())
}

/// What happened in one turn.
#[derive(Debug)]
struct Course {
    began: u64,
    /// Each with its process, in the order in which they had the key.
    holds: Vec<(usize, Hold)>,
    commands: u64,
}

impl Course {
    /// The time until all were done to what they spent inside.
    fn over_ideal(&self) -> f64 {
        let inside: u64 = self.holds.iter().map(|(_, hold)| hold.until - hold.from).sum();
        let end = self.holds.last().map_or(self.began, |(_, last)| last.until);
        (end - self.began) as f64 / inside as f64
    }

    fn hand_off(&self) -> f64 {
        let between = self.holds.windows(2).map(|two| two[1].1.from.saturating_sub(two[0].1.until));
        millis_at(0.5, between)
    }

    fn waited(&self, quantile: f64) -> f64 {
        millis_at(quantile, self.holds.iter().map(|(_, hold)| hold.from - hold.asked))
    }

    fn most_to_least(&self) -> f64 {
        let mut each = BTreeMap::<_, u64>::new();
        for (process, hold) in &self.holds {
            *each.entry((process, hold.client)).or_default() += 1;
        }
        let (most, least) = (each.values().max(), each.values().min());
        most.zip(least).map_or(f64::NAN, |(most, least)| *most as f64 / *least as f64)
    }

    fn overtaken(&self) -> usize {
        let mut latest = BTreeMap::<usize, u64>::new();
        let overtaken = |(process, hold): &&(usize, Hold)| {
            let latest = latest.entry(*process).or_default();
            *latest = hold.asked.max(*latest);
            *latest > hold.asked
        };
        self.holds.iter().filter(overtaken).count()
    }
}

fn millis_at(quantile: f64, micros: impl Iterator<Item = u64>) -> f64 {
    let mut micros: Vec<u64> = micros.collect();
    micros.sort_unstable();
    let at = (quantile * micros.len() as f64) as usize;
    micros.get(at.min(micros.len().saturating_sub(1))).map_or(f64::NAN, |at| *at as f64 / 1e3)
}

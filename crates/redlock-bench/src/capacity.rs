//! How many locks a group of servers carries, and what becomes of that with more groups.

use std::fmt;
use std::time::Duration;

use redlock_core::{Config, Group};
use redlock_tests::Fleet;
use serde::Serialize;
use twox_hash::XxHash3_64;

use crate::contender::{Contender, set_up};
use crate::goal::{Bound, Goal};
use crate::interleave::interleave;
use crate::load::{Figures, load};
use crate::plots::{Axis, Line, Plot};
use crate::scenario::{Result, Scale, Scenario};

/// Servers of a group.
const NODES: usize = 3;
const GROUPS: [usize; 3] = [1, 2, 4];
const TASKS: usize = 64;

/// What is computed, without servers.
const RINGS: [usize; 6] = [2, 4, 16, 64, 256, 1_000];
const KEYS: u32 = 1_000_000;

/// Points of a group on the ring.
const POINTS: u32 = 512;

#[derive(Debug, Serialize)]
pub(crate) struct Capacity {
    rounds: usize,
    costs: Vec<Cost>,
    keys: u32,
    balances: Vec<Balance>,
}

/// What a lock and unlock costs, guarded: medians of all rounds.
#[derive(Debug, Serialize)]
struct Cost {
    groups: usize,
    tasks: usize,
    locks_per_second: f64,
    client_cpu_micros: f64,
    /// Of each of the servers that the lock is on.
    server_cpu_micros: f64,
    /// What the servers of all groups could do if each had a core: keys are spread evenly.
    servers_carry_per_second: f64,
    p50_micros: f64,
}

/// How keys are spread over groups.
#[derive(Debug, Serialize)]
struct Balance {
    groups: usize,
    /// The largest share of a group to the mean.
    largest: f64,
    smallest: f64,
    /// Keys that another group owns if one is added, to those that it should own then.
    moved: f64,
    /// Of these, those that do not go to the group that is added.
    astray: u32,
}

pub(crate) async fn measure(scale: Scale) -> Result<Capacity> {
    let mut clusters = Vec::new();
    for groups in GROUPS {
        let fleet = Fleet::start(groups * NODES).await;
        let contender = connect(&fleet).await?;
        load(&fleet, &contender, 8, Duration::from_millis(100)).await?;
        clusters.push((fleet, contender));
    }
    // As many tasks for all groups together, and for each.
    let loads = [(0, TASKS), (1, TASKS), (1, 2 * TASKS), (2, TASKS), (2, 4 * TASKS)];
    let rounds = interleave(loads.len(), scale.rounds, async |turn| {
        let (cluster, tasks) = loads[turn];
        let (fleet, contender) = &clusters[cluster];
        load(fleet, contender, tasks, scale.length).await
    });
    let rounds = rounds.await?;
    let cost = |(turn, (cluster, tasks)): (usize, (usize, usize))| {
        let groups = GROUPS[cluster];
        let median = |of: fn(&Figures) -> f64| rounds.median(turn, of);
        let server_cpu_micros = median(|figures| figures.server_cpu_micros) / NODES as f64;
        Cost {
            groups,
            tasks,
            locks_per_second: median(|figures| figures.cycles_per_second),
            client_cpu_micros: median(|figures| figures.client_cpu_micros),
            server_cpu_micros,
            servers_carry_per_second: groups as f64 * 1e6 / server_cpu_micros,
            p50_micros: median(|figures| figures.lock.p50_micros),
        }
    };
    let costs = loads.into_iter().enumerate().map(cost).collect();
    let balances = RINGS.into_iter().map(Balance::of).collect();
    Ok(Capacity { rounds: scale.rounds, costs, keys: KEYS, balances })
}

/// This library with its defaults, on groups of these servers.
async fn connect(fleet: &Fleet) -> Result<Contender> {
    let urls = fleet.urls();
    let named = |(group, urls): (usize, &[String])| Group::named(name(group), urls.to_vec());
    let groups: Vec<Group> = urls.chunks(NODES).enumerate().map(named).collect();
    let redlock = set_up(Config::cluster(groups)).await?;
    redlock.ready().await?;
    Ok(Contender::Ours(redlock))
}

fn name(group: usize) -> String {
    format!("group-{group}")
}

impl Balance {
    fn of(groups: usize) -> Self {
        let names: Vec<String> = (0..=groups).map(name).collect();
        let (ring, grown) = (Ring::new(&names[..groups]), Ring::new(&names));
        let mut owned = vec![0_u32; groups];
        let (mut moved, mut astray) = (0_u32, 0);
        for order in 0..KEYS {
            let key = format!("order:{order}");
            let (before, after) = (ring.group_of(key.as_bytes()), grown.group_of(key.as_bytes()));
            owned[before] += 1;
            moved += u32::from(before != after);
            astray += u32::from(before != after && after != groups);
        }
        let mean = f64::from(KEYS) / groups as f64;
        let to_mean =
            |owned: Option<&u32>| owned.map_or(f64::NAN, |owned| f64::from(*owned) / mean);
        Self {
            groups,
            largest: to_mean(owned.iter().max()),
            smallest: to_mean(owned.iter().min()),
            moved: f64::from(moved) * (groups + 1) as f64 / f64::from(KEYS),
            astray,
        }
    }
}

/// The ring as the documentation of `RingScheme::Xxh3` has it: what another client would do.
struct Ring(Vec<(u64, usize)>);

impl Ring {
    fn new<S: AsRef<str>>(names: &[S]) -> Self {
        let points_of = |(group, name): (usize, &S)| {
            let point = [name.as_ref().as_bytes(), &[0]].concat();
            (0..POINTS).map(move |number: u32| {
                let point = [&point[..], &number.to_le_bytes()].concat();
                (XxHash3_64::oneshot(&point), group)
            })
        };
        let mut points: Vec<_> = names.iter().enumerate().flat_map(points_of).collect();
        points.sort_unstable_by_key(|&(hash, group)| (hash, names[group].as_ref()));
        Self(points)
    }

    fn group_of(&self, key: &[u8]) -> usize {
        let hash = XxHash3_64::oneshot(key);
        let next = self.0.partition_point(|&(point, _)| point <= hash);
        self.0[next % self.0.len()].1
    }
}

impl Scenario for Capacity {
    fn goals(&self) -> Vec<Goal> {
        let astray: u32 = self.balances.iter().map(|balance| balance.astray).sum();
        let name = "keys that move between groups that were there before";
        vec![Goal::exact(name, Bound::AtMost(0.0), astray.into())]
    }

    fn plots(&self) -> Vec<Plot> {
        type Of = fn(&Cost) -> f64;
        let alike = |cost: &&Cost| cost.tasks == cost.groups * TASKS;
        let line = |name: &str, of: Of| {
            let costs = self.costs.iter().filter(alike);
            let points = costs.map(|cost| (cost.groups as f64, of(cost))).collect();
            Line { name: name.to_owned(), points }
        };
        vec![Plot {
            file: "groups",
            title: "CPU time of a lock and unlock, 64 tasks per group of 3 nodes".to_owned(),
            x: Axis::Linear("groups"),
            y: Axis::Linear("µs"),
            lines: vec![
                line("client", |cost| cost.client_cpu_micros),
                line("each server of the group", |cost| cost.server_cpu_micros),
            ],
        }]
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "a lock and unlock, guarded, {NODES} servers a group; medians of {} rounds",
            self.rounds
        )?;
        writeln!(
            f,
            "{:>6} {:>6} {:>9} {:>9} {:>8} {:>8} {:>16}",
            "groups", "tasks", "locks/s", "p50 µs", "CPU µs", "srv µs", "servers carry/s"
        )?;
        for cost in &self.costs {
            writeln!(
                f,
                "{:>6} {:>6} {:>9.0} {:>9.0} {:>8.1} {:>8.1} {:>16.0}",
                cost.groups,
                cost.tasks,
                cost.locks_per_second,
                cost.p50_micros,
                cost.client_cpu_micros,
                cost.server_cpu_micros,
                cost.servers_carry_per_second,
            )?;
        }
        writeln!(f, "{} keys on a ring, computed; shares to the mean share", self.keys)?;
        writeln!(
            f,
            "{:>6} {:>9} {:>9} {:>22} {:>7}",
            "groups", "largest", "smallest", "moved if one is added", "astray"
        )?;
        for Balance { groups, largest, smallest, moved, astray } in &self.balances {
            writeln!(f, "{groups:>6} {largest:>8.2}x {smallest:>8.2}x {moved:>21.2}x {astray:>7}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the library itself looks for these keys: its tests of the ring say so as well.
    #[test]
    fn the_ring_is_that_of_the_library() {
        let ring = Ring::new(&["eu", "us", "ap"]);
        for (key, group) in
            [("bar", 1), ("example_key:42", 1), ("foo", 1), ("order:1001", 0), ("order:43", 2)]
        {
            assert_eq!(ring.group_of(key.as_bytes()), group, "{key}");
        }
    }

    #[test]
    fn what_moves_goes_to_the_group_that_is_added() {
        let balance = Balance::of(4);
        assert_eq!(balance.astray, 0);
        assert!((0.5..2.0).contains(&balance.moved), "{}", balance.moved);
        assert!(balance.largest < 1.5 && balance.smallest > 0.5);
    }
}

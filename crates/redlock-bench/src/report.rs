//! The result, as JSON or as a table, and what in it must not be.

use std::fmt;

use serde::Serialize;

use crate::contender::Mode;
use crate::counters::{Counters, Dropped};
use crate::round::{Comparison, Hung};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    nodes: usize,
    pub(crate) comparisons: Vec<Comparison>,
    pub(crate) counters: Vec<Counters>,
    pub(crate) dropped: Vec<Dropped>,
    pub(crate) hung: Vec<Hung>,
}

impl Report {
    pub(crate) fn new(nodes: usize) -> Self {
        let (comparisons, counters, dropped, hung) = Default::default();
        Self { nodes, comparisons, counters, dropped, hung }
    }

    /// What does not depend on the machine and is not as the algorithm says.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let nodes = self.nodes as f64;
        for Counters { mode, key_commands_per_cycle: on_keys, .. } in &self.counters {
            let expected = 3.0 * nodes;
            if (on_keys - expected).abs() > 0.005 {
                faults.push(format!("{mode}: {on_keys:.4} commands on keys, not {expected:.2}"));
            }
        }
        for Counters { mode, script_calls_per_cycle: calls, .. } in &self.counters {
            let most = match mode {
                Mode::Plain => nodes,
                Mode::Guarded => 2.0 * nodes,
            };
            if *calls > most {
                faults.push(format!("{mode}: {calls:.4} script calls, more than {most:.2}"));
            }
        }
        let cycles = self.counters.iter().map(|row| (row.mode, row.orphans, "cycles"));
        let futures = self.dropped.iter().map(|row| (row.mode, row.orphans, "dropped futures"));
        for (mode, orphans, of) in cycles.chain(futures).filter(|(_, orphans, _)| *orphans > 0) {
            faults.push(format!("{mode}: {orphans} keys left behind by {of}"));
        }
        faults
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Plain => "plain",
            Self::Guarded => "guarded",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} nodes, medians of pairwise ratios to rslock", self.nodes)?;
        writeln!(f, "{:>9} {:>6} {:>8} {:>8} {:>8}", "mode", "tasks", "rate", "CPU", "p50")?;
        for row in &self.comparisons {
            let Comparison { mode, tasks, rate_ratio, client_cpu_ratio, p50_ratio, .. } = row;
            writeln!(
                f,
                "{mode:>9} {tasks:>6} {rate_ratio:>7.2}x {client_cpu_ratio:>7.2}x {p50_ratio:>7.2}x"
            )?;
        }
        for row in &self.counters {
            writeln!(
                f,
                "{}: {} cycles of {} tasks, per cycle: {:.2} commands on keys, {:.2} script calls \
                 and {:.2} server reads; {} orphans",
                row.mode,
                row.cycles,
                row.tasks,
                row.key_commands_per_cycle,
                row.script_calls_per_cycle,
                row.server_reads_per_cycle,
                row.orphans,
            )?;
        }
        for Dropped { mode, futures, orphans } in &self.dropped {
            writeln!(f, "{mode}: {futures} futures dropped: {orphans} orphans")?;
        }
        for row in &self.hung {
            writeln!(
                f,
                "{}: one node hung, {} cycles: p50 {:.0} µs, p99 {:.0} µs, slowest {:.1} ms",
                row.mode, row.cycles, row.p50_micros, row.p99_micros, row.slowest_millis,
            )?;
        }
        Ok(())
    }
}

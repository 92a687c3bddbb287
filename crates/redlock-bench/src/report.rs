//! The result, as JSON or as a table, and what in it must not be.

use std::fmt;

use serde::Serialize;

use crate::counters::{Counters, Dropped};
use crate::round::{Comparison, Hung};

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) nodes: usize,
    pub(crate) single: Comparison,
    pub(crate) many: Comparison,
    pub(crate) counters: Counters,
    pub(crate) dropped: Dropped,
    pub(crate) hung: Hung,
}

impl Report {
    /// What does not depend on the machine and is not as the algorithm says.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let nodes = self.nodes as f64;
        let on_keys = self.counters.key_commands_per_cycle;
        if (on_keys - 3.0 * nodes).abs() > 0.005 {
            faults.push(format!("{on_keys:.4} commands on keys per cycle, not {:.2}", 3.0 * nodes));
        }
        let script_calls = self.counters.script_calls_per_cycle;
        if script_calls > nodes {
            faults.push(format!("{script_calls:.4} script calls per cycle, more than {nodes:.2}"));
        }
        for (orphans, of) in
            [(self.counters.orphans, "cycles"), (self.dropped.orphans, "dropped futures")]
        {
            if orphans > 0 {
                faults.push(format!("{orphans} keys left behind by {of}"));
            }
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, single, many, counters, dropped, hung } = self;
        writeln!(f, "{nodes} nodes, medians of pairwise ratios to {}", single.against)?;
        writeln!(f, "{:>6} {:>8} {:>8} {:>8}", "tasks", "rate", "CPU", "p50")?;
        for row in [single, many] {
            let Comparison { tasks, rate_ratio, client_cpu_ratio, p50_ratio, .. } = row;
            writeln!(
                f,
                "{tasks:>6} {rate_ratio:>7.2}x {client_cpu_ratio:>7.2}x {p50_ratio:>7.2}x"
            )?;
        }
        writeln!(
            f,
            "{} cycles of {} tasks, per cycle: {:.2} commands on keys, {:.2} script calls and {:.2} \
             server reads; {} orphans",
            counters.cycles,
            counters.tasks,
            counters.key_commands_per_cycle,
            counters.script_calls_per_cycle,
            counters.server_reads_per_cycle,
            counters.orphans,
        )?;
        writeln!(f, "{} futures dropped: {} orphans", dropped.futures, dropped.orphans)?;
        writeln!(
            f,
            "one node hung, {} cycles: p50 {:.0} µs, p99 {:.0} µs, slowest {:.1} ms",
            hung.cycles, hung.p50_micros, hung.p99_micros, hung.slowest_millis,
        )
    }
}

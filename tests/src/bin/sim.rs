//! Many simulated runs, each decided by its seed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use redlock_tests::simulation::{Mistake, Simulation};

/// Clients lock on simulated servers that fail; exits with 1 if two of them held a key at the same
/// time, a fencing token was not larger than an earlier one, a key was left behind, or no lock
/// could be had in the end. A seed is the same run every time.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Options {
    /// How many runs.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Servers; unless set the seed decides between three, five and seven.
    #[arg(long)]
    nodes: Option<usize>,
    /// A mistake, m1 to m18, that the clients make. It is expected to be found, and the first run
    /// that does is the last.
    #[arg(long)]
    mutant: Option<Mistake>,
    /// Print the sums as JSON, and nothing else.
    #[arg(long)]
    json: bool,
    /// Print everything that happens.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let wanted = Options::parse();
    let began = Instant::now();
    let (mut runs, mut holds, mut faults, mut trace) = (0, 0, 0, 0);
    let mut failed = Vec::new();
    for seed in wanted.from..wanted.from + wanted.seeds {
        let nodes = wanted.nodes.unwrap_or_else(|| Simulation::nodes_of(seed));
        let outcome = Simulation { seed, nodes, mistake: wanted.mutant }.run();
        runs += 1;
        holds += outcome.holds;
        faults += outcome.faults;
        trace ^= outcome.trace.rotate_left((seed % 64) as u32);
        if wanted.trace {
            outcome.lines.iter().for_each(|line| println!("{line}"));
        }
        if !outcome.violations.is_empty() {
            if !wanted.json {
                println!("seed {seed} with {nodes} nodes, trace {:016x}:", outcome.trace);
                outcome.violations.iter().take(5).for_each(|violation| println!("  {violation}"));
            }
            failed.push(seed);
            if wanted.mutant.is_some() {
                break;
            }
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    if wanted.json {
        println!(
            "{{\"seeds\":{runs},\"from\":{},\"holds\":{holds},\"faults\":{faults},\
             \"failed\":{failed:?},\"trace\":\"{trace:016x}\",\"seconds\":{seconds:.1}}}",
            wanted.from
        );
    } else {
        println!(
            "{runs} runs, {holds} locks, {faults} faults, {} runs failed, trace {trace:016x}, \
             {seconds:.1} s",
            failed.len()
        );
    }
    match wanted.mutant.is_some() == failed.is_empty() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

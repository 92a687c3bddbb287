//! Many simulated runs: `sim --seeds N [--from S] [--nodes 3|5|7] [--mutant m1…m14] [--json]`.
//!
//! Without `--nodes` it is the seed that decides how many servers there are. With `--trace`
//! everything that happens is printed: with `--seeds 1 --from S`, what happened in a run that
//! failed. It ends with 1 if something happened that must not. With `--mutant` it stops at the
//! first run that finds the mistake, and ends with 1 if none does.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::env::args;
use std::process::ExitCode;
use std::time::Instant;

use redlock_tests::{Mistake, Simulation};

const USAGE: &str =
    "usage: sim --seeds N [--from S] [--nodes 3|5|7] [--mutant m1…m14] [--json] [--trace]";

#[derive(Default)]
struct Wanted {
    seeds: u64,
    from: u64,
    nodes: Option<usize>,
    mistake: Option<Mistake>,
    json: bool,
    trace: bool,
}

fn wanted() -> Option<Wanted> {
    let mut wanted = Wanted { seeds: 100, ..Wanted::default() };
    let mut args = args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seeds" => wanted.seeds = args.next()?.parse().ok()?,
            "--from" => wanted.from = args.next()?.parse().ok()?,
            "--nodes" => wanted.nodes = Some(args.next()?.parse().ok()?),
            "--mutant" => wanted.mistake = Some(args.next()?.parse().ok()?),
            "--json" => wanted.json = true,
            "--trace" => wanted.trace = true,
            _ => return None,
        }
    }
    Some(wanted)
}

fn main() -> ExitCode {
    let Some(wanted) = wanted() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let began = Instant::now();
    let (mut runs, mut holds, mut faults, mut trace) = (0, 0, 0, 0);
    let mut failed = Vec::new();
    for seed in wanted.from..wanted.from + wanted.seeds {
        let nodes = wanted.nodes.unwrap_or_else(|| Simulation::nodes_of(seed));
        let outcome = Simulation { seed, nodes, mistake: wanted.mistake }.run();
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
            if wanted.mistake.is_some() {
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
    match wanted.mistake.is_some() == failed.is_empty() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

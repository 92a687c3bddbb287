//! `cargo run --release -p redlock-bench -- --quick --json`
//!
//! Starts Redis servers of its own, runs this library against rslock in interleaved rounds in
//! shuffled order, and prints the medians of pairwise ratios with the exact counters of the
//! servers. Only ratios within one run say anything: machines differ and are noisy.
//!
//! Exits with 1 if a counter is not what the algorithm says or a key was left behind.

mod contender;
mod counters;
mod report;
mod round;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use redlock_tests::Fleet;
use tokio::runtime;

use crate::contender::{Contender, Mode};
use crate::report::Report;

/// Nodes of the group that is measured.
const NODES: usize = 3;

#[derive(Debug, Parser)]
#[command(about = "Compares redlock-core with rslock on Redis servers started for the purpose")]
struct Options {
    /// Shorter rounds: under a minute in all.
    #[arg(long)]
    quick: bool,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Run both on a runtime of one thread instead of tokio's default.
    #[arg(long)]
    current_thread: bool,
}

fn main() -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
    let options = Options::parse();
    let mut runtime = if options.current_thread {
        runtime::Builder::new_current_thread()
    } else {
        runtime::Builder::new_multi_thread()
    };
    runtime.enable_all().build()?.block_on(bench(options))
}

async fn bench(options: Options) -> Result<ExitCode, Box<dyn Error + Send + Sync>> {
    let (rounds, length) =
        if options.quick { (5, Duration::from_secs(1)) } else { (9, Duration::from_secs(5)) };

    let fleet = Fleet::start(NODES).await;
    let contenders = Contender::all(&fleet.urls()).await?;
    for contender in &contenders {
        round::run(contender, 8, Duration::from_millis(300)).await?;
    }

    let mut report = Report::new(NODES);
    report.comparisons.extend(round::compare(&contenders, 1, rounds, length / 2).await?);
    report.comparisons.extend(round::compare(&contenders, 64, rounds, length).await?);
    for mode in [Mode::Plain, Mode::Guarded] {
        report.counters.push(counters::count(&fleet, mode).await?);
        report.dropped.push(counters::drop_futures(&fleet, mode).await?);
        report.hung.push(round::with_hung_node(&fleet, mode, length).await?);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    let faults = report.faults();
    for fault in &faults {
        eprintln!("not as it must be: {fault}");
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! `cargo run --release -p redlock-bench -- --quick --json`
//!
//! Starts Redis servers of its own, runs this library against its peers in interleaved rounds in
//! shuffled order, and prints the medians of pairwise ratios with the exact counters of the
//! servers. Only ratios within one run say anything: machines differ and are noisy.
//!
//! Exits with 1 if a counter is not what the algorithm says, a key was left behind, or a ratio is
//! below half of its goal.

mod allocations;
mod capacity;
mod contender;
mod contention;
mod counters;
mod delayed;
mod distance;
mod goal;
mod http;
mod interleave;
mod leases;
mod limit;
mod load;
mod nodes;
mod plots;
mod report;
mod scenario;
mod uncontended;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tokio::runtime::Builder;

use crate::report::{Report, Section};
use crate::scenario::{Result, Scale};

#[derive(Debug, Parser)]
#[command(about = "Compares redlock-core with its peers on Redis servers started for the purpose")]
struct Options {
    /// Only what decides whether a change may pass: about two minutes.
    #[arg(long)]
    quick: bool,
    /// Print JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Run everything on a runtime of one thread instead of tokio's default.
    #[arg(long)]
    current_thread: bool,
    /// Only these, with commas in between.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Draw the figures into files of this folder.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// One of several processes that contend.
    #[command(hide = true)]
    Worker,
}

/// In the order in which they are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Counters,
    Uncontended,
    Delayed,
    Nodes,
    Contention,
    Http,
    Capacity,
    Leases,
}

impl Part {
    /// Whether it belongs to the quick run.
    const fn decides(self) -> bool {
        !matches!(self, Self::Capacity | Self::Leases)
    }

    async fn measure(self, scale: Scale) -> Result<Section> {
        match self {
            Self::Counters => Section::new("counters", &counters::measure(scale).await?),
            Self::Uncontended => Section::new("uncontended", &uncontended::measure(scale).await?),
            Self::Delayed => Section::new("delayed", &delayed::measure(scale).await?),
            Self::Nodes => Section::new("nodes", &nodes::measure(scale).await?),
            Self::Contention => Section::new("contention", &contention::measure(scale).await?),
            Self::Http => Section::new("http", &http::measure(scale).await?),
            Self::Capacity => Section::new("capacity", &capacity::measure(scale).await?),
            Self::Leases => Section::new("leases", &leases::measure(scale).await?),
        }
    }
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mut runtime = if options.current_thread {
        Builder::new_current_thread()
    } else {
        Builder::new_multi_thread()
    };
    runtime.enable_all().build()?.block_on(run(options))
}

async fn run(options: Options) -> Result<ExitCode> {
    if let Some(Role::Worker) = options.role {
        worker::run().await?;
        return Ok(ExitCode::SUCCESS);
    }
    let scale = if options.quick { Scale::QUICK } else { Scale::FULL };
    let mut report = Report::default();
    for part in Part::value_variants() {
        let wanted = match options.only.as_slice() {
            [] => !options.quick || part.decides(),
            only => only.contains(part),
        };
        if wanted {
            match part.measure(scale).await {
                Ok(section) => {
                    if !options.json {
                        println!("{section}");
                    }
                    report.add(section);
                }
                Err(error) => report.fail(format!("{part:?} was not measured: {error}")),
            }
        }
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    if let Some(folder) = &options.plots {
        report.draw(folder)?;
    }
    let faults = report.faults();
    faults.iter().for_each(|fault| eprintln!("not as it must be: {fault}"));
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

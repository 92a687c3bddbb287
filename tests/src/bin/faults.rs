//! `cargo run --release -p redlock-tests --bin faults -- --seconds 60 --json`
//!
//! Starts servers and clients of its own, injects faults, prints what came of it, and exits with 1
//! if that is not as it must be. The clients are this program again, started as
//! `faults client JOB`.

use std::env;
use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use redlock_tests::faults::{self, Options};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = env::args().skip(1);
    if let (Some(faults::CLIENT), Some(job)) = (args.next().as_deref(), args.next()) {
        faults::lock(&job).await;
        return Ok(ExitCode::SUCCESS);
    }
    let options = Options::parse();
    let report = faults::run(&options, &env::current_exe()?).await;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&report.to_json())?);
    } else {
        println!("{report}");
    }
    let problems = report.problems();
    for problem in &problems {
        eprintln!("not as it must be: {problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

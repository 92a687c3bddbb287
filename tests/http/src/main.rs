//! `cargo run --release -p redlock-http -- --requests 100000`
//!
//! A web service that charges under a lock, on real lock servers and a real database, while its
//! clients abort in the middle, its handlers panic, its lock servers fail, and it is ended and
//! killed itself. Prints JSON, and exits with 1 if a charge was made twice or not at all, or a lock
//! outlived its request.
//!
//! The service is this program again, started as `http serve`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod client;
mod ledger;
mod load;
mod options;
mod report;
mod run;
mod server;
mod trouble;

use std::process::ExitCode;

use clap::Parser;

use crate::options::{Command, Options};

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(Command::Serve(job)) = options.command {
        return server::serve(job).await;
    }
    let report = run::run(&options).await;
    println!("{}", serde_json::to_string_pretty(&report.to_json()).unwrap());
    let problems = report.problems(options.expect_doubles);
    for problem in &problems {
        eprintln!("not as it must be: {problem}");
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

//! A real server and its double in memory, told the same at random.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use redlock_tests::differential::Differential;

/// Compares the answers of a real server with those of its double in memory; exits with 1 at the
/// first difference.
#[derive(Debug, Parser)]
#[command(name = "differential")]
struct Options {
    /// How many operations.
    #[arg(long, default_value_t = 1_000_000)]
    ops: u64,
    /// What decides which.
    #[arg(long, default_value_t = fastrand::u64(..1 << 53))]
    seed: u64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Options { ops, seed } = Options::parse();
    let began = Instant::now();
    let mut differential = Differential::start(seed).await;
    let compared = differential.run(ops).await;
    let (done, seconds) = (differential.operations(), began.elapsed().as_secs_f64());
    match compared {
        Ok(()) => {
            println!("{done} operations, 0 differences, seed {seed}, {seconds:.1} s");
            ExitCode::SUCCESS
        }
        Err(difference) => {
            println!(
                "{done} operations and a difference, seed {seed}, {seconds:.1} s\n{difference}"
            );
            ExitCode::FAILURE
        }
    }
}

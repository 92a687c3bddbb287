//! What a run is told, and what it tells the service.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// How long a lock lasts that is not renewed.
pub(crate) const TTL: Duration = Duration::from_secs(2);

/// Charges under a lock while everything fails that may; exits with 1 if a charge was made twice or
/// not at all, or if a lock outlived its request.
#[derive(Debug, Parser)]
#[command(name = "http")]
pub(crate) struct Options {
    /// How many requests, retries not counted. A fifth of them are duplicates.
    #[arg(long, default_value_t = 100_000)]
    pub(crate) requests: u64,
    /// About ten seconds: 4,000 requests.
    #[arg(long)]
    pub(crate) quick: bool,
    /// How many accounts are charged, each under a lock of its own.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) keys: u64,
    /// How many clients send requests.
    #[arg(long, default_value_t = 64)]
    pub(crate) clients: usize,
    /// Without the lock the same service charges twice: a run has to find that out.
    #[arg(long, value_enum, default_value_t = Lock::On)]
    pub(crate) lock: Lock,
    /// Turns the judgement on charges round: succeeds if at least so many were made twice.
    #[arg(long)]
    pub(crate) expect_doubles: Option<u64>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The service under test; used by the program itself.
    #[command(hide = true)]
    Serve(Job),
}

/// Whether requests are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Lock {
    On,
    Off,
}

/// What the service is told.
#[derive(Debug, Args)]
pub(crate) struct Job {
    #[arg(long)]
    pub(crate) port: u16,
    #[arg(long, value_delimiter = ',')]
    pub(crate) servers: Vec<String>,
    #[arg(long)]
    pub(crate) ledger: PathBuf,
    #[arg(long, value_enum)]
    pub(crate) lock: Lock,
}

impl Options {
    pub(crate) fn requests(&self) -> u64 {
        if self.quick { 4_000 } else { self.requests }
    }
}

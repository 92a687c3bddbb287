//! What the tests of redlock stand on: real Redis servers that can be killed, paused and cut off,
//! servers that only pretend to be Redis, a checker that knows when two held the same lock,
//! models of the algorithm in which everything that may happen is tried, and simulated runs that
//! one number decides.
//!
//! What judges the crates under test knows nothing of them. A piece that cannot do its work panics
//! and says why: in a test there is nobody to hand an error to.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::exhaustive_enums,
    clippy::exhaustive_structs
)]

/// The programs of the README are compiled as tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

mod checker;
pub mod differential;
mod fake;
pub mod faults;
mod fleet;
pub mod model;
mod monitor;
mod postgres;
mod process;
mod proxy;
mod server;
pub mod simulation;
pub mod soak;
mod tls;
mod wait;

pub use checker::{
    Acquisition, Beginnings, Disorder, Event, Fence, History, Hold, Ledger, Overlap, Stamp,
    TokenVerdict, Verdict, check, check_tokens,
};
pub use fake::{Command, FakeServer, Reply};
pub use fleet::Fleet;
pub use monitor::Monitor;
pub use postgres::Postgres;
pub use proxy::Proxy;
pub use server::{RedisServer, ServerOptions, StartError};
pub use tls::Certificates;
pub use wait::{Answer, all_vote, eventually};

//! A server that only exists in memory, with everything that can go wrong between it and its
//! clients.
//!
//! It is reached as a real one is: commands wait in the mailbox of a lane, gather into batches and
//! ride one connection at a time. What happens to time is tokio's affair: if that is paused, a run
//! is the same every time.

mod lane;
mod link;
mod mutant;
mod server;

pub(crate) use self::lane::{Client, SimulatedNode};
pub use self::mutant::Mutant;
pub(crate) use self::server::{FIRST_MICROS, Server};

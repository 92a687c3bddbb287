//! A server that only exists in memory, with everything that can go wrong between it and its
//! clients.
//!
//! It is reached as a real one is: the lane, its batches, its window and its deadlines are those that
//! ship. Only the link is another: it carries calls instead of bytes. Time is tokio's: if that is
//! paused, a run is the same every time.

mod link;
mod mutant;
mod node;
mod server;

pub use self::mutant::{LaneMistake, Mutant};
pub(crate) use self::node::{Client, SimulatedNode};
pub(crate) use self::server::{FIRST_MICROS, Server};

//! The algorithm as pure state machines: what happened goes in, what to do comes out.
//!
//! No I/O, no clock, no randomness: the same code can be driven by tokio, by a simulator under
//! virtual time and by a model checker.

pub(crate) mod attempt;
pub mod fence;
pub(crate) mod quorum;
pub(crate) mod tenure;

//! Models of what decides about locks, small enough that a machine can search everything that may
//! happen in them.
//!
//! [`fence`] knows no clock: it is about tokens. [`lease`] knows clocks: it is about who relies on a
//! lock at the same time, and with crashes and extensions it is about quarantines and renewal.
//! [`cases`] says what is searched, and which [mistakes](mutant) have to be found out. What comes
//! out, and what it does not mean, is told in `docs/model.md`.

pub mod cases;
pub mod clients;
pub mod fence;
pub mod fence_rules;
pub mod lease;
pub mod mutant;
pub mod search;

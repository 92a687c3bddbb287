//! What the client of the fence decides: the code that ships.

pub use redlock_core::protocol::fence::{
    Counter, FenceBasis, Step, after_grants, after_reads, to_learn,
};

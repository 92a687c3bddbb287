//! What a thread allocates: with the feature `allocations` only, as counting costs each allocation
//! of the program some nanoseconds, and a buffer that grows is copied.

use crate::scenario::Result;

/// What was allocated during something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocated {
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
    /// What was not given back.
    pub(crate) kept_allocations: i64,
    pub(crate) kept_bytes: i64,
}

pub(crate) const COUNTED: bool = cfg!(feature = "allocations");

/// Counts what this thread allocates during `work`. `None`: nothing is counted.
#[cfg(feature = "allocations")]
pub(crate) fn during<T>(work: impl FnOnce() -> T) -> Result<(T, Option<Allocated>)> {
    let mut done = None;
    let info = allocation_counter::measure(|| done = Some(work()));
    let allocated = Allocated {
        allocations: info.count_total,
        bytes: info.bytes_total,
        kept_allocations: info.count_current,
        kept_bytes: info.bytes_current,
    };
    Ok((done.ok_or("nothing was done")?, Some(allocated)))
}

#[cfg(not(feature = "allocations"))]
pub(crate) fn during<T>(work: impl FnOnce() -> T) -> Result<(T, Option<Allocated>)> {
    Ok((work(), None))
}

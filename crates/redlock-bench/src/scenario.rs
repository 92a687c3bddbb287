//! What every scenario has in common.

use std::error::Error;
use std::fmt::Display;
use std::time::Duration;

use serde::Serialize;

use crate::goal::Goal;
use crate::plots::Plot;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What was measured. Its text is its table.
pub(crate) trait Scenario: Serialize + Display {
    fn goals(&self) -> Vec<Goal>;

    fn plots(&self) -> Vec<Plot> {
        Vec::new()
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// How often each contender has its turn.
    pub(crate) rounds: usize,
    /// How long a turn takes.
    pub(crate) length: Duration,
    /// Only what decides whether a change may pass.
    pub(crate) quick: bool,
}

impl Scale {
    pub(crate) const FULL: Self =
        Self { rounds: 7, length: Duration::from_millis(250), quick: false };
    pub(crate) const QUICK: Self =
        Self { rounds: 5, length: Duration::from_millis(250), quick: true };
}

//! What somebody does who means no good, or counts wrong: floods, sizes, and eyes on secrets.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod floods;
mod secrets;

use std::time::Duration;

/// Long enough for a slow machine.
const HANG: Duration = Duration::from_secs(60);

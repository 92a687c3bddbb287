//! What strangers' bytes go through, for fuzzers.

use crate::config::{Config, ConfigError};

pub use crate::node::fuzzing::{info, reply};

/// What `REDLOCK_SERVERS` means.
///
/// # Errors
///
/// As [`Config::from_env`].
pub fn config_list(list: &str) -> Result<Config, ConfigError> {
    Config::from_list(list)
}

//! What `REDLOCK_SERVERS` may hold, and what a file may: read or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use redlock_core::{Config, fuzzing};

fuzz_target!(|text: &str| {
    let listed = fuzzing::config_list(text).map_err(|error| error.to_string());
    let read = serde_json::from_str::<Config>(text).map_err(|error| error.to_string());
    for config in [listed, read] {
        match config {
            Ok(config) => assert!(!format!("{config:?}").is_empty()),
            Err(error) => assert!(!error.is_empty()),
        }
    }
});

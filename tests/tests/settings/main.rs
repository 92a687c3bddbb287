//! Every setting does on real servers what its documentation says.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod connections;
mod contract;
mod environment;
mod keys;
mod logins;
mod reading;
mod retries;

use std::time::Duration;

use redlock_core::{Config, ConfigBuilder, Redlock, Safety};
use redlock_tests::Fleet;

const PATIENCE: Duration = Duration::from_secs(30);

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Deadlines that a busy machine keeps; everything else has its default.
fn settings(fleet: &Fleet) -> ConfigBuilder {
    let settings = Config::servers(fleet.urls()).safety(Safety::Plain);
    settings.ttl(Duration::from_secs(60)).node_deadline(millis(5_000))
}

fn build(settings: ConfigBuilder) -> Redlock {
    Redlock::new(settings.build().expect("the settings are good"))
}

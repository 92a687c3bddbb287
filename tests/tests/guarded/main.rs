//! The guarded mode: servers that may have forgotten locks do not vote, and every lock has a
//! fencing token.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod checks;
mod clocks;
mod configurations;
mod fenced_writes;
mod incarnation;
mod least_rights;
mod states;
mod tokens;

use std::time::Duration;

use redlock_core::{Config, ConfigBuilder, NodeAnswer, Provisioned, Redlock};
use redlock_tests::{Fleet, eventually};

/// Long enough for a slow machine.
const HANG: Duration = Duration::from_secs(20);

/// Longer than any test takes: what is quarantined stays so.
const LONG: Duration = Duration::from_secs(60);

fn settings<S: AsRef<str>>(urls: &[S], ttl: Duration) -> ConfigBuilder {
    Config::servers(urls.iter().map(AsRef::as_ref))
        .ttl(ttl)
        .node_deadline((ttl / 3).min(Duration::from_secs(2)))
        .retry_interval(Duration::from_millis(5), Duration::from_millis(20))
        .reconnection_interval(Duration::from_millis(5), Duration::from_millis(20))
        .label("guarded")
}

fn redlock(fleet: &Fleet, ttl: Duration) -> Redlock {
    Redlock::new(settings(&fleet.urls(), ttl).build().unwrap())
}

/// A lock service on servers that were just created.
async fn provisioned(fleet: &Fleet, ttl: Duration) -> Redlock {
    let redlock = redlock(fleet, ttl);
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    redlock
}

/// Waits until the lock service refuses for no other reason than that `node` is quarantined.
async fn quarantined(redlock: &Redlock) -> Duration {
    eventually(HANG, "a quarantine", async || {
        let error = redlock.try_lock("quarantined").await.err()?;
        let ready_in = |answer: &NodeAnswer| match answer {
            NodeAnswer::Quarantined { ready_in } => Some(*ready_in),
            _ => None,
        };
        let quarantine = error.nodes().iter().find_map(|report| ready_in(&report.answer))?;
        assert!(error.is_unavailable(), "{error}");
        assert!(error.to_string().contains("quarantined for another"), "{error}");
        Some(quarantine)
    })
    .await
}

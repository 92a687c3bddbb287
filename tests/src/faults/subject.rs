//! The lock under test: the only place that knows how it is set up.

use std::time::Duration;

use redlock_core::{Config, Guard, Redlock};

use super::client::Job;
use super::{Options, Switch};
use crate::eventually;

/// Declares servers that were just started fit to vote, which they otherwise are only after one
/// time to live.
pub(super) async fn provision(_options: &Options, _urls: &[String]) {}

pub(super) fn redlock(job: &Job) -> Redlock {
    assert_eq!(job.guard, Switch::Off, "there is no guard yet: --guard off");
    // Long enough for a busy machine to answer.
    let config = Config::servers(job.urls.iter().map(String::as_str))
        .ttl(job.ttl)
        .node_deadline((job.ttl / 8).min(Duration::from_millis(100)))
        .retry_interval(Duration::from_millis(5), Duration::from_millis(50))
        .reconnection_interval(Duration::from_millis(10), Duration::from_millis(100))
        .label(&job.name);
    Redlock::new(config.build().expect("a configuration"))
}

pub(super) fn fencing_token(_guard: &Guard) -> Option<u64> {
    None
}

/// Waits until a majority of the servers answers.
pub(super) async fn answers(redlock: &Redlock) {
    eventually(Duration::from_secs(20), "the servers to answer", async || redlock.ready().await)
        .await;
}

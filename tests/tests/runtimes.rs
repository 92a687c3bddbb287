//! One `Redlock` on several runtimes, one after the other: a runtime that ends takes its connections
//! with it and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use redlock_core::{Config, Redlock, Released, Safety};
use redlock_tests::{Fleet, eventually};
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

const MODES: [Safety; 2] = [Safety::Plain, Safety::Guarded];

fn runtime(threads: usize) -> Runtime {
    match threads {
        0 => Builder::new_current_thread().enable_all().build().unwrap(),
        _ => Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap(),
    }
}

/// A service that has connected to nothing so far, on servers that vote.
async fn redlock(fleet: &Fleet, safety: Safety) -> Redlock {
    let config = || {
        Config::servers(fleet.urls())
            .safety(safety)
            .node_deadline(Duration::from_secs(2))
            .build()
            .unwrap()
    };
    let other = Redlock::new(config());
    eventually(PATIENCE, "servers that vote", async || other.provision().await).await;
    Redlock::new(config())
}

#[test]
fn a_runtime_that_ends_while_connecting_does_not_disturb_the_next_one() {
    let servers = runtime(1);
    for safety in MODES {
        let fleet = servers.block_on(Fleet::start(3));
        let redlock = servers.block_on(redlock(&fleet, safety));
        for number in 0..40 {
            let cut_short = Duration::from_micros(50 * number);
            runtime(number as usize % 3).block_on(async {
                let _locked = timeout(cut_short, redlock.try_lock("order").into_future()).await;
            });
            let next = runtime(number as usize % 2);
            let released = next.block_on(async {
                let guard = redlock.lock("order").wait(PATIENCE).await.unwrap();
                guard.release().await
            });
            assert_eq!(released, Released::Released, "{safety:?}, after {cut_short:?}");
        }
        servers.block_on(fleet.eventually_empty(PATIENCE));
    }
}

#[test]
fn the_first_lock_on_each_runtime_succeeds_at_once() {
    let servers = runtime(1);
    for safety in MODES {
        let fleet = servers.block_on(Fleet::start(3));
        let redlock = servers.block_on(redlock(&fleet, safety));
        for number in 0..20 {
            let released = runtime(number % 3).block_on(async {
                let guard = redlock.try_lock("order").await.unwrap();
                guard.release().await
            });
            assert_eq!(released, Released::Released, "{safety:?}, runtime {number}");
        }
        servers.block_on(fleet.eventually_empty(PATIENCE));
    }
}

//! Where one server has lost a key and another one is silent, the lock may be held or not: nothing
//! that the library answers claims to know.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use redlock_core::{Config, ErrorKind, Guard, LeaseState, LockError, Redlock, Released, Safety};
use redlock_tests::{Fleet, all_vote, eventually};

const SOON: Duration = Duration::from_secs(20);

const TTL: Duration = Duration::from_secs(60);

/// A lock on three servers, of which the first has lost it and the second is silent.
struct Scene {
    fleet: Fleet,
    redlock: Redlock,
    guard: Guard,
}

impl Scene {
    async fn new(safety: Safety) -> Self {
        let fleet = Fleet::start(3).await;
        let config = Config::servers(fleet.urls()).safety(safety).ttl(TTL).label("undecided");
        let config = config.node_deadline(Duration::from_millis(200));
        let redlock = Redlock::new(config.build().unwrap());
        eventually(SOON, "the servers", async || redlock.provision().await).await;
        all_vote(&redlock).await;
        let guard = redlock.lock("k").await.unwrap();
        eventually(SOON, "all three keys", async || fleet.total_keys().await == 3).await;
        fleet[0].delete("k").await;
        fleet.pause(1);
        Self { fleet, redlock, guard }
    }
}

/// The release comes to the silent server in the end.
async fn the_silent_server_is_told(fleet: &Fleet, redlock: &Redlock) {
    fleet.resume(1);
    fleet.eventually_empty(SOON).await;
    assert_eq!(redlock.close(SOON).await.unreleased, 0);
}

fn undecided(error: &LockError) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().starts_with("no majority of the nodes confirmed it ("), "{error}");
    // The server that decides may be back when it is next tried, not at once.
    assert!(error.retry_after().unwrap() > Duration::ZERO, "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_indeterminate_if_a_vote_is_lost_and_a_server_is_silent() {
    for safety in [Safety::Plain, Safety::Guarded] {
        let Scene { fleet, redlock, guard } = Scene::new(safety).await;
        let still_valid = guard.remaining();
        assert!(still_valid > Duration::from_secs(8), "{still_valid:?}");
        assert_eq!(guard.release().await, Released::Indeterminate, "{safety:?}");
        the_silent_server_is_told(&fleet, &redlock).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unlock_by_token_is_indeterminate_if_a_vote_is_lost_and_a_server_is_silent() {
    for safety in [Safety::Plain, Safety::Guarded] {
        let Scene { fleet, redlock, guard } = Scene::new(safety).await;
        let token = guard.hand_over();
        let unlocked = redlock.unlock("k", &token).await.unwrap();
        assert_eq!(unlocked, Released::Indeterminate, "{safety:?}");
        the_silent_server_is_told(&fleet, &redlock).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_is_unavailable_and_not_lost_if_a_vote_is_lost_and_a_server_is_silent() {
    for safety in [Safety::Plain, Safety::Guarded] {
        let scene = Scene::new(safety).await;
        undecided(&scene.guard.extend(TTL).await.unwrap_err());
        assert_eq!(scene.guard.state(), LeaseState::Jeopardy);
        let token = scene.guard.token().clone();
        undecided(&scene.redlock.extend("k", &token, TTL).await.unwrap_err());
        assert!(scene.guard.remaining() > Duration::ZERO);
        drop(scene.guard);
        the_silent_server_is_told(&scene.fleet, &scene.redlock).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inspection_does_not_call_a_key_free_that_a_silent_server_may_hold() {
    for safety in [Safety::Plain, Safety::Guarded] {
        let scene = Scene::new(safety).await;
        undecided(&scene.redlock.inspect("k").await.unwrap_err());
        scene.fleet.resume(1);
        let held = eventually(SOON, "an answer", async || scene.redlock.inspect("k").await).await;
        assert!(held.held, "the silent server held it");
        scene.guard.release().await;
        scene.fleet.eventually_empty(SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_without_expiry_is_not_said_to_be_free_at_once() {
    let fleet = Fleet::start(3).await;
    let config = Config::servers(fleet.urls()).safety(Safety::Plain).ttl(TTL);
    let redlock = Redlock::new(config.build().unwrap());
    all_vote(&redlock).await;
    for server in &fleet {
        let mut set = redis::cmd("SET");
        let set = set.arg("k").arg("for ever");
        set.exec_async(&mut server.connection().await).await.unwrap();
    }
    let inspection = redlock.inspect("k").await.unwrap();
    assert_eq!((inspection.held, inspection.free_in), (true, None));
    let error = redlock.try_lock("k").await.unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Contended, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_after_closing_says_what_became_of_the_lock() {
    for silent in [false, true] {
        let fleet = Fleet::start(3).await;
        let config = Config::servers(fleet.urls()).safety(Safety::Plain).ttl(TTL);
        let config = config.node_deadline(Duration::from_millis(200));
        let redlock = Redlock::new(config.build().unwrap());
        all_vote(&redlock).await;
        let guard = redlock.lock("k").await.unwrap();
        eventually(SOON, "all keys", async || fleet.total_keys().await == 3).await;
        if silent {
            fleet.pause(0);
            fleet.pause(1);
        }
        redlock.close(Duration::from_millis(500)).await;
        let expected = if silent { Released::Indeterminate } else { Released::Released };
        assert_eq!(guard.release().await, expected);
    }
}

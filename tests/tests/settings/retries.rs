//! How often and for how long a lock is tried for, and a server that is down.

use std::time::{Duration, Instant};

use redlock_core::{Config, ConfigBuilder, ErrorKind, NodeAnswer, Redlock, Safety};
use redlock_tests::{FakeServer, Fleet, RedisServer, eventually};
use tokio::time::timeout;

use crate::{PATIENCE, build, millis, settings};

/// Servers on which somebody else holds the key for longer than anybody waits here.
async fn taken() -> Fleet {
    let fleet = Fleet::start(3).await;
    for server in &fleet {
        server.set_foreign("order", "somebody", Duration::from_secs(3_600)).await;
    }
    fleet
}

/// How many rounds there are until the lock is given up.
async fn rounds(fleet: &Fleet, settings: ConfigBuilder, wait: Option<Duration>) -> u64 {
    let redlock = build(settings);
    redlock.ready().await.unwrap();
    fleet.reset_stats().await;
    let request = redlock.lock("order");
    let request = match wait {
        Some(wait) => request.wait(wait),
        None => request,
    };
    let error = timeout(PATIENCE, request.into_future()).await.expect("an end").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Contended);
    assert_eq!(redlock.close(PATIENCE).await.unreleased, 0);
    let set = fleet.commands().await["set"];
    assert!(set.is_multiple_of(3), "{set} SET are not as many on each of three servers");
    set / 3
}

#[tokio::test]
async fn max_retry_is_how_often_a_contended_key_is_tried_again() {
    let fleet = taken().await;
    for max_retry in [0, 1, 7] {
        let settings = settings(&fleet).max_retry(max_retry).retry_interval(millis(1), millis(5));
        assert_eq!(rounds(&fleet, settings, None).await, 1 + u64::from(max_retry));
    }
}

#[tokio::test]
async fn the_pauses_between_tries_grow_from_the_base_to_the_cap() {
    let fleet = taken().await;
    // 1 + 2 + 4 + … + 512 ms are more than a second, pauses of half of that as well.
    let growing = settings(&fleet).retry_interval(millis(1), millis(60_000));
    let growing = rounds(&fleet, growing, Some(millis(1_000))).await;
    assert!((2..40).contains(&growing), "{growing} tries in a second with growing pauses");
    // Without the cap the last of these pauses would be some days long.
    let capped = settings(&fleet).retry_interval(millis(1), millis(10)).max_retry(30);
    assert_eq!(rounds(&fleet, capped, None).await, 31);
    // A first pause of up to a minute is not waited for beyond the budget.
    let slow = settings(&fleet).retry_interval(millis(60_000), millis(60_000));
    let slow = rounds(&fleet, slow, Some(millis(2_000))).await;
    assert!((2..=4).contains(&slow), "{slow} tries with pauses of a minute");
}

/// A service of one server that hangs up on everybody.
fn hung_up_on(fake: &FakeServer, base: Duration, cap: Duration) -> Redlock {
    build(Config::servers([fake.url()]).safety(Safety::Plain).reconnection_interval(base, cap))
}

#[tokio::test]
async fn a_server_that_is_down_is_tried_again_at_the_reconnection_interval() {
    let fakes = [FakeServer::closing(), FakeServer::closing(), FakeServer::closing()];
    let often = hung_up_on(&fakes[0], millis(1), millis(10));
    let rarely = hung_up_on(&fakes[1], millis(60_000), millis(60_000));
    let ever_less = hung_up_on(&fakes[2], millis(1), millis(60_000));
    for (redlock, cap) in [(&often, 10), (&rarely, 60_000), (&ever_less, 60_000)] {
        let error = redlock.try_lock("order").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.retry_after(), Some(millis(cap)));
    }
    // Nobody asks for anything: it is tried again all the same.
    eventually(PATIENCE, "many connections", async || fakes[0].connections() >= 100).await;
    let connections = fakes.each_ref().map(FakeServer::connections);
    assert!(connections[1] <= 5, "{connections:?}");
    assert!(connections[2] <= 30, "{connections:?}");
}

#[tokio::test]
async fn a_server_that_comes_back_votes_within_the_longest_pause() {
    let fleet = Fleet::start(1).await;
    let redlock = build(settings(&fleet).reconnection_interval(millis(5), millis(50)));
    redlock.lock("order").await.unwrap().release().await;
    fleet.kill(0);
    eventually(PATIENCE, "the loss to be noticed", async || {
        redlock.try_lock("order").await.is_err_and(|error| error.is_unavailable())
    })
    .await;
    fleet.restart(0).await;
    let guard = eventually(PATIENCE, "its vote", async || redlock.try_lock("order").await).await;
    guard.release().await;
}

#[tokio::test]
async fn the_node_deadline_is_how_long_a_silent_server_is_waited_for() {
    let fleet = Fleet::start(3).await;
    for deadline in [millis(150), millis(900)] {
        let redlock = build(settings(&fleet).node_deadline(deadline));
        redlock.lock("order").await.unwrap().release().await;
        fleet.eventually_empty(PATIENCE).await;
        fleet.pause(0);
        // One that is silent is no reason to wait.
        let guard = redlock.lock("order").await.unwrap();
        assert_eq!(fleet.total_keys().await, 2);
        guard.release().await;

        fleet.pause(1);
        let began = Instant::now();
        let tried = redlock.try_lock("other").await;
        assert!(began.elapsed() >= deadline, "given up after {:?}", began.elapsed());
        let error = tried.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.nodes()[1].answer, NodeAnswer::TimedOut, "{error}");
        [&fleet[0], &fleet[1]].into_iter().for_each(RedisServer::resume);
        fleet.eventually_empty(PATIENCE).await;
    }
}

//! What users can rely on in their own tests against a lock service that fails.
#![cfg(feature = "test-util")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use redlock_core::testing::{Checker, Cluster, Node};
use redlock_core::{ErrorKind, LostReason, NodeAnswer, Redlock, Released};
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(10);
const LONG: Duration = Duration::from_secs(30);

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Waits until no server holds anything.
async fn emptied(cluster: &Cluster) {
    let deadline = Instant::now() + LONG;
    while cluster.nodes().any(|node| node.on_the_way() > 0 || !node.holders().is_empty()) {
        assert!(Instant::now() < deadline, "keys are left: {:?}", cluster.node(0).holders());
        sleep(millis(1)).await;
    }
}

/// Waits until every server answers: one that was given up is asked again after a pause.
async fn all_vote(redlock: &Redlock) {
    let deadline = Instant::now() + LONG;
    loop {
        let nodes = redlock.inspect("nobody locks this").await.map(|seen| seen.nodes);
        match nodes {
            Ok(nodes) if nodes.iter().all(|node| node.answer == NodeAnswer::NotHeld) => return,
            answers => assert!(Instant::now() < deadline, "one does not vote: {answers:?}"),
        }
        sleep(millis(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn clients_of_a_cluster_exclude_each_other() {
    let cluster = Cluster::new(3);
    let (one, other) = (cluster.redlock(), cluster.redlock());
    let guard = one.lock("k").label("one").await.unwrap();
    let error = other.try_lock("k").await.unwrap_err();
    assert_eq!((error.kind(), error.holder()), (ErrorKind::Contended, Some("one")));
    let first = guard.fencing_token().unwrap();
    assert_eq!(guard.release().await, Released::Released);
    let guard = other.lock("k").await.unwrap();
    assert!(guard.fencing_token().unwrap() > first);
    drop(guard);
    emptied(&cluster).await;
}

#[tokio::test(start_paused = true)]
async fn a_minority_that_fails_is_not_felt_and_a_majority_is_unavailable() {
    let cluster = Cluster::new(3);
    let redlock = cluster.redlock();
    // The first commands wait longer, for their connection.
    all_vote(&redlock).await;
    let faults: [fn(&Node); 4] = [
        |node| node.pause(),
        |node| node.lose_requests(true),
        |node| node.lose_replies(true),
        |node| node.delay(millis(100)),
    ];
    for fault in faults {
        fault(&cluster.node(1));
        redlock.lock("k").await.unwrap().release().await;
        fault(&cluster.node(2));
        let start = Instant::now();
        let error = redlock.try_lock("k").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        // One deadline behind a batch without an answer, which is read for another millisecond, and one
        // for a new connection.
        let most = redlock.config().node_deadline() * 2 + millis(1);
        assert!(start.elapsed() <= most, "{:?}", start.elapsed());
        cluster.heal();
        all_vote(&redlock).await;
        emptied(&cluster).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_held_lock_is_lost_in_time_if_its_servers_are_silent() {
    let cluster = Cluster::new(3);
    let redlock = cluster.redlock();
    let guard = redlock.lock("k").await.unwrap();
    let (start, validity) = (Instant::now(), guard.remaining());
    cluster.nodes().for_each(|node| node.pause());
    assert_eq!(guard.lost().await, LostReason::Expired);
    assert!(start.elapsed() <= validity + millis(2));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_its_data_does_not_vote_for_as_long_as_a_lock_may_last() {
    let losses: [fn(&Node); 2] = [|node| node.restart_empty(), |node| node.flush()];
    for lose in losses {
        let cluster = Cluster::new(3);
        let redlock = cluster.redlock();
        let _held = redlock.lock("k").await.unwrap();
        lose(&cluster.node(0));
        let report = redlock.try_lock("other").await.unwrap();
        report.release().await;
        lose(&cluster.node(1));
        let error = redlock.try_lock("third").await.unwrap_err();
        assert!(error.is_unavailable());
        let quarantined = |answer: &NodeAnswer| matches!(answer, NodeAnswer::Quarantined { .. });
        assert!(error.nodes().iter().any(|node| quarantined(&node.answer)), "{error}");
        sleep(TTL + TTL / 50).await;
        redlock.try_lock("third").await.unwrap().release().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_kept_its_data_votes_at_once_where_it_is_trusted_with_that() {
    for durable in [true, false] {
        let cluster = Cluster::new(3);
        let redlock = cluster.redlock_with(|builder| builder.durable(durable)).unwrap();
        let guard = redlock.lock("k").await.unwrap();
        cluster.nodes().for_each(|node| node.restart());
        sleep(millis(1)).await;
        assert_eq!(redlock.try_lock("other").await.is_ok(), durable);
        assert_eq!(cluster.node(0).holder("k").as_ref(), Some(guard.token()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_command_never_arrives_where_its_connection_can_be_killed() {
    let cluster = Cluster::new(1);
    let redlock = cluster.redlock();
    redlock.lock("warm").await.unwrap().release().await;
    cluster.node(0).deliver_late(millis(500));
    let error = redlock.try_lock("late").await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    redlock.lock("k").wait(LONG).await.unwrap().release().await;
    assert_eq!((cluster.node(0).on_the_way(), cluster.node(0).holders()), (0, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_late_arrives_after_what_was_sent_on_the_next_connection() {
    let cluster = Cluster::new(1);
    cluster.node(0).forbid_kill();
    let redlock = cluster.redlock();
    redlock.lock("warm").await.unwrap().release().await;
    cluster.node(0).deliver_late(millis(500));
    let error = redlock.try_lock("late").await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    let start = Instant::now();
    redlock.lock("k").wait(LONG).await.unwrap().release().await;
    assert!(start.elapsed() < millis(400), "{:?}", start.elapsed());
    assert_eq!(cluster.node(0).on_the_way(), 1);
    sleep(millis(500)).await;
    // It was released before it came.
    assert_eq!((cluster.node(0).on_the_way(), cluster.node(0).holders()), (0, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_is_replaced_at_once() {
    let cluster = Cluster::new(3);
    let redlock = cluster.redlock();
    for _ in 0..10 {
        let guard = redlock.lock("k").await.unwrap();
        cluster.nodes().for_each(|node| node.cut());
        sleep(millis(1)).await;
        assert_eq!(guard.release().await, Released::Released);
    }
    emptied(&cluster).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_clock_is_set_ahead_lets_its_keys_expire() {
    let cluster = Cluster::new(1);
    let (one, other) = (cluster.redlock(), cluster.redlock());
    let checker = Checker::new();
    let guard = one.lock("k").await.unwrap();
    let _hold = checker.enter("k", &guard);
    checker.assert_exclusive();
    cluster.node(0).step_clock(11_000_000);
    let rival = other.try_lock("k").await.unwrap();
    let _overlap = checker.enter("k", &rival);
    assert_eq!(checker.violations().len(), 1);
    assert!(checker.violations()[0].to_string().contains("k was held by"));
}

#[tokio::test(start_paused = true)]
async fn a_hold_ends_with_its_lease_or_when_it_is_dropped() {
    let cluster = Cluster::new(3);
    let (one, other) = (cluster.redlock(), cluster.redlock());
    let checker = Checker::new();
    let slow = one.lock("k").await.unwrap();
    let _slow = checker.enter("k", &slow);
    slow.lost().await;
    let guard = other.lock("k").wait(LONG).await.unwrap();
    let hold = checker.enter("k", &guard);
    drop(hold);
    assert_eq!(checker.holds(), 2);
    checker.assert_exclusive();
}

#[tokio::test(start_paused = true)]
async fn clients_that_are_configured_otherwise_are_refused() {
    let cluster = Cluster::new(3);
    cluster.redlock().lock("k").await.unwrap().release().await;
    let redlock = cluster.redlock_with(|builder| builder.max_ttl(2 * TTL)).unwrap();
    let error = redlock.try_lock("k").await.unwrap_err();
    assert!(error.is_unavailable() && error.to_string().contains("CONFIG"), "{error}");
    assert!(cluster.redlock_with(|builder| builder.ttl(Duration::ZERO)).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_any_extent_is_no_panic() {
    for extent in
        [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(u64::MAX), Duration::MAX]
    {
        for step in [i64::MIN, -1, 0, i64::MAX] {
            let cluster = Cluster::new(3);
            let redlock = cluster.redlock();
            cluster.nodes().for_each(|node| {
                node.delay(extent);
                node.deliver_late(extent);
                node.step_clock(step);
            });
            let lock = tokio::time::timeout(LONG, redlock.try_lock("k").into_future()).await;
            drop(lock.expect("no hang"));
        }
    }
    let nobody = tokio::time::timeout(LONG, Cluster::new(0).redlock().try_lock("k").into_future());
    assert!(nobody.await.expect("no hang").unwrap_err().is_unavailable());
}

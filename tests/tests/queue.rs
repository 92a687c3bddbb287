//! The line of those who wait for a key in one process: in order, cheap, bounded, and no trap.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use parking_lot::Mutex;
use redlock_core::{Config, ConfigBuilder, ErrorKind, Guard, LockError, Redlock, Released, Safety};
use redlock_tests::{Fleet, eventually};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

type Waiter = Pin<Box<dyn Future<Output = Result<Guard, LockError>> + Send>>;

fn settings(fleet: &Fleet) -> ConfigBuilder {
    Config::servers(fleet.urls())
        .ttl(Duration::from_secs(60))
        .node_deadline(Duration::from_secs(5))
        .label("queue")
        .safety(Safety::Plain)
}

fn redlock(fleet: &Fleet) -> Redlock {
    Redlock::new(settings(fleet).build().unwrap())
}

/// A request that stands in line already.
fn waiter(redlock: &Redlock, wait: Duration) -> Waiter {
    let mut waiter = redlock.lock("order").wait(wait).into_future();
    assert!(waiter.as_mut().now_or_never().is_none(), "it does not wait");
    waiter
}

/// A lock that the slowest server has voted for as well.
async fn lock_everywhere(redlock: &Redlock, fleet: &Fleet) -> Guard {
    let guard = redlock.lock("order").await.unwrap();
    eventually(PATIENCE, "every vote", async || fleet.total_keys().await == fleet.len()).await;
    guard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_get_the_key_in_the_order_in_which_they_came() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet);
    let first = redlock.lock("order").await.unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let waiters: Vec<_> = (0..50).map(|number| (number, waiter(&redlock, PATIENCE))).collect();
    // The runtime polls them in another order than they came.
    let tasks = waiters.into_iter().rev().map(|(number, waiter)| {
        let served = Arc::clone(&served);
        tokio::spawn(async move {
            let guard = waiter.await.unwrap();
            served.lock().push(number);
            if number % 2 == 0 {
                assert_eq!(guard.release().await, Released::Released);
            }
        })
    });
    let tasks = join_all(tasks.collect::<Vec<_>>());
    assert_eq!(first.release().await, Released::Released);
    for task in timeout(PATIENCE, tasks).await.expect("all had their turn") {
        task.unwrap();
    }
    assert_eq!(*served.lock(), (0..50).collect::<Vec<_>>());
    fleet.eventually_empty(PATIENCE).await;
}

#[tokio::test]
async fn no_waiter_asks_the_servers_in_vain() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet);
    let first = lock_everywhere(&redlock, &fleet).await;
    fleet.reset_stats().await;
    let waiters: Vec<_> = (0..200).map(|_| waiter(&redlock, PATIENCE)).collect();
    drop(first);
    let locked =
        join_all(waiters.into_iter().map(async |waiter| drop(waiter.await.unwrap()))).await;
    fleet.eventually_empty(PATIENCE).await;
    assert_eq!(redlock.close(PATIENCE).await.unreleased, 0);

    let commands = fleet.commands().await;
    let locks = 3 * locked.len() as u64;
    assert_eq!(commands["set"], locks, "{commands:?}");
    assert_eq!(commands["del"], locks + 3, "{commands:?}");
    assert!(commands["evalsha"] <= locks + 3, "{commands:?}");
}

/// The release of one and the lock of the next are one message: a handover costs a round trip.
#[tokio::test]
async fn a_handover_is_one_message_to_each_server() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet);
    let first = lock_everywhere(&redlock, &fleet).await;
    let mut waiters: Vec<_> = (0..100).map(|_| waiter(&redlock, PATIENCE)).collect();
    let mut before = Vec::new();
    for server in &fleet {
        before.push(server.reads_processed().await);
    }
    let mut guard = first;
    for waiter in waiters.drain(..) {
        drop(guard);
        guard = waiter.await.unwrap();
    }
    // The last votes may still be on their way.
    eventually(PATIENCE, "every vote", async || fleet.total_keys().await == 3).await;
    for (server, before) in fleet.iter().zip(before) {
        let reads = server.reads_processed().await - before;
        assert!(reads < 150, "{reads} messages for 100 handovers");
    }
    drop(guard);
    fleet.eventually_empty(PATIENCE).await;
}

#[tokio::test]
async fn who_left_the_line_is_passed_over() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet);
    let first = lock_everywhere(&redlock, &fleet).await;
    let left = waiter(&redlock, PATIENCE);
    let aborted = tokio::spawn(waiter(&redlock, PATIENCE));
    let next = waiter(&redlock, PATIENCE);
    let last = waiter(&redlock, PATIENCE);
    drop(left);
    aborted.abort();
    assert!(aborted.await.unwrap_err().is_cancelled());
    fleet.reset_stats().await;
    first.release().await;
    let guard = timeout(PATIENCE, next).await.expect("its turn").unwrap();
    drop(last);
    assert_eq!(guard.release().await, Released::Released);
    fleet.eventually_empty(PATIENCE).await;
    let set = fleet.commands().await["set"];
    assert!(set <= 3, "{set} SET, three of them for the one who stayed");
    redlock.try_lock("order").await.unwrap().release().await;
}

#[tokio::test]
async fn who_leaves_while_the_servers_are_asked_leaves_no_key_and_no_gap() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet);
    redlock.ready().await.unwrap();
    for _ in 0..50 {
        let mut asking = redlock.lock("order").into_future();
        assert!(asking.as_mut().now_or_never().is_none());
        let behind = waiter(&redlock, PATIENCE);
        drop(asking);
        let guard = timeout(PATIENCE, behind).await.expect("its turn").unwrap();
        assert_eq!(guard.release().await, Released::Released);
    }
    fleet.eventually_empty(PATIENCE).await;
}

#[tokio::test]
async fn the_line_is_no_longer_than_allowed_and_the_error_names_the_setting() {
    let fleet = Fleet::start(3).await;
    let redlock = Redlock::new(settings(&fleet).max_waiters(2).build().unwrap());
    let first = lock_everywhere(&redlock, &fleet).await;
    let second = waiter(&redlock, PATIENCE);
    let third = waiter(&redlock, PATIENCE);
    fleet.reset_stats().await;
    let error = redlock.lock("order").wait(PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Contended);
    assert_eq!(error.holder(), Some("queue"));
    assert!(
        error.to_string().contains("2 wait for it in this process already (`max_waiters`)"),
        "{error}"
    );
    assert_eq!(fleet.commands().await.get("set"), None, "the servers were asked");
    let other = redlock.lock("another order").await.unwrap();

    drop(third);
    let fourth = waiter(&redlock, PATIENCE);
    drop((first, other));
    drop(second.await.unwrap());
    drop(fourth.await.unwrap());
    fleet.eventually_empty(PATIENCE).await;
}

#[tokio::test]
async fn a_task_never_meets_its_own_lock() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet);
    for round in 0..1000 {
        let guard = redlock.try_lock("order").await;
        drop(guard.unwrap_or_else(|error| panic!("round {round}: {error}")));
    }
    fleet.eventually_empty(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_never_meets_its_own_lock_with_several_connections_and_keys() {
    let fleet = Fleet::start(3).await;
    let redlock = Redlock::new(settings(&fleet).pool_size(4).build().unwrap());
    let tasks = (0..8).map(|task| {
        let redlock = redlock.clone();
        tokio::spawn(async move {
            for round in 0..100 {
                let key = format!("order:{task}");
                let guard = redlock.try_lock(&key).await;
                drop(guard.unwrap_or_else(|error| panic!("{key}, round {round}: {error}")));
            }
        })
    });
    for task in join_all(tasks.collect::<Vec<_>>()).await {
        task.unwrap();
    }
    fleet.eventually_empty(PATIENCE).await;
}

#[tokio::test]
async fn a_wait_for_a_lock_of_this_process_ends_when_its_budget_does() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet);
    let guard = redlock.lock("order").label("holder").await.unwrap();
    let (budget, began) = (Duration::from_millis(300), Instant::now());
    let error = timeout(PATIENCE, waiter(&redlock, budget)).await.expect("an end").unwrap_err();
    assert!(began.elapsed() >= budget);
    assert_eq!(error.kind(), ErrorKind::Contended);
    assert_eq!(error.holder(), Some("holder"));
    assert!(error.retry_after() > Some(PATIENCE), "{error}");

    // Less than the deadline of a server, and less than a place in line is kept for.
    let at_once = timeout(Duration::from_secs(5), redlock.try_lock("order").into_future());
    let at_once = at_once.await.expect("no waiting").unwrap_err();
    assert_eq!((at_once.kind(), at_once.holder()), (ErrorKind::Contended, Some("holder")));
    guard.release().await;
    redlock.try_lock("order").await.unwrap().release().await;
}

#[tokio::test]
async fn a_wait_for_a_lock_of_another_process_ends_when_its_budget_does() {
    let fleet = Fleet::start(3).await;
    let (here, there) = (redlock(&fleet), redlock(&fleet));
    let guard = there.lock("order").label("there").await.unwrap();
    eventually(PATIENCE, "every vote", async || fleet.total_keys().await == 3).await;
    let (budget, began) = (Duration::from_millis(300), Instant::now());
    let asks = here.lock("order").wait(budget);
    let error = timeout(PATIENCE, asks.into_future()).await.expect("an end").unwrap_err();
    assert!(began.elapsed() >= budget);
    assert_eq!((error.kind(), error.holder()), (ErrorKind::Contended, Some("there")));

    // And one that is long enough gets it.
    let patient = tokio::spawn(here.lock("order").wait(PATIENCE).into_future());
    fleet.reset_stats().await;
    eventually(PATIENCE, "it to be asking", async || fleet.commands().await.contains_key("set"))
        .await;
    guard.release().await;
    patient.await.unwrap().unwrap().release().await;
    fleet.eventually_empty(PATIENCE).await;
}

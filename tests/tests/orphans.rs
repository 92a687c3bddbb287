//! No key is left behind, however an acquisition or a lock ends.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::future::{IntoFuture, poll_fn};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::join_all;
use redlock_core::{Config, ConfigBuilder, ErrorKind, Redlock, Released, Safety};
use redlock_tests::{Fleet, Proxy, all_vote, eventually};
use tokio::time::timeout;

/// Longer than any test: a key that goes away was deleted, it did not expire.
const TTL: Duration = Duration::from_secs(600);

const SOON: Duration = Duration::from_secs(20);

fn settings<S: AsRef<str>>(urls: &[S]) -> ConfigBuilder {
    let config = Config::servers(urls.iter().map(AsRef::as_ref)).ttl(TTL);
    config.safety(Safety::Plain).node_deadline(Duration::from_secs(1))
}

fn redlock<S: AsRef<str>>(urls: &[S]) -> Redlock {
    Redlock::new(settings(urls).build().unwrap())
}

/// Connected to every server, so that the next command is sent at once.
async fn connected<S: AsRef<str>>(urls: &[S]) -> Redlock {
    let redlock = redlock(urls);
    all_vote(&redlock).await;
    redlock
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_thousand_cycles() {
    let fleet = Fleet::start(3).await;
    let redlock = connected(&fleet.urls()).await;
    let tasks = (0..64).map(|task| {
        let redlock = redlock.clone();
        tokio::spawn(async move {
            for cycle in 0..50_000 / 64 + 1 {
                let guard = redlock.lock(format!("{task}:{cycle}")).await.unwrap();
                // Every other one is only dropped.
                if cycle % 2 == 0 {
                    guard.release().await;
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    fleet.eventually_empty(SOON).await;
}

/// Drops a future when it has been polled so many times; `true` if it was ready before.
async fn polled<F: IntoFuture>(times: usize, future: F) -> bool {
    let mut future = Box::pin(future.into_future());
    let mut polls = 0;
    poll_fn(|cx| {
        polls += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending if polls == times => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_dropped_at_every_await_point() {
    let fleet = Fleet::start(3).await;
    let (redlock, other) = (connected(&fleet.urls()).await, connected(&fleet.urls()).await);
    let taken = other.lock("taken").await.unwrap();
    let ended = join_all((0..1_000).map(async |number| {
        // Free, taken by another process, taken in this one.
        let times = 1 + number / 3 % 10;
        let ended = match number % 3 {
            0 => polled(times, redlock.lock(format!("free:{number}"))).await,
            1 => polled(times, redlock.lock("taken")).await,
            _ => polled(times, other.lock("taken")).await,
        };
        (times, ended)
    }));
    let mut ready = [0; 11];
    for (times, ended) in ended.await {
        ready[times] += usize::from(ended);
    }
    assert!(ready[1] < 10, "hardly ever has a server answered before the first await: {ready:?}");
    assert!(ready[10] > 10, "what is polled often enough ends: {ready:?}");
    taken.release().await;
    assert_eq!(redlock.close(SOON).await.unreleased, 0);
    assert_eq!(other.close(SOON).await.unreleased, 0);
    assert_eq!(fleet.total_keys().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_future_dropped_at_any_time_while_it_is_contended() {
    let fleet = Fleet::start(3).await;
    let (redlock, other) = (connected(&fleet.urls()).await, connected(&fleet.urls()).await);
    // Few at a time, so that most are dropped while servers are asked and not while in line.
    let tasks = (0..16_u32).map(|task| {
        let redlock = if task.is_multiple_of(2) { redlock.clone() } else { other.clone() };
        tokio::spawn(async move {
            let mut dropped = 0;
            for _ in 0..100 {
                let locking = redlock.lock(format!("key:{}", fastrand::u8(..12))).wait(SOON);
                let cycle = async { locking.await.unwrap().release().await };
                // From 32 µs to a quarter of a second: some are in the middle on any machine.
                let patience = Duration::from_micros(1 << fastrand::u32(5..=18));
                dropped += u32::from(timeout(patience, cycle).await.is_err());
            }
            dropped
        })
    });
    let dropped: u32 = join_all(tasks).await.into_iter().map(Result::unwrap).sum();
    assert!((100..1_600).contains(&dropped), "{dropped} of 1600 were dropped in the middle");
    assert_eq!(redlock.close(SOON).await.unreleased, 0);
    assert_eq!(other.close(SOON).await.unreleased, 0);
    assert_eq!(fleet.total_keys().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_got_only_a_minority() {
    let fleet = Fleet::start(3).await;
    let redlock = connected(&fleet.urls()).await;
    for node in [0, 1] {
        fleet[node].set_foreign("k", "somebody else", TTL).await;
    }
    let error = redlock.lock("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Contended);
    eventually(SOON, "the free node is free again", async || fleet[2].keys().await.is_empty())
        .await;
    for node in [0, 1] {
        assert_eq!(fleet[node].get("k").await.as_deref(), Some("somebody else"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_while_the_lock_is_held() {
    let fleet = Fleet::start(3).await;
    let redlock = connected(&fleet.urls()).await;
    let task = tokio::spawn(async move {
        let _guard = redlock.lock("k").await.unwrap();
        panic!("this panic is part of the test");
    });
    assert!(task.await.unwrap_err().is_panic());
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_with_locks_that_are_held_dropped_and_asked_for() {
    let fleet = Fleet::start(3).await;
    let redlock = connected(&fleet.urls()).await;
    let held = join_all((0..20).map(|key| redlock.lock(format!("held:{key}")).into_future())).await;
    let dropped = join_all((0..20).map(|key| redlock.lock(format!("dropped:{key}")).into_future()));
    drop(dropped.await);
    let waiting = tokio::spawn(redlock.lock("held:0").wait(SOON).into_future());
    assert_eq!(redlock.close(SOON).await.unreleased, 0);
    assert_eq!(fleet.total_keys().await, 0);
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert!(held.into_iter().all(|guard| guard.unwrap().is_lost()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_while_locks_are_being_acquired() {
    let fleet = Fleet::start(3).await;
    for _ in 0..60 {
        let redlock = connected(&fleet.urls()).await;
        let (begun, mut beginnings) = tokio::sync::mpsc::channel(1);
        let tasks: Vec<_> = (0..32)
            .map(|task| {
                let (redlock, begun) = (redlock.clone(), begun.clone());
                tokio::spawn(async move {
                    // Nobody releases them but who closes.
                    let mut guards = Vec::new();
                    loop {
                        match redlock.lock(format!("{task}:{}", guards.len())).await {
                            Ok(guard) => guards.push(guard),
                            Err(error) => return (error.kind(), guards),
                        }
                        begun.try_send(()).unwrap_or_default();
                    }
                })
            })
            .collect();
        beginnings.recv().await.unwrap();
        assert_eq!(redlock.close(SOON).await.unreleased, 0);
        assert_eq!(fleet.total_keys().await, 0);
        for task in join_all(tasks).await {
            let (kind, guards) = task.unwrap();
            assert_eq!(kind, ErrorKind::Closed);
            assert!(guards.iter().all(|guard| guard.is_lost()));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_says_what_it_could_not_release() {
    let fleet = Fleet::start(3).await;
    let redlock = connected(&fleet.urls()).await;
    let _guard = redlock.lock("k").await.unwrap();
    eventually(SOON, "all three keys", async || fleet.total_keys().await == 3).await;
    fleet.pause(1);
    assert_eq!(redlock.close(Duration::from_millis(300)).await.unreleased, 1);
    fleet.resume(1);
}

#[test]
fn a_runtime_that_ends_leaves_only_what_expires() {
    let outer = tokio::runtime::Runtime::new().unwrap();
    let fleet = outer.block_on(Fleet::start(3));
    let urls = fleet.urls();
    let inner = tokio::runtime::Runtime::new().unwrap();
    let guard = inner.block_on(async {
        let redlock = connected(&urls).await;
        redlock.lock("k").ttl(Duration::from_secs(3)).await.unwrap()
    });
    inner.shutdown_timeout(SOON);
    // Neither a panic nor a hang without a runtime.
    drop(guard);
    outer.block_on(fleet.eventually_empty(SOON));
}

#[test]
fn a_release_without_a_runtime_is_answered_at_once_and_sent_with_the_next_lock() {
    let outer = tokio::runtime::Runtime::new().unwrap();
    let fleet = outer.block_on(Fleet::start(3));
    let inner = tokio::runtime::Runtime::new().unwrap();
    let (redlock, guard) = inner.block_on(async {
        let redlock = connected(&fleet.urls()).await;
        let guard = redlock.lock("k").ttl(Duration::from_secs(600)).await.unwrap();
        eventually(SOON, "all three keys", async || fleet.total_keys().await == 3).await;
        (redlock, guard)
    });
    inner.shutdown_timeout(SOON);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(futures_util::FutureExt::now_or_never(guard.release())));
    let released = receiver.recv_timeout(SOON).expect("no hang");
    assert_eq!(released, Some(Released::Indeterminate));
    outer.block_on(async {
        eventually(SOON, "the key to be free", async || redlock.try_lock("k").await)
            .await
            .release()
            .await;
        fleet.eventually_empty(SOON).await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hung_while_the_lock_was_released() {
    let fleet = Fleet::start(3).await;
    let redlock = connected(&fleet.urls()).await;
    let guard = redlock.lock("k").await.unwrap();
    eventually(SOON, "all three keys", async || fleet.total_keys().await == 3).await;
    fleet.pause(1);
    guard.release().await;
    assert!(fleet.keys().await.values().all(Vec::is_empty), "the others are free at once");
    fleet.resume(1);
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hung_while_the_lock_was_acquired_and_released() {
    let fleet = Fleet::start(3).await;
    let redlock = connected(&fleet.urls()).await;
    fleet.pause(1);
    for number in 0..20 {
        redlock.lock(format!("key:{number}")).await.unwrap().release().await;
    }
    // It finds the commands in its socket, also those whose client has given up on it.
    fleet.resume(1);
    redlock.lock("last").wait(SOON).await.unwrap().release().await;
    assert_eq!(redlock.close(SOON).await.unreleased, 0);
    fleet.eventually_empty(SOON).await;
}

/// Three servers behind proxies.
async fn proxied() -> (Fleet, Vec<Proxy>, Vec<String>) {
    let fleet = Fleet::start(3).await;
    let mut proxies = Vec::new();
    for server in fleet.iter() {
        proxies.push(Proxy::in_front_of(server).await);
    }
    let urls = proxies.iter().map(Proxy::url).collect();
    (fleet, proxies, urls)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_lost() {
    let (fleet, proxies, urls) = proxied().await;
    let redlock = connected(&urls).await;
    for proxy in &proxies[..2] {
        proxy.drop_replies();
    }
    let error = redlock.try_lock("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(proxies[..2].iter().all(|proxy| proxy.dropped_replies() > 0), "the key was set");
    for proxy in &proxies {
        proxy.pass();
    }
    fleet.eventually_empty(SOON).await;
    redlock.lock("k").wait(SOON).await.unwrap().release().await;
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_arrive_long_after_their_caller_gave_up() {
    let (fleet, proxies, urls) = proxied().await;
    let redlock = connected(&urls).await;
    for proxy in &proxies {
        proxy.hold_open_connections();
    }
    let error = redlock.try_lock("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    // New connections pass: the lock is taken and released while the old commands are on the way.
    redlock.lock("k").wait(SOON).await.unwrap().release().await;
    for proxy in &proxies {
        proxy.release();
        proxy.pass();
    }
    redlock.lock("k").wait(SOON).await.unwrap().release().await;
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_in_the_middle() {
    let (fleet, proxies, urls) = proxied().await;
    let redlock = connected(&urls).await;
    for number in 0..20 {
        let locking = tokio::spawn(redlock.lock(format!("key:{number}")).into_future());
        proxies[number % 3].cut().await;
        proxies[(number + 1) % 3].cut().await;
        drop(locking.await.unwrap());
    }
    assert_eq!(redlock.close(SOON).await.unreleased, 0);
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_swallows_everything_for_a_while() {
    let (fleet, proxies, urls) = proxied().await;
    let redlock = connected(&urls).await;
    let guard = redlock.lock("k").await.unwrap();
    eventually(SOON, "all three keys", async || fleet.total_keys().await == 3).await;
    for proxy in &proxies {
        proxy.blackhole();
    }
    drop(guard);
    assert_eq!(redlock.try_lock("other").await.unwrap_err().kind(), ErrorKind::Unavailable);
    for proxy in &proxies {
        proxy.pass();
    }
    fleet.eventually_empty(SOON).await;
}

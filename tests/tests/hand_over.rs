//! From one holder to the next within a process: in one piece, under a new token, and not for ever.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use redlock_core::{Config, ConfigBuilder, ErrorKind, Guard, LockError, Redlock, Released, Safety};
use redlock_tests::{Fleet, eventually};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

type Waiter = Pin<Box<dyn Future<Output = Result<Guard, LockError>> + Send>>;

fn settings(fleet: &Fleet, safety: Safety) -> ConfigBuilder {
    Config::servers(fleet.urls())
        .ttl(Duration::from_secs(60))
        .node_deadline(Duration::from_secs(5))
        .label("one")
        .safety(safety)
}

async fn redlock(fleet: &Fleet, safety: Safety) -> Redlock {
    let redlock = Redlock::new(settings(fleet, safety).build().unwrap());
    redlock.provision().await.unwrap();
    redlock.ready().await.unwrap();
    redlock
}

/// A request that stands in line already.
fn waiter(redlock: &Redlock) -> Waiter {
    in_line(redlock.lock("order").wait(PATIENCE).into_future())
}

fn in_line(mut waiter: Waiter) -> Waiter {
    assert!(waiter.as_mut().now_or_never().is_none(), "it does not wait");
    waiter
}

/// A lock that every server has voted for.
async fn lock_everywhere(redlock: &Redlock, fleet: &Fleet) -> Guard {
    let guard = redlock.lock("order").await.unwrap();
    held_everywhere(&guard, fleet).await;
    guard
}

async fn held_everywhere(guard: &Guard, fleet: &Fleet) {
    eventually(PATIENCE, "every vote", async || {
        for server in fleet {
            if server.get("order").await.as_deref() != Some(guard.token().as_str()) {
                return false;
            }
        }
        true
    })
    .await;
}

async fn eventually_free(fleet: &Fleet) {
    eventually(PATIENCE, "the key to be gone", async || {
        for server in fleet {
            if let Some(token) = server.get("order").await {
                return Err(token);
            }
        }
        Ok(())
    })
    .await;
}

async fn hold_by_turns(count: usize, inside: Duration, safety: Safety) -> f64 {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet, safety).await;
    let first = lock_everywhere(&redlock, &fleet).await;
    let waiters: Vec<_> = (0..count).map(|_| waiter(&redlock)).collect();
    fleet.reset_stats().await;
    assert_eq!(first.release().await, Released::Released);
    for waiter in waiters {
        let guard = waiter.await.unwrap();
        sleep(inside).await;
        assert_eq!(guard.release().await, Released::Released);
    }
    eventually_free(&fleet).await;
    assert_eq!(redlock.close(PATIENCE).await.unreleased, 0);
    let commands = fleet.commands().await;
    let calls = |name: &str| commands.get(name).copied().unwrap_or_default();
    // A SET of the plain mode is a message unless it is part of a hand-over.
    let alone = if safety == Safety::Plain { calls("set") - calls("eval") } else { 0 };
    (calls("eval") + calls("evalsha") + alone) as f64 / count as f64
}

#[tokio::test]
async fn a_lock_that_is_handed_over_costs_one_command_a_server() {
    for safety in [Safety::Plain, Safety::Guarded] {
        let commands = hold_by_turns(64, Duration::from_millis(5), safety).await;
        assert!(commands <= 3.5, "{commands} commands per lock, {safety:?}");
        let commands = hold_by_turns(16, Duration::ZERO, safety).await;
        assert!(commands <= 3.0 + 3.0 / 16.0, "{commands} commands per lock, {safety:?}");
    }
}

#[tokio::test]
async fn every_holder_has_a_token_of_its_own_and_a_larger_fencing_token() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet, Safety::Guarded).await;
    let mut guard = lock_everywhere(&redlock, &fleet).await;
    for _ in 0..20 {
        let next = waiter(&redlock);
        let (token, fence) = (guard.token().clone(), guard.fencing_token().unwrap());
        drop(guard);
        guard = timeout(PATIENCE, next).await.unwrap().unwrap();
        assert_ne!(*guard.token(), token);
        assert!(guard.fencing_token().unwrap() > fence);
        held_everywhere(&guard, &fleet).await;
    }
    drop(guard);
    eventually_free(&fleet).await;
}

#[tokio::test]
async fn the_next_holder_has_what_it_asked_for() {
    let fleet = Fleet::start(3).await;
    for safety in [Safety::Plain, Safety::Guarded] {
        let redlock = redlock(&fleet, safety).await;
        let first = lock_everywhere(&redlock, &fleet).await;
        let short = Duration::from_secs(20);
        let asked = redlock.lock("order").wait(PATIENCE).ttl(short).label("two");
        let next = in_line(asked.into_future());
        assert_eq!(first.release().await, Released::Released);
        let next = next.await.unwrap();
        assert!(next.remaining() <= short && next.remaining() > Duration::ZERO);
        assert_eq!(next.token().label(), "two");
        held_everywhere(&next, &fleet).await;
        for server in &fleet {
            assert!(server.pttl("order").await.unwrap() <= short, "{safety:?}");
        }
        assert!(next.extend(Duration::from_secs(50)).await.unwrap() > short);
        assert_eq!(next.release().await, Released::Released);
        eventually_free(&fleet).await;
    }
}

/// Somebody else asks for the key all the time, and never finds it free between two holders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_the_key_in_between() {
    let fleet = Fleet::start(3).await;
    for safety in [Safety::Plain, Safety::Guarded] {
        let (ours, theirs) = (redlock(&fleet, safety).await, redlock(&fleet, safety).await);
        let mut guard = lock_everywhere(&ours, &fleet).await;
        let (over, tried) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let rival = {
            let (over, tried) = (Arc::clone(&over), Arc::clone(&tried));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    match theirs.try_lock("order").await {
                        Ok(_) if !over.load(Ordering::Relaxed) => return false,
                        Ok(_) => break,
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Contended),
                    }
                    tried.fetch_add(1, Ordering::Relaxed);
                }
                true
            })
        };
        for turn in 0..15 {
            let next = waiter(&ours);
            let before = tried.load(Ordering::Relaxed);
            eventually(PATIENCE, "their tries", async || {
                rival.is_finished() || tried.load(Ordering::Relaxed) > before + 3
            })
            .await;
            drop(guard);
            guard = next.await.unwrap_or_else(|error| panic!("{safety:?}, {turn}: {error}"));
            assert!(!rival.is_finished(), "they had it in turn {turn}, {safety:?}");
        }
        over.store(true, Ordering::Relaxed);
        assert!(rival.await.unwrap(), "they had it, {safety:?}");
        drop(guard);
        eventually_free(&fleet).await;
    }
}

#[tokio::test]
async fn who_leaves_when_the_lock_is_theirs_already_leaves_nothing() {
    let fleet = Fleet::start(3).await;
    for safety in [Safety::Plain, Safety::Guarded] {
        let redlock = redlock(&fleet, safety).await;
        for _ in 0..20 {
            let first = lock_everywhere(&redlock, &fleet).await;
            let (leaves, stays) = (waiter(&redlock), waiter(&redlock));
            // Posts for both, as nothing has been polled since.
            drop(first);
            drop(leaves);
            let guard = timeout(PATIENCE, stays).await.expect("their turn").unwrap();
            let leaves = waiter(&redlock);
            assert_eq!(guard.release().await, Released::Released);
            drop(leaves);
            eventually_free(&fleet).await;
        }
        assert_eq!(redlock.close(PATIENCE).await.unreleased, 0);
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_keeps_nobody_from_the_lock_and_keeps_nothing() {
    let fleet = Fleet::start(3).await;
    for safety in [Safety::Plain, Safety::Guarded] {
        let quick = settings(&fleet, safety).node_deadline(Duration::from_millis(300));
        let redlock = Redlock::new(quick.build().unwrap());
        redlock.provision().await.unwrap();
        let first = lock_everywhere(&redlock, &fleet).await;
        let waiters: Vec<_> = (0..4).map(|_| waiter(&redlock)).collect();
        fleet.pause(2);
        assert_eq!(first.release().await, Released::Released);
        for waiter in waiters {
            let guard = timeout(PATIENCE, waiter).await.expect("their turn").unwrap();
            assert_eq!(guard.release().await, Released::Released);
        }
        fleet.resume(2);
        eventually_free(&fleet).await;
        assert_eq!(redlock.close(PATIENCE).await.unreleased, 0);
    }
}

#[tokio::test]
async fn a_server_that_has_forgotten_its_scripts_hands_over() {
    let fleet = Fleet::start(3).await;
    for safety in [Safety::Plain, Safety::Guarded] {
        let redlock = redlock(&fleet, safety).await;
        let first = lock_everywhere(&redlock, &fleet).await;
        let next = waiter(&redlock);
        for server in &fleet {
            server.flush_scripts().await;
        }
        assert_eq!(first.release().await, Released::Released);
        let next = timeout(PATIENCE, next).await.expect("their turn").unwrap();
        assert_eq!(next.release().await, Released::Released);
        eventually_free(&fleet).await;
    }
}

#[tokio::test]
async fn closing_hands_nothing_over() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet, Safety::Plain).await;
    let _first = lock_everywhere(&redlock, &fleet).await;
    let waiters: Vec<_> = (0..5).map(|_| tokio::spawn(waiter(&redlock))).collect();
    assert_eq!(redlock.close(PATIENCE).await.unreleased, 0);
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    }
    eventually_free(&fleet).await;
}

/// One process would hand the key over for ever; the other finds it free for a moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_has_its_turn() {
    let fleet = Fleet::start(3).await;
    let interval = Duration::from_millis(1);
    let impatient = settings(&fleet, Safety::Plain).retry_interval(interval, interval);
    let other = Redlock::new(impatient.build().unwrap());
    let busy = redlock(&fleet, Safety::Plain).await;
    other.ready().await.unwrap();
    let (over, locked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (busy, over, locked) = (busy.clone(), Arc::clone(&over), Arc::clone(&locked));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let guard = busy.lock("order").wait(PATIENCE).await.unwrap();
                    locked.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(2)).await;
                    guard.release().await;
                }
            })
        })
        .collect();
    eventually(PATIENCE, "a row", async || locked.load(Ordering::Relaxed) > 20).await;
    let guard = timeout(PATIENCE, other.lock("order").wait(PATIENCE)).await.expect("its turn");
    drop(guard.unwrap());
    over.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
}

/// On one thread, who asks for the key again at once leaves no moment at which it is free: the
/// release and the next attempt reach a server in one piece.
#[tokio::test]
async fn two_processes_that_take_a_key_again_and_again_take_turns() {
    const ENOUGH: usize = 60;
    const TOO_MANY: usize = 300;
    let fleet = Fleet::start(3).await;
    let processes = [redlock(&fleet, Safety::Plain).await, redlock(&fleet, Safety::Plain).await];
    let locked = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let tasks = processes.into_iter().enumerate().map(|(process, redlock)| {
        let locked = Arc::clone(&locked);
        tokio::spawn(async move {
            let counts = || [0, 1].map(|process: usize| locked[process].load(Ordering::Relaxed));
            while counts().iter().any(|n| *n < ENOUGH) && counts().iter().all(|n| *n < TOO_MANY) {
                let guard = redlock.lock("order").wait(PATIENCE).await.unwrap();
                locked[process].fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(2)).await;
                drop(guard);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let counts = [0, 1].map(|process: usize| locked[process].load(Ordering::Relaxed));
    assert!(counts.iter().all(|n| *n >= ENOUGH), "{counts:?}");
}

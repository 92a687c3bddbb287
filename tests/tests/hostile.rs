//! Floods of requests, keys of any size, and a server that never stops sending.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use redlock_core::{Config, ErrorKind, Key, Provisioned, Redlock, Released, Safety};
use redlock_tests::{FakeServer, Fleet, RedisServer, Reply};
use tokio::time::timeout;

/// Long enough for a slow machine.
const HANG: Duration = Duration::from_secs(60);

/// What is left behind must not expire before it is found.
const TTL: Duration = Duration::from_secs(600);

async fn provisioned(fleet: &Fleet) -> Redlock {
    let config = Config::servers(fleet.urls())
        .ttl(TTL)
        .node_deadline(Duration::from_secs(15))
        .key_prefix("shop:")
        .label("hostile");
    let redlock = Redlock::new(config.build().unwrap());
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    redlock
}

/// What this process has in memory, in mebibytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn a_flood_on_one_key_costs_the_servers_nothing_and_this_process_a_bounded_line() {
    const WAITERS: usize = 1024;
    const FLOOD: usize = 50_000;
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet).await;
    let held = redlock.lock("order").await.unwrap();
    let mut line: Vec<_> =
        (0..WAITERS).map(|_| redlock.lock("order").wait(HANG).into_future()).collect();
    for waiter in &mut line {
        assert!(waiter.now_or_never().is_none(), "it waits");
    }
    fleet.reset_stats().await;
    let before = resident();
    let slowest = (0..FLOOD)
        .map(|_| {
            let began = Instant::now();
            let refused = redlock.lock("order").wait(HANG).into_future().now_or_never();
            let error = refused.expect("it is refused at once").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Contended);
            began.elapsed()
        })
        .max();
    assert!(slowest < Some(Duration::from_secs(1)), "{slowest:?}");
    let grown = resident().saturating_sub(before);
    assert!(grown < 64, "{grown} MiB for {FLOOD} refusals");
    let commands = fleet.commands().await;
    assert!(!commands.contains_key("evalsha"), "the servers were asked: {commands:?}");

    // Whoever stands in line has lost nothing by the flood.
    assert_eq!(held.release().await, Released::Released);
    for waiter in line {
        assert_eq!(waiter.await.unwrap().release().await, Released::Released);
    }
    fleet.eventually_empty(HANG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_keys_at_once_are_all_locked_and_none_is_left() {
    const KEYS: usize = 10_000;
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet).await;
    let locks = (0..KEYS).map(|number| {
        let redlock = redlock.clone();
        tokio::spawn(async move { redlock.lock(format!("order:{number}")).wait(HANG).await })
    });
    let guards = join_all(locks.collect::<Vec<_>>()).await;
    let guards: Vec<_> = guards.into_iter().map(|guard| guard.unwrap().unwrap()).collect();
    assert!(guards.iter().all(|guard| !guard.is_lost()));
    assert!(fleet.total_keys().await >= 2 * KEYS);
    let released = join_all(guards.into_iter().map(redlock_core::Guard::release)).await;
    assert!(released.iter().all(|released| *released == Released::Released));
    fleet.eventually_empty(HANG).await;
}

#[tokio::test]
async fn a_key_of_a_megabyte_is_refused_in_a_short_sentence_or_hashed() {
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet).await;
    let key = "secret".repeat(200_000);
    let error = redlock.lock(&key).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let said = format!("{error} {error:?}");
    assert!(said.contains("1200000 bytes") && said.contains("Key::hashed"), "{said}");
    assert!(said.len() < 1000 && !said.contains("secret"), "{said}");

    let hashed = Key::hashed(&key);
    let guard = redlock.lock(&hashed).await.unwrap();
    assert!(redlock.try_lock(Key::hashed(&key)).await.unwrap_err().is_contended());
    assert_ne!(Key::hashed(&key[1..]), hashed);
    let keys = fleet.keys().await;
    assert!(keys.values().flatten().all(|key| key.len() < 100), "{keys:?}");
    guard.release().await;
    fleet.eventually_empty(HANG).await;
}

#[tokio::test]
async fn a_server_that_sends_messages_without_end_does_not_put_a_deadline_off() {
    let push = b">0\r\n".repeat(100_000);
    let server = RedisServer::start().await;
    let floods = FakeServer::in_front_of(&server, move |command| {
        (command.name() == "SET").then(|| Reply::Endless(push.clone()))
    });
    let config = Config::servers([floods.url()])
        .safety(Safety::Plain)
        .max_retry(0)
        .node_deadline(Duration::from_millis(200));
    let redlock = Redlock::new(config.build().unwrap());
    let locked = timeout(HANG / 2, redlock.lock("order").into_future()).await;
    let error = locked.expect("the deadline passes").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

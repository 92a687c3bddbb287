//! A server that refuses a release for a while leaves no key behind: the release is sent again.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::cmd;
use redlock_core::{Config, Guard, Redlock, Released, Safety};
use redlock_tests::{FakeServer, Fleet, RedisServer, Reply, all_vote, eventually};

const SOON: Duration = Duration::from_secs(20);

/// Longer than any test: a key that goes away was deleted, it did not expire.
const TTL: Duration = Duration::from_secs(600);

async fn connected<S: AsRef<str>>(urls: &[S], safety: Safety) -> Redlock {
    let config = Config::servers(urls.iter().map(AsRef::as_ref))
        .safety(safety)
        .ttl(TTL)
        .max_ttl(TTL)
        .node_deadline(Duration::from_secs(1))
        .reconnection_interval(Duration::from_millis(5), Duration::from_millis(20));
    let redlock = Redlock::new(config.build().unwrap());
    eventually(SOON, "the servers", async || redlock.provision().await).await;
    all_vote(&redlock).await;
    redlock
}

/// A lock whose key is on all servers.
async fn locked(redlock: &Redlock, fleet: &Fleet, key: &str) -> Guard {
    let guard = redlock.lock(key).await.unwrap();
    eventually(SOON, "all three keys", async || fleet.total_keys().await == 3).await;
    guard
}

async fn tell(server: &RedisServer, words: &[&str]) {
    let mut command = cmd(words[0]);
    words[1..].iter().for_each(|word| {
        command.arg(word);
    });
    command.exec_async(&mut server.connection().await).await.unwrap();
}

/// Releases a lock while one of three servers refuses it.
async fn released_while(refusing: &[&str], healing: &[&str]) {
    for safety in [Safety::Plain, Safety::Guarded] {
        let fleet = Fleet::start(3).await;
        let redlock = connected(&fleet.urls(), safety).await;
        let guard = locked(&redlock, &fleet, "order").await;
        tell(&fleet[1], refusing).await;
        assert_eq!(guard.release().await, Released::Released);
        eventually(SOON, "two servers to be free", async || fleet.total_keys().await == 1).await;
        tell(&fleet[1], healing).await;
        fleet.eventually_empty(SOON).await;
        assert_eq!(redlock.close(SOON).await.unreleased, 0, "{safety:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_sent_again_to_a_server_that_forbade_scripts_for_a_while() {
    let user = |rights| ["ACL", "SETUSER", "default", rights];
    released_while(&user("-@scripting"), &user("+@scripting")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_sent_again_to_a_server_that_took_no_writes_for_want_of_replicas() {
    let replicas = |count| ["CONFIG", "SET", "min-replicas-to-write", count];
    released_while(&replicas("1"), &replicas("0")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_sent_again_to_a_server_that_was_a_replica_for_a_while() {
    // Nobody listens there: the data stays what it is.
    released_while(&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]).await;
}

/// A server in front of another one that answers the first calls of scripts with an error while it
/// is told to.
fn refusing(server: &RedisServer, error: &'static str, calls: &Arc<AtomicUsize>) -> FakeServer {
    let calls = Arc::clone(calls);
    FakeServer::in_front_of(server, move |command| {
        let refuses = command.name().starts_with("EVAL")
            && calls
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                .is_ok();
        refuses.then(|| Reply::Error(error.into()))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_sent_again_whatever_a_server_said_to_it() {
    for error in [
        "MISCONF Redis is configured to save RDB snapshots, but it is unable to persist to disk",
        "BUSY Redis is busy running a script",
        "LOADING Redis is loading the dataset in memory",
        "ERR something that this library has never heard of",
    ] {
        for safety in [Safety::Plain, Safety::Guarded] {
            let fleet = Fleet::start(3).await;
            let calls = Arc::new(AtomicUsize::new(0));
            let fake = refusing(&fleet[1], error, &calls);
            let urls = [fleet[0].url(), fake.url(), fleet[2].url()];
            let redlock = connected(&urls, safety).await;
            let guard = locked(&redlock, &fleet, "order").await;
            calls.store(4, Ordering::SeqCst);
            assert_eq!(guard.release().await, Released::Released);
            fleet.eventually_empty(SOON).await;
            assert_eq!(redlock.close(SOON).await.unreleased, 0, "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_refuses_the_release_of_one_key_locks_other_keys() {
    for safety in [Safety::Plain, Safety::Guarded] {
        let fleet = Fleet::start(3).await;
        let redlock = connected(&fleet.urls(), safety).await;
        let guard = locked(&redlock, &fleet, "order:1").await;
        let rights = ["resetkeys", "~{redlock}:*", "~order:2"];
        tell(&fleet[1], &[&["ACL", "SETUSER", "default"], &rights[..]].concat()).await;
        assert_eq!(guard.release().await, Released::Released);
        eventually(SOON, "two servers to be free", async || fleet.total_keys().await == 1).await;
        // Without one of the other servers, its vote is needed.
        fleet.pause(2);
        for _ in 0..20 {
            redlock.lock("order:2").wait(SOON).await.unwrap().release().await;
        }
        fleet.resume(2);
        tell(&fleet[1], &["ACL", "SETUSER", "default", "allkeys"]).await;
        fleet.eventually_empty(SOON).await;
        assert_eq!(redlock.close(SOON).await.unreleased, 0, "{safety:?}");
    }
}

//! What waits for a server goes out together, and what one key is answered concerns no other.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use futures_util::future::join_all;
use redlock_core::{Config, Guard, LockError, Redlock, Released, Safety, Token};
use redlock_tests::{FakeServer, Fleet, RedisServer, Reply, eventually};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

const LOCKS: usize = 40;

const MODES: [Safety; 2] = [Safety::Plain, Safety::Guarded];

async fn redlock(urls: impl IntoIterator<Item = String>, safety: Safety) -> Redlock {
    let config = Config::servers(urls).pool_size(1).ttl(Duration::from_secs(300)).safety(safety);
    let redlock = Redlock::new(config.node_deadline(Duration::from_secs(2)).build().unwrap());
    eventually(PATIENCE, "servers that vote", async || redlock.provision().await).await;
    redlock
}

/// Servers that release by script, whatever else the installed one has for it.
fn by_script(fleet: &Fleet) -> Vec<FakeServer> {
    let in_front_of = |server| {
        FakeServer::in_front_of(server, |command| {
            (command.name() == "COMMAND").then(|| Reply::Error("NOPERM no such right".into()))
        })
    };
    fleet.iter().map(in_front_of).collect()
}

/// Holds many locks, on every server.
async fn lock_many(redlock: &Redlock, fleet: &Fleet) -> Vec<Guard> {
    let locking = (0..LOCKS).map(|number| redlock.try_lock(format!("app:{number}")).into_future());
    let guards: Result<Vec<_>, LockError> = join_all(locking).await.into_iter().collect();
    let all = LOCKS * fleet.len();
    eventually(PATIENCE, "every vote", async || fleet.total_keys().await == all).await;
    fleet.reset_stats().await;
    guards.unwrap()
}

/// Releases all of the locks and, with them, a key that nobody locked.
async fn release_with(redlock: &Redlock, key: &str, mut guards: Vec<Guard>) {
    let stranger: Token = "stranger:00112233445566778899aabbccddeeff".parse().unwrap();
    let last = guards.pop().unwrap();
    drop(guards);
    let (refused, released) = tokio::join!(redlock.unlock(key, &stranger), last.release());
    assert_eq!((refused.unwrap(), released), (Released::Indeterminate, Released::Released));
}

#[tokio::test]
async fn what_is_released_together_is_one_call_to_each_server() {
    for safety in MODES {
        let fleet = Fleet::start(3).await;
        let fakes = by_script(&fleet);
        let redlock = redlock(fakes.iter().map(FakeServer::url), safety).await;
        let guards = lock_many(&redlock, &fleet).await;
        drop(guards);
        fleet.eventually_empty(PATIENCE).await;
        let commands = fleet.commands().await;
        assert_eq!((commands["del"], commands["evalsha"]), (3 * LOCKS as u64, 3), "{commands:?}");
        // No look at the server: releases are no votes.
        assert!(!commands.contains_key("hmget"), "{safety:?}: {commands:?}");
    }
}

#[tokio::test]
async fn a_lock_that_follows_a_release_of_its_key_finds_it_free() {
    for safety in MODES {
        let fleet = Fleet::start(3).await;
        let redlock = redlock(fleet.urls(), safety).await;
        let guards = lock_many(&redlock, &fleet).await;
        drop(guards);
        let again = lock_many(&redlock, &fleet).await;
        assert_eq!(again.len(), LOCKS, "{safety:?}");
    }
}

#[tokio::test]
async fn releases_are_sent_again_to_a_server_that_forgot_the_script() {
    for safety in MODES {
        let fleet = Fleet::start(3).await;
        let redlock = redlock(fleet.urls(), safety).await;
        let guards = lock_many(&redlock, &fleet).await;
        for server in &fleet {
            server.flush_scripts().await;
        }
        drop(guards);
        fleet.eventually_empty(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_key_of_another_program_is_refused_and_the_others_are_released() {
    for safety in MODES {
        let fleet = Fleet::start(3).await;
        let fakes = by_script(&fleet);
        let redlock = redlock(fakes.iter().map(FakeServer::url), safety).await;
        let guards = lock_many(&redlock, &fleet).await;
        for server in &fleet {
            let mut push = redis::cmd("RPUSH");
            push.arg("list").arg("of-another-program");
            push.exec_async(&mut server.connection().await).await.unwrap();
        }
        release_with(&redlock, "list", guards).await;
        eventually(PATIENCE, "the list is left", async || fleet.total_keys().await == 3).await;
        let commands = fleet.commands().await;
        assert_eq!((commands["evalsha"], commands.get("eval")), (3, None), "{commands:?}");
    }
}

#[tokio::test]
async fn a_key_that_the_user_may_not_touch_is_refused_and_the_others_are_released() {
    let acl = "user locker on >s3cret resetchannels ~app:* ~{redlock}:* +@all";
    let url = |server: &RedisServer| format!("redis://locker:s3cret@127.0.0.1:{}/", server.port());
    for safety in MODES {
        let fleet = Fleet::start_with(3, RedisServer::options().acl(acl)).await;
        let redlock = redlock(fleet.iter().map(url), safety).await;
        let guards = lock_many(&redlock, &fleet).await;
        release_with(&redlock, "forbidden", guards).await;
        fleet.eventually_empty(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_server_that_forgets_the_script_at_once_is_not_asked_for_ever() {
    let fleet = Fleet::start(3).await;
    let forgetful = |server| {
        FakeServer::in_front_of(server, |command| match &*command.name() {
            "EVAL" | "EVALSHA" => Some(Reply::Error("NOSCRIPT No matching script".into())),
            "COMMAND" => Some(Reply::Error("NOPERM no such right".into())),
            _ => None,
        })
    };
    let fakes: Vec<_> = fleet.iter().map(forgetful).collect();
    let redlock = redlock(fakes.iter().map(FakeServer::url), Safety::Plain).await;
    let guard = redlock.lock("order").await.unwrap();
    assert_eq!(timeout(PATIENCE, guard.release()).await.unwrap(), Released::Indeterminate);
}

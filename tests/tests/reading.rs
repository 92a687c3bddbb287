//! What only asks writes nothing: not to a lock, not to what others keep, and not to a server that
//! was never used.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use futures_util::future::join_all;
use redis::cmd;
use redlock_core::{Config, Redlock, Safety};
use redlock_tests::{Fleet, RedisServer};

/// Values that others may have set: what `SET key ""` of a shell script leaves, and what is no token.
const VALUES: [&str; 3] = ["", "1", ":"];

fn redlock(fleet: &Fleet, safety: Safety) -> Redlock {
    let config = Config::servers(fleet.urls())
        .ttl(Duration::from_secs(30))
        .node_deadline(Duration::from_secs(2))
        .safety(safety);
    Redlock::new(config.build().unwrap())
}

/// All keys, with those of the library, and their values.
async fn content(server: &RedisServer) -> Vec<(String, Vec<u8>)> {
    let mut connection = server.connection().await;
    let mut keys: Vec<String> = cmd("KEYS").arg("*").query_async(&mut connection).await.unwrap();
    keys.sort();
    let mut content = Vec::new();
    for key in keys {
        let dump = cmd("DUMP").arg(&key).query_async(&mut connection).await.unwrap();
        content.push((key, dump));
    }
    content
}

async fn contents(fleet: &Fleet) -> Vec<Vec<(String, Vec<u8>)>> {
    join_all(fleet.iter().map(content)).await
}

#[tokio::test]
async fn inspecting_a_lock_of_somebody_else_leaves_it_whatever_its_value_is() {
    for safety in [Safety::Guarded, Safety::Plain] {
        let fleet = Fleet::start(3).await;
        let redlock = redlock(&fleet, safety);
        redlock.provision().await.unwrap();
        redlock.lock("mine").await.unwrap().release().await;
        for server in &fleet {
            for value in VALUES {
                server
                    .set_foreign(&format!("theirs:{value}"), value, Duration::from_secs(600))
                    .await;
            }
        }
        let before = contents(&fleet).await;
        for value in VALUES {
            let inspection = redlock.inspect(format!("theirs:{value}")).await.unwrap();
            assert!(inspection.held, "{value:?} in the mode {safety:?}");
            assert_eq!(inspection.holder, None);
        }
        redlock.ready().await.unwrap();
        redlock.health().await.unwrap();
        redlock.provision().await.unwrap();
        assert_eq!(contents(&fleet).await, before, "in the mode {safety:?}");
    }
}

#[tokio::test]
async fn asking_for_readiness_in_the_plain_mode_deletes_nothing() {
    let fleet = Fleet::start(3).await;
    for server in &fleet {
        for name in ["redlock:ready", "{redlock}:ready"] {
            server.set_foreign(name, "", Duration::from_secs(600)).await;
        }
    }
    let before = contents(&fleet).await;
    let redlock = redlock(&fleet, Safety::Plain);
    redlock.ready().await.unwrap();
    redlock.health().await.unwrap();
    assert_eq!(contents(&fleet).await, before);
}

#[tokio::test]
async fn inspecting_at_once_and_often_writes_nothing_to_servers_that_were_never_used() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet, Safety::Guarded);
    let inspections = (0..64).map(|number| redlock.inspect(format!("key:{}", number % 4)));
    for inspection in join_all(inspections).await {
        assert!(!inspection.unwrap().held);
    }
    assert!(contents(&fleet).await.iter().all(Vec::is_empty));
}

//! A configuration that is read from a file.

use redlock_core::{Config, Provisioned, Redlock, Released};
use redlock_tests::{Fleet, eventually};
use serde_json::json;

use crate::{PATIENCE, millis};

#[tokio::test]
async fn a_configuration_that_is_read_locks_as_it_says() {
    let fleet = Fleet::start(3).await;
    let config: Config = serde_json::from_value(json!({
        "servers": [
            fleet[0].url(),
            fleet[1].url(),
            { "host": "127.0.0.1", "port": fleet[2].port() },
        ],
        "ttl": "40s",
        "node_deadline": "5s",
        "key_prefix": "shop:",
        "label": "reader",
        "drift_factor": 0.25,
    }))
    .unwrap();
    let redlock = Redlock::new(config);
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    let guard = redlock.lock("order").await.unwrap();
    assert_eq!(guard.token().label(), "reader");
    assert!(guard.remaining() < millis(30_000));
    for server in &fleet {
        let left = eventually(PATIENCE, "the key", async || server.pttl("shop:order").await).await;
        assert!(left > millis(30_000) && left <= millis(40_000), "{left:?}");
    }
    assert_eq!(guard.release().await, Released::Released);
    fleet.eventually_empty(PATIENCE).await;
}

#[tokio::test]
async fn groups_of_servers_are_read_with_the_ring_they_are_on() {
    let fleet = Fleet::start(2).await;
    let config: Config = serde_json::from_value(json!({
        "cluster": [
            { "name": "eu", "servers": [fleet[0].url()] },
            { "name": "us", "servers": [fleet[1].url()] },
        ],
        "ring": "ketama",
        "ttl": "1m",
        "node_deadline": "5s",
    }))
    .unwrap();
    let redlock = Redlock::new(config);
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    // Where these belong was computed with the other implementation of this ring.
    let guards = redlock.lock_all(["foo", "example_key:42"]).await.unwrap();
    assert_eq!(fleet[0].keys().await, ["foo"]);
    assert_eq!(fleet[1].keys().await, ["example_key:42"]);
    drop(guards);
    fleet.eventually_empty(PATIENCE).await;
}

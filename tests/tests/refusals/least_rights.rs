//! The rights a user needs, and not one more.

use std::time::Duration;

use redlock_core::{Config, Redlock, Released, Renew, Safety};
use redlock_tests::{Fleet, RedisServer, eventually};

use crate::HANG;

const RIGHTS: [&str; 13] = [
    "+set",
    "+get",
    "+del",
    "+pexpire",
    "+pttl",
    "+eval",
    "+evalsha",
    "+script|load",
    "+hello",
    "+auth",
    "+ping",
    "+select",
    "+client|id",
];

async fn servers(rights: &[&str]) -> Fleet {
    let line = format!("user locker on >s3cret resetchannels ~app:* -@all {}", rights.join(" "));
    Fleet::start_with(3, RedisServer::options().acl(&line)).await
}

fn redlock(fleet: &Fleet) -> Redlock {
    let url = |server: &RedisServer| format!("redis://locker:s3cret@127.0.0.1:{}/", server.port());
    let config = Config::servers(fleet.iter().map(url))
        .ttl(Duration::from_secs(30))
        .node_deadline(Duration::from_secs(2))
        .key_prefix("app:")
        .label("least")
        .safety(Safety::Plain);
    Redlock::new(config.build().unwrap())
}

#[tokio::test]
async fn a_user_with_the_least_rights_can_do_everything() {
    let fleet = servers(&RIGHTS).await;
    let redlock = redlock(&fleet);
    redlock.ready().await.unwrap();

    let guard = redlock.lock("order").renew(Renew::Yes).await.unwrap();
    eventually(HANG, "all three to vote", async || fleet.total_keys().await == 3).await;
    assert_eq!(fleet[0].keys().await, ["app:order"]);
    assert!(guard.extend(Duration::from_secs(60)).await.unwrap() > Duration::from_secs(45));
    let rival = self::redlock(&fleet);
    let error = rival.try_lock("order").await.unwrap_err();
    assert_eq!(error.holder(), Some("least"), "{error}");
    let inspection = rival.inspect("order").await.unwrap();
    assert!(inspection.held && inspection.free_in > Some(Duration::from_secs(45)));
    assert_eq!(guard.release().await, Released::Released);
    fleet.eventually_empty(HANG).await;

    // Also what is done only after a server forgot the scripts or closed the connection.
    let guard = redlock.lock("order").await.unwrap();
    for server in &fleet {
        server.flush_scripts().await;
    }
    assert_eq!(guard.release().await, Released::Released);
    for server in &fleet {
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("USER").arg("locker");
        kill.query_async::<i64>(&mut server.connection().await).await.unwrap();
    }
    let guard = eventually(HANG, "new connections", async || redlock.try_lock("order").await).await;
    assert_eq!(guard.release().await, Released::Released);
    fleet.eventually_empty(HANG).await;
}

#[tokio::test]
async fn no_key_outside_the_prefix_is_ever_touched() {
    let fleet = servers(&RIGHTS).await;
    let redlock = redlock(&fleet);
    redlock.lock("order").await.unwrap().release().await;
    redlock.close(HANG).await;
    for server in &fleet {
        let log: Vec<redis::Value> =
            redis::cmd("ACL").arg("LOG").query_async(&mut server.connection().await).await.unwrap();
        let shown = format!("{log:?}");
        assert!(!shown.contains("\"key\""), "a key was refused: {shown}");
    }
}

#[tokio::test]
async fn without_any_of_the_rights_that_locks_need_there_is_no_lock() {
    for missing in ["+set", "+get", "+del", "+pexpire", "+pttl", "+eval", "+evalsha"] {
        let rights: Vec<_> = RIGHTS.into_iter().filter(|right| *right != missing).collect();
        let fleet = servers(&rights).await;
        let redlock = redlock(&fleet);
        let error = redlock.try_lock("order").await.err();
        assert!(error.is_some_and(|error| error.is_unavailable()), "{missing} is not needed");
    }
}

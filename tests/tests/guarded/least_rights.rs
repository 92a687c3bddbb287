//! The rights a user needs in the guarded mode, and not one more.

use std::future::IntoFuture;

use redlock_core::{Provisioned, Redlock, Released};
use redlock_tests::{Fleet, RedisServer, eventually};

use crate::{HANG, LONG, settings};

/// The line that users are told to copy.
const DOCUMENTED: &str = include_str!("../../../SAFETY.md");

fn rights() -> Vec<&'static str> {
    let line = DOCUMENTED.lines().find(|line| line.starts_with("user locker")).unwrap();
    let rights: Vec<_> = line.split(' ').filter(|word| word.starts_with('+')).collect();
    assert_eq!(rights.len(), 21, "{line}");
    rights
}

/// What can be missing: it costs a round trip or a defence, not the lock.
const OPTIONAL: [&str; 8] = [
    "+script|load",
    "+hello",
    "+auth",
    "+ping",
    "+select",
    "+client|id",
    "+client|kill",
    "+client|tracking",
];

async fn fleet(rights: &[&str]) -> Fleet {
    let line = format!("user locker on >s3cret resetchannels ~app:* -@all {}", rights.join(" "));
    Fleet::start_with(3, RedisServer::options().acl(&line)).await
}

fn redlock(fleet: &Fleet) -> Redlock {
    let url = |server: &RedisServer| format!("redis://locker:s3cret@127.0.0.1:{}/", server.port());
    let urls: Vec<String> = fleet.iter().map(url).collect();
    Redlock::new(settings(&urls, LONG).key_prefix("app:").build().unwrap())
}

#[tokio::test]
async fn a_user_with_the_least_rights_can_do_everything() {
    let fleet = fleet(&rights()).await;
    let redlock = redlock(&fleet);
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    let guard = redlock.lock("order").await.unwrap();
    assert!(guard.fencing_token().is_some());
    assert!(guard.extend(LONG).await.is_ok());
    assert!(redlock.inspect("order").await.unwrap().held);
    let rival = self::redlock(&fleet);
    assert!(rival.try_lock("order").await.unwrap_err().is_contended());
    let waiting = tokio::spawn(rival.lock("order").wait(HANG).into_future());
    eventually(HANG, "a server to tell", async || {
        let mut told = Vec::new();
        for server in &fleet {
            let mut redis = server.connection().await;
            told.push(redis::cmd("INFO").arg("clients").query_async(&mut redis).await.unwrap());
        }
        told.iter().any(|info: &String| info.contains("tracking_clients:1"))
    })
    .await;
    for server in &fleet {
        server.flush_scripts().await;
    }
    assert_eq!(guard.release().await, Released::Released);
    assert_eq!(waiting.await.unwrap().unwrap().release().await, Released::Released);
    // A lost connection leaves debts, which are paid on the next.
    let guard = redlock.lock("order").await.unwrap();
    for server in &fleet {
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("USER").arg("locker");
        kill.query_async::<i64>(&mut server.connection().await).await.unwrap();
    }
    drop(guard);
    fleet.eventually_empty(HANG).await;
    for server in &fleet {
        let log: Vec<redis::Value> =
            redis::cmd("ACL").arg("LOG").query_async(&mut server.connection().await).await.unwrap();
        // `COMMAND INFO` is the plain mode's question, `CLIENT SETINFO` the client library's.
        assert!(!format!("{log:?}").contains("\"key\""), "a key was refused: {log:?}");
    }
}

#[tokio::test]
async fn a_right_that_is_missing_is_named() {
    for missing in rights().into_iter().filter(|right| !OPTIONAL.contains(right)) {
        let rights: Vec<_> = rights().into_iter().filter(|right| *right != missing).collect();
        let fleet = fleet(&rights).await;
        let redlock = redlock(&fleet);
        let error =
            redlock.provision().await.err().unwrap_or_else(|| panic!("{missing} is not needed"));
        assert!(error.is_unavailable(), "{missing}: {error}");
        let right = missing.trim_start_matches('+');
        let said = eventually(HANG, "the right to be named", async || {
            let error = redlock.provision().await.err().ok_or("it is not needed")?.to_string();
            if error.contains(right) { Ok(error) } else { Err(format!("{missing}: {error}")) }
        })
        .await;
        assert!(said.contains("refuses what locks need"), "{missing}: {said}");
    }
}

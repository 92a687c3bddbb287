//! The same calls on the memory backend and on Redis, and the same outcomes.

use std::time::Duration;

use futures_util::FutureExt;
use redlock_core::{Config, ConfigBuilder, LockError, Provisioned, Redlock, Renew, Token};
use redlock_tests::{Fleet, eventually};

use crate::{PATIENCE, millis};

/// What a caller can tell apart, without times.
fn outcome<T: std::fmt::Debug>(result: Result<T, LockError>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => {
            let later = error.retry_after().is_some_and(|later| !later.is_zero());
            format!("{:?} by {:?}, later: {later}", error.kind(), error.holder())
        }
    }
}

async fn inspected(redlock: &Redlock, key: &str) -> String {
    let inspected = redlock.inspect(key).await.unwrap();
    format!("{} by {:?}", inspected.held, inspected.holder)
}

type Said = Vec<(&'static str, String)>;

async fn locks(redlock: &Redlock) -> Said {
    let mut said: Said = Vec::new();
    said.push(("ready", outcome(redlock.ready().await)));
    said.push(("nobody", inspected(redlock, "order").await));
    let guard = redlock.lock("order").label("first").await.unwrap();
    said.push(("held", inspected(redlock, "order").await));
    said.push(("again", outcome(redlock.try_lock("order").await.map(drop))));
    said.push(("waiting", outcome(redlock.lock("order").wait(millis(20)).await.map(drop))));
    let validity = guard.extend(Duration::from_secs(90)).await;
    said.push(("extended", outcome(validity.map(|validity| validity > Duration::from_secs(60)))));
    said.push(("other key", outcome(redlock.try_lock("other").await.map(|guard| guard.is_lost()))));
    said.push(("released", format!("{:?}", guard.release().await)));
    said.push(("free", inspected(redlock, "order").await));
    said.push(("dropped", outcome(redlock.try_lock("order").await.map(drop))));
    said.push(("not in its own way", outcome(redlock.try_lock("order").await.map(drop))));

    let guard = redlock.lock("order").await.unwrap();
    let mut behind = redlock.lock("order").wait(PATIENCE).into_future();
    said.push(("in line", format!("{}", behind.as_mut().now_or_never().is_some())));
    drop(guard);
    said.push(("its turn", outcome(behind.await.map(drop))));
    said
}

async fn ends(redlock: &Redlock) -> Said {
    let mut said: Said = Vec::new();
    let short = redlock.lock("short").ttl(millis(1_200)).await.unwrap();
    said.push(("expires", format!("{:?}", short.lost().await)));
    eventually(PATIENCE, "the end of the key", async || {
        !redlock.inspect("short").await.unwrap().held
    })
    .await;
    said.push(("too late", outcome(short.extend(millis(1_200)).await)));
    said.push(("released late", format!("{:?}", short.release().await)));

    let long = redlock.lock("long").ttl(millis(1_200)).renew(Renew::Yes).max_hold(millis(2_500));
    let long = long.await.unwrap();
    said.push(("renewed", format!("{:?}", long.lost().await)));
    let stolen = redlock.lock("stolen").await.unwrap();
    said.push(("unlock", outcome(redlock.unlock("stolen", stolen.token()).await)));
    said.push(("robbed", outcome(stolen.extend(Duration::from_secs(60)).await)));
    said.push(("reason", format!("{:?}", stolen.lease().lost_reason())));
    said
}

async fn tokens(redlock: &Redlock) -> Said {
    let mut said: Said = Vec::new();
    let mine = redlock.lock("order").await.unwrap().hand_over();
    let other: Token = "other:00112233445566778899aabbccddeeff".parse().unwrap();
    said.push(("handed over", inspected(redlock, "order").await));
    said.push(("not theirs", outcome(redlock.unlock("order", &other).await)));
    said.push(("nor to extend", outcome(redlock.extend("order", &other, PATIENCE).await)));
    said.push(("still held", inspected(redlock, "order").await));
    let validity = redlock.extend("order", &mine, Duration::from_secs(90)).await;
    said.push(("mine", outcome(validity.map(|validity| validity > Duration::from_secs(60)))));
    said.push(("contended", outcome(redlock.try_lock("order").await.map(drop))));
    said.push(("unlocked", outcome(redlock.unlock("order", &mine).await)));
    said.push(("only once", outcome(redlock.unlock("order", &mine).await)));
    said.push(("never created", outcome(redlock.extend("order", &mine, PATIENCE).await)));
    said.push(("still free", inspected(redlock, "order").await));
    said
}

async fn several(redlock: &Redlock) -> Said {
    let mut said: Said = Vec::new();
    let all = redlock.lock_all(["b", "a", "b", "c"]).await.unwrap();
    said.push((
        "all",
        format!("{:?}", all.iter().map(|guard| guard.key().clone()).collect::<Vec<_>>()),
    ));
    said.push(("one of them", outcome(redlock.try_lock("b").await.map(drop))));
    drop(all);
    let taken = redlock.lock("c").await.unwrap();
    said.push(("none", outcome(redlock.lock_all(["a", "b", "c"]).await.map(drop))));
    said.push(("taken back", outcome(redlock.try_lock("a").await.map(drop))));
    taken.release().await;
    said.push(("with", outcome(redlock.with_lock("a", async |lease| lease.is_lost()).await)));
    for (what, request) in [
        ("no key", redlock.lock("")),
        ("long key", redlock.lock("x".repeat(513))),
        ("no ttl", redlock.lock("a").ttl(Duration::ZERO)),
        ("bad label", redlock.lock("a").label("a:b")),
    ] {
        said.push((what, outcome(request.await.map(drop))));
    }
    let held = redlock.lock("a").await.unwrap();
    said.push(("closed", format!("{:?}", redlock.close(PATIENCE).await)));
    said.push(("lost", format!("{:?}", held.lost().await)));
    said.push(("no more", outcome(redlock.lock("a").await.map(drop))));
    said.push(("not ready", outcome(redlock.ready().await)));
    said
}

fn build(settings: ConfigBuilder) -> Redlock {
    let settings =
        settings.ttl(Duration::from_secs(60)).node_deadline(millis(500)).label("contract");
    Redlock::new(settings.retry_interval(millis(5), millis(20)).build().unwrap())
}

#[tokio::test]
async fn the_memory_backend_does_what_redis_does() {
    let fleet = Fleet::start(3).await;
    let (memory, redis) = (build(Config::memory()), build(Config::servers(fleet.urls())));
    assert_eq!(redis.provision().await.unwrap(), Provisioned::New);
    assert_eq!(locks(&memory).await, locks(&redis).await);
    assert_eq!(tokens(&memory).await, tokens(&redis).await);
    let (in_memory, on_redis) = tokio::join!(ends(&memory), ends(&redis));
    assert_eq!(in_memory, on_redis);
    assert_eq!(several(&memory).await, several(&redis).await);
    fleet.eventually_empty(PATIENCE).await;
}

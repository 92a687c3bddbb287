//! The checking side of fencing tokens, where what is written lives in Redis.

use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands, RedisResult, Script};
use redlock_core::FencingToken;
use redlock_core::fencing::FENCED_HSET;
use redlock_tests::{Fleet, RedisServer};

use crate::{LONG, provisioned};

async fn write(
    store: &mut MultiplexedConnection,
    token: impl ToString,
    fields: &[(&str, &str)],
) -> RedisResult<bool> {
    let script = Script::new(FENCED_HSET);
    let mut write = script.key("balance");
    write.arg(token.to_string());
    for (field, value) in fields {
        write.arg(*field).arg(*value);
    }
    write.invoke_async(store).await
}

async fn read(store: &mut MultiplexedConnection, field: &str) -> Option<String> {
    store.hget("balance", field).await.unwrap()
}

#[tokio::test]
async fn a_store_in_redis_refuses_whoever_lost_the_lock_and_would_else_be_overwritten() {
    let (fleet, server) = (Fleet::start(3).await, RedisServer::start().await);
    let redlock = provisioned(&fleet, LONG).await;
    let mut store = server.connection().await;

    let earlier = redlock.lock("balance").await.unwrap();
    let stale = earlier.fencing_token().unwrap();
    assert!(write(&mut store, stale, &[("cents", "100"), ("by", "earlier")]).await.unwrap());
    // It is paused here, and its lock runs out.
    redlock.unlock("balance", &earlier.hand_over()).await.unwrap();

    let later = redlock.lock("balance").await.unwrap().fencing_token().unwrap();
    for cents in ["90", "80"] {
        let written = write(&mut store, later, &[("cents", cents)]).await.unwrap();
        assert!(written, "one lock may write twice");
    }
    assert!(!write(&mut store, stale, &[("cents", "70"), ("by", "nobody")]).await.unwrap());
    assert_eq!(read(&mut store, "cents").await.as_deref(), Some("80"));
    assert_eq!(read(&mut store, "by").await.as_deref(), Some("earlier"));
    assert_eq!(read(&mut store, "fence").await, Some(later.to_string()));

    // The control: without the check it would have been written.
    let unfenced: RedisResult<()> = store.hset("balance", "cents", "70").await;
    unfenced.unwrap();
    assert_eq!(read(&mut store, "cents").await.as_deref(), Some("70"));
}

#[tokio::test]
async fn tokens_are_compared_as_numbers_up_to_the_largest() {
    let server = RedisServer::start().await;
    let mut store = server.connection().await;
    const LARGEST: u64 = (1 << 53) - 1;
    let mut allowed = async |token: u64| {
        write(&mut store, FencingToken::new(token), &[("cents", "1")]).await.unwrap()
    };
    for token in [0, 9, 10, LARGEST - 1, LARGEST] {
        assert!(allowed(token).await, "{token}");
    }
    for token in [LARGEST - 1, 99, 9] {
        assert!(!allowed(token).await, "{token}");
    }
}

#[tokio::test]
async fn what_is_no_token_or_no_hash_is_an_error_and_writes_nothing() {
    let server = RedisServer::start().await;
    let mut store = server.connection().await;
    for token in ["", "nan", "inf", "-1", "1e9", "0x10"] {
        let error = write(&mut store, token, &[("cents", "1")]).await.unwrap_err().to_string();
        assert!(error.contains("the fencing token is not a number"), "{token}: {error}");
    }
    assert!(server.keys().await.is_empty());
    let set: RedisResult<()> = store.set("balance", "a string").await;
    set.unwrap();
    let error = write(&mut store, 1, &[("cents", "1")]).await.unwrap_err();
    // Redis 6.2 says so in the text of a general error.
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");
}

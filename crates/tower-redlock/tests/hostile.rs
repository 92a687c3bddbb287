//! Clients that mean no good: floods, sizes, and bodies that nobody reads.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{any, post};
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{Request, StatusCode};
use redlock_core::{Config, Redlock};
use redlock_tests::eventually;
use support::{Gate, problem, send, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower_redlock::{Hold, RedlockLayer, key};

const SOON: Duration = Duration::from_secs(60);

fn keyed(redlock: &Redlock) -> RedlockLayer {
    RedlockLayer::new(redlock.clone(), key::header("idempotency-key"))
}

fn with_key(key: impl AsRef<[u8]>) -> http::request::Builder {
    Request::post("/").header("idempotency-key", key.as_ref())
}

#[tokio::test]
async fn a_flood_on_one_key_is_answered_423_at_once_past_the_bound_and_the_rest_is_served() {
    const WAITERS: usize = 100;
    let redlock = Redlock::new(Config::memory().max_waiters(WAITERS).build().unwrap());
    let gate = Gate::default();
    let app = Router::new().route("/", post(gate.handler())).layer(keyed(&redlock).wait(SOON));
    let running = tokio::spawn(send(app.clone(), with_key("k")));
    gate.entered().await;

    let mut waiting = Vec::new();
    for number in 0..10_000 {
        let mut request = Box::pin(send(app.clone(), with_key("k")));
        match (&mut request).now_or_never() {
            None => waiting.push(request),
            Some(refused) => {
                assert_eq!(refused.status(), StatusCode::LOCKED, "{number}");
                assert!(refused.headers().contains_key("retry-after"));
                let body = problem(refused).await;
                assert_eq!(body["type"], "https://docs.rs/tower-redlock/#locked");
            }
        }
    }
    assert_eq!(waiting.len(), WAITERS);
    gate.open();
    assert_eq!(running.await.unwrap().status(), StatusCode::OK);
    for response in join_all(waiting).await {
        assert_eq!(response.status(), StatusCode::OK);
    }
    assert_eq!(gate.finished(), 1 + WAITERS);
}

#[tokio::test]
async fn ten_thousand_keys_at_once_are_ten_thousand_locks() {
    const KEYS: usize = 10_000;
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let app = Router::new().route("/", post(gate.handler())).layer(keyed(&redlock));
    let all: Vec<_> = (0..KEYS)
        .map(|number| tokio::spawn(send(app.clone(), with_key(number.to_string()))))
        .collect();
    for _ in 0..KEYS {
        gate.entered().await;
    }
    gate.open();
    for response in join_all(all).await {
        assert_eq!(response.unwrap().status(), StatusCode::OK);
    }
    assert!(!redlock.inspect("header:idempotency-key:7").await.unwrap().held);
}

#[tokio::test]
async fn a_key_of_a_megabyte_of_any_bytes_is_a_key_like_others() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let app = Router::new().route("/", any(gate.handler())).layer(keyed(&redlock));
    let long = vec![0xff; 1 << 20];
    let running = tokio::spawn(send(app.clone(), with_key(&long)));
    gate.entered().await;
    let refused = send(app.clone(), with_key(&long)).await;
    assert_eq!(refused.status(), StatusCode::LOCKED);
    assert!(text(refused).await.len() < 1000, "it is not repeated");
    let other = tokio::spawn(send(app, with_key(&long[1..])));
    gate.entered().await;
    gate.open();
    assert_eq!(running.await.unwrap().status(), StatusCode::OK);
    assert_eq!(other.await.unwrap().status(), StatusCode::OK);
}

/// Serves a response that never ends.
async fn endless(layer: RedlockLayer) -> std::net::SocketAddr {
    let endless = || async {
        let chunk = Ok::<_, Infallible>(Bytes::from(vec![b'x'; 64 * 1024]));
        Body::from_stream(futures_util::stream::repeat(chunk))
    };
    let app = Router::new().route("/", post(endless)).layer(layer);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    address
}

/// A client that reads the first bytes of its response and then no more.
async fn begins_to_read(address: std::net::SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\n\r\n").await.unwrap();
    let mut status = [0; 12];
    client.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 200");
    client
}

#[tokio::test]
async fn a_body_that_is_not_read_holds_its_lock_until_max_hold_and_no_longer() {
    let redlock = Redlock::in_memory();
    let max_hold = Duration::from_millis(1_500);
    let address = endless(keyed(&redlock).hold(Hold::Body).max_hold(max_hold)).await;
    let mut stalled = begins_to_read(address).await;
    assert!(redlock.try_lock("header:idempotency-key:k").await.unwrap_err().is_contended());
    redlock.lock("header:idempotency-key:k").wait(SOON).await.unwrap().release().await;

    // The connection breaks, so that a reader does not take the part for the whole.
    let rest = tokio::time::timeout(SOON, stalled.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(rest.is_err() || rest.is_ok_and(|length| length > 0));
}

#[tokio::test]
async fn a_body_that_is_not_read_loses_its_lock_with_its_client() {
    let redlock = Redlock::in_memory();
    let address = endless(keyed(&redlock).hold(Hold::Body)).await;
    let stalled = begins_to_read(address).await;
    assert!(redlock.try_lock("header:idempotency-key:k").await.unwrap_err().is_contended());
    drop(stalled);
    let freed = eventually(SOON, "the lock is free", async || {
        redlock.try_lock("header:idempotency-key:k").await
    })
    .await;
    freed.release().await;
}

//! Locked arguments of axum's handlers: several of them, from the path and from the body.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path};
use axum::routing::{post, put};
use axum::{Json, Router};
use http::request::Parts;
use http::{Method, Request, StatusCode};
use redlock_core::{Key, Redlock};
use redlock_tests::eventually;
use serde::Deserialize;
use support::{Gate, problem, send, text};
use tokio::sync::mpsc;
use tower::ServiceExt;
use tower_redlock::{LockResource, Locked, RedlockLayer, key};

const SOON: Duration = Duration::from_secs(20);

#[derive(Deserialize)]
struct Order {
    account: String,
}

impl LockResource for Order {
    fn lock_key(&self) -> Key {
        Key::hashed(format!("account:{}", self.account))
    }

    fn ttl(&self) -> Option<Duration> {
        Some(Duration::from_secs(7))
    }
}

/// A header of the request that names something to lock.
struct Named<const HEADER: char>(String);

impl<S: Sync, const HEADER: char> FromRequestParts<S> for Named<HEADER> {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        let value = parts.headers.get(HEADER.to_string()).ok_or(StatusCode::BAD_REQUEST)?;
        Ok(Self(value.to_str().unwrap().into()))
    }
}

impl<const HEADER: char> LockResource for Named<HEADER> {
    fn lock_key(&self) -> Key {
        Key::hashed(&self.0)
    }
}

async fn is_held(redlock: &Redlock, key: &str) -> bool {
    redlock.inspect(key).await.unwrap().held
}

fn json(body: Body) -> Request<Body> {
    Request::post("/").header("content-type", "application/json").body(body).unwrap()
}

/// A body that comes in the pieces that the test sends.
fn slow_body() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel(1);
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async {
        let piece: Bytes = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), receiver))
    });
    (sender, Body::from_stream(pieces))
}

#[tokio::test]
async fn a_key_from_the_body_is_locked_when_the_body_was_read_and_not_before() {
    let redlock = Redlock::in_memory();
    let inspected = redlock.clone();
    let handler = move |order: Locked<Json<Order>>| async move {
        assert!(order.lease().remaining() < Duration::from_secs(8), "the ttl of the resource");
        is_held(&inspected, &format!("account:{}", order.account)).await.to_string()
    };
    let app =
        Router::new().route("/", post(handler)).layer(RedlockLayer::scope_only(redlock.clone()));

    // Both halves of the first request's body but the end: a second one is served meanwhile.
    let (upload, body) = slow_body();
    let slow = tokio::spawn(app.clone().oneshot(json(body)));
    upload.send(Bytes::from_static(b"{\"account\":")).await.unwrap();
    upload.send(Bytes::from_static(b"\"7\"}")).await.unwrap();
    let quick = app.clone().oneshot(json(Body::from("{\"account\":\"7\"}"))).await.unwrap();
    assert_eq!((quick.status(), text(quick).await), (StatusCode::OK, "true".into()));

    drop(upload);
    assert_eq!(text(slow.await.unwrap().unwrap()).await, "true");
    assert!(!is_held(&redlock, "account:7").await, "released before the response");
}

#[tokio::test]
async fn a_body_whose_key_is_locked_is_423_and_one_that_can_not_be_read_what_axum_says() {
    let redlock = Redlock::in_memory();
    let _held = redlock.lock("account:7").await.unwrap();
    let app = Router::new().route("/", post(|_: Locked<Json<Order>>| async {}));
    let locking = app.clone().layer(RedlockLayer::scope_only(redlock));
    let send = async |app: &Router, body: &'static str| {
        app.clone().oneshot(json(Body::from(body))).await.unwrap()
    };
    assert_eq!(send(&locking, "{\"account\":\"7\"}").await.status(), StatusCode::LOCKED);
    assert_eq!(send(&locking, "{\"account\":\"8\"}").await.status(), StatusCode::OK);
    assert_eq!(send(&locking, "{\"account\"").await.status(), StatusCode::BAD_REQUEST);
    let missing = send(&app, "{\"account\":\"8\"}").await;
    assert_eq!(missing.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(problem(missing).await["detail"].to_string().contains("RedlockLayer"));
}

#[tokio::test]
async fn an_upload_that_is_broken_off_leaves_no_lock() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let inside = gate.clone();
    let handler = move |_: Locked<Json<Order>>| async move { inside.pass().await };
    let app =
        Router::new().route("/", post(handler)).layer(RedlockLayer::scope_only(redlock.clone()));
    let (upload, body) = slow_body();
    let request = tokio::spawn(app.oneshot(json(body)));
    upload.send(Bytes::from_static(b"{\"account\":\"7\"}")).await.unwrap();
    request.abort();
    eventually(SOON, "the request is dropped", async || upload.is_closed()).await;
    assert!(!is_held(&redlock, "account:7").await);
    assert_eq!(gate.finished(), 0);
}

#[tokio::test]
async fn several_locked_arguments_are_held_at_once_and_share_a_lock_if_they_have_the_same_key() {
    let redlock = Redlock::in_memory();
    let inspected = redlock.clone();
    let handler = move |a: Locked<Named<'a'>>, b: Locked<Named<'b'>>| async move {
        let held = is_held(&inspected, &a.0).await && is_held(&inspected, &b.0).await;
        format!("{held} {}", a.lease().token() == b.lease().token())
    };
    let app =
        Router::new().route("/", post(handler)).layer(RedlockLayer::scope_only(redlock.clone()));
    let of = |a, b| Request::post("/").header("a", a).header("b", b);
    assert_eq!(text(send(app.clone(), of("k1", "k2")).await).await, "true false");
    assert_eq!(text(send(app.clone(), of("k1", "k1")).await).await, "true true");

    // The second is locked by somebody else: nothing stays of the first.
    let _held = redlock.lock("k2").await.unwrap();
    assert_eq!(send(app, of("k1", "k2")).await.status(), StatusCode::LOCKED);
    assert!(!is_held(&redlock, "k1").await);
}

#[tokio::test]
async fn handlers_whose_arguments_are_locked_in_opposite_orders_never_wait_for_each_other() {
    let both = |_: Locked<Named<'a'>>, _: Locked<Named<'b'>>| async {
        tokio::task::yield_now().await;
    };
    let layer = RedlockLayer::scope_only(Redlock::in_memory()).wait(Duration::from_secs(600));
    let app = Router::new().route("/", post(both)).layer(layer);
    let requests: Vec<_> = (0..200)
        .map(|turn| {
            let [a, b] = if turn % 2 == 0 { ["k1", "k2"] } else { ["k2", "k1"] };
            let request = Request::post("/").header("a", a).header("b", b);
            tokio::spawn(send(app.clone(), request))
        })
        .collect();
    for (turn, request) in requests.into_iter().enumerate() {
        let answer = tokio::time::timeout(SOON, request).await.expect("no deadlock").unwrap();
        let in_order = turn % 2 == 0;
        let expected: &[StatusCode] =
            if in_order { &[StatusCode::OK] } else { &[StatusCode::OK, StatusCode::LOCKED] };
        assert!(expected.contains(&answer.status()), "{turn}: {}", answer.status());
    }
}

#[tokio::test(start_paused = true)]
async fn each_route_has_settings_of_its_own() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let layer = |key: &'static str| RedlockLayer::new(redlock.clone(), move |_: &Parts| key);
    let brief = layer("brief").max_hold(Duration::from_secs(2));
    let patient = layer("patient").wait(Duration::from_secs(60)).methods([Method::PUT]);
    let renamed = layer("renamed").on_rejection(|_| {
        let mut response = http::Response::new("taken");
        *response.status_mut() = StatusCode::CONFLICT;
        response
    });
    let app = Router::new()
        .route("/brief", post(gate.handler()).layer(brief))
        .route("/patient", put(|| async {}).layer(patient))
        .route("/renamed", post(|| async {}).layer(renamed))
        .route(
            "/{id}",
            post(|Path(_): Path<String>| async {})
                .layer(RedlockLayer::new(redlock.clone(), key::path())),
        );
    assert_eq!(
        send(app.clone(), Request::post("/brief")).await.status(),
        StatusCode::SERVICE_UNAVAILABLE,
        "max_hold is over"
    );
    let held = redlock.lock("patient").await.unwrap();
    let waiting = tokio::spawn(send(app.clone(), Request::put("/patient")));
    tokio::time::sleep(Duration::from_secs(5)).await;
    held.release().await;
    assert_eq!(waiting.await.unwrap().status(), StatusCode::OK);
    let _held = redlock.lock("renamed").await.unwrap();
    let refused = send(app.clone(), Request::post("/renamed")).await;
    assert_eq!((refused.status(), text(refused).await), (StatusCode::CONFLICT, "taken".into()));
    assert_eq!(send(app, Request::post("/7")).await.status(), StatusCode::OK);
}

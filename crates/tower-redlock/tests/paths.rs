//! Requests that spell one path in different ways, through a real router.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::{any, post};
use http::{Request, StatusCode};
use redlock_core::Redlock;
use support::{Gate, send, text};
use tower::util::MapRequestLayer;
use tower::{Layer, ServiceExt};
use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
use tower_redlock::{FenceLayer, LockScope, MemoryFences, RedlockLayer, fencing, key};

#[tokio::test]
async fn a_path_that_is_locked_is_locked_in_every_spelling() {
    for (name, layer) in [
        ("path", RedlockLayer::new(Redlock::in_memory(), key::path())),
        ("method and path", RedlockLayer::new(Redlock::in_memory(), key::method_and_path())),
    ] {
        let gate = Gate::default();
        let app = Router::new().route("/orders/{id}", post(gate.handler())).layer(layer);
        let first = tokio::spawn(send(app.clone(), Request::post("/orders/4:2")));
        gate.entered().await;
        for spelling in ["/orders/4:2", "/orders/%34:2", "/orders/4%3a2", "/orders/4%3A%32"] {
            let response = send(app.clone(), Request::post(spelling)).await;
            assert_eq!(response.status(), StatusCode::LOCKED, "{name}: {spelling}");
        }
        gate.open();
        for other in ["/orders/04:2", "/orders/4%2F2", "/orders/4%253A2"] {
            let response = send(app.clone(), Request::post(other)).await;
            assert_eq!(response.status(), StatusCode::OK, "{name}: {other}");
        }
        assert_eq!(first.await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_late_request_is_refused_in_every_spelling() {
    let app = Router::new()
        .route("/orders/{id}", post(|| async {}))
        .layer(FenceLayer::new(MemoryFences::new(), key::path()));
    let write = |path: &str, token: u64| Request::post(path).header(fencing::HEADER, token);
    assert_eq!(send(app.clone(), write("/orders/42", 7)).await.status(), StatusCode::OK);
    let late = send(app, write("/orders/4%32", 6)).await;
    assert_eq!(late.status(), StatusCode::PRECONDITION_FAILED);
}

#[tokio::test]
async fn a_repeated_request_is_replayed_in_every_spelling() {
    let runs = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&runs);
    let pay = move || async move { counting.fetch_add(1, Ordering::SeqCst).to_string() };
    let layer = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new());
    let app = Router::new().route("/orders/{id}/payments", post(pay)).layer(layer);
    for spelling in ["/orders/42/payments", "/orders/4%32/payments", "/orders/%34%32/payments"] {
        let request = Request::post(spelling).header("idempotency-key", "k");
        let response = send(app.clone(), request).await;
        assert_eq!(
            (response.status(), &*text(response).await),
            (StatusCode::OK, "0"),
            "{spelling}"
        );
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// Spells a parameter at random: each byte as it is, if a URI allows that, or encoded.
fn spelled(parameter: &[u8], random: &mut fastrand::Rng) -> String {
    let mut spelling = String::new();
    for &byte in parameter {
        let is_allowed = byte.is_ascii_graphic() && !b"/?#%<>".contains(&byte);
        match (is_allowed, random.u8(..3)) {
            (true, 0) => spelling.push(byte.into()),
            (_, 1) => write!(spelling, "%{byte:02x}").unwrap(),
            _ => write!(spelling, "%{byte:02X}").unwrap(),
        }
    }
    spelling
}

/// A short parameter, so that two are often equal but for one character.
fn parameter(random: &mut fastrand::Rng) -> Vec<u8> {
    let characters = ['4', '2', 'a', 'A', ':', '/', '%', '.', '+', ' ', '"', '\0', 'ä', '中'];
    let length = random.usize(1..4);
    (0..length).map(|_| characters[random.usize(..characters.len())]).collect::<String>().into()
}

#[tokio::test]
async fn two_requests_have_one_key_exactly_if_the_router_decodes_one_parameter() {
    let handler = |scope: LockScope, Path((shop, id)): Path<(String, String)>| async move {
        let key = scope.lease().unwrap().key().clone();
        format!("{shop}\n{id}\n{}", key.as_bytes().escape_ascii())
    };
    let orders = Router::new()
        .route("/orders/{id}", any(handler))
        .layer(RedlockLayer::new(Redlock::in_memory(), key::path()));
    let app = Router::new().nest("/shops/{shop}", orders);

    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut keys: HashMap<String, String> = HashMap::new();
    let mut parameters: HashMap<String, String> = HashMap::new();
    for _ in 0..3_000 {
        let [shop, id] = [(); 2].map(|()| spelled(&parameter(&mut random), &mut random));
        let path = format!("/shops/{shop}/orders/{id}");
        let response = send(app.clone(), Request::post(&path)).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}, seed {seed}");
        let answer = text(response).await;
        let (decoded, key) = answer.rsplit_once('\n').unwrap();
        let of_parameter = keys.entry(decoded.into()).or_insert_with(|| key.into());
        assert_eq!(of_parameter, key, "{decoded:?}, {path}, seed {seed}");
        let of_key = parameters.entry(key.into()).or_insert_with(|| decoded.into());
        assert_eq!(of_key, decoded, "{key:?}, {path}, seed {seed}");
    }
    assert!(keys.len() < 3_000, "some parameters came twice");
}

#[tokio::test]
async fn a_rewritten_path_is_one_key_around_the_outermost_router_and_two_inside_it() {
    let without_slash = |mut request: Request<Body>| {
        let path = request.uri().path().trim_end_matches('/').parse().unwrap();
        *request.uri_mut() = path;
        request
    };
    let orders = || {
        let lock = RedlockLayer::new(Redlock::in_memory(), key::path());
        let handler = |scope: LockScope| async move {
            scope.lease().unwrap().key().as_bytes().escape_ascii().to_string()
        };
        Router::new().route("/orders/{id}", any(handler)).layer(lock)
    };
    let rewrite = MapRequestLayer::new(without_slash);
    let inside = Router::new().fallback_service(rewrite.layer(orders()));
    let around = Router::new().merge(orders());
    for (path, of_inside) in
        [("/orders/42", "path:/orders/42"), ("/orders/42/", "path:/orders/42/")]
    {
        let request = || Request::post(path).body(Body::empty()).unwrap();
        let key = text(inside.clone().oneshot(request()).await.unwrap()).await;
        assert_eq!(key, of_inside);
        let key = text(rewrite.layer(around.clone()).oneshot(request()).await.unwrap()).await;
        assert_eq!(key, "path:/orders/42");
    }
}

#[tokio::test]
async fn a_path_that_is_not_utf_8_is_locked_and_answered_as_axum_does() {
    let redlock = Redlock::in_memory();
    let _held = redlock.lock("path:/orders/%FF").await.unwrap();
    let app = Router::new()
        .route("/orders/{id}", any(|_: Path<String>| async {}))
        .layer(RedlockLayer::new(redlock, key::path()));
    assert_eq!(send(app.clone(), Request::post("/orders/%ff")).await.status(), StatusCode::LOCKED);
    assert_eq!(send(app, Request::post("/orders/%fe")).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_path_in_raw_utf_8_is_the_encoded_one() {
    let gate = Gate::default();
    let app = Router::new()
        .route("/orders/{id}", post(gate.handler()))
        .layer(RedlockLayer::new(Redlock::in_memory(), key::path()));
    let first = tokio::spawn(send(app.clone(), Request::post("/orders/caf%c3%a9")));
    gate.entered().await;
    let raw = http::Uri::try_from("/orders/café".as_bytes()).unwrap();
    let refused = send(app, Request::post(raw)).await;
    assert_eq!(refused.status(), StatusCode::LOCKED);
    gate.open();
    assert_eq!(first.await.unwrap().status(), StatusCode::OK);
}

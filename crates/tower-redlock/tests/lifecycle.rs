//! How a lock ends when its request does not end well: lost, cancelled, panicked, streamed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::post;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use redlock_core::testing::Cluster;
use redlock_core::{Config, Redlock, Renew};
use redlock_tests::eventually;
use support::{Gate, problem, send};
use tokio::sync::mpsc;
use tower::{Layer, Service, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_redlock::{Disconnect, Hold, LockScope, Lost, RedlockLayer, RejectionKind};

const SOON: Duration = Duration::from_secs(20);

fn locking(redlock: &Redlock) -> RedlockLayer {
    RedlockLayer::new(redlock.clone(), |_: &http::request::Parts| "k")
}

async fn is_held(redlock: &Redlock, key: &str) -> bool {
    redlock.inspect(key).await.unwrap().held
}

/// Somebody else deletes the key, as an operator or a server that lost its data would.
async fn steal(redlock: &Redlock, lease: &redlock_core::Lease) {
    redlock.unlock(lease.key(), lease.token()).await.unwrap();
}

fn impatient() -> Redlock {
    Redlock::new(Config::memory().ttl(Duration::from_millis(300)).build().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_loses_its_lock_is_dropped_and_answered_503() {
    let redlock = impatient();
    let gate = Gate::default();
    let layer = locking(&redlock).renew(Renew::No);
    let app = Router::new().route("/", post(gate.handler())).layer(layer);
    let response = send(app, Request::post("/")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(problem(response).await["type"], "https://docs.rs/tower-redlock/#lock-lost");
    gate.dropped().await;
    assert_eq!(gate.finished(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_lock_taken_by_the_handler_is_watched_too() {
    let redlock = impatient();
    let thief = redlock.clone();
    let gate = Gate::default();
    let inside = gate.clone();
    let handler = move |scope: axum::Extension<LockScope>| async move {
        let lease = scope.lock("other").await.unwrap();
        steal(&thief, &lease).await;
        inside.pass().await;
    };
    let layer = RedlockLayer::scope_only(redlock);
    let app = Router::new().route("/", post(handler)).layer(layer);
    let response = send(app, Request::post("/")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    gate.dropped().await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_go_on_without_its_lock() {
    let redlock = impatient();
    let handler = |scope: axum::Extension<LockScope>| async move {
        let lease = scope.lock("k").await.unwrap();
        lease.lost().await.to_string()
    };
    let layer = locking(&redlock).renew(Renew::No).on_lost(Lost::Continue);
    let app = Router::new().route("/", post(handler)).layer(layer);
    let response = send(app, Request::post("/")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(support::text(response).await, "its validity ran out");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_request_has_lost_is_not_shared_with_its_handler_again() {
    let redlock = Redlock::in_memory();
    let thief = redlock.clone();
    let handler = move |scope: LockScope| async move {
        let lease = scope.lease().unwrap();
        steal(&thief, &lease).await;
        lease.lost().await;
        format!("{:?}", scope.lock("k").await.unwrap_err().kind())
    };
    let layer = locking(&redlock).on_lost(Lost::Continue);
    let app = Router::new().route("/", post(handler)).layer(layer);
    assert_eq!(support::text(send(app, Request::post("/")).await).await, "Lost");
}

#[tokio::test(start_paused = true)]
async fn a_response_waits_until_the_servers_have_released_its_locks() {
    let cluster = Cluster::new(3);
    let redlock = cluster.redlock();
    let handler = |scope: LockScope| async move {
        scope.lock("other").await.unwrap();
    };
    let app = Router::new().route("/", post(handler)).layer(locking(&redlock));
    cluster.nodes().for_each(|node| node.delay(Duration::from_millis(10)));
    assert_eq!(send(app, Request::post("/")).await.status(), StatusCode::OK);
    assert_eq!(locked_on(&cluster), [0; 3]);

    let unready = locking(&redlock).layer(NeverReady).oneshot(Request::new(Body::empty()));
    assert_eq!(unready.await.unwrap_err(), "never ready");
    assert_eq!(locked_on(&cluster), [0; 3], "also if the handler is not called");
}

fn locked_on(cluster: &Cluster) -> [usize; 3] {
    [0, 1, 2].map(|node| cluster.node(node).holders().len())
}

#[derive(Clone)]
struct NeverReady;

impl Service<Request<Body>> for NeverReady {
    type Response = http::Response<Body>;
    type Error = &'static str;
    type Future = std::future::Pending<Result<Self::Response, &'static str>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        Poll::Ready(Err("never ready"))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        unreachable!("it is never ready")
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewed_lock_outlives_its_ttl_until_max_hold() {
    let redlock = impatient();
    let gate = Gate::default();
    let layer = locking(&redlock).max_hold(Duration::from_millis(1_500));
    let app = Router::new().route("/", post(gate.handler())).layer(layer);
    let start = tokio::time::Instant::now();
    let response = send(app, Request::post("/")).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(start.elapsed() >= Duration::from_millis(1_500), "{:?}", start.elapsed());
    assert!(problem(response).await["detail"].as_str().unwrap().contains("max_hold"));
}

#[tokio::test]
async fn a_client_that_goes_away_drops_the_handler_and_frees_the_lock() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let app = Router::new().route("/", post(gate.handler())).layer(locking(&redlock));
    let request = tokio::spawn(send(app, Request::post("/")));
    gate.entered().await;
    request.abort();
    gate.dropped().await;
    eventually(SOON, "the lock is free", async || !is_held(&redlock, "k").await).await;
}

/// Gives its scope away, so that it outlives the request, and locks one more key.
fn giving_its_scope_away(gate: &Gate) -> (axum::routing::MethodRouter, mpsc::Receiver<LockScope>) {
    let (scopes, kept) = mpsc::channel(1);
    let gate = gate.clone();
    let handler = move |scope: LockScope| {
        let (gate, scopes) = (gate.clone(), scopes.clone());
        async move {
            scope.lock("other").await.unwrap();
            scopes.send(scope).await.unwrap();
            gate.pass().await;
        }
    };
    (post(handler), kept)
}

#[tokio::test]
async fn a_scope_that_outlives_a_cancelled_request_keeps_no_lock_and_takes_none() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let (handler, mut kept) = giving_its_scope_away(&gate);
    let app = Router::new().route("/", handler).layer(locking(&redlock));
    let request = tokio::spawn(send(app, Request::post("/")));
    let scope = kept.recv().await.unwrap();
    gate.entered().await;
    assert!(scope.lease().is_some() && is_held(&redlock, "other").await);
    request.abort();
    gate.dropped().await;
    for key in ["k", "other"] {
        eventually(SOON, "the lock is free", async || !is_held(&redlock, key).await).await;
    }
    assert!(scope.lease().is_none());
    for key in ["k", "third"] {
        assert_eq!(scope.lock(key).await.unwrap_err().kind(), RejectionKind::Lost, "{key}");
        assert!(!is_held(&redlock, key).await);
    }
}

#[tokio::test]
async fn a_lock_that_is_acquired_while_its_request_is_cancelled_is_released() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let (handler, mut kept) = giving_its_scope_away(&gate);
    let layer = RedlockLayer::scope_only(redlock.clone()).wait(SOON);
    let app = Router::new().route("/", handler).layer(layer);
    let request = tokio::spawn(send(app, Request::post("/")));
    let scope = kept.recv().await.unwrap();
    let held = redlock.lock("z").await.unwrap();
    let late = tokio::spawn(async move { scope.lock("z").await });
    tokio::task::yield_now().await;
    request.abort();
    gate.dropped().await;
    held.release().await;
    let rejection = late.await.unwrap().unwrap_err();
    assert_eq!(rejection.kind(), RejectionKind::Lost);
    for key in ["z", "other"] {
        eventually(SOON, "the lock is free", async || !is_held(&redlock, key).await).await;
    }
}

#[tokio::test]
async fn a_detached_handler_finishes_under_the_lock_without_its_client() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let layer = locking(&redlock).on_disconnect(Disconnect::Detach);
    let detached = layer.detached();
    let app = Router::new().route("/", post(gate.handler())).layer(layer);
    let request = tokio::spawn(send(app.clone(), Request::post("/")));
    gate.entered().await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    assert_eq!(detached.len(), 1);
    assert_eq!(send(app.clone(), Request::post("/")).await.status(), StatusCode::LOCKED);

    gate.open();
    tokio::time::timeout(SOON, detached.finished()).await.expect("the handler ends");
    assert_eq!((gate.finished(), detached.is_empty()), (1, true));
    assert!(!is_held(&redlock, "k").await, "released before its task ends");
    assert_eq!(send(app, Request::post("/")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn closing_ends_detached_handlers() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let layer = locking(&redlock).on_disconnect(Disconnect::Detach);
    let detached = layer.detached();
    let app = Router::new().route("/", post(gate.handler())).layer(layer);
    let request = tokio::spawn(send(app, Request::post("/")));
    gate.entered().await;
    assert_eq!(redlock.close(SOON).await.unreleased, 0);
    gate.dropped().await;
    tokio::time::timeout(SOON, detached.finished()).await.expect("the handler ends");
    assert_eq!(request.await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_panicking_handler_frees_the_lock() {
    let redlock = Redlock::in_memory();
    async fn panics() {
        panic!("this panic is part of the test");
    }
    for policy in [Disconnect::Cancel, Disconnect::Detach] {
        let inside =
            ServiceOrder::LockInside.app(post(panics), locking(&redlock).on_disconnect(policy));
        let outside =
            ServiceOrder::LockOutside.app(post(panics), locking(&redlock).on_disconnect(policy));
        for app in [inside, outside] {
            let response = send(app, Request::post("/")).await;
            assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
            eventually(SOON, "the lock is free", async || !is_held(&redlock, "k").await).await;
        }
    }
}

enum ServiceOrder {
    LockInside,
    LockOutside,
}

impl ServiceOrder {
    fn app(&self, route: axum::routing::MethodRouter, lock: RedlockLayer) -> Router {
        let app = Router::new().route("/", route);
        match self {
            Self::LockInside => app.layer(lock).layer(CatchPanicLayer::new()),
            Self::LockOutside => app.layer(CatchPanicLayer::new()).layer(lock),
        }
    }
}

/// A handler whose response streams what the test sends.
fn streaming(hold: Hold, redlock: &Redlock) -> (Router, mpsc::Sender<Bytes>) {
    let (sender, receiver) = mpsc::channel(1);
    let receiver = std::sync::Mutex::new(Some(receiver));
    let receiver = std::sync::Arc::new(receiver);
    let handler = move || {
        let receiver: mpsc::Receiver<Bytes> = receiver.lock().unwrap().take().unwrap();
        let chunks = futures_util::stream::unfold(receiver, |mut receiver| async {
            let chunk = receiver.recv().await?;
            Some((Ok::<_, Infallible>(chunk), receiver))
        });
        async { Body::from_stream(chunks) }
    };
    let app = Router::new().route("/", post(handler)).layer(locking(redlock).hold(hold));
    (app, sender)
}

#[tokio::test]
async fn a_body_holds_the_lock_until_it_ends() {
    let redlock = Redlock::in_memory();
    let (app, sender) = streaming(Hold::Body, &redlock);
    let response = send(app, Request::post("/")).await;
    assert!(is_held(&redlock, "k").await);
    let mut body = response.into_body();
    sender.send(Bytes::from_static(b"chunk")).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "chunk");
    assert!(is_held(&redlock, "k").await);
    drop(sender);
    assert!(body.frame().await.is_none());
    eventually(SOON, "the lock is free", async || !is_held(&redlock, "k").await).await;
    drop(body);
}

#[tokio::test]
async fn a_body_that_is_dropped_frees_the_lock() {
    let redlock = Redlock::in_memory();
    let (app, _sender) = streaming(Hold::Body, &redlock);
    let response = send(app, Request::post("/")).await;
    assert!(is_held(&redlock, "k").await);
    drop(response);
    eventually(SOON, "the lock is free", async || !is_held(&redlock, "k").await).await;
}

#[tokio::test]
async fn a_scope_that_outlives_a_dropped_body_keeps_no_lock() {
    let redlock = Redlock::in_memory();
    let (scopes, mut kept) = mpsc::channel(1);
    let handler = move |scope: LockScope| {
        scopes.try_send(scope).unwrap();
        async { Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>()) }
    };
    let layer = locking(&redlock).hold(Hold::Body);
    let app = Router::new().route("/", post(handler)).layer(layer);
    let response = send(app, Request::post("/")).await;
    let scope: LockScope = kept.recv().await.unwrap();
    assert!(scope.lease().is_some());
    drop(response);
    assert!(scope.lease().is_none());
    eventually(SOON, "the lock is free", async || !is_held(&redlock, "k").await).await;
}

#[tokio::test]
async fn a_body_that_loses_its_lock_fails_instead_of_ending() {
    let redlock = Redlock::in_memory();
    let (app, _sender) = streaming(Hold::Body, &redlock);
    let response = send(app, Request::post("/")).await;
    redlock.close(Duration::ZERO).await;
    let body = tokio::time::timeout(SOON, response.into_body().collect()).await;
    let error = body.expect("an end in time").unwrap_err();
    assert!(error.to_string().contains("lock"), "{error}");
}

#[tokio::test]
async fn a_response_does_not_hold_the_lock_while_its_body_is_sent_unless_told_to() {
    let redlock = Redlock::in_memory();
    let (app, _sender) = streaming(Hold::Response, &redlock);
    let _response = send(app, Request::post("/")).await;
    assert!(!is_held(&redlock, "k").await);

    let whole =
        Router::new().route("/", post(|| async {})).layer(locking(&redlock).hold(Hold::Body));
    let _response = send(whole, Request::post("/")).await;
    eventually(SOON, "an empty body holds nothing", async || !is_held(&redlock, "k").await).await;
}

//! Services under the lock that are not always ready: limits, buffers, and services that fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::convert::Infallible;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, StatusCode};
use redlock_core::Redlock;
use redlock_tests::eventually;
use support::Gate;
use tokio::task::JoinHandle;
use tower::buffer::Buffer;
use tower::limit::ConcurrencyLimit;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_redlock::{Disconnect, Lost, RedlockLayer, RedlockService, ResponseBody, key};

const SOON: Duration = Duration::from_secs(20);

fn keyed(redlock: &Redlock) -> RedlockLayer {
    RedlockLayer::new(redlock.clone(), key::header("x-order"))
}

fn order(number: usize) -> Request<Body> {
    Request::post("/").header("x-order", number).body(Body::empty()).unwrap()
}

fn locked(number: usize) -> String {
    format!("header:x-order:{number}")
}

async fn is_held(redlock: &Redlock, number: usize) -> bool {
    redlock.inspect(&*locked(number)).await.unwrap().held
}

/// Handlers that stand at a gate, at most so many of them at once, under a lock.
macro_rules! limited {
    ($layer:expr, $limit:expr, $gate:expr) => {{
        let gate = $gate.clone();
        let handler = service_fn(move |_: Request<Body>| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        $layer.layer(ConcurrencyLimit::new(handler, $limit))
    }};
}

type Answer = Response<ResponseBody<Body>>;

fn send<S>(service: &RedlockService<S>, number: usize) -> JoinHandle<Answer>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let service = service.clone();
    tokio::spawn(async move { service.oneshot(order(number)).await.unwrap() })
}

async fn status(answer: JoinHandle<Answer>) -> StatusCode {
    tokio::time::timeout(SOON, answer).await.expect("an answer in time").unwrap().status()
}

#[tokio::test]
async fn a_request_that_waits_for_its_lock_takes_no_place_of_a_limit_under_it() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let service = limited!(keyed(&redlock).wait(SOON), 2, gate);
    let first = send(&service, 1);
    gate.entered().await;
    let waiting: Vec<_> = (0..5).map(|_| send(&service, 1)).collect();
    tokio::task::yield_now().await;
    let other = send(&service, 2);
    gate.entered().await;
    gate.open();
    for answer in waiting.into_iter().chain([first, other]) {
        assert_eq!(status(answer).await, StatusCode::OK);
    }
}

#[tokio::test]
async fn detached_handlers_count_towards_a_limit_under_the_lock() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let layer = keyed(&redlock).on_disconnect(Disconnect::Detach);
    let detached = layer.detached();
    let service = limited!(layer, 2, gate);
    for number in 0..2 {
        let request = send(&service, number);
        gate.entered().await;
        request.abort();
    }
    let waiting: Vec<_> = (2..50).map(|number| send(&service, number)).collect();
    eventually(SOON, "the last has its lock", async || is_held(&redlock, 49).await).await;
    assert_eq!(detached.len(), 2, "no other handler begins");
    for request in &waiting[1..] {
        request.abort();
    }
    eventually(SOON, "a client that is gone has no lock", async || !is_held(&redlock, 49).await)
        .await;
    gate.open();
    tokio::time::timeout(SOON, detached.finished()).await.expect("they end");
    assert_eq!(status(waiting.into_iter().next().unwrap()).await, StatusCode::OK);
    assert_eq!(gate.finished(), 3, "handlers whose client was gone before do not begin");
}

#[tokio::test]
async fn a_request_that_loses_its_lock_while_it_waits_for_a_place_is_503_and_not_handled() {
    for on_lost in [Lost::Abort, Lost::Continue] {
        let redlock = Redlock::in_memory();
        let gate = Gate::default();
        let service = limited!(keyed(&redlock).on_lost(on_lost), 1, gate);
        let running = send(&service, 1);
        gate.entered().await;
        let waiting = send(&service, 2);
        eventually(SOON, "the lock is held", async || is_held(&redlock, 2).await).await;
        redlock.close(Duration::ZERO).await;
        assert_eq!(status(waiting).await, StatusCode::SERVICE_UNAVAILABLE, "{on_lost:?}");
        gate.open();
        let _ended = status(running).await;
        assert!(gate.finished() <= 1, "{on_lost:?}");
    }
}

#[tokio::test]
async fn a_request_without_a_lock_waits_for_a_place_as_well() {
    let gate = Gate::default();
    let service = limited!(RedlockLayer::scope_only(Redlock::in_memory()), 1, gate);
    let first = send(&service, 1);
    gate.entered().await;
    let second = send(&service, 2);
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    gate.open();
    assert_eq!(status(first).await, StatusCode::OK);
    assert_eq!(status(second).await, StatusCode::OK);
}

/// Fails if it is called without having been polled ready, as a service may.
#[derive(Default)]
struct Strict {
    is_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<B> Service<Request<B>> for Strict {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if !self.is_ready {
            // Ready at the second time, to show that the first one is waited for.
            self.is_ready = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called without being ready");
        std::future::ready(Ok(Response::new(Body::empty())))
    }
}

#[tokio::test]
async fn the_inner_service_is_polled_ready_before_each_call() {
    let redlock = Redlock::in_memory();
    for policy in [Disconnect::Cancel, Disconnect::Detach] {
        for layer in [keyed(&redlock), RedlockLayer::scope_only(redlock.clone())] {
            let service = layer.on_disconnect(policy).layer(Strict::default());
            for number in 0..3 {
                assert_eq!(status(send(&service, number)).await, StatusCode::OK, "{policy:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_request_that_an_idempotency_layer_does_not_record_waits_until_the_service_is_ready() {
    use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
    let layer = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new());
    let service = layer.optional().layer(Strict::default());
    for request in [Request::get("/"), Request::post("/").header("idempotency-key", "k")] {
        let answer = service.clone().oneshot(request.body(Body::empty()).unwrap());
        let answer = tokio::time::timeout(SOON, answer).await.expect("an answer in time");
        assert_eq!(answer.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_service_that_fails_instead_of_being_ready_releases_the_lock_before_its_error() {
    #[derive(Clone)]
    struct Broken;
    impl Service<Request<Body>> for Broken {
        type Response = Response<Body>;
        type Error = &'static str;
        type Future = std::future::Pending<Result<Response<Body>, &'static str>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
            Poll::Ready(Err("broken"))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            unreachable!("it is never ready")
        }
    }
    let redlock = Redlock::in_memory();
    let outcome = keyed(&redlock).layer(Broken).oneshot(order(1)).await;
    assert_eq!(outcome.unwrap_err(), "broken");
    assert!(!is_held(&redlock, 1).await);
}

#[tokio::test]
async fn a_buffer_under_the_lock_is_full_of_work_and_not_of_requests_that_wait() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let inside = gate.clone();
    let handler = service_fn(move |_: Request<Body>| {
        let gate = inside.clone();
        async move {
            gate.pass().await;
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }
    });
    let buffer = Buffer::new(ConcurrencyLimit::new(handler, 2), 1);
    let service = keyed(&redlock).wait(SOON).layer(buffer);
    let request = |number| {
        let service = service.clone();
        tokio::spawn(async move { service.oneshot(order(number)).await.unwrap().status() })
    };
    let first = request(1);
    gate.entered().await;
    let waiting: Vec<_> = (0..5).map(|_| request(1)).collect();
    tokio::task::yield_now().await;
    let other = request(2);
    gate.entered().await;
    gate.open();
    for answer in waiting.into_iter().chain([first, other]) {
        let answer = tokio::time::timeout(SOON, answer).await.expect("an answer in time");
        assert_eq!(answer.unwrap(), StatusCode::OK);
    }
}

//! The layer under and over others, on services that are not axum's, and on tonic's server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use http::{Request, Response, StatusCode};
use redlock_core::Redlock;
use redlock_tests::eventually;
use support::{Gate, send};
use tower::buffer::BufferLayer;
use tower::limit::ConcurrencyLimitLayer;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_redlock::RedlockLayer;

const SOON: Duration = Duration::from_secs(20);

fn locking(redlock: &Redlock) -> RedlockLayer {
    RedlockLayer::new(redlock.clone(), |_: &http::request::Parts| "k")
}

fn brief() -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(100))
}

async fn is_free(redlock: &Redlock) -> bool {
    !redlock.inspect("k").await.unwrap().held
}

#[tokio::test]
async fn a_timeout_over_the_layer_drops_the_handler_and_frees_the_lock() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let stack = ServiceBuilder::new()
        .layer(TraceLayer::new_for_http())
        .layer(brief())
        .layer(locking(&redlock));
    let app = Router::new().route("/", post(gate.handler())).layer(stack);
    assert_eq!(send(app, Request::post("/")).await.status(), StatusCode::GATEWAY_TIMEOUT);
    gate.dropped().await;
    eventually(SOON, "the lock is free", async || is_free(&redlock).await).await;
}

#[tokio::test]
async fn a_timeout_under_the_layer_answers_and_the_lock_is_released() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let stack = ServiceBuilder::new()
        .layer(locking(&redlock))
        .layer(TraceLayer::new_for_http())
        .layer(brief());
    let app = Router::new().route("/", post(gate.handler())).layer(stack);
    assert_eq!(send(app, Request::post("/")).await.status(), StatusCode::GATEWAY_TIMEOUT);
    gate.dropped().await;
    assert!(is_free(&redlock).await, "released before the response");
}

#[tokio::test]
async fn a_method_router_locks_for_itself_alone() {
    let redlock = Redlock::in_memory();
    let _held = redlock.lock("k").await.unwrap();
    let locked = post(|| async {}).layer(locking(&redlock));
    let app = Router::new().route("/", get(|| async {}).merge(locked));
    assert_eq!(send(app.clone(), Request::post("/")).await.status(), StatusCode::LOCKED);
    assert_eq!(send(app, Request::get("/")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn the_service_that_was_ready_is_the_one_that_is_called() {
    let redlock = Redlock::in_memory();
    // A clone of these panics if it is called without having been polled ready.
    let echo = service_fn(|request: Request<Body>| async move {
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let mut service = ServiceBuilder::new()
        .layer(locking(&redlock).wait(SOON))
        .layer(BufferLayer::new(4))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(echo);
    for _ in 0..10 {
        let ready = service.ready().await.unwrap();
        let response = ready.call(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn an_error_of_the_inner_service_stays_what_it_is() {
    #[derive(Clone, Debug, PartialEq)]
    struct Broken;
    let redlock = Redlock::in_memory();
    let inner = service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>(Broken) });
    let outcome = locking(&redlock).layer(inner).oneshot(Request::new(Body::empty())).await;
    assert_eq!(outcome.unwrap_err(), Broken);
    assert!(is_free(&redlock).await, "released before the error");
}

/// A gRPC service as generated code would be, without the generator.
mod echo {
    use std::task::{Context, Poll};

    use super::*;

    #[derive(Clone)]
    pub(crate) struct Echo;

    impl tonic::server::NamedService for Echo {
        const NAME: &'static str = "test.Echo";
    }

    impl Service<Request<tonic::body::Body>> for Echo {
        type Response = Response<tonic::body::Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<tonic::body::Body>) -> Self::Future {
            std::future::ready(Ok(tonic::Status::already_exists("echo").into_http()))
        }
    }
}

#[tokio::test]
async fn tonic_serves_under_the_layer() {
    let redlock = Redlock::in_memory();
    // What a gRPC client understands: 200, and the status in the headers.
    let layer = locking(&redlock)
        .on_rejection(|_| tonic::Status::aborted("locked").into_http::<bytes::Bytes>());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    let serving = tonic::transport::Server::builder()
        .layer(layer)
        .add_service(echo::Echo)
        .serve_with_incoming(incoming);
    let server = tokio::spawn(serving);

    assert_eq!(grpc_status(address).await, tonic::Code::AlreadyExists as i32);
    let held = redlock.lock("k").await.unwrap();
    assert_eq!(grpc_status(address).await, tonic::Code::Aborted as i32);
    held.release().await;
    assert_eq!(grpc_status(address).await, tonic::Code::AlreadyExists as i32);
    server.abort();
}

async fn grpc_status(address: std::net::SocketAddr) -> i32 {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut client, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://{address}/test.Echo/Say"))
        .header("content-type", "application/grpc")
        .body(http_body_util::Empty::<bytes::Bytes>::new());
    let response = client.send_request(request.unwrap()).await.unwrap();
    response.headers()["grpc-status"].to_str().unwrap().parse().unwrap()
}

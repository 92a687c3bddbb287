//! What clients and servers do to connections: half-closed, pipelined, reset, upgraded, and shut
//! down while a request runs. The locks are on real Redis servers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::routing::post;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use redlock_core::Redlock;
use redlock_tests::{Fleet, eventually};
use support::{Gate, redlock_on};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tower_redlock::{Hold, LockScope, RedlockLayer, Rejection};

const SOON: Duration = Duration::from_secs(20);
const PAY: &str = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n";

fn locking(redlock: &Redlock) -> RedlockLayer {
    RedlockLayer::new(redlock.clone(), |_: &http::request::Parts| "k")
}

async fn is_held(redlock: &Redlock) -> bool {
    redlock.inspect("k").await.unwrap().held
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn serve(app: Router) -> (SocketAddr, JoinHandle<()>) {
    let (listener, address) = listen().await;
    (address, tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }))
}

async fn first_line(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let reading = async {
        while !answer.contains(&b'\n') {
            let read = client.read_buf(&mut answer).await.unwrap();
            assert!(read > 0, "closed after {}", answer.escape_ascii());
        }
    };
    tokio::time::timeout(SOON, reading).await.expect("an answer");
    String::from_utf8_lossy(&answer).lines().next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closes_its_half_is_gone_for_a_server_that_was_not_told_otherwise() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock_on(&fleet);
    let gate = Gate::default();
    let app = Router::new().route("/", post(gate.handler())).layer(locking(&redlock));
    let (address, _server) = serve(app).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(PAY.as_bytes()).await.unwrap();
    gate.entered().await;
    client.shutdown().await.unwrap();
    gate.dropped().await;
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_closed_client_is_answered_by_a_server_that_allows_it() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock_on(&fleet);
    let gate = Gate::default();
    let app = Router::new().route("/", post(gate.handler())).layer(locking(&redlock));
    let (listener, address) = listen().await;
    let serving = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut server = hyper::server::conn::http1::Builder::new();
        let service = TowerToHyperService::new(app);
        server.half_close(true).serve_connection(TokioIo::new(stream), service).await
    });
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(PAY.as_bytes()).await.unwrap();
    gate.entered().await;
    client.shutdown().await.unwrap();
    assert!(is_held(&redlock).await);
    gate.open();
    assert_eq!(first_line(&mut client).await, "HTTP/1.1 200 OK");
    assert!(!is_held(&redlock).await, "released before the answer");
    serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_behind_a_pipelined_request_goes_unnoticed_and_the_lock_stays_with_its_handler()
 {
    let fleet = Fleet::start(3).await;
    let redlock = redlock_on(&fleet);
    let gate = Gate::default();
    let app = Router::new().route("/", post(gate.handler())).layer(locking(&redlock));
    let (address, _server) = serve(app).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all([PAY, PAY].concat().as_bytes()).await.unwrap();
    gate.entered().await;
    drop(client);
    let mut other = TcpStream::connect(address).await.unwrap();
    other.write_all(PAY.as_bytes()).await.unwrap();
    assert_eq!(first_line(&mut other).await, "HTTP/1.1 423 Locked");
    gate.open();
    eventually(SOON, "the handler ends", async || gate.finished() >= 1).await;
    fleet.eventually_empty(SOON).await;
}

fn payment(address: SocketAddr) -> Request<Empty<Bytes>> {
    http::Request::post(format!("http://{address}/")).body(Empty::new()).unwrap()
}

type Http2 = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

async fn http2(address: SocketAddr) -> Http2 {
    let stream = TcpStream::connect(address).await.unwrap();
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (client, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_reset_while_its_body_is_sent_frees_the_lock() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock_on(&fleet);
    let (chunks, receiver) = mpsc::channel::<Bytes>(1);
    let receiver = std::sync::Arc::new(tokio::sync::Mutex::new(receiver));
    let handler = move || async move {
        let chunks = futures_util::stream::unfold(receiver, |receiver| async move {
            let chunk = receiver.lock().await.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(chunk), receiver))
        });
        Body::from_stream(chunks)
    };
    let app = Router::new().route("/", post(handler)).layer(locking(&redlock).hold(Hold::Body));
    let (address, _server) = serve(app).await;
    let mut client = http2(address).await;
    let response = client.send_request(payment(address)).await.unwrap();
    let mut body = response.into_body();
    chunks.send(Bytes::from_static(b"chunk")).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "chunk");
    assert!(is_held(&redlock).await);
    drop(body);
    fleet.eventually_empty(SOON).await;
    assert!(client.is_ready(), "only the stream was reset");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_reset_while_it_waits_leaves_the_line() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock_on(&fleet);
    let gate = Gate::default();
    let layer = locking(&redlock).wait(Duration::from_secs(600));
    let app = Router::new().route("/", post(gate.handler())).layer(layer);
    let (address, _server) = serve(app).await;
    let mut client = http2(address).await;
    let first = tokio::spawn(client.send_request(payment(address)));
    gate.entered().await;
    let waiting: Vec<_> =
        (0..20).map(|_| tokio::spawn(client.send_request(payment(address)))).collect();
    tokio::task::yield_now().await;
    for request in waiting {
        request.abort();
    }
    gate.open();
    assert_eq!(first.await.unwrap().unwrap().status(), StatusCode::OK);
    // The next request does not wait behind twenty whose clients are gone.
    let next = tokio::time::timeout(SOON, client.send_request(payment(address))).await;
    assert_eq!(next.expect("its turn").unwrap().status(), StatusCode::OK);
    fleet.eventually_empty(SOON).await;
}

/// Answers 101 and echoes on the connection, under a lock of its own.
async fn upgrade(
    redlock: Redlock,
    scope: LockScope,
    mut request: Request,
) -> Result<Response<Body>, Rejection> {
    assert!(scope.lease().is_some(), "the upgrade itself is locked");
    let guard = redlock.try_lock("connection").await?;
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrading.await.unwrap());
        let mut line = [0; 4];
        while stream.read_exact(&mut line).await.is_ok() {
            stream.write_all(&line).await.unwrap();
        }
        guard.release().await;
    });
    let switching = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
    let switching = switching.header("connection", "upgrade").header("upgrade", "echo");
    Ok(switching.body(Body::empty()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_frees_the_lock_with_its_101_and_the_connection_may_have_one_of_its_own() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock_on(&fleet);
    for hold in [Hold::Response, Hold::Body] {
        let own = redlock.clone();
        let handler = move |scope, request| upgrade(own, scope, request);
        let app = Router::new().route("/", post(handler)).layer(locking(&redlock).hold(hold));
        let (address, _server) = serve(app).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let request = PAY.replace("\r\n\r\n", "\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", head.escape_ascii());
        eventually(SOON, "the lock is free", async || !is_held(&redlock).await).await;

        client.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        client.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"ping");
        assert!(redlock.inspect("connection").await.unwrap().held);
        drop(client);
        fleet.eventually_empty(SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_shutdown_answers_what_runs_and_leaves_no_key() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock_on(&fleet);
    let gate = Gate::default();
    let app = Router::new().route("/", post(gate.handler())).layer(locking(&redlock));
    let (listener, address) = listen().await;
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(listener, app)
        .with_graceful_shutdown(async { stopped.await.unwrap_or_default() });
    let server = tokio::spawn(serving.into_future());
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(PAY.as_bytes()).await.unwrap();
    gate.entered().await;
    stop.send(()).unwrap();
    eventually(SOON, "new ones are turned away", async || {
        TcpStream::connect(address).await.is_err()
    })
    .await;
    assert!(is_held(&redlock).await, "the one that runs keeps its lock");
    gate.open();
    assert_eq!(first_line(&mut client).await, "HTTP/1.1 200 OK");
    server.await.unwrap().unwrap();
    let closed = redlock.close(SOON).await;
    assert_eq!(closed.unreleased, 0);
    fleet.eventually_empty(SOON).await;
}

//! The layer behind real sockets, with its locks on real Redis servers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::post;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use redlock_core::{Config, Redlock};
use redlock_tests::{Fleet, Proxy, eventually};
use support::{Gate, redlock_on};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tower_redlock::{Disconnect, RedlockLayer, key};

const SOON: Duration = Duration::from_secs(20);

fn locking(redlock: Redlock) -> RedlockLayer {
    RedlockLayer::new(redlock, key::header("idempotency-key"))
}

async fn serve(app: Router) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }))
}

/// A connection of a client; aborting its task closes the socket.
async fn http1(address: SocketAddr) -> (http1::SendRequest<Empty<Bytes>>, JoinHandle<()>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    (client, tokio::spawn(async move { connection.await.unwrap_or_default() }))
}

async fn http2(address: SocketAddr) -> (http2::SendRequest<Empty<Bytes>>, JoinHandle<()>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (client, connection) = shaken.await.unwrap();
    (client, tokio::spawn(async move { connection.await.unwrap_or_default() }))
}

fn payment(address: SocketAddr, key: &str) -> Request<Empty<Bytes>> {
    let request = Request::post(format!("http://{address}/")).header("host", "localhost");
    request.header("idempotency-key", key).body(Empty::new()).unwrap()
}

async fn finish(response: Response<Incoming>) -> StatusCode {
    let status = response.status();
    response.into_body().collect().await.unwrap();
    status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_sequence_never_meets_its_own_lock() {
    let fleet = Fleet::start(3).await;
    for policy in [Disconnect::Cancel, Disconnect::Detach] {
        // Two processes' worth of lock: what one releases the other must find free.
        let mut clients = Vec::new();
        for _ in 0..2 {
            let layer = locking(redlock_on(&fleet)).on_disconnect(policy);
            let (address, _) =
                serve(Router::new().route("/", post(|| async {})).layer(layer)).await;
            clients.push((address, http1(address).await.0));
        }
        for turn in 0..1_000 {
            let (address, client) = &mut clients[turn / 3 % 2];
            client.ready().await.unwrap();
            let response = client.send_request(payment(*address, "k")).await.unwrap();
            assert_eq!(finish(response).await, StatusCode::OK, "request {turn}");
        }
    }
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_drops_the_handler_and_leaves_no_key() {
    let fleet = Fleet::start(3).await;
    let gate = Gate::default();
    let app = Router::new().route("/", post(gate.handler())).layer(locking(redlock_on(&fleet)));
    let (address, _server) = serve(app).await;

    let (mut client, connection) = http1(address).await;
    let waiting = tokio::spawn(client.send_request(payment(address, "one")));
    gate.entered().await;
    assert!(fleet.total_keys().await >= 2);
    connection.abort();
    gate.dropped().await;
    assert!(waiting.await.unwrap().is_err());
    fleet.eventually_empty(SOON).await;

    // HTTP/2: only the stream is reset, the connection goes on.
    let (mut client, _connection) = http2(address).await;
    let waiting = tokio::spawn(client.send_request(payment(address, "two")));
    gate.entered().await;
    waiting.abort();
    gate.dropped().await;
    fleet.eventually_empty(SOON).await;
    gate.open();
    let response = client.send_request(payment(address, "two")).await.unwrap();
    assert_eq!(finish(response).await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_detached_handler_survives_both_kinds_of_disconnect() {
    let fleet = Fleet::start(3).await;
    let gate = Gate::default();
    let layer = locking(redlock_on(&fleet)).on_disconnect(Disconnect::Detach);
    let detached = layer.detached();
    let (address, server) =
        serve(Router::new().route("/", post(gate.handler())).layer(layer)).await;

    let (mut client, connection) = http1(address).await;
    let first = tokio::spawn(client.send_request(payment(address, "one")));
    gate.entered().await;
    connection.abort();
    assert!(first.await.unwrap().is_err());

    let proxy = Proxy::start(address.port()).await;
    let (mut client, _connection) = http2(([127, 0, 0, 1], proxy.port()).into()).await;
    let second = tokio::spawn(client.send_request(payment(address, "two")));
    gate.entered().await;
    proxy.cut().await;
    assert!(second.await.unwrap().is_err());

    let (mut client, _connection) = http1(address).await;
    let again = client.send_request(payment(address, "one")).await.unwrap();
    assert_eq!(finish(again).await, StatusCode::LOCKED, "still running, still locked");

    server.abort();
    gate.open();
    tokio::time::timeout(SOON, detached.finished()).await.expect("the handlers end");
    assert_eq!(gate.finished(), 2);
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panicking_handler_leaves_no_key() {
    let fleet = Fleet::start(3).await;
    async fn panics() {
        panic!("this panic is part of the test");
    }
    for policy in [Disconnect::Cancel, Disconnect::Detach] {
        let layer = locking(redlock_on(&fleet)).on_disconnect(policy);
        let (address, _server) = serve(Router::new().route("/", post(panics)).layer(layer)).await;
        let (mut client, _connection) = http1(address).await;
        assert!(client.send_request(payment(address, "k")).await.is_err(), "the connection ends");
        fleet.eventually_empty(SOON).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_instance_is_told_423_and_for_how_long() {
    let fleet = Fleet::start(3).await;
    let gate = Gate::default();
    let (first, _server) =
        serve(Router::new().route("/", post(gate.handler())).layer(locking(redlock_on(&fleet))))
            .await;
    let (second, _server) =
        serve(Router::new().route("/", post(|| async {})).layer(locking(redlock_on(&fleet)))).await;
    let (mut one, _connection) = http1(first).await;
    let (mut two, _connection) = http1(second).await;
    let running = tokio::spawn(one.send_request(payment(first, "k")));
    gate.entered().await;
    let refused = two.send_request(payment(second, "k")).await.unwrap();
    assert_eq!(refused.status(), StatusCode::LOCKED);
    let pause: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=10).contains(&pause), "{pause}");
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(!String::from_utf8_lossy(&body).contains("127.0.0.1"), "no address of a server");
    gate.open();
    assert_eq!(finish(running.await.unwrap().unwrap()).await, StatusCode::OK);
    two.ready().await.unwrap();
    let response = two.send_request(payment(second, "k")).await.unwrap();
    assert_eq!(finish(response).await, StatusCode::OK);
}

/// Servers that were never used may have forgotten locks, for all that anybody knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_in_quarantine_are_503_and_retry_after_is_when_they_vote() {
    let fleet = Fleet::start(3).await;
    let config = Config::servers(fleet.urls())
        .ttl(Duration::from_secs(6))
        .node_deadline(Duration::from_millis(400));
    let redlock = Redlock::new(config.build().unwrap());
    let app = Router::new().route("/", post(|| async {})).layer(locking(redlock));
    let (address, _server) = serve(app).await;
    let (mut client, _connection) = http1(address).await;
    let mut pay = async || {
        client.ready().await.unwrap();
        client.send_request(payment(address, "k")).await.unwrap()
    };

    let (told, after) = eventually(SOON, "the servers to be connected to", async || {
        let (told, refused) = (Instant::now(), pay().await);
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let after: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        finish(refused).await;
        // Those that are not connected yet are tried again within a second.
        (after > 1).then_some((told, Duration::from_secs(after)))
    })
    .await;
    eventually(SOON, "the servers to vote", async || finish(pay().await).await == StatusCode::OK)
        .await;
    let (waited, second) = (told.elapsed(), Duration::from_secs(1));
    assert!(after <= waited + second && waited <= after + second, "{after:?}, not {waited:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_it_is_503_and_works_again_when_the_servers_are_back() {
    let fleet = Fleet::start(3).await;
    let app = Router::new().route("/", post(|| async {})).layer(locking(redlock_on(&fleet)));
    let (address, _server) = serve(app).await;
    let (mut client, _connection) = http1(address).await;
    let mut pay = async || {
        client.ready().await.unwrap();
        client.send_request(payment(address, "k")).await.unwrap()
    };
    assert_eq!(finish(pay().await).await, StatusCode::OK);

    fleet.kill(0);
    fleet.kill(1);
    let refused = pay().await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.headers()["content-type"], "application/problem+json");
    finish(refused).await;

    fleet.restart(0).await;
    fleet.restart(1).await;
    eventually(SOON, "requests are served again", async || {
        finish(pay().await).await == StatusCode::OK
    })
    .await;
}

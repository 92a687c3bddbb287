//! Bodies that are slow, large or broken, in front of a lock.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::routing::post;
use axum::{Json, Router};
use futures_util::{Stream, stream};
use http::{HeaderMap, Request, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, StreamBody};
use redlock_core::{Key, Redlock};
use redlock_tests::eventually;
use serde::Deserialize;
use support::{problem, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tower::limit::ConcurrencyLimit;
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tower_redlock::{LockResource, Locked, ReadBodyLayer, RedlockLayer, WholeBody, key};

const SOON: Duration = Duration::from_secs(20);
const WITHIN: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
struct AccountId(String);

impl LockResource for AccountId {
    fn lock_key(&self) -> Key {
        Key::hashed(format!("account:{}", self.0))
    }
}

/// A handler that locks the account of its path, and reads its body after that.
async fn deposit(_: Locked<Path<AccountId>>, amount: Json<u64>) -> String {
    amount.to_string()
}

/// One byte every four seconds, as a client may send them for ever.
fn trickle() -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        Some((Ok(Bytes::from_static(b"1")), ()))
    })
}

fn to_account(body: Body) -> Request<Body> {
    Request::post("/accounts/7").header("content-type", "application/json").body(body).unwrap()
}

/// Services in which a slow body would keep the account 7.
fn services(redlock: &Redlock) -> [Router; 2] {
    let read = || ReadBodyLayer::new(100, WITHIN);
    let keyed = RedlockLayer::new(redlock.clone(), |_: &http::request::Parts| "account:7");
    let by_layer = post(|amount: Json<u64>| async move { amount.to_string() });
    [
        Router::new()
            .route("/accounts/{id}", by_layer)
            .layer(ServiceBuilder::new().layer(read()).layer(keyed)),
        Router::new()
            .route("/accounts/{id}", post(deposit))
            .layer(RedlockLayer::scope_only(redlock.clone()))
            .layer(read()),
    ]
}

#[tokio::test(start_paused = true)]
async fn a_body_that_trickles_in_holds_no_lock_and_is_408_in_the_end() {
    let redlock = Redlock::in_memory();
    for app in services(&redlock) {
        let start = Instant::now();
        let slow = tokio::spawn(app.clone().oneshot(to_account(Body::from_stream(trickle()))));
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert!(!redlock.inspect("account:7").await.unwrap().held);
            let quick = app.clone().oneshot(to_account(Body::from("5"))).await.unwrap();
            assert_eq!((quick.status(), &*text(quick).await), (StatusCode::OK, "5"));
        }
        let refused = slow.await.unwrap().unwrap();
        assert_eq!(refused.status(), StatusCode::REQUEST_TIMEOUT);
        assert!((WITHIN..2 * WITHIN).contains(&start.elapsed()), "{:?}", start.elapsed());
        let body = problem(refused).await;
        assert_eq!(body["type"], "https://docs.rs/tower-redlock/#bad-body");
        assert_eq!(body["detail"], "the body of the request did not arrive within 10s");
    }
}

#[tokio::test]
async fn a_body_is_read_whole_and_up_to_the_limit() {
    let echo = post(|body: Bytes| async { body });
    let app = Router::new().route("/", echo).layer(ReadBodyLayer::new(8, SOON));
    for (body, expected) in [
        (Body::empty(), Ok("")),
        (Body::from("12345678"), Ok("12345678")),
        (pieces(&["1234", "", "5678"]), Ok("12345678")),
        (Body::from("123456789"), Err(StatusCode::PAYLOAD_TOO_LARGE)),
        (pieces(&["1234", "56789"]), Err(StatusCode::PAYLOAD_TOO_LARGE)),
    ] {
        let response = app.clone().oneshot(Request::post("/").body(body).unwrap()).await.unwrap();
        match expected {
            Ok(echoed) => assert_eq!(text(response).await, echoed),
            Err(status) => {
                assert_eq!(response.status(), status);
                let detail = problem(response).await["detail"].to_string();
                assert!(detail.contains("more than 8 bytes"), "{detail}");
            }
        }
    }
}

fn pieces(pieces: &'static [&'static str]) -> Body {
    let pieces = pieces.iter().map(|piece| Ok::<_, Infallible>(Bytes::from(*piece)));
    Body::from_stream(stream::iter(pieces))
}

#[tokio::test]
async fn a_body_that_says_that_it_is_too_large_is_not_read() {
    let inner = service_fn(|_: Request<Body>| async {
        Ok::<_, Infallible>(http::Response::new(Body::empty()))
    });
    let service = ReadBodyLayer::new(8, SOON).layer(inner);
    let response = service.oneshot(Request::new(Unreadable)).await.unwrap();
    assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
}

/// Says that it has nine bytes.
struct Unreadable;

impl http_body::Body for Unreadable {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("it is not to be read")
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(9)
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_400_and_nothing_is_locked() {
    let redlock = Redlock::in_memory();
    let _held = redlock.lock("account:7").await.unwrap();
    for app in services(&redlock) {
        let broken = stream::iter([Ok(Bytes::from_static(b"1")), Err("reset")]);
        let response = app.oneshot(to_account(Body::from_stream(broken))).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        assert_eq!(problem(response).await["type"], "https://docs.rs/tower-redlock/#bad-body");
    }
}

#[tokio::test]
async fn trailers_of_a_request_arrive_with_its_body() {
    let echo = service_fn(|request: Request<WholeBody>| async {
        let collected = request.into_body().collect().await.unwrap();
        let digest = collected.trailers().map(|trailers| trailers["digest"].clone());
        let mut response = http::Response::new(Full::new(collected.to_bytes()));
        response.headers_mut().insert("digest", digest.unwrap());
        Ok::<_, Infallible>(response)
    });
    let service = ReadBodyLayer::with_body(100, SOON, |body| body).layer(echo);
    let trailers = HeaderMap::from_iter([("digest".parse().unwrap(), "abc".parse().unwrap())]);
    let frames = [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
    let response = service.oneshot(Request::new(body)).await.unwrap();
    assert_eq!(response.headers()["digest"], "abc");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
}

#[tokio::test]
async fn a_body_with_trailers_has_no_exact_length_and_one_without_has() {
    for (trailers, exact) in [(Vec::new(), Some(4)), (vec![("digest", "abc")], None)] {
        let trailers: HeaderMap = trailers
            .into_iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let is_last = trailers.is_empty();
        let mut frames = vec![Frame::data(Bytes::from_static(b"body"))];
        frames.extend(Some(trailers).filter(|trailers| !trailers.is_empty()).map(Frame::trailers));
        let check = service_fn(move |request: Request<WholeBody>| async move {
            let mut body = request.into_body();
            let hint = http_body::Body::size_hint(&body);
            assert_eq!((hint.lower(), hint.exact()), (4, exact));
            assert!(body.frame().await.unwrap().unwrap().is_data());
            assert_eq!(http_body::Body::is_end_stream(&body), is_last);
            assert_eq!(body.collect().await.unwrap().trailers().is_none(), is_last);
            Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::new())))
        });
        let service = ReadBodyLayer::with_body(100, SOON, |body| body).layer(check);
        let body = StreamBody::new(stream::iter(frames.into_iter().map(Ok::<_, Infallible>)));
        service.oneshot(Request::new(body)).await.unwrap();
    }
}

#[tokio::test]
async fn a_slow_body_takes_no_place_of_a_limit_under_the_layer() {
    let handler = service_fn(|_: Request<Body>| async {
        Ok::<_, Infallible>(http::Response::new(Body::empty()))
    });
    let service = ReadBodyLayer::new(100, SOON).layer(ConcurrencyLimit::new(handler, 1));
    let (sender, mut receiver) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let body = Body::from_stream(stream::poll_fn(move |cx| receiver.poll_recv(cx)));
    let slow = tokio::spawn(service.clone().oneshot(Request::new(body)));
    sender.send(Ok(Bytes::from_static(b"1"))).await.unwrap();
    let quick = service.oneshot(Request::new(Body::empty())).await.unwrap();
    assert_eq!(quick.status(), StatusCode::OK);
    drop(sender);
    assert_eq!(slow.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_whose_body_does_not_arrive_is_answered_408_and_leaves_nothing() {
    let redlock = Redlock::in_memory();
    let lock = RedlockLayer::new(redlock.clone(), key::path());
    let read = ReadBodyLayer::new(100, Duration::from_millis(200));
    let app = Router::new()
        .route("/", post(|body: String| async { body }))
        .layer(ServiceBuilder::new().layer(read).layer(lock));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });

    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n1").await.unwrap();
    let mut answer = [0; 12];
    tokio::time::timeout(SOON, client.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
    let rest = tokio::time::timeout(SOON, client.read_to_end(&mut Vec::new())).await;
    assert!(rest.is_ok(), "the connection is closed, as the rest of the body was not read");

    let mut gone = TcpStream::connect(address).await.unwrap();
    gone.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n1").await.unwrap();
    drop(gone);
    eventually(SOON, "nothing is locked", async || !redlock.inspect("path:/").await.unwrap().held)
        .await;
    server.abort();
}

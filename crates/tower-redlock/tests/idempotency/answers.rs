//! Which answers are recorded in full: those that end within the bounds, with their trailers.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::Response;
use axum::routing::any;
use futures_util::{FutureExt, Stream, StreamExt, stream};
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tower_http::catch_panic::CatchPanicLayer;

use crate::support::text;
use crate::{Store, is_replayed, keyed, once, send};

fn app<S>(
    max: usize,
    frames: impl Fn() -> S + Clone + Send + Sync + 'static,
) -> (Router, Arc<AtomicUsize>)
where
    S: Stream<Item = Result<Frame<Bytes>, io::Error>> + Send + 'static,
{
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let handler = move || async move {
        count.fetch_add(1, Ordering::SeqCst);
        (StatusCode::CREATED, Body::new(StreamBody::new(frames())))
    };
    let layer = once(&Store::default()).max_response_body(max);
    (Router::new().route("/", any(handler)).layer(layer), done)
}

fn data(bytes: &'static str) -> Result<Frame<Bytes>, io::Error> {
    Ok(Frame::data(Bytes::from_static(bytes.as_bytes())))
}

fn trailers() -> Result<Frame<Bytes>, io::Error> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    trailers.insert("x-csrf-token", "secret".parse().unwrap());
    Ok(Frame::trailers(trailers))
}

#[tokio::test]
async fn an_answer_of_unknown_length_is_recorded_up_to_the_bound() {
    let (app, done) = app(3, || stream::iter([data("1"), data(""), data("23")]));
    for replayed in [false, true] {
        let answer = send(&app, keyed("k"), "").await;
        assert_eq!((answer.status(), is_replayed(&answer)), (StatusCode::CREATED, replayed));
        assert_eq!(text(answer).await, "123");
    }
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_of_unknown_length_that_is_too_large_is_sent_in_full() {
    let (app, _) =
        app(3, || stream::iter([data("1"), data("23"), data("4"), data("5"), trailers()]));
    let read = send(&app, keyed("k"), "").await.into_body().collect().await.unwrap();
    assert_eq!(read.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(read.to_bytes(), "12345");
    assert_eq!(send(&app, keyed("k"), "").await.status(), StatusCode::GONE);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_end_is_sent_as_it_comes() {
    let (app, done) = app(1000, || stream::iter([data("event")]).chain(stream::pending()));
    let mut endless = send(&app, keyed("k"), "").await.into_body();
    let event = tokio::time::timeout(Duration::from_secs(1), endless.frame()).await;
    assert_eq!(event.unwrap().unwrap().unwrap().into_data().unwrap(), "event");
    assert_eq!(send(&app, keyed("k"), "").await.status(), StatusCode::GONE);
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn trailers_are_recorded_but_not_the_credentials_in_them() {
    for frames in [vec!["data"], vec![]] {
        let frames = move || {
            stream::iter(
                frames.clone().into_iter().map(data).chain([trailers()]).collect::<Vec<_>>(),
            )
        };
        let (app, _) = app(10, frames);
        let read = async |response: Response| {
            let read = response.into_body().collect().await.unwrap();
            (read.trailers().cloned().unwrap(), read.to_bytes())
        };
        let (first, sent) = read(send(&app, keyed("k"), "").await).await;
        let answer = send(&app, keyed("k"), "").await;
        assert!(is_replayed(&answer));
        let (again, replayed) = read(answer).await;
        assert_eq!(sent, replayed);
        assert_eq!((first["grpc-status"] == "0", again["grpc-status"] == "0"), (true, true));
        assert!(first.contains_key("x-csrf-token") && !again.contains_key("x-csrf-token"));
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_kept_and_not_tried_again() {
    let (app, done) = app(10, || stream::iter([data("1"), Err(io::Error::other("cut"))]));
    for _ in 0..2 {
        assert_eq!(send(&app, keyed("k"), "").await.status(), StatusCode::GONE);
    }
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_answer_whose_body_panics_is_not_tried_again() {
    let (app, done) = app(10, || stream::once(async { panic!("this panic is part of the test") }));
    let app = app.layer(CatchPanicLayer::new());
    assert_eq!(send(&app, keyed("k"), "").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(send(&app, keyed("k"), "").await.status(), StatusCode::GONE);
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn trailers_of_a_recorded_answer_are_sent_over_http_1_and_http_2() {
    let handler = || async {
        let frames = stream::iter([data("data"), trailers()]);
        ([("trailer", "grpc-status")], Body::new(StreamBody::new(frames)))
    };
    let app = Router::new().route("/", any(handler)).layer(once(&Store::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, app).await });
    let connect = async || TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut one, connection) = http1::handshake(connect().await).await.unwrap();
    let connections = [tokio::spawn(connection.map(drop))];
    let (mut two, connection) =
        http2::handshake(TokioExecutor::new(), connect().await).await.unwrap();
    let connections = connections.into_iter().chain([tokio::spawn(connection.map(drop))]);
    for round in 0..4 {
        let request = http::Request::post(format!("http://{address}/"))
            .header("host", "localhost")
            .header("te", "trailers")
            .header("idempotency-key", "k")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let answer = match round % 2 {
            0 => one.send_request(request).await.unwrap(),
            _ => two.send_request(request).await.unwrap(),
        };
        assert_eq!(answer.headers().contains_key("idempotent-replayed"), round > 0);
        let read = answer.into_body().collect().await.unwrap();
        let status = read.trailers().map(|trailers| trailers["grpc-status"].clone());
        assert_eq!(status.as_ref().map(|status| status.as_bytes()), Some(&b"0"[..]), "{round}");
        assert_eq!(read.to_bytes(), "data");
    }
    connections.for_each(|connection| connection.abort());
    server.abort();
}

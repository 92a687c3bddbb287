//! Bodies that are sent under the lock: every way in which one may end.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use redlock_core::Redlock;
use redlock_tests::eventually;
use tower::{Layer, ServiceExt, service_fn};
use tower_redlock::{Hold, RedlockLayer, ResponseBody};

const SOON: Duration = Duration::from_secs(20);

async fn is_free(redlock: &Redlock) -> bool {
    !redlock.inspect("k").await.unwrap().held
}

/// The body as it comes through a layer that holds the lock for it.
async fn under_lock<B>(redlock: &Redlock, body: B) -> ResponseBody<B>
where
    B: Body<Data = Bytes> + Clone + Send + Sync + 'static,
{
    let handler = service_fn(move |_: Request<()>| {
        let body = body.clone();
        async { Ok::<_, Infallible>(Response::new(body)) }
    });
    let layer = RedlockLayer::new(redlock.clone(), |_: &http::request::Parts| "k");
    layer.hold(Hold::Body).layer(handler).oneshot(Request::new(())).await.unwrap().into_body()
}

type Frames = Vec<Result<Frame<Bytes>, std::io::ErrorKind>>;

/// A body of these frames, which does not know when the last one comes.
#[derive(Clone)]
struct Streamed(fn() -> Frames, usize);

impl Body for Streamed {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let frame = (self.0)().into_iter().nth(self.1);
        self.1 += 1;
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }
}

/// A body of two bytes, which knows that it is at its end.
#[derive(Clone)]
struct Counted(u64);

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 -= 1;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"x")))))
    }

    fn is_end_stream(&self) -> bool {
        self.0 == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

#[tokio::test]
async fn a_body_that_knows_its_end_frees_the_lock_with_its_last_frame() {
    let redlock = Redlock::in_memory();
    let mut body = under_lock(&redlock, Counted(2)).await;
    assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(2), false));
    body.frame().await.unwrap().unwrap();
    assert!(!is_free(&redlock).await);
    body.frame().await.unwrap().unwrap();
    // Nobody polls it again, as hyper does not.
    eventually(SOON, "the lock is free", async || is_free(&redlock).await).await;
    assert!(body.is_end_stream());
}

#[tokio::test]
async fn a_body_that_fails_frees_the_lock_and_its_error_is_passed_on() {
    let redlock = Redlock::in_memory();
    let frames = || vec![Ok(Frame::data(Bytes::new())), Err(std::io::ErrorKind::BrokenPipe)];
    let mut body = under_lock(&redlock, Streamed(frames, 0)).await;
    body.frame().await.unwrap().unwrap();
    assert!(!is_free(&redlock).await);
    let error = body.frame().await.unwrap().unwrap_err();
    let error: &std::io::Error = error.downcast_ref().expect("the error of the handler's body");
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    eventually(SOON, "the lock is free", async || is_free(&redlock).await).await;
}

#[tokio::test]
async fn trailers_are_sent_under_the_lock() {
    let redlock = Redlock::in_memory();
    let frames = || {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        vec![Ok(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(trailers))]
    };
    let mut body = under_lock(&redlock, Streamed(frames, 0)).await;
    body.frame().await.unwrap().unwrap();
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
    assert!(!is_free(&redlock).await, "it may have more to say");
    assert!(body.frame().await.is_none());
    eventually(SOON, "the lock is free", async || is_free(&redlock).await).await;
}

#[tokio::test]
async fn an_empty_body_holds_nothing() {
    let redlock = Redlock::in_memory();
    let _body = under_lock(&redlock, Counted(0)).await;
    eventually(SOON, "the lock is free", async || is_free(&redlock).await).await;
}

/// The reader takes a frame now and then: the lock is renewed, until `max_hold` is over.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_keeps_the_lock_for_as_long_as_max_hold_and_no_longer() {
    let redlock = Redlock::in_memory();
    let handler = service_fn(|_: Request<()>| async {
        let endless = futures_util::stream::repeat_with(|| {
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")))
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(endless)))
    });
    let layer = RedlockLayer::new(redlock.clone(), |_: &http::request::Parts| "k");
    let layer = layer.hold(Hold::Body).max_hold(Duration::from_secs(60));
    let start = tokio::time::Instant::now();
    let response = layer.layer(handler).oneshot(Request::new(())).await.unwrap();
    let mut body = response.into_body();
    let error = loop {
        match body.frame().await.unwrap() {
            Ok(_) => assert!(!is_free(&redlock).await),
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(start.elapsed() < Duration::from_secs(600), "it is held for ever");
    };
    assert!(error.is::<tower_redlock::LockLost>(), "{error}");
    let held = start.elapsed().as_secs();
    assert!((60..=70).contains(&held), "{held} s");
    assert!(is_free(&redlock).await);
}

//! The layer that reads the body of a request before anything is locked.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::timeout;
use tower_layer::Layer;
use tower_service::Service;

use crate::body::ResponseBody;
use crate::outage::Outage;
use crate::rejection::{Rejection, Render};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Reads the body of a request, bounded in size and time, before it calls the inner service.
///
/// A client may send a body as slowly as it likes. A handler that reads it under a lock holds the lock
/// for as long. This layer goes over a [`RedlockLayer`](crate::RedlockLayer), so that the lock is
/// acquired when the body is in memory. It does the same for `Locked<Path<_>>` beside a body.
///
/// ```
/// use std::time::Duration;
///
/// use axum::{Router, body::Body, routing::post};
/// use http::{Request, StatusCode};
/// use redlock_core::Redlock;
/// use tower::{ServiceBuilder, ServiceExt};
/// use tower_redlock::{ReadBodyLayer, RedlockLayer, key};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stack = ServiceBuilder::new()
///     .layer(ReadBodyLayer::new(16, Duration::from_secs(10)))
///     .layer(RedlockLayer::new(Redlock::in_memory(), key::path()));
/// let app: Router = Router::new()
///     .route("/accounts/{id}", post(async |body: String| body))
///     .layer(stack);
///
/// for (body, status) in [("short", StatusCode::OK), ("17 bytes are more", StatusCode::PAYLOAD_TOO_LARGE)] {
///     let request = Request::post("/accounts/7").body(Body::from(body))?;
///     assert_eq!(app.clone().oneshot(request).await?.status(), status);
/// }
/// # Ok(()) }
/// ```
///
/// | the body | answer |
/// |---|---|
/// | has more bytes than the limit | 413, without reading it if its length is known |
/// | is not complete in time | 408 |
/// | breaks off | 400 |
///
/// Nothing was locked then, and the inner service is not called. Its type is `bad-body`. Trailers are
/// kept. The memory of a request is bounded by the size, so that of the service by the number of
/// its connections.
#[derive(Clone)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct ReadBodyLayer<F> {
    settings: Settings<F>,
}

#[derive(Clone)]
struct Settings<F> {
    max_bytes: usize,
    within: Duration,
    into_body: F,
    render: Option<Render>,
}

#[cfg(feature = "axum")]
impl ReadBodyLayer<fn(WholeBody) -> axum::body::Body> {
    /// Reads bodies of at most `max_bytes`, each within this time from when the request comes in, for
    /// services that take axum's bodies.
    pub fn new(max_bytes: usize, within: Duration) -> Self {
        Self::with_body(max_bytes, within, axum::body::Body::new)
    }
}

impl<F> ReadBodyLayer<F> {
    /// As [`new`](ReadBodyLayer::new), for services that take another type of body.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use http_body_util::combinators::BoxBody;
    /// use tower_redlock::ReadBodyLayer;
    ///
    /// ReadBodyLayer::with_body(64 * 1024, Duration::from_secs(10), BoxBody::new);
    /// ```
    pub fn with_body<B>(max_bytes: usize, within: Duration, into_body: F) -> Self
    where
        F: Fn(WholeBody) -> B,
    {
        Self { settings: Settings { max_bytes, within, into_body, render: None } }
    }

    /// Makes the response of a request that is refused. Default: [`Rejection::to_problem`].
    pub fn on_rejection<R, B>(mut self, render: R) -> Self
    where
        R: Fn(&Rejection) -> Response<B> + Send + Sync + 'static,
        B: Into<Bytes>,
    {
        self.settings.render = Some(Arc::new(move |rejection| render(rejection).map(Into::into)));
        self
    }
}

impl<S, F: Clone> Layer<S> for ReadBodyLayer<F> {
    type Service = ReadBodyService<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        ReadBodyService { inner, settings: self.settings.clone() }
    }
}

impl<F> fmt::Debug for ReadBodyLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadBodyLayer")
            .field("max_bytes", &self.settings.max_bytes)
            .field("within", &self.settings.within)
            .finish_non_exhaustive()
    }
}

/// A service that calls the inner one with a body that is complete. Made by [`ReadBodyLayer`].
///
/// It is always ready. The readiness of the inner service is awaited when the body is read, so that a
/// slow body takes no place of a limit of concurrency under it.
#[derive(Clone)]
pub struct ReadBodyService<S, F> {
    inner: S,
    settings: Settings<F>,
}

impl<S, F, In, Out, ResBody> Service<Request<In>> for ReadBodyService<S, F>
where
    S: Service<Request<Out>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    F: Fn(WholeBody) -> Out + Clone + Send + 'static,
    In: Body<Data: Send, Error: Into<BoxError>> + Send + 'static,
    Out: Send,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let Self { mut inner, settings } = self.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = match read(body, settings.max_bytes, settings.within).await {
                Ok(body) => (settings.into_body)(body),
                Err(rejection) => {
                    let rejection = rejection.rendered_by(settings.render.as_ref());
                    let rejection = rejection.logged(&Outage::default());
                    return Ok(rejection.into_bytes().map(ResponseBody::whole));
                }
            };
            poll_fn(|cx| inner.poll_ready(cx)).await?;
            let response = inner.call(Request::from_parts(parts, body)).await?;
            Ok(response.map(ResponseBody::inner))
        })
    }
}

impl<S: fmt::Debug, F> fmt::Debug for ReadBodyService<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadBodyService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// Reads a whole body, bounded in size and time. A body that is in memory is never late.
pub(crate) async fn read<B>(
    body: B,
    max_bytes: usize,
    within: Duration,
) -> Result<WholeBody, Rejection>
where
    B: Body<Error: Into<BoxError>>,
{
    let read = timeout(within, read_all(body, max_bytes)).await;
    read.unwrap_or_else(|_| Err(Rejection::slow_body(within)))
}

async fn read_all<B>(body: B, max_bytes: usize) -> Result<WholeBody, Rejection>
where
    B: Body<Error: Into<BoxError>>,
{
    let too_large = || Err(Rejection::body_too_large(max_bytes));
    if body.size_hint().lower() > max_bytes as u64 {
        return too_large();
    }
    // Copied into one piece: a frame of one byte would keep the whole buffer that it came in.
    let mut bytes = BytesMut::new();
    let mut trailers = None;
    let mut body = pin!(body);
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| Rejection::broken_body(error.into()))?.into_data() {
            Ok(data) if data.remaining() > max_bytes - bytes.len() => return too_large(),
            Ok(data) => bytes.put(data),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok(WholeBody { bytes: Some(bytes.freeze()).filter(|bytes| !bytes.is_empty()), trailers })
}

/// The body of a request that is in memory, with its trailers.
#[derive(Clone, Debug, Default)]
pub struct WholeBody {
    bytes: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

impl WholeBody {
    pub(crate) fn into_parts(self) -> (Bytes, HeaderMap) {
        (self.bytes.unwrap_or_default(), self.trailers.unwrap_or_default())
    }
}

impl Body for WholeBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.bytes.take().map(Frame::data);
        let frame = data.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let mut hint = SizeHint::with_exact(length);
        if self.trailers.is_some() {
            // With an exact length, HTTP/1 sends `Content-Length` and drops the trailers.
            hint = SizeHint::default();
            hint.set_lower(length);
        }
        hint
    }
}

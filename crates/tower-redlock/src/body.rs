//! The body of a response: the handler's, a whole one of our own, or one under a lock.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use redlock_core::LostReason;

use crate::scope::ScopeOwner;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pin_project! {
    /// The body of a response that went through [`RedlockLayer`](crate::RedlockLayer).
    ///
    /// It fails as the handler's body does, and with [`LockLost`] if it is sent under a lock
    /// ([`Hold::Body`](crate::Hold::Body)) that is lost before its end.
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Whole { bytes: Option<Bytes> },
        Inner {
            // Before the lock: it is released when the body is gone.
            #[pin]
            body: B,
            held: Option<HeldBody>,
        },
    }
}

/// What a body holds until it ends.
struct HeldBody {
    lost: Option<BoxFuture<LostReason>>,
    _owner: ScopeOwner,
}

impl<B> ResponseBody<B> {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self { kind: Kind::Whole { bytes: Some(bytes).filter(|bytes| !bytes.is_empty()) } }
    }

    pub(crate) fn inner(body: B) -> Self {
        Self { kind: Kind::Inner { body, held: None } }
    }

    pub(crate) fn held(body: B, owner: ScopeOwner, lost: Option<BoxFuture<LostReason>>) -> Self
    where
        B: Body,
    {
        // Nobody polls a body that is at its end.
        let held = (!body.is_end_stream()).then_some(HeldBody { lost, _owner: owner });
        Self { kind: Kind::Inner { body, held } }
    }
}

impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::whole(Bytes::new())
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().kind.project() {
            KindProj::Whole { bytes } => {
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            KindProj::Inner { mut body, held } => {
                if let Some(lost) = held.as_mut().and_then(|held| held.lost.as_mut())
                    && let Poll::Ready(reason) = lost.as_mut().poll(cx)
                {
                    *held = None;
                    return Poll::Ready(Some(Err(Box::new(LockLost(reason)))));
                }
                let frame = ready!(body.as_mut().poll_frame(cx));
                if !matches!(frame, Some(Ok(_))) || body.is_end_stream() {
                    *held = None;
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole { bytes } => bytes.is_none(),
            Kind::Inner { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole { bytes } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Inner { body, .. } => body.size_hint(),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = matches!(self.kind, Kind::Inner { held: Some(_), .. });
        f.debug_struct("ResponseBody").field("under_lock", &held).finish_non_exhaustive()
    }
}

/// The error of a body that was sent under a lock, when that was lost.
///
/// ```
/// use std::convert::Infallible;
///
/// use axum::{Router, body::{Body, Bytes}, routing::post};
/// use http::{Request, StatusCode};
/// use http_body_util::BodyExt;
/// use redlock_core::{LostReason, Redlock};
/// use tower::ServiceExt;
/// use tower_redlock::{Hold, LockLost, RedlockLayer, key};
///
/// fn why(error: &(dyn std::error::Error + 'static)) -> Option<LostReason> {
///     error.downcast_ref::<LockLost>().map(LockLost::reason)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let endless = || async {
/// #     Body::from_stream(futures_util::stream::pending::<Result<Bytes, Infallible>>())
/// # };
/// let redlock = Redlock::in_memory();
/// let layer = RedlockLayer::new(redlock.clone(), key::path()).hold(Hold::Body);
/// let app: Router = Router::new().route("/", post(endless)).layer(layer);
/// let response = app.oneshot(Request::post("/").body(Body::empty())?).await?;
/// assert_eq!(response.status(), StatusCode::OK);
///
/// redlock.close(std::time::Duration::ZERO).await;
/// let error = response.into_body().collect().await.unwrap_err();
/// assert_eq!(why(&*error.into_inner()), Some(LostReason::Closed));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct LockLost(LostReason);

impl LockLost {
    /// Why the lock was lost.
    #[must_use]
    pub fn reason(&self) -> LostReason {
        self.0
    }
}

impl fmt::Display for LockLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the lock of the response was lost: {}", self.0)
    }
}

impl std::error::Error for LockLost {}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn a_body_says_how_long_it_is_and_ends() {
        let none = ResponseBody::<Full<Bytes>>::default();
        assert!(none.is_end_stream());
        assert_eq!(none.size_hint().exact(), Some(0));
        for body in [ResponseBody::whole("four".into()), ResponseBody::inner(Full::from("four"))] {
            assert!(!body.is_end_stream());
            assert_eq!(body.size_hint().exact(), Some(4));
            assert_eq!(body.collect().await.unwrap().to_bytes(), "four");
        }
    }
}

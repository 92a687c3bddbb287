//! A body that was read ahead: as a whole, up to a bound, or not at all.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// The body of a request below an [`IdempotencyLayer`](super::IdempotencyLayer), and of its answer.
///
/// The part that the layer has read comes first, the rest follows as the inner body yields it.
/// Trailers are passed on.
///
/// Routers of axum and services of tonic take any body. A middleware that takes one type of body,
/// such as `axum::middleware::from_fn` in the same `ServiceBuilder`, needs
/// `tower_http::map_request_body::MapRequestBodyLayer::new(axum::body::Body::new)` above it.
pub struct BufferedBody<B> {
    /// Copied into one piece: a frame of one byte would keep the whole buffer that it came in.
    read: BytesMut,
    trailers: Option<HeaderMap>,
    rest: Option<Pin<Box<B>>>,
}

impl<B> BufferedBody<B> {
    /// A body that is yielded as it comes.
    pub(super) fn unread(body: B) -> Self {
        Self { read: BytesMut::new(), trailers: None, rest: Some(Box::pin(body)) }
    }

    /// A body that is known as a whole.
    pub(super) fn whole(bytes: Bytes, trailers: HeaderMap) -> Self {
        let trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
        Self { read: bytes.into(), trailers, rest: None }
    }

    /// The data and the trailers, if the inner body has ended.
    pub(super) fn as_whole(&mut self) -> Option<(Bytes, HeaderMap)> {
        if self.rest.is_some() {
            return None;
        }
        let bytes = self.read.split().freeze();
        self.read = bytes.clone().into();
        Some((bytes, self.trailers.clone().unwrap_or_default()))
    }

    fn len(&self) -> u64 {
        self.read.len() as u64
    }
}

impl<B: Body> BufferedBody<B> {
    /// Reads until the inner body ends, or has more than `max` bytes. A body that announces more
    /// is not read at all.
    pub(super) async fn read(&mut self, max: usize) -> Result<(), B::Error> {
        let max = max as u64;
        while let Some(rest) = &mut self.rest {
            let length = self.read.len() as u64;
            if length.saturating_add(rest.size_hint().lower()) > max {
                return Ok(());
            }
            match poll_fn(|cx| rest.as_mut().poll_frame(cx)).await.transpose()? {
                None => self.rest = None,
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.read.put(data),
                    Err(frame) => {
                        // The last frame. A reader whose wait ends here still yields the trailers.
                        self.trailers = frame.into_trailers().ok();
                        self.rest = None;
                    }
                },
            }
            if self.len() > max {
                return Ok(());
            }
        }
        Ok(())
    }

    /// As [`read`](Self::read). A body of unknown length is read for this long at most.
    pub(super) async fn read_for(&mut self, max: usize, wait: Duration) -> Result<(), B::Error> {
        if self.size_hint().exact().is_some() {
            return self.read(max).await;
        }
        tokio::time::timeout(wait, self.read(max)).await.unwrap_or(Ok(()))
    }
}

impl<B: Body> Body for BufferedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if !self.read.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(self.read.split().freeze()))));
        }
        if let Some(rest) = &mut self.rest {
            let frame = ready!(rest.as_mut().poll_frame(cx));
            let bytes = |mut data: B::Data| data.copy_to_bytes(data.remaining());
            return Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(bytes))));
        }
        Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty()
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let read = self.len();
        let rest =
            self.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), |rest| rest.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(read.saturating_add(rest.lower()));
        // With an exact length, HTTP/1 sends `Content-Length` and drops the trailers.
        if let Some(upper) = rest.upper()
            && self.trailers.is_none()
        {
            hint.set_upper(read.saturating_add(upper));
        }
        hint
    }
}

impl<B> Default for BufferedBody<B> {
    fn default() -> Self {
        Self::whole(Bytes::new(), HeaderMap::new())
    }
}

impl<B> fmt::Debug for BufferedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferedBody")
            .field("read", &self.len())
            .field("whole", &self.rest.is_none())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    fn of_unknown_length(
        pieces: &'static [&'static str],
    ) -> BufferedBody<impl Body<Data = Bytes, Error = std::io::Error>> {
        let frames =
            pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))));
        BufferedBody::unread(StreamBody::new(stream::iter(frames)))
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_the_bound_and_nothing_is_lost() {
        for (max, whole) in [(0, false), (3, false), (4, true), (100, true)] {
            let mut body = of_unknown_length(&["1", "", "23", "4"]);
            assert_eq!(body.size_hint().exact(), None);
            body.read(max).await.unwrap();
            assert_eq!(body.as_whole(), whole.then(|| ("1234".into(), HeaderMap::new())));
            assert_eq!(body.size_hint().exact(), whole.then_some(4));
            assert!(!body.is_end_stream());
            assert_eq!(body.collect().await.unwrap().to_bytes(), "1234", "{max}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_read_does_not_keep_the_buffers_of_its_frames() {
        let buffer = Bytes::from(vec![7; 1 << 20]);
        let frames = (0..4).map(|at| Ok::<_, std::io::Error>(Frame::data(buffer.slice(at..=at))));
        let mut body =
            BufferedBody::unread(StreamBody::new(stream::iter(frames.collect::<Vec<_>>())));
        body.read(100).await.unwrap();
        assert!(buffer.is_unique());
        assert_eq!(body.as_whole().unwrap().0, [7; 4][..]);
    }

    #[tokio::test(start_paused = true)]
    async fn trailers_are_kept_if_the_wait_ends_before_the_end_of_the_body() {
        let mut trailers = HeaderMap::new();
        trailers.insert("checksum", http::HeaderValue::from_static("7"));
        let frames = [Frame::data(Bytes::from_static(b"1")), Frame::trailers(trailers.clone())];
        let frames = stream::iter(frames.map(Ok::<_, std::io::Error>)).chain(stream::pending());
        let mut body = BufferedBody::unread(StreamBody::new(frames));
        body.read_for(100, Duration::from_secs(1)).await.unwrap();
        let collected = tokio::time::timeout(Duration::from_secs(60), body.collect()).await;
        assert_eq!(collected.expect("the body ends").unwrap().trailers(), Some(&trailers));
    }

    #[tokio::test]
    async fn a_body_that_announces_more_than_the_bound_is_not_read() {
        let mut body = BufferedBody::unread(Full::new(Bytes::from_static(b"12345")));
        body.read(4).await.unwrap();
        assert_eq!((body.len(), body.as_whole()), (0, None));
        assert_eq!(body.size_hint().exact(), Some(5));
        assert_eq!(format!("{body:?}"), "BufferedBody { read: 0, whole: false, .. }");
        body.read(5).await.unwrap();
        assert_eq!(body.as_whole().unwrap().0, "12345");
        assert_eq!(format!("{body:?}"), "BufferedBody { read: 5, whole: true, .. }");
    }

    #[tokio::test]
    async fn a_body_with_trailers_names_no_exact_length_and_ends_after_them() {
        let mut trailers = HeaderMap::new();
        trailers.insert("checksum", http::HeaderValue::from_static("7"));
        let mut body = BufferedBody::<Full<Bytes>>::whole("four".into(), trailers);
        assert_eq!((body.size_hint().lower(), body.size_hint().exact()), (4, None));
        assert!(body.frame().await.unwrap().unwrap().is_data());
        assert!(!body.is_end_stream());
        assert!(body.frame().await.unwrap().unwrap().is_trailers());
        assert!(body.is_end_stream());
        let empty = BufferedBody::<Full<Bytes>>::default();
        assert!(empty.is_end_stream());
        assert_eq!(empty.size_hint().exact(), Some(0));
    }
}

//! What is kept of a request that was carried out, and who keeps it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, DATE, PROXY_AUTHENTICATE};
use http::header::{TE, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use redlock_core::FencingToken;

use super::key::{Fingerprint, RecordId};

/// Belongs to one answer or one connection, and would be wrong in a later one.
const NOT_KEPT: [HeaderName; 7] =
    [CONNECTION, CONTENT_LENGTH, DATE, PROXY_AUTHENTICATE, TE, TRANSFER_ENCODING, UPGRADE];

/// The answer to a request that was carried out, to be given again.
#[derive(Clone)]
#[non_exhaustive]
pub struct Record {
    /// What was asked for.
    pub fingerprint: Fingerprint,
    /// The status of the answer.
    pub status: StatusCode,
    /// The headers of the answer, without those of its connection and without credentials.
    pub headers: HeaderMap,
    /// The body of the answer; `None` if it was not kept.
    pub body: Option<Bytes>,
    /// The trailers of the answer.
    pub trailers: HeaderMap,
    /// Until when it is kept, in seconds since the beginning of 1970.
    pub expires_at: u64,
}

impl Record {
    /// A record that was kept. Headers that belong to a connection are left out.
    #[must_use]
    pub fn new(
        fingerprint: Fingerprint,
        status: StatusCode,
        headers: HeaderMap,
        body: Option<Bytes>,
        expires_at: u64,
    ) -> Self {
        let (headers, trailers) = (kept(headers), HeaderMap::new());
        Self { fingerprint, status, headers, body, trailers, expires_at }
    }

    /// The record with these trailers. Default: none.
    #[must_use]
    pub fn with_trailers(self, trailers: HeaderMap) -> Self {
        Self { trailers: kept(trailers), ..self }
    }

    /// Whether it is not to be kept any longer.
    #[must_use]
    pub fn has_expired(&self) -> bool {
        self.expires_at <= unix_seconds(Duration::ZERO)
    }

    /// The answer again, if its body was kept.
    pub(super) fn response(&self) -> Option<Response<Bytes>> {
        let mut response = Response::new(self.body.clone()?);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response.headers_mut().insert(super::REPLAYED, HeaderValue::from_static("true"));
        publish_expiry(self.expires_at, response.headers_mut());
        Some(response)
    }
}

/// The answer may be confidential: its headers and its body are not shown.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("status", &self.status)
            .field("body_len", &self.body.as_ref().map(Bytes::len))
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Names the seconds that a record is still kept, in the headers of its answer.
pub(super) fn publish_expiry(expires_at: u64, headers: &mut HeaderMap) {
    let left = expires_at.saturating_sub(unix_seconds(Duration::ZERO));
    headers.insert(super::EXPIRES_IN, left.into());
}

fn kept(mut headers: HeaderMap) -> HeaderMap {
    for name in NOT_KEPT {
        headers.remove(name);
    }
    headers
}

/// Seconds since the beginning of 1970, in this much time from now.
pub(super) fn unix_seconds(from_now: Duration) -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.saturating_add(from_now).as_secs()
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Saved {
    /// It is kept.
    Saved,
    /// There is one already, by a request that had the lock at the same time or later.
    Superseded,
}

/// Keeps the answers of requests that were carried out.
///
/// [`MemoryRecords`](super::MemoryRecords) and, with the feature `sqlite` or `postgres`,
/// `SqlRecords` are ready to use.
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't keep the answers of an `IdempotencyLayer`",
    label = "not a `RecordStore`",
    note = "implement `RecordStore`, or use `MemoryRecords` or `SqlRecords`"
)]
pub trait RecordStore: Send + Sync + 'static {
    /// The record of this id that was saved and has not expired.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from knowing: the request is answered with 503, and not carried out.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time.
    fn find(
        &self,
        id: &RecordId,
    ) -> impl Future<Output = Result<Option<Record>, Box<dyn Error + Send + Sync>>> + Send;

    /// Keeps a record. One that is there and has not expired is replaced only if it was saved with
    /// a smaller token: what a request saves late, after it lost its lock, must not replace what
    /// was saved since. It must look and keep in one step.
    ///
    /// There is no token if the lock servers are used in
    /// [`Safety::Plain`](redlock_core::Safety::Plain): it counts as zero.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from saving. The request was carried out, so its answer is given all the
    /// same.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the record may or may not be kept.
    fn save(
        &self,
        id: &RecordId,
        record: Record,
        token: Option<FencingToken>,
    ) -> impl Future<Output = Result<Saved, Box<dyn Error + Send + Sync>>> + Send;
}

impl<T: RecordStore> RecordStore for Arc<T> {
    async fn find(&self, id: &RecordId) -> Result<Option<Record>, Box<dyn Error + Send + Sync>> {
        T::find(self, id).await
    }

    async fn save(
        &self,
        id: &RecordId,
        record: Record,
        token: Option<FencingToken>,
    ) -> Result<Saved, Box<dyn Error + Send + Sync>> {
        T::save(self, id, record, token).await
    }
}

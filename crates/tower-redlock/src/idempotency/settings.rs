//! The settings of the layer, and what follows from them for one request.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, SET_COOKIE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, Response, StatusCode, response};

use super::body::BufferedBody;
use super::caller::Callers;
use super::key::{self, Fingerprint, RecordId};
use super::record::{Record, unix_seconds};
use crate::outage::Outage;
use crate::rejection::{NothingDone, Rejection, RejectionKind, Render};

/// The headers that are neither recorded nor sent with a recorded answer, unless
/// [`unrecorded_headers`](super::IdempotencyLayer::unrecorded_headers) names others: they carry
/// credentials, which belong to the client that got them first.
///
/// `Set-Cookie`, `Set-Cookie2`, `Cookie`, `Authorization`, `Proxy-Authorization`,
/// `Authentication-Info`, `Proxy-Authentication-Info`, `Csrf-Token`, `X-Csrf-Token`,
/// `X-Xsrf-Token`, `Xsrf-Token`, `X-Auth-Token`, `X-Access-Token`, `X-Refresh-Token`,
/// `X-Session-Token` and `X-Api-Key`.
///
/// `WWW-Authenticate` is not among them: a 401 needs it, and most challenges are no secret.
pub static CREDENTIAL_HEADERS: &[HeaderName] = &CREDENTIALS;

static CREDENTIALS: [HeaderName; 16] = [
    SET_COOKIE,
    HeaderName::from_static("set-cookie2"),
    COOKIE,
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    HeaderName::from_static("authentication-info"),
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("csrf-token"),
    HeaderName::from_static("x-csrf-token"),
    HeaderName::from_static("x-xsrf-token"),
    HeaderName::from_static("xsrf-token"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-access-token"),
    HeaderName::from_static("x-refresh-token"),
    HeaderName::from_static("x-session-token"),
    HeaderName::from_static("x-api-key"),
];

/// The payload of a request, where the service compares requests itself.
pub(super) type Payload = Arc<dyn Fn(&Parts, &Bytes) -> Vec<u8> + Send + Sync>;

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) callers: Callers,
    pub(super) methods: Arc<[Method]>,
    pub(super) optional: bool,
    pub(super) in_progress: StatusCode,
    pub(super) keep_for: Duration,
    pub(super) record_if: Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>,
    pub(super) unrecorded_headers: Arc<[HeaderName]>,
    pub(super) fingerprint_headers: Arc<[HeaderName]>,
    pub(super) payload: Option<Payload>,
    pub(super) max_request_body: usize,
    pub(super) max_request_wait: Duration,
    pub(super) max_response_body: usize,
    pub(super) max_response_wait: Duration,
    pub(super) render: Option<Render>,
    pub(super) outage: Outage,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            callers: Callers::Credentials,
            methods: [Method::POST, Method::PATCH].into(),
            optional: false,
            in_progress: StatusCode::LOCKED,
            keep_for: Duration::from_secs(24 * 60 * 60),
            record_if: Arc::new(|_| true),
            unrecorded_headers: CREDENTIAL_HEADERS.into(),
            fingerprint_headers: [].into(),
            payload: None,
            max_request_body: 2 * 1024 * 1024,
            max_request_wait: Duration::from_secs(10),
            max_response_body: 1024 * 1024,
            max_response_wait: Duration::from_secs(1),
            render: None,
            outage: Outage::default(),
        }
    }
}

impl Settings {
    /// The id of a request that is handled once; none for other requests.
    pub(super) fn id(&self, parts: &Parts) -> Result<Option<RecordId>, Rejection> {
        if !self.methods.contains(&parts.method) {
            return Ok(None);
        }
        let key = key::key(parts).map_err(|error| Rejection::bad_idempotency_key(&error))?;
        let Some(key) = key else {
            let missing = "send an `Idempotency-Key`, of your choice, for this request".into();
            return match self.optional {
                true => Ok(None),
                false => Err(Rejection::bad_idempotency_key(&missing)),
            };
        };
        Ok(Some(RecordId::new(parts, self.callers.caller(parts)?, &key)))
    }

    pub(super) fn fingerprint(&self, parts: &Parts, body: &Bytes) -> Fingerprint {
        match &self.payload {
            Some(payload) => {
                Fingerprint::given(parts, &self.fingerprint_headers, &payload(parts, body))
            }
            None => Fingerprint::of(parts, &self.fingerprint_headers, body),
        }
    }

    pub(super) fn is_recorded(&self, response: &response::Parts) -> bool {
        response.extensions.get::<NothingDone>().is_none() && (self.record_if)(response)
    }

    /// The record of an answer; without its body, where that was not read to its end.
    pub(super) fn record(
        &self,
        fingerprint: Fingerprint,
        response: &response::Parts,
        kept: Option<(Bytes, HeaderMap)>,
    ) -> Record {
        let headers = self.without_credentials(response.headers.clone());
        let (body, trailers) = kept.unzip();
        let trailers = self.without_credentials(trailers.unwrap_or_default());
        let expires_at = unix_seconds(self.keep_for);
        Record::new(fingerprint, response.status, headers, body, expires_at).with_trailers(trailers)
    }

    /// The record of a handler that ended without an answer: its work may be done in part.
    pub(super) fn record_of_failure(&self, fingerprint: Fingerprint) -> Record {
        let (status, headers) = (StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new());
        Record::new(fingerprint, status, headers, None, unix_seconds(self.keep_for))
    }

    /// A recorded answer, without what an earlier version of the service recorded.
    pub(super) fn replay<B>(&self, record: &Record) -> Option<Response<BufferedBody<B>>> {
        let trailers = self.without_credentials(record.trailers.clone());
        let mut response = record.response()?.map(|bytes| BufferedBody::whole(bytes, trailers));
        let headers = self.without_credentials(mem::take(response.headers_mut()));
        *response.headers_mut() = headers;
        Some(response)
    }

    fn without_credentials(&self, mut headers: HeaderMap) -> HeaderMap {
        for name in &*self.unrecorded_headers {
            headers.remove(name);
        }
        headers
    }

    pub(super) fn refuse(&self, rejection: impl Into<Rejection>) -> Response<Bytes> {
        self.render(rejection.into().logged(&self.outage))
    }

    pub(super) fn render(&self, mut rejection: Rejection) -> Response<Bytes> {
        if rejection.kind() == RejectionKind::Locked {
            rejection = rejection.with_status(self.in_progress);
        }
        rejection.rendered_by(self.render.as_ref()).into_bytes()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

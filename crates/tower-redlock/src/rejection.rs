//! The responses to requests that a layer refuses: a status, and an RFC 9457 problem.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use redlock_core::{ErrorKind, LockError, LostReason};

use crate::key::KeyRejection;

/// Why a request is answered without its handler, or instead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// Another request holds the lock: 423.
    Locked,
    /// The lock service is not there: 503.
    Unavailable,
    /// The lock servers are there, and do not vote until locks that they may have forgotten have
    /// expired: 503.
    Quarantined,
    /// The service is closing: 503.
    Closing,
    /// The lock was lost while the handler ran: 503.
    Lost,
    /// The request has no usable key: 400, or what the key function says.
    BadKey,
    /// `Locked<R>` was asked for, and no layer is there to hold the lock: 500.
    MissingLayer,
    /// The layer asks for what makes no sense, such as a time to live of zero: 500.
    Misconfigured,
    /// The fencing token is smaller than one that came before: 412.
    StaleToken,
    /// The fencing token can't be read: 400. Or there is none: 428.
    BadToken,
    /// The store of the fencing tokens is not there: 503.
    FencesUnavailable,
    /// The `Idempotency-Key` is missing, or can't be one: 400.
    BadIdempotencyKey,
    /// The `Idempotency-Key` was used for another request: 422.
    KeyReused,
    /// The body of the request is too large: 413. Or it took too long: 408. Or it broke off: 400.
    BadBody,
    /// The store of the answers is not there: 503.
    RecordsUnavailable,
    /// The request was carried out before, and its answer was not kept: 410.
    AnswerNotKept,
}

impl RejectionKind {
    const fn slug(self) -> &'static str {
        match self {
            Self::Locked => "locked",
            Self::Unavailable => "lock-unavailable",
            Self::Quarantined => "lock-quarantined",
            Self::Closing => "closing",
            Self::Lost => "lock-lost",
            Self::BadKey => "bad-lock-key",
            Self::MissingLayer => "missing-lock-layer",
            Self::Misconfigured => "lock-misconfigured",
            Self::StaleToken => "stale-token",
            Self::BadToken => "bad-fencing-token",
            Self::FencesUnavailable => "fences-unavailable",
            Self::BadIdempotencyKey => "bad-idempotency-key",
            Self::KeyReused => "idempotency-key-reused",
            Self::BadBody => "bad-body",
            Self::RecordsUnavailable => "records-unavailable",
            Self::AnswerNotKept => "answer-not-kept",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Self::Locked => "The resource is locked",
            Self::Unavailable => "The lock service is unavailable",
            Self::Quarantined => "The lock service is in quarantine",
            Self::Closing => "The service is closing",
            Self::Lost => "The lock was lost",
            Self::BadKey => "The request has no usable lock key",
            Self::MissingLayer => "The lock layer is missing",
            Self::Misconfigured => "The lock layer is misconfigured",
            Self::StaleToken => "The fencing token is stale",
            Self::BadToken => "The request has no usable fencing token",
            Self::FencesUnavailable => "The store of fencing tokens is unavailable",
            Self::BadIdempotencyKey => "The request has no usable Idempotency-Key",
            Self::KeyReused => "The Idempotency-Key was used for another request",
            Self::BadBody => "The body of the request can't be used",
            Self::RecordsUnavailable => "The store of answers is unavailable",
            Self::AnswerNotKept => "The answer was not kept",
        }
    }
}

impl RejectionKind {
    /// Whether other requests are refused as well, until a service is back.
    pub(crate) const fn is_outage(self) -> bool {
        use RejectionKind::{FencesUnavailable, Quarantined, RecordsUnavailable, Unavailable};
        matches!(self, Unavailable | Quarantined | FencesUnavailable | RecordsUnavailable)
    }
}

/// The response for a request whose lock was not acquired or was lost, or which a layer refused.
///
/// The default response is an RFC 9457 problem. It never contains the key, a token or the address of a
/// server.
///
/// ```json
/// {
///   "type": "https://docs.rs/tower-redlock/#locked",
///   "title": "The resource is locked",
///   "status": 423,
///   "detail": "another request holds the lock; try again later",
///   "retry_after_ms": 9734
/// }
/// ```
#[derive(Clone)]
pub struct Rejection {
    kind: RejectionKind,
    status: StatusCode,
    detail: String,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn Error + Send + Sync>>,
    render: Option<Render>,
    nothing_done: bool,
}

/// Makes the response of a rejection, where [`RedlockLayer::on_rejection`] changed it.
///
/// [`RedlockLayer::on_rejection`]: crate::RedlockLayer::on_rejection
pub(crate) type Render = Arc<dyn Fn(&Rejection) -> Response<Bytes> + Send + Sync>;

/// Marks the response of a request that was refused before anything was done for it. It is an
/// extension of the response, so that no response of a handler is taken for a refusal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NothingDone;

/// For how long to stay away when nothing better is known.
const A_MOMENT: Duration = Duration::from_secs(1);

impl Rejection {
    /// What happened.
    #[must_use]
    pub fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What the client is told.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// When trying again may help; `None` if it won't.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The error of the lock, for logs: it names servers and who holds the key.
    #[must_use]
    pub fn lock_error(&self) -> Option<&LockError> {
        self.source.as_ref()?.downcast_ref()
    }

    /// The stable URI of what happened, the `type` of the problem.
    #[must_use]
    pub fn problem_type(&self) -> String {
        format!("https://docs.rs/tower-redlock/#{}", self.kind.slug())
    }

    /// The default response: `application/problem+json`, with `Retry-After` where that helps.
    #[must_use]
    pub fn to_problem(&self) -> Response<Bytes> {
        let mut body = serde_json::json!({
            "type": self.problem_type(),
            "title": self.kind.title(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(pause) = self.retry_after {
            let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            body["retry_after_ms"] = millis.into();
            // Whole seconds: a client that waits less would meet the same lock again.
            headers.insert(RETRY_AFTER, millis.div_ceil(1000).max(1).into());
        }
        *response.body_mut() = body.to_string().into();
        self.marked(response)
    }

    /// The response: the default one, unless the layer was given another.
    pub(crate) fn into_bytes(mut self) -> Response<Bytes> {
        match self.render.take() {
            Some(render) => self.marked(render(&self)),
            None => self.to_problem(),
        }
    }

    fn marked(&self, mut response: Response<Bytes>) -> Response<Bytes> {
        if self.nothing_done {
            response.extensions_mut().insert(NothingDone);
        }
        response
    }

    pub(crate) fn rendered_by(mut self, render: Option<&Render>) -> Self {
        self.render = render.cloned();
        self
    }

    fn new(kind: RejectionKind, status: StatusCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        // A lock is lost while a handler runs, and an answer that was not kept had a handler.
        let nothing_done = !matches!(kind, RejectionKind::Lost | RejectionKind::AnswerNotKept);
        Self { kind, status, detail, retry_after: None, source: None, render: None, nothing_done }
    }

    fn retriable(mut self, pause: Option<Duration>) -> Self {
        self.retry_after = Some(pause.unwrap_or(A_MOMENT));
        self
    }

    pub(crate) fn lost(reason: LostReason) -> Self {
        let detail = format!("the request was stopped because its lock was lost: {reason}");
        Self::new(RejectionKind::Lost, StatusCode::SERVICE_UNAVAILABLE, detail).retriable(None)
    }

    /// The rejection of a request whose handler did not begin.
    pub(crate) fn before_the_handler(self) -> Self {
        Self { nothing_done: true, ..self }
    }

    #[cfg(feature = "axum")]
    pub(crate) fn missing_layer() -> Self {
        let detail = "this handler takes `Locked<_>` or `LockScope`, which need `tower_redlock::RedlockLayer` \
                      on its router: add `.layer(RedlockLayer::scope_only(redlock))`";
        Self::new(RejectionKind::MissingLayer, StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    pub(crate) fn request_over() -> Self {
        let detail = "the request of this lock scope has ended";
        Self::new(RejectionKind::Lost, StatusCode::SERVICE_UNAVAILABLE, detail).retriable(None)
    }

    /// The answer to a request whose fencing token is smaller than what the store has seen, for
    /// handlers that check it themselves: 412.
    #[must_use]
    pub fn stale_token() -> Self {
        let detail = "a newer lock on this resource replaced the lock of this request";
        Self::new(RejectionKind::StaleToken, StatusCode::PRECONDITION_FAILED, detail)
    }

    pub(crate) fn bad_token(status: StatusCode, detail: &str) -> Self {
        Self::new(RejectionKind::BadToken, status, detail)
    }

    pub(crate) fn no_fences(error: Box<dyn Error + Send + Sync>) -> Self {
        let detail = "the store of fencing tokens is unavailable; try again later";
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        let rejection = Self::new(RejectionKind::FencesUnavailable, unavailable, detail);
        Self { source: Some(error.into()), ..rejection.retriable(None) }
    }

    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    pub(crate) fn bad_idempotency_key(why: &KeyRejection) -> Self {
        Self::new(RejectionKind::BadIdempotencyKey, why.status(), why.detail())
    }

    pub(crate) fn key_reused() -> Self {
        let detail = "another request with this Idempotency-Key was handled before. To repeat it, send exactly \
                      the same request. Send another key only if this request is meant in addition";
        Self::new(RejectionKind::KeyReused, StatusCode::UNPROCESSABLE_ENTITY, detail)
    }

    pub(crate) fn body_too_large(max: usize) -> Self {
        let detail = format!("the body of the request has more than {max} bytes");
        Self::new(RejectionKind::BadBody, StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    pub(crate) fn slow_body(within: Duration) -> Self {
        let detail = format!("the body of the request did not arrive within {within:?}");
        Self::new(RejectionKind::BadBody, StatusCode::REQUEST_TIMEOUT, detail)
    }

    pub(crate) fn broken_body(error: Box<dyn Error + Send + Sync>) -> Self {
        let detail = "the body of the request broke off";
        let rejection = Self::new(RejectionKind::BadBody, StatusCode::BAD_REQUEST, detail);
        Self { source: Some(error.into()), ..rejection }
    }

    pub(crate) fn no_records(error: Box<dyn Error + Send + Sync>) -> Self {
        let detail =
            "the store of answers is unavailable, so the request was not handled; try again later";
        let rejection =
            Self::new(RejectionKind::RecordsUnavailable, StatusCode::SERVICE_UNAVAILABLE, detail);
        Self { source: Some(error.into()), ..rejection.retriable(None) }
    }

    pub(crate) fn answer_not_kept(status: StatusCode) -> Self {
        let detail = format!(
            "the request was handled before, with status {}; the answer was not kept",
            status.as_u16()
        );
        Self::new(RejectionKind::AnswerNotKept, StatusCode::GONE, detail)
    }

    pub(crate) fn closing() -> Self {
        let detail = "the service is closing and acquires no more locks; try again later";
        Self::new(RejectionKind::Closing, StatusCode::SERVICE_UNAVAILABLE, detail).retriable(None)
    }

    /// The response for a handler that began and was dropped with its runtime.
    pub(crate) fn stopped() -> Self {
        let detail = "the service is closing and stopped the request; part of its work may be done";
        let rejection = Self::new(RejectionKind::Closing, StatusCode::SERVICE_UNAVAILABLE, detail);
        Self { nothing_done: false, ..rejection.retriable(None) }
    }
}

/// The answer to a lock that could not be had, for handlers that lock without the layer: it is
/// [the default one](Rejection::to_problem), whatever `on_rejection` was given.
impl From<LockError> for Rejection {
    fn from(error: LockError) -> Self {
        let (unavailable, misconfigured) =
            (StatusCode::SERVICE_UNAVAILABLE, StatusCode::INTERNAL_SERVER_ERROR);
        let pause = error.retry_after();
        let rejection = match error.kind() {
            ErrorKind::Contended => {
                let detail = "another request holds the lock; try again later";
                Self::new(RejectionKind::Locked, StatusCode::LOCKED, detail).retriable(pause)
            }
            ErrorKind::Lost => {
                let detail = "the lock was lost";
                Self::new(RejectionKind::Lost, unavailable, detail).retriable(pause)
            }
            ErrorKind::Invalid => {
                let detail = "the lock layer has a setting or a key that the lock service refuses";
                Self::new(RejectionKind::Misconfigured, misconfigured, detail)
            }
            ErrorKind::Closed => Self::closing(),
            ErrorKind::Expired => {
                let detail = "the lock service answers too late; try again later";
                Self::new(RejectionKind::Unavailable, unavailable, detail).retriable(pause)
            }
            _ if error.is_quarantined() => {
                let detail = "the lock service waits until locks that it may have forgotten have \
                              expired; try again later";
                Self::new(RejectionKind::Quarantined, unavailable, detail).retriable(pause)
            }
            _ => {
                let detail = "the lock service can't be reached; try again later";
                Self::new(RejectionKind::Unavailable, unavailable, detail).retriable(pause)
            }
        };
        Self { source: Some(Arc::new(error)), ..rejection }
    }
}

impl From<KeyRejection> for Rejection {
    fn from(rejection: KeyRejection) -> Self {
        Self::new(RejectionKind::BadKey, rejection.status(), rejection.detail())
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection")
            .field("kind", &self.kind)
            .field("status", &self.status)
            .field("detail", &self.detail)
            .field("retry_after", &self.retry_after)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Error for Rejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

#[cfg(test)]
mod tests {
    use redlock_core::Redlock;
    use serde_json::Value;

    use super::*;

    fn body(response: &Response<Bytes>) -> Value {
        serde_json::from_slice(response.body()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_contended_lock_is_423_and_says_for_how_long() {
        let redlock = Redlock::in_memory();
        let _guard = redlock.lock("secret-key").ttl(Duration::from_millis(4_500)).await.unwrap();
        let rejection = Rejection::from(redlock.try_lock("secret-key").await.unwrap_err());
        let response = rejection.to_problem();
        assert_eq!(response.status(), StatusCode::LOCKED);
        assert_eq!(response.headers()[RETRY_AFTER], "5");
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        let problem = body(&response);
        assert_eq!(problem["type"], "https://docs.rs/tower-redlock/#locked");
        assert_eq!(problem["status"], 423);
        let millis = problem["retry_after_ms"].as_u64().unwrap();
        assert!((4_000..=4_500).contains(&millis), "{millis}");
        assert!(!problem.to_string().contains("secret-key"));
    }

    #[tokio::test]
    async fn a_rejection_tells_the_program_more_than_the_client() {
        let redlock = Redlock::in_memory();
        let _guard = redlock.lock("k").label("holder").await.unwrap();
        let rejection = Rejection::from(redlock.try_lock("k").await.unwrap_err());
        assert_eq!(rejection.lock_error().unwrap().holder(), Some("holder"));
        assert!(rejection.retry_after().unwrap() > Duration::from_secs(8));
        assert_eq!(rejection.to_string(), rejection.detail());
        assert!(rejection.detail().contains("another request"));
        let source = rejection.source().unwrap().to_string();
        let debug = format!("{rejection:?}");
        assert!(source.contains("holder") && debug.contains("holder"), "{debug}");
        assert!(!body(&rejection.to_problem()).to_string().contains("holder"));
    }

    #[tokio::test]
    async fn a_lock_that_is_gone_is_lost_and_not_unavailable() {
        let redlock = Redlock::in_memory();
        let token = "a:00112233445566778899aabbccddeeff".parse().unwrap();
        let gone = redlock.extend("k", &token, Duration::from_secs(9)).await.unwrap_err();
        assert_eq!(Rejection::from(gone).kind(), RejectionKind::Lost);
    }

    #[tokio::test]
    async fn a_lock_that_makes_no_sense_is_500_and_trying_again_does_not_help() {
        let redlock = Redlock::in_memory();
        let nonsense = redlock.lock("k").ttl(Duration::ZERO).await.unwrap_err();
        let rejection = Rejection::from(nonsense);
        assert_eq!(rejection.kind(), RejectionKind::Misconfigured);
        assert_eq!(rejection.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(rejection.retry_after(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quarantine_is_told_apart_while_a_server_has_not_answered_yet() {
        let cluster = redlock_core::testing::Cluster::new(3);
        let redlock = cluster.redlock();
        redlock.lock("k").await.unwrap().release().await;
        cluster.node(0).restart_empty();
        cluster.node(1).pause();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(redlock.try_lock("k").await.unwrap_err().is_quarantined());
        // After one timeout and a connection that fails, the client refuses commands at once.
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.node(2).delay(Duration::from_millis(20));
        let error = redlock.try_lock("k").await.unwrap_err();
        let answers: Vec<_> = error.nodes().iter().map(|report| &report.answer).collect();
        assert!(answers.contains(&&redlock_core::NodeAnswer::NoAnswer), "{answers:?}");
        assert!(error.is_quarantined(), "{error}");
        assert_eq!(Rejection::from(error).kind(), RejectionKind::Quarantined);
    }

    #[test]
    fn every_kind_has_a_title_and_a_type_of_its_own() {
        let kinds = [
            RejectionKind::Locked,
            RejectionKind::Unavailable,
            RejectionKind::Quarantined,
            RejectionKind::Closing,
            RejectionKind::Lost,
            RejectionKind::BadKey,
            RejectionKind::MissingLayer,
            RejectionKind::Misconfigured,
            RejectionKind::StaleToken,
            RejectionKind::BadToken,
            RejectionKind::FencesUnavailable,
            RejectionKind::BadIdempotencyKey,
            RejectionKind::KeyReused,
            RejectionKind::BadBody,
            RejectionKind::RecordsUnavailable,
            RejectionKind::AnswerNotKept,
        ];
        let mut seen = std::collections::HashSet::new();
        for kind in kinds {
            let problem = body(&Rejection::new(kind, StatusCode::OK, "").to_problem());
            let title = problem["title"].as_str().unwrap().to_owned();
            assert!(title.starts_with("The ") && seen.insert(title));
            assert!(seen.insert(problem["type"].as_str().unwrap().to_owned()));
        }
    }

    #[tokio::test]
    async fn a_closed_service_is_503() {
        let redlock = Redlock::in_memory();
        redlock.close(Duration::ZERO).await;
        let rejection = Rejection::from(redlock.try_lock("k").await.unwrap_err());
        assert_eq!(rejection.kind(), RejectionKind::Closing);
        assert_eq!(rejection.lock_error().unwrap().kind(), ErrorKind::Closed);
        assert_eq!(rejection.to_problem().headers()[RETRY_AFTER], "1");
    }

    #[test]
    fn a_short_pause_is_a_second_and_a_bad_key_none() {
        let lost = Rejection::lost(LostReason::Expired).to_problem();
        assert_eq!(
            (lost.status().as_u16(), &lost.headers()[RETRY_AFTER]),
            (503, &"1".parse().unwrap())
        );
        assert!(body(&lost)["type"].as_str().unwrap().ends_with("#lock-lost"));
        let bad = Rejection::from(KeyRejection::from("no key")).to_problem();
        assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
        assert!(!bad.headers().contains_key(RETRY_AFTER));
        assert_eq!(body(&bad)["detail"], "no key");
    }

    #[test]
    fn what_renders_a_rejection_may_fall_back_to_the_default() {
        let render: Render = Arc::new(|rejection| {
            assert_eq!(rejection.clone().into_bytes().status(), rejection.status());
            let mut response = rejection.to_problem();
            *response.status_mut() = StatusCode::CONFLICT;
            response
        });
        let rejection = Rejection::lost(LostReason::Expired).rendered_by(Some(&render));
        assert_eq!(rejection.into_bytes().status(), StatusCode::CONFLICT);
    }
}

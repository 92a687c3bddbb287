//! The layer: what a user sets.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Method, Response, StatusCode};
use redlock_core::Redlock;
use tower_layer::Layer;

use super::caller::Callers;
use super::key::RecordId;
use super::record::RecordStore;
use super::service::{IdempotencyService, Recording};
use super::settings::{Payload, Settings};
use crate::detached::Detached;
use crate::key::{IntoResourceKey, KeyFn};
use crate::layer::RedlockLayer;
use crate::rejection::{Rejection, Render};
use crate::settings::Disconnect;

/// Carries out a request with an `Idempotency-Key` once, and answers it again when it is repeated.
///
/// ```
/// use std::time::Duration;
///
/// use axum::{Router, body::Body, routing::post};
/// use http::{Request, StatusCode, request::Parts};
/// use redlock_core::Redlock;
/// use tower::ServiceExt;
/// use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # async fn pay() {}
/// # #[derive(Clone)] struct Tenant(String);
/// let once = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new())
///     .tenant(|parts: &Parts| parts.extensions.get::<Tenant>().map(|tenant| tenant.0.clone()))
///     .keep_for(Duration::from_secs(48 * 60 * 60));
/// let app: Router = Router::new().route("/payments", post(pay).layer(once));
///
/// let request = Request::post("/payments").header("idempotency-key", "order-1");
/// let answer = app.oneshot(request.extension(Tenant("acme".into())).body(Body::empty())?).await?;
/// assert_eq!(answer.status(), StatusCode::OK);
/// assert!(answer.headers().contains_key("idempotency-expires-in"));
/// # Ok(()) }
/// ```
///
/// | setting | default |
/// |---|---|
/// | [`tenant`](Self::tenant) | none: the `Authorization` header names the caller |
/// | [`shared_between_callers`](Self::shared_between_callers) | not shared |
/// | [`methods`](Self::methods) | `POST` and `PATCH` |
/// | [`optional`](Self::optional) | a request without a key is answered with 400 |
/// | [`in_progress`](Self::in_progress) | 423 |
/// | [`keep_for`](Self::keep_for) | 24 hours |
/// | [`record_if`](Self::record_if) | every answer but refusals of a lock and of the layer |
/// | [`unrecorded_headers`](Self::unrecorded_headers) | [`CREDENTIAL_HEADERS`](super::CREDENTIAL_HEADERS) |
/// | [`fingerprint_headers`](Self::fingerprint_headers) | none |
/// | [`fingerprint`](Self::fingerprint) | query and body; multipart without its boundary |
/// | [`max_request_body`](Self::max_request_body) | 2 MiB |
/// | [`max_request_wait`](Self::max_request_wait) | 10 seconds |
/// | [`max_response_body`](Self::max_response_body) | 1 MiB |
/// | [`max_response_wait`](Self::max_response_wait) | 1 second |
/// | [`lock`](Self::lock) | as [`RedlockLayer`], with [`Disconnect::Detach`] |
/// | [`on_rejection`](Self::on_rejection) | problem+json |
///
/// What it does in detail, and what it can't do, is said in [the module](crate::idempotency).
#[must_use = "a layer does nothing until it is added to a service"]
pub struct IdempotencyLayer<T> {
    lock: RedlockLayer,
    settings: Arc<Settings>,
    store: Arc<T>,
}

impl<T: RecordStore> IdempotencyLayer<T> {
    /// Locks by this service, and keeps records in this store.
    pub fn new(redlock: impl Into<Redlock>, store: T) -> Self {
        let id = |parts: &Parts| parts.extensions.get().map(RecordId::lock_key);
        Self {
            lock: RedlockLayer::new(redlock, id).on_disconnect(Disconnect::Detach),
            settings: Arc::default(),
            store: Arc::new(store),
        }
    }
}

impl<T> IdempotencyLayer<T> {
    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }

    /// Names the tenant of a request. Two tenants may choose the same key, and none of them gets the
    /// answer of the other. Take the tenant from what authenticated the request, not from what the
    /// client says. The function returns what a key function of [`RedlockLayer::new`] does; an error
    /// is the answer. Default, also for requests whose tenant is `None`: requests with the same
    /// `Authorization` header have the same caller.
    ///
    /// Name the tenant:
    ///
    /// - if sessions are kept in cookies. Cookies do not count by default, because they change
    ///   between a request and its repetition: all callers without an `Authorization` header share
    ///   their keys.
    /// - if tokens are short-lived. A request that is repeated with a new token is another caller's
    ///   request, and is handled again.
    /// - if passwords are sent (`Basic`). The [`RecordId`] has a hash of the header in it, and a weak
    ///   password can be guessed from a hash.
    ///
    /// ```
    /// use axum::{Router, body::Body, routing::post};
    /// use http::{Request, StatusCode, request::Parts};
    /// use redlock_core::Redlock;
    /// use tower::ServiceExt;
    /// use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn pay() {}
    /// #[derive(Clone)]
    /// struct SignedIn(String); // put into the extensions by a layer above
    ///
    /// let once = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new())
    ///     .tenant(|parts: &Parts| match parts.extensions.get::<SignedIn>() {
    ///         Some(SignedIn(account)) => Ok(account.clone()),
    ///         None => Err((StatusCode::UNAUTHORIZED, "sign in first")),
    ///     });
    /// let app: Router = Router::new().route("/payments", post(pay)).layer(once);
    ///
    /// # let send = |request: http::request::Builder| {
    /// #     app.clone().oneshot(request.header("idempotency-key", "1").body(Body::empty()).unwrap())
    /// # };
    /// let answer = send(Request::post("/payments")).await?;
    /// assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    /// let answer = send(Request::post("/payments").extension(SignedIn("alice".into()))).await?;
    /// assert_eq!(answer.status(), StatusCode::OK);
    /// # Ok(()) }
    /// ```
    pub fn tenant<F, R>(self, tenant: F) -> Self
    where
        F: Fn(&Parts) -> R + Send + Sync + 'static,
        R: IntoResourceKey,
    {
        let tenant: KeyFn = Arc::new(move |parts| tenant(parts).into_resource_key());
        self.set(|settings| settings.callers = Callers::Tenants(tenant))
    }

    /// Gives a recorded answer to every caller that sends its key and its request, whatever its
    /// credentials are: for services whose clients are one party, such as workers that share a
    /// queue. Default: [by caller](Self::tenant).
    pub fn shared_between_callers(self) -> Self {
        self.set(|settings| settings.callers = Callers::Shared)
    }

    /// Headers and trailers that are not recorded: the client that is answered first gets them, and
    /// a recorded answer is sent without them. Replaces the default, which is
    /// [`CREDENTIAL_HEADERS`](super::CREDENTIAL_HEADERS):
    ///
    /// ```
    /// use http::HeaderName;
    /// use redlock_core::Redlock;
    /// use tower_redlock::idempotency::{CREDENTIAL_HEADERS, IdempotencyLayer, MemoryRecords};
    ///
    /// let ours = HeaderName::from_static("x-upload-token");
    /// IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new())
    ///     .unrecorded_headers(CREDENTIAL_HEADERS.iter().cloned().chain([ours]));
    /// ```
    ///
    /// Headers of one connection, such as `Transfer-Encoding`, and `Date` are never recorded.
    pub fn unrecorded_headers(self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        let headers = headers.into_iter().collect();
        self.set(|settings| settings.unrecorded_headers = headers)
    }

    /// Only requests with these methods are looked at. Default: `POST` and `PATCH`, as others are
    /// idempotent by themselves.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        let methods: Arc<[Method]> = methods.into_iter().collect();
        // Also those that a lock layer leaves alone by default.
        self.lock = self.lock.methods(methods.iter().cloned());
        self.set(|settings| settings.methods = methods)
    }

    /// Requests without a key are carried out each time, without a lock. Default: they are
    /// answered with 400.
    pub fn optional(self) -> Self {
        self.set(|settings| settings.optional = true)
    }

    /// The status of the answer to a request that is being carried out just now. The draft says
    /// 409; the default is 423, which no handler uses for anything else.
    pub fn in_progress(self, status: StatusCode) -> Self {
        self.set(|settings| settings.in_progress = status)
    }

    /// For how long a request is answered again, in whole seconds. Clients are told the seconds
    /// that are left in `Idempotency-Expires-In`. Default: 24 hours.
    pub fn keep_for(self, keep_for: Duration) -> Self {
        self.set(|settings| settings.keep_for = keep_for)
    }

    /// Selects the answers that are recorded. After another answer a repeated request is handled
    /// again. Default: all of them.
    ///
    /// An answer by which a lock, or this layer, refuses a request is never recorded, because
    /// nothing was done. The layer recognizes it by a mark of its own and not by its status: a 503
    /// of a handler, and a 504 of a timeout below the layer, are recorded like any answer.
    ///
    /// A status rarely tells whether anything was done. Let the handler tell it:
    ///
    /// ```
    /// use axum::response::{Extension, IntoResponse, Response};
    /// use http::StatusCode;
    /// use redlock_core::Redlock;
    /// use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// #[derive(Clone)]
    /// struct TryAgain;
    ///
    /// async fn pay() -> Response {
    ///     // the provider was not called yet
    ///     (Extension(TryAgain), StatusCode::SERVICE_UNAVAILABLE).into_response()
    /// }
    ///
    /// let layer = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new())
    ///     .record_if(|answer| answer.extensions.get::<TryAgain>().is_none());
    /// # use axum::{Router, body::Body, routing::post};
    /// # use http::Request;
    /// # use tower::ServiceExt;
    /// # let app = Router::new().route("/", post(pay)).layer(layer);
    /// # for _ in 0..2 {
    /// #     let request = Request::post("/").header("idempotency-key", "1");
    /// #     let answer = app.clone().oneshot(request.body(Body::empty())?).await?;
    /// #     assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    /// #     assert!(!answer.headers().contains_key("idempotent-replayed"));
    /// # }
    /// # Ok(()) }
    /// ```
    pub fn record_if<F>(self, record_if: F) -> Self
    where
        F: Fn(&http::response::Parts) -> bool + Send + Sync + 'static,
    {
        self.set(|settings| settings.record_if = Arc::new(record_if))
    }

    /// Headers that are part of what is asked for: a repeated request with other values is answered
    /// with 422. Default: none, only the method, the path, the query and the body.
    pub fn fingerprint_headers(self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        let headers = headers.into_iter().collect();
        self.set(|settings| settings.fingerprint_headers = headers)
    }

    /// Sets the function that tells whether two requests are the same. A key that comes with
    /// another return value of this function is answered with 422. Default: the query and the bytes of the body,
    /// of a multipart body without its boundary. The method, the path and
    /// [`fingerprint_headers`](Self::fingerprint_headers) count in any case.
    ///
    /// For clients that build the body anew when they repeat a request, with another order of the
    /// fields of a JSON object or another time stamp in a compressed body:
    ///
    /// ```
    /// use axum::{Router, body::Body, routing::post};
    /// use bytes::Bytes;
    /// use http::{Request, request::Parts};
    /// use redlock_core::Redlock;
    /// use tower::ServiceExt;
    /// use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn pay() {}
    /// let json = |_: &Parts, body: &Bytes| match serde_json::from_slice(body) {
    ///     Ok(serde_json::Value::Object(fields)) => {
    ///         let mut fields: Vec<_> = fields.into_iter().collect();
    ///         fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    ///         format!("{fields:?}").into_bytes()
    ///     }
    ///     _ => body.to_vec(),
    /// };
    /// let once = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new()).fingerprint(json);
    /// let app: Router = Router::new().route("/payments", post(pay)).layer(once);
    ///
    /// let send = |body: &'static str| {
    ///     let request = Request::post("/payments").header("idempotency-key", "1");
    ///     app.clone().oneshot(request.body(Body::from(body)).unwrap())
    /// };
    /// send(r#"{"to": "bob", "cents": 5}"#).await?;
    /// let again = send(r#"{"cents":5,"to":"bob"}"#).await?;
    /// assert_eq!(again.headers()["idempotent-replayed"], "true");
    /// assert_eq!(send(r#"{"cents":6,"to":"bob"}"#).await?.status(), 422);
    /// # Ok(()) }
    /// ```
    pub fn fingerprint<F, R>(self, payload: F) -> Self
    where
        F: Fn(&Parts, &Bytes) -> R + Send + Sync + 'static,
        R: Into<Vec<u8>>,
    {
        let payload: Payload = Arc::new(move |parts, body| payload(parts, body).into());
        self.set(|settings| settings.payload = Some(payload))
    }

    /// How many bytes the body of a request may have: it is read before anything is locked, and
    /// kept in memory while the request is carried out. A larger one is answered with 413.
    /// Default: 2 MiB.
    pub fn max_request_body(self, bytes: usize) -> Self {
        self.set(|settings| settings.max_request_body = bytes)
    }

    /// Limits the time to read a request body, counted from the arrival of the request. The layer
    /// answers a body that is late with 408 and locks nothing. `Duration::MAX` is no limit.
    /// Default: 10 seconds.
    ///
    /// A [`ReadBodyLayer`](crate::ReadBodyLayer) above this layer has a limit of its own, and hands over
    /// a body that is complete.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use axum::{Router, body::Body, routing::post};
    /// use futures_util::stream;
    /// use http::{Request, StatusCode};
    /// use redlock_core::Redlock;
    /// use tower::ServiceExt;
    /// use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # async fn pay() {}
    /// let once = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new())
    ///     .max_request_wait(Duration::from_millis(20));
    /// let app: Router = Router::new().route("/payments", post(pay)).layer(once);
    ///
    /// let endless = Body::from_stream(stream::pending::<Result<&[u8], std::io::Error>>());
    /// let request = Request::post("/payments").header("idempotency-key", "order-1").body(endless)?;
    /// assert_eq!(app.oneshot(request).await?.status(), StatusCode::REQUEST_TIMEOUT);
    /// # Ok(()) }
    /// ```
    pub fn max_request_wait(self, wait: Duration) -> Self {
        self.set(|settings| settings.max_request_wait = wait)
    }

    /// How many bytes of an answer are recorded. A larger one is sent as it is, and only its status
    /// is recorded: when the request is repeated, it is not handled again but answered with 410.
    /// Default: 1 MiB.
    pub fn max_response_body(self, bytes: usize) -> Self {
        self.set(|settings| settings.max_response_body = bytes)
    }

    /// For how long the layer waits for the end of an answer of unknown length, such as a stream,
    /// before it sends the first byte. An answer that takes longer is sent as it comes, and only its
    /// status is recorded, as of one that is too large. Zero: such an answer is sent at once and is
    /// recorded only if it is there as a whole. Default: 1 second.
    pub fn max_response_wait(self, wait: Duration) -> Self {
        self.set(|settings| settings.max_response_wait = wait)
    }

    /// Changes how the lock is taken and held: its time to live, how long to wait, what happens
    /// when it is lost. Rejections are rendered by [`on_rejection`](Self::on_rejection) all the
    /// same.
    ///
    /// With [`Disconnect::Cancel`], a handler whose client goes away, or which a timeout above the
    /// layer ends, is dropped and not recorded: the repeated request is handled again.
    ///
    /// ```
    /// # use redlock_core::Redlock;
    /// # use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
    /// use std::time::Duration;
    ///
    /// // a repeated request waits for the first one, and gets its answer
    /// IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new())
    ///     .lock(|lock| lock.wait(Duration::from_secs(5)).max_hold(Duration::from_secs(60)));
    /// ```
    pub fn lock(mut self, change: impl FnOnce(RedlockLayer) -> RedlockLayer) -> Self {
        self.lock = change(self.lock);
        self
    }

    /// Makes the answer to a request that is refused. Default: [`Rejection::to_problem`].
    pub fn on_rejection<F, B>(self, render: F) -> Self
    where
        F: Fn(&Rejection) -> Response<B> + Send + Sync + 'static,
        B: Into<Bytes>,
    {
        let render: Render = Arc::new(move |rejection| render(rejection).map(Into::into));
        self.set(|settings| settings.render = Some(render))
    }

    /// The handlers of this layer, and of its clones, that run on when their client is gone.
    #[must_use]
    pub fn detached(&self) -> Detached {
        self.lock.detached()
    }
}

impl<S, T> Layer<S> for IdempotencyLayer<T> {
    type Service = IdempotencyService<S, T>;

    fn layer(&self, inner: S) -> Self::Service {
        let settings = Arc::clone(&self.settings);
        let lock =
            self.lock.clone().on_rejection(move |rejection| settings.render(rejection.clone()));
        let (settings, store) = (Arc::clone(&self.settings), Arc::clone(&self.store));
        IdempotencyService::new(lock.layer(Recording::new(inner, settings, store)))
    }
}

impl<T> Clone for IdempotencyLayer<T> {
    fn clone(&self) -> Self {
        Self {
            lock: self.lock.clone(),
            settings: Arc::clone(&self.settings),
            store: Arc::clone(&self.store),
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for IdempotencyLayer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("lock", &self.lock)
            .field("methods", &self.settings.methods)
            .field("keep_for", &self.settings.keep_for)
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

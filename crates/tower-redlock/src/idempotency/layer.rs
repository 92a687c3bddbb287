//! The layer: what a user sets.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Method, Response, StatusCode};
use redlock_core::Redlock;
use tower_layer::Layer;

use super::key::{self, Fingerprint, RecordId};
use super::record::{Record, RecordStore, unix_seconds};
use super::service::{IdempotencyService, Recording};
use crate::detached::Detached;
use crate::key::{IntoResourceKey, KeyFn};
use crate::layer::RedlockLayer;
use crate::outage::Outage;
use crate::rejection::{Rejection, RejectionKind, Render};
use crate::settings::Disconnect;

/// Carries out a request with an `Idempotency-Key` once, and answers it again when it is repeated.
///
/// ```
/// use std::time::Duration;
///
/// use axum::{Router, routing::post};
/// use http::request::Parts;
/// use redlock_core::Redlock;
/// use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
///
/// # async fn pay() {}
/// # #[derive(Clone)] struct Tenant(String);
/// let once = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new())
///     .tenant(|parts: &Parts| parts.extensions.get::<Tenant>().map(|tenant| tenant.0.clone()))
///     .keep_for(Duration::from_secs(48 * 60 * 60));
/// let app: Router = Router::new().route("/payments", post(pay).layer(once));
/// ```
///
/// | setting | default |
/// |---|---|
/// | [`tenant`](Self::tenant) | none: all clients share their keys |
/// | [`methods`](Self::methods) | `POST` and `PATCH` |
/// | [`optional`](Self::optional) | a request without a key is answered with 400 |
/// | [`in_progress`](Self::in_progress) | 423 |
/// | [`keep_for`](Self::keep_for) | 24 hours |
/// | [`record_if`](Self::record_if) | see there |
/// | [`fingerprint_headers`](Self::fingerprint_headers) | none |
/// | [`max_request_body`](Self::max_request_body) | 2 MiB |
/// | [`max_response_body`](Self::max_response_body) | 1 MiB |
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

#[derive(Clone)]
pub(super) struct Settings {
    tenant: KeyFn,
    methods: Arc<[Method]>,
    optional: bool,
    in_progress: StatusCode,
    keep_for: Duration,
    record_if: Arc<dyn Fn(StatusCode) -> bool + Send + Sync>,
    fingerprint_headers: Arc<[HeaderName]>,
    pub(super) max_request_body: usize,
    pub(super) max_response_body: usize,
    render: Option<Render>,
    pub(super) outage: Outage,
}

impl<T: RecordStore> IdempotencyLayer<T> {
    /// Locks by this service, and keeps records in this store.
    pub fn new(redlock: impl Into<Redlock>, store: T) -> Self {
        let id = |parts: &Parts| parts.extensions.get().map(RecordId::lock_key);
        let settings = Settings {
            tenant: Arc::new(|_| Ok(None)),
            methods: [Method::POST, Method::PATCH].into(),
            optional: false,
            in_progress: StatusCode::LOCKED,
            keep_for: Duration::from_secs(24 * 60 * 60),
            record_if: Arc::new(is_outcome),
            fingerprint_headers: [].into(),
            max_request_body: 2 * 1024 * 1024,
            max_response_body: 1024 * 1024,
            render: None,
            outage: Outage::default(),
        };
        Self {
            lock: RedlockLayer::new(redlock, id).on_disconnect(Disconnect::Detach),
            settings: Arc::new(settings),
            store: Arc::new(store),
        }
    }
}

impl<T> IdempotencyLayer<T> {
    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }

    /// Whose request it is: two tenants may choose the same key. Take it from what authenticated
    /// the request, not from what the client says. It returns what a key function of
    /// [`RedlockLayer::new`] does; an error is the answer.
    pub fn tenant<F, R>(self, tenant: F) -> Self
    where
        F: Fn(&Parts) -> R + Send + Sync + 'static,
        R: IntoResourceKey,
    {
        let tenant: KeyFn = Arc::new(move |parts| tenant(parts).into_resource_key());
        self.set(|settings| settings.tenant = tenant)
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

    /// Which answers of the handler are kept, by their status; the request is carried out again
    /// after others. Default: all but those that say that nothing was done, or that trying again
    /// helps: 400, 401, 403, 405, 406, 408, 411, 413, 414, 415, 421, 422, 423, 425, 428, 429, 431,
    /// 502, 503 and 504. A 500 is kept: who knows what was done before.
    pub fn record_if(self, record_if: impl Fn(StatusCode) -> bool + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.record_if = Arc::new(record_if))
    }

    /// Headers that are part of what is asked for: a repeated request with other values is answered
    /// with 422. Default: none, only the method, the path, the query and the body.
    pub fn fingerprint_headers(self, headers: impl IntoIterator<Item = HeaderName>) -> Self {
        let headers = headers.into_iter().collect();
        self.set(|settings| settings.fingerprint_headers = headers)
    }

    /// How many bytes the body of a request may have: it is read before anything is locked, and
    /// kept in memory while the request is carried out. A larger one is answered with 413.
    /// Default: 2 MiB.
    pub fn max_request_body(self, bytes: usize) -> Self {
        self.set(|settings| settings.max_request_body = bytes)
    }

    /// How many bytes of an answer are kept. A larger one, and one that does not say how large it
    /// is, is sent as it is, and only its status is kept: when the request is repeated, it is not
    /// carried out again but answered with 410. Default: 1 MiB.
    pub fn max_response_body(self, bytes: usize) -> Self {
        self.set(|settings| settings.max_response_body = bytes)
    }

    /// Changes how the lock is taken and held: its time to live, how long to wait, what happens
    /// when it is lost. Rejections are rendered by [`on_rejection`](Self::on_rejection) all the
    /// same.
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

/// Whether a status says what came of a request, and not only that it was not let in.
fn is_outcome(status: StatusCode) -> bool {
    !matches!(
        status.as_u16(),
        400 | 401
            | 403
            | 405
            | 406
            | 408
            | 411
            | 413
            | 414
            | 415
            | 421
            | 422
            | 423
            | 425
            | 428
            | 429
            | 431
            | 502
            | 503
            | 504
    )
}

impl Settings {
    /// Who asks for what, if the request is to be carried out once.
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
        let tenant = (self.tenant)(parts)?;
        Ok(Some(RecordId::new(parts, tenant.as_ref(), &key)))
    }

    pub(super) fn fingerprint(&self, parts: &Parts, body: &[u8]) -> Fingerprint {
        Fingerprint::of(parts, &self.fingerprint_headers, body)
    }

    pub(super) fn is_recorded(&self, status: StatusCode) -> bool {
        (self.record_if)(status)
    }

    pub(super) fn record(
        &self,
        fingerprint: Fingerprint,
        response: &http::response::Parts,
        body: Option<Bytes>,
    ) -> Record {
        let expires_at = unix_seconds(self.keep_for);
        Record::new(fingerprint, response.status, response.headers.clone(), body, expires_at)
    }

    pub(super) fn refuse(&self, rejection: impl Into<Rejection>) -> Response<Bytes> {
        self.render(rejection.into().logged(&self.outage))
    }

    fn render(&self, mut rejection: Rejection) -> Response<Bytes> {
        if rejection.kind() == RejectionKind::Locked {
            rejection = rejection.with_status(self.in_progress);
        }
        rejection.rendered_by(self.render.as_ref()).into_bytes()
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

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

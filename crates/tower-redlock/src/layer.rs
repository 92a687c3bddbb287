//! The layer: what a user sets.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};
use redlock_core::{LockError, Redlock, Renew};
use tower_layer::Layer;

use crate::detached::Detached;
use crate::key::{IntoResourceKey, KeyFn};
use crate::rejection::{Rejection, Render};
use crate::service::RedlockService;
use crate::settings::{Disconnect, Hold, Lost, Settings};

/// Holds a lock for as long as a request is being handled.
///
/// ```
/// use std::time::Duration;
///
/// use axum::{Router, body::Body, routing::post};
/// use http::{Method, Request, StatusCode};
/// use redlock_core::Redlock;
/// use tower::ServiceExt;
/// use tower_redlock::{Disconnect, RedlockLayer, key};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let one_per_order = RedlockLayer::new(Redlock::in_memory(), key::header("x-order"))
///     .methods([Method::POST, Method::PUT])
///     .ttl(Duration::from_secs(5))
///     .wait(Duration::from_secs(2))
///     .on_disconnect(Disconnect::Detach)
///     .checked()?;
/// let app: Router = Router::new().route("/", post(async || "packed")).layer(one_per_order);
///
/// let request = Request::post("/").header("x-order", "42").body(Body::empty())?;
/// assert_eq!(app.oneshot(request).await?.status(), StatusCode::OK);
/// # Ok(()) }
/// ```
///
/// The lock is taken before the handler is called, renewed while it runs, and released before
/// the response is yielded: a client that sends its next request when it has the response never
/// meets its own lock. A request that gets no lock is answered with a [`Rejection`].
///
/// A body that the handler reads is read under the lock: put a
/// [`ReadBodyLayer`](crate::ReadBodyLayer) over this layer, and a slow client does not keep the lock.
///
/// | setting | default |
/// |---|---|
/// | [`ttl`](Self::ttl) | that of the [`Redlock`] |
/// | [`wait`](Self::wait) | zero: a locked resource is answered with 423 at once |
/// | [`renew`](Self::renew) | [`Renew::Yes`] |
/// | [`max_hold`](Self::max_hold) | none |
/// | [`methods`](Self::methods) | all but `OPTIONS`: a CORS preflight locks nothing |
/// | [`hold`](Self::hold) | [`Hold::Response`] |
/// | [`on_disconnect`](Self::on_disconnect) | [`Disconnect::Cancel`] |
/// | [`on_lost`](Self::on_lost) | [`Lost::Abort`] |
/// | [`on_rejection`](Self::on_rejection) | problem+json |
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct RedlockLayer {
    settings: Arc<Settings>,
}

impl RedlockLayer {
    /// Locks the key that the key function derives from the URI, headers and extensions of a request.
    ///
    /// The key function returns a key as `String`, `&'static str` or
    /// [`Key`](redlock_core::Key); in an `Option`, where `None` locks nothing; in a `Result`, whose
    /// error is the answer. See [`IntoResourceKey`], and [`key`](mod@crate::key) for some that are ready to use.
    ///
    /// The key should contain the resource and its tenant. Otherwise a client can lock the resources of
    /// another tenant.
    ///
    /// ```
    /// use axum::{Router, body::Body, routing::post};
    /// use http::{Request, StatusCode};
    /// use redlock_core::Redlock;
    /// use tower::ServiceExt;
    /// use tower_redlock::{RedlockLayer, key};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// /// Authentication inserts it into the extensions of a request.
    /// #[derive(Clone)]
    /// struct Tenant(u64);
    ///
    /// let layer = RedlockLayer::new(Redlock::in_memory(), |parts: &http::request::Parts| {
    ///     let tenant = parts.extensions.get::<Tenant>();
    ///     tenant
    ///         .map(|Tenant(tenant)| format!("order:{tenant}:{}", key::normalized_path(parts)))
    ///         .ok_or((StatusCode::UNAUTHORIZED, "sign in first"))
    /// });
    /// let app: Router = Router::new().route("/orders/{id}", post(async || ())).layer(layer);
    ///
    /// let mut request = Request::post("/orders/42").body(Body::empty())?;
    /// request.extensions_mut().insert(Tenant(7));
    /// assert_eq!(app.clone().oneshot(request).await?.status(), StatusCode::OK);
    /// let request = Request::post("/orders/42").body(Body::empty())?;
    /// assert_eq!(app.oneshot(request).await?.status(), StatusCode::UNAUTHORIZED);
    /// # Ok(()) }
    /// ```
    pub fn new<F, T>(redlock: impl Into<Redlock>, key_fn: F) -> Self
    where
        F: Fn(&Parts) -> T + Send + Sync + 'static,
        T: IntoResourceKey,
    {
        Self::with(redlock.into(), Arc::new(move |parts| key_fn(parts).into_resource_key()))
    }

    /// Locks nothing by itself, and lets handlers lock: by `Locked<R>`, or by the
    /// [`LockScope`](crate::LockScope) in the extensions of the request.
    pub fn scope_only(redlock: impl Into<Redlock>) -> Self {
        Self::with(redlock.into(), Arc::new(|_| Ok(None)))
    }

    fn with(redlock: Redlock, key_fn: KeyFn) -> Self {
        Self { settings: Arc::new(Settings::new(redlock, key_fn)) }
    }

    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }

    /// For how long the servers keep a lock that is not renewed, in whole milliseconds: longer than
    /// the drift of the clocks plus two node deadlines, at most
    /// [`max_ttl`](redlock_core::ConfigBuilder::max_ttl). Default: that of the [`Redlock`].
    ///
    /// With another value each request is answered with 500: [`checked`](Self::checked) finds it when
    /// the service starts.
    pub fn ttl(self, ttl: Duration) -> Self {
        let layer = self.set(|settings| settings.ttl = Some(ttl));
        // Here and not when a service is made of it: routers do that for a request, too.
        #[cfg(feature = "tracing")]
        if let Err(error) = layer.settings.check() {
            tracing::error!(%error, "the lock layer answers each request with 500");
        }
        layer
    }

    /// For how long a request waits for its lock. Default: zero, the answer is 423 at once.
    pub fn wait(self, wait: Duration) -> Self {
        self.set(|settings| settings.wait = wait)
    }

    /// Whether the lock is renewed while the handler runs. Without that, a handler that takes longer
    /// than the TTL loses its lock and is stopped. Default: [`Renew::Yes`].
    pub fn renew(self, renew: Renew) -> Self {
        self.set(|settings| settings.renew = renew)
    }

    /// For how long a lock is held at most, renewals included; after that it counts as lost.
    /// Default: no bound, so put a timeout on the handler.
    pub fn max_hold(self, max_hold: Duration) -> Self {
        self.set(|settings| settings.max_hold = Some(max_hold))
    }

    /// Locks only requests with these methods. The key function is not called for others, which reach
    /// the handler without a lock.
    ///
    /// Default: all but `OPTIONS`, because a CORS preflight carries neither the headers nor the work
    /// of its request. Name the methods if a handler works on every method, as axum's `any` does.
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        let methods = methods.into_iter().collect();
        self.set(|settings| settings.methods = Some(methods))
    }

    /// How long the lock is held. Default: [`Hold::Response`].
    pub fn hold(self, hold: Hold) -> Self {
        self.set(|settings| settings.hold = hold)
    }

    /// What happens when the client goes away. Default: [`Disconnect::Cancel`].
    pub fn on_disconnect(self, on_disconnect: Disconnect) -> Self {
        self.set(|settings| settings.on_disconnect = on_disconnect)
    }

    /// What happens when a lock is lost while the handler runs. Default: [`Lost::Abort`].
    pub fn on_lost(self, on_lost: Lost) -> Self {
        self.set(|settings| settings.on_lost = on_lost)
    }

    /// Makes the response of a request that got no lock or lost it. Default:
    /// [`Rejection::to_problem`].
    ///
    /// ```
    /// use axum::{Router, body::Body, routing::post};
    /// use http::{Request, StatusCode};
    /// use redlock_core::Redlock;
    /// use tower::ServiceExt;
    /// use tower_redlock::{RedlockLayer, RejectionKind, key};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let redlock = Redlock::in_memory();
    /// let layer = RedlockLayer::new(redlock.clone(), key::path()).on_rejection(|rejection| {
    ///     let mut response = rejection.to_problem();
    ///     if rejection.kind() == RejectionKind::Locked {
    ///         *response.status_mut() = StatusCode::CONFLICT;
    ///     }
    ///     response
    /// });
    /// let app: Router = Router::new().route("/", post(async || ())).layer(layer);
    ///
    /// let _held = redlock.lock("path:/").await?;
    /// let request = Request::post("/").body(Body::empty())?;
    /// assert_eq!(app.oneshot(request).await?.status(), StatusCode::CONFLICT);
    /// # Ok(()) }
    /// ```
    pub fn on_rejection<F, B>(self, render: F) -> Self
    where
        F: Fn(&Rejection) -> Response<B> + Send + Sync + 'static,
        B: Into<Bytes>,
    {
        let render: Render = Arc::new(move |rejection| render(rejection).map(Into::into));
        self.set(|settings| settings.render = Some(render))
    }

    /// Checks the settings against the configuration of the [`Redlock`].
    ///
    /// Without it, a layer whose settings are not usable answers each request with 500, and logs an
    /// error when the setting is made.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// use redlock_core::{Config, Redlock};
    /// use tower_redlock::{RedlockLayer, key};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let minute = |redlock| RedlockLayer::new(redlock, key::path()).ttl(Duration::from_secs(60));
    ///
    /// let error = minute(Redlock::in_memory()).checked().unwrap_err();
    /// assert!(error.to_string().contains("set a larger max_ttl"), "{error}");
    ///
    /// let config = Config::memory().max_ttl(Duration::from_secs(60)).build()?;
    /// let layer = minute(Redlock::new(config)).checked()?;
    /// # let _ = layer;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Invalid`](redlock_core::ErrorKind::Invalid) for a [`ttl`](Self::ttl) that the servers can't
    /// keep, or that is longer than `max_ttl`. The error names the value and the fix.
    pub fn checked(self) -> Result<Self, LockError> {
        self.settings.check()?;
        Ok(self)
    }

    /// The handlers of this layer, and of its clones, that run in tasks of their own.
    #[must_use]
    pub fn detached(&self) -> Detached {
        self.settings.detached.clone()
    }
}

impl<S> Layer<S> for RedlockLayer {
    type Service = RedlockService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RedlockService::new(inner, Arc::clone(&self.settings))
    }
}

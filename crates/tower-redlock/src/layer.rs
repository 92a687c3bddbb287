//! The layer: what is locked, for how long, and what happens when things go wrong.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response};
use redlock_core::{Key, Redlock, Renew, Request};
use tower_layer::Layer;

use crate::detached::Detached;
use crate::key::{IntoResourceKey, KeyRejection};
use crate::rejection::{Rejection, Render};
use crate::service::RedlockService;

/// Holds a lock for as long as a request is being handled.
///
/// ```
/// use axum::{Router, routing::post};
/// use redlock_core::Redlock;
/// use tower_redlock::{RedlockLayer, key};
///
/// # async fn pay() {}
/// let redlock = Redlock::in_memory(); // or Redlock::new(Config::servers([…]).build()?)
/// let app: Router = Router::new()
///     .route("/payments", post(pay))
///     .layer(RedlockLayer::new(redlock, key::header("idempotency-key")));
/// ```
///
/// The lock is taken before the handler is called, renewed while it runs, and released before
/// the response is yielded: a client that sends its next request when it has the response never
/// meets its own lock. A request that gets no lock is answered with a [`Rejection`].
///
/// | setting | default |
/// |---|---|
/// | [`ttl`](Self::ttl) | that of the [`Redlock`] |
/// | [`wait`](Self::wait) | zero: a locked resource is answered with 423 at once |
/// | [`renew`](Self::renew) | [`Renew::Yes`] |
/// | [`max_hold`](Self::max_hold) | none |
/// | [`methods`](Self::methods) | all |
/// | [`hold`](Self::hold) | [`Hold::Response`] |
/// | [`on_disconnect`](Self::on_disconnect) | [`Disconnect::Cancel`] |
/// | [`on_lost`](Self::on_lost) | [`Lost::Abort`] |
/// | [`on_rejection`](Self::on_rejection) | problem+json |
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct RedlockLayer {
    settings: Arc<Settings>,
}

/// How long the lock of a request is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hold {
    /// Until the handler has returned its response. The default.
    #[default]
    Response,
    /// Until the body of the response has been sent, has failed or was dropped: for handlers
    /// that do their work while they stream.
    Body,
}

/// What happens to the handler when the client goes away.
///
/// The server drops the future of a request when it notices. hyper notices while it reads the
/// connection: at once for HTTP/2, and for HTTP/1 unless a large request body is unread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Disconnect {
    /// The handler is dropped where it stands, then the lock is released. The default, and what
    /// happens without this layer too.
    #[default]
    Cancel,
    /// The handler runs to its end under the lock, in a task of its own: for work that must not
    /// stop half-way, such as a payment. [`RedlockLayer::detached`] waits for such handlers.
    Detach,
}

/// What happens to the handler when its lock is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Lost {
    /// The handler is dropped and the client gets 503 with the type `lock-lost`; with
    /// [`Hold::Body`] a body that is being sent fails. The default.
    #[default]
    Abort,
    /// The handler runs on; it can ask its lease.
    Continue,
}

pub(crate) type KeyFn = Arc<dyn Fn(&Parts) -> Result<Option<Key>, KeyRejection> + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Settings {
    redlock: Redlock,
    key_fn: KeyFn,
    ttl: Option<Duration>,
    wait: Duration,
    renew: Renew,
    max_hold: Option<Duration>,
    methods: Option<Box<[Method]>>,
    pub(crate) hold: Hold,
    pub(crate) on_disconnect: Disconnect,
    pub(crate) on_lost: Lost,
    pub(crate) render: Option<Render>,
    pub(crate) detached: Detached,
}

impl RedlockLayer {
    /// Locks what the key function derives from a request: its URI, headers and extensions.
    ///
    /// The key function returns a key as `String`, `&'static str` or [`Key`]; in an `Option`,
    /// where `None` locks nothing; in a `Result`, whose error is the answer. See
    /// [`IntoResourceKey`], and [`key`](mod@crate::key) for some that are ready to use.
    ///
    /// The key should name the resource and its tenant: whoever can choose another's key can
    /// lock it.
    ///
    /// ```
    /// use http::StatusCode;
    /// use redlock_core::Redlock;
    /// use tower_redlock::RedlockLayer;
    ///
    /// RedlockLayer::new(Redlock::in_memory(), |parts: &http::request::Parts| {
    ///     let tenant = parts.headers.get("x-tenant").and_then(|tenant| tenant.to_str().ok());
    ///     tenant
    ///         .map(|tenant| format!("{tenant}:{}", parts.uri.path()))
    ///         .ok_or((StatusCode::UNAUTHORIZED, "send an X-Tenant"))
    /// });
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
        Self {
            settings: Arc::new(Settings {
                redlock,
                key_fn,
                ttl: None,
                wait: Duration::ZERO,
                renew: Renew::Yes,
                max_hold: None,
                methods: None,
                hold: Hold::default(),
                on_disconnect: Disconnect::default(),
                on_lost: Lost::default(),
                render: None,
                detached: Detached::default(),
            }),
        }
    }

    fn set(mut self, set: impl FnOnce(&mut Settings)) -> Self {
        set(Arc::make_mut(&mut self.settings));
        self
    }

    /// For how long the servers keep a lock that is not renewed. Default: that of the [`Redlock`].
    pub fn ttl(self, ttl: Duration) -> Self {
        self.set(|settings| settings.ttl = Some(ttl))
    }

    /// For how long a request waits for its lock. Default: zero, the answer is 423 at once.
    pub fn wait(self, wait: Duration) -> Self {
        self.set(|settings| settings.wait = wait)
    }

    /// Whether the lock is renewed while the handler runs. Default: [`Renew::Yes`].
    pub fn renew(self, renew: Renew) -> Self {
        self.set(|settings| settings.renew = renew)
    }

    /// For how long a lock is held at most; after that it counts as lost. Default: no bound, so
    /// put a timeout on the handler.
    pub fn max_hold(self, max_hold: Duration) -> Self {
        self.set(|settings| settings.max_hold = Some(max_hold))
    }

    /// Locks only requests with these methods; the key function is not asked about others.
    /// Default: all methods.
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
    /// use redlock_core::Redlock;
    /// use tower_redlock::{RedlockLayer, RejectionKind, key};
    ///
    /// RedlockLayer::new(Redlock::in_memory(), key::path()).on_rejection(|rejection| {
    ///     let mut response = rejection.to_problem();
    ///     if rejection.kind() == RejectionKind::Locked {
    ///         *response.status_mut() = http::StatusCode::CONFLICT;
    ///     }
    ///     response
    /// });
    /// ```
    pub fn on_rejection<F, B>(self, render: F) -> Self
    where
        F: Fn(&Rejection) -> Response<B> + Send + Sync + 'static,
        B: Into<Bytes>,
    {
        let render: Render = Arc::new(move |rejection| render(rejection).map(Into::into));
        self.set(|settings| settings.render = Some(render))
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

impl Settings {
    /// What the layer itself locks for a request.
    pub(crate) fn key_of(&self, parts: &Parts) -> Result<Option<Key>, KeyRejection> {
        match &self.methods {
            Some(methods) if !methods.contains(&parts.method) => Ok(None),
            _ => (self.key_fn)(parts),
        }
    }

    pub(crate) fn request(&self, key: Key) -> Request {
        let mut request = self.redlock.request(key).wait(self.wait).renew(self.renew);
        if let Some(ttl) = self.ttl {
            request = request.ttl(ttl);
        }
        if let Some(max_hold) = self.max_hold {
            request = request.max_hold(max_hold);
        }
        request
    }

    pub(crate) fn rejected(&self, rejection: impl Into<Rejection>) -> Rejection {
        let rejection = rejection.into().rendered_by(self.render.as_ref());
        #[cfg(feature = "tracing")]
        {
            let (kind, error) = (rejection.kind(), rejection.lock_error());
            let error = error.map(tracing::field::display);
            if rejection.status().is_server_error() {
                tracing::warn!(?kind, error, "{rejection}");
            } else {
                tracing::debug!(?kind, error, "{rejection}");
            }
        }
        rejection
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("redlock", &self.redlock)
            .field("ttl", &self.ttl)
            .field("wait", &self.wait)
            .field("renew", &self.renew)
            .field("max_hold", &self.max_hold)
            .field("methods", &self.methods)
            .field("hold", &self.hold)
            .field("on_disconnect", &self.on_disconnect)
            .field("on_lost", &self.on_lost)
            .field("detached", &self.detached)
            .finish_non_exhaustive()
    }
}

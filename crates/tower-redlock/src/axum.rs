//! The extractor: an argument that is locked for as long as its request is handled.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use redlock_core::{FencingToken, Key, Lease};

use crate::outage::Outage;
use crate::rejection::Rejection;
use crate::scope::LockScope;

/// What has a lock of its own: usually an id type of yours.
///
/// ```
/// use redlock_core::Key;
/// use serde::Deserialize;
/// use tower_redlock::LockResource;
///
/// #[derive(Deserialize)]
/// struct AccountId(String);
///
/// impl LockResource for AccountId {
///     fn lock_key(&self) -> Key {
///         Key::hashed(format!("account:{}", self.0))
///     }
/// }
///
/// assert_eq!(AccountId("7".into()).lock_key().as_bytes(), b"account:7");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say which lock belongs to it",
    label = "not lockable",
    note = "implement `LockResource` for the type of the id; `Path<T>` and `Json<T>` then follow from `T`"
)]
pub trait LockResource {
    /// The key of the lock. Start it with the kind of the resource, and with the tenant if there
    /// are several; [`Key::hashed`] takes any input.
    fn lock_key(&self) -> Key;

    /// For how long the servers keep the lock if it is not renewed. Default: as the layer says.
    fn ttl(&self) -> Option<Duration> {
        None
    }
}

impl<T: LockResource> LockResource for Path<T> {
    fn lock_key(&self) -> Key {
        self.0.lock_key()
    }

    fn ttl(&self) -> Option<Duration> {
        self.0.ttl()
    }
}

impl<T: LockResource> LockResource for Json<T> {
    fn lock_key(&self) -> Key {
        self.0.lock_key()
    }

    fn ttl(&self) -> Option<Duration> {
        self.0.ttl()
    }
}

/// Extracts `R` and locks it until the response is ready. Needs a
/// [`RedlockLayer`](crate::RedlockLayer) on the router.
///
/// ```
/// use axum::{Router, body::Body, extract::Path, routing::post};
/// use http::{Request, StatusCode};
/// use redlock_core::{Key, Redlock};
/// use tower::ServiceExt;
/// use tower_redlock::{LockResource, Locked, RedlockLayer};
/// # use serde::Deserialize;
/// # #[derive(Deserialize)] struct AccountId(String);
/// # impl LockResource for AccountId {
/// #     fn lock_key(&self) -> Key { Key::hashed(format!("account:{}", self.0)) }
/// # }
///
/// async fn withdraw(account: Locked<Path<AccountId>>) -> String {
///     // nobody else has this account now
///     format!("locked for another {:?}", account.lease().remaining())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let redlock = Redlock::in_memory();
/// let app: Router = Router::new()
///     .route("/accounts/{id}/withdrawals", post(withdraw))
///     .layer(RedlockLayer::scope_only(redlock.clone()));
/// let request = || Request::post("/accounts/7/withdrawals").body(Body::empty());
///
/// assert_eq!(app.clone().oneshot(request()?).await?.status(), StatusCode::OK);
/// let _held = redlock.lock("account:7").await?;
/// assert_eq!(app.oneshot(request()?).await?.status(), StatusCode::LOCKED);
/// # Ok(()) }
/// ```
///
/// The key may come from the body: `Locked<Json<T>>` as the last argument. The lock is acquired when
/// the body was read, so that a slow upload holds nothing. Beside a `Locked<Path<T>>`, the body is read
/// under the lock, unless a [`ReadBodyLayer`](crate::ReadBodyLayer) over the handler has read it.
///
/// Without a lock the handler is not called: the answer is 423, 503, or whatever `R` rejects the
/// request with; 500 without a layer.
///
/// The layer owns the lock: dropping this, or keeping it longer than the request, changes
/// nothing. Two arguments with the same key share a lock. A handler with several `Locked`
/// arguments can't deadlock with another that takes them in another order: a key that sorts
/// before one that was locked earlier is not waited for.
#[derive(Clone, Debug)]
pub struct Locked<R> {
    resource: R,
    lease: Lease,
}

impl<R> Locked<R> {
    /// The lease of the lock: until when it is valid, and whether it was lost.
    #[must_use]
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The fencing token of the lock, for whatever is written to: see [`redlock_core::fencing`].
    /// `None` if the servers are used in [`Safety::Plain`](redlock_core::Safety::Plain).
    #[must_use]
    pub fn fencing_token(&self) -> Option<FencingToken> {
        self.lease.fencing_token()
    }

    /// What was extracted. It stays locked until the response is ready.
    #[must_use]
    pub fn into_inner(self) -> R {
        self.resource
    }
}

impl<R> Deref for Locked<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.resource
    }
}

impl<S, R> FromRequestParts<S> for Locked<R>
where
    S: Send + Sync,
    R: FromRequestParts<S> + LockResource + Send,
{
    type Rejection = LockedRejection<R::Rejection>;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        let scope = LockScope::from_request_parts(parts, state).await;
        let scope = scope.map_err(LockedRejection::Lock)?;
        let resource = R::from_request_parts(parts, state).await;
        let resource = resource.map_err(LockedRejection::Extract)?;
        Self::lock(&scope, resource).await
    }
}

impl<S, R> FromRequest<S> for Locked<R>
where
    S: Send + Sync,
    R: FromRequest<S> + LockResource + Send,
{
    type Rejection = LockedRejection<R::Rejection>;

    async fn from_request(request: Request, state: &S) -> Result<Self, Self::Rejection> {
        let (mut parts, body) = request.into_parts();
        let scope = LockScope::from_request_parts(&mut parts, state).await;
        let scope = scope.map_err(LockedRejection::Lock)?;
        let resource = R::from_request(Request::from_parts(parts, body), state).await;
        let resource = resource.map_err(LockedRejection::Extract)?;
        Self::lock(&scope, resource).await
    }
}

impl<R: LockResource> Locked<R> {
    async fn lock<E>(scope: &LockScope, resource: R) -> Result<Self, LockedRejection<E>> {
        let lease = scope.lock_for(resource.lock_key(), resource.ttl()).await;
        let lease = lease.map_err(LockedRejection::Lock)?;
        Ok(Self { resource, lease })
    }
}

impl<S: Sync> FromRequestParts<S> for LockScope {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        let scope = parts.extensions.get().cloned();
        scope.ok_or_else(|| Rejection::missing_layer().logged(&Outage::default()))
    }
}

/// Why there is no [`Locked`]: take a `Result<Locked<R>, LockedRejection<_>>` to see it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LockedRejection<E> {
    /// `R` could not be extracted.
    Extract(E),
    /// `R` could not be locked, or there is no layer to hold the lock.
    Lock(Rejection),
}

impl<E: IntoResponse> IntoResponse for LockedRejection<E> {
    fn into_response(self) -> Response {
        match self {
            Self::Extract(rejection) => rejection.into_response(),
            Self::Lock(rejection) => rejection.into_response(),
        }
    }
}

impl<E: fmt::Display> fmt::Display for LockedRejection<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Extract(rejection) => rejection.fmt(f),
            Self::Lock(rejection) => rejection.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for LockedRejection<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Extract(rejection) => Some(rejection),
            Self::Lock(rejection) => Some(rejection),
        }
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        self.into_bytes().map(axum::body::Body::from)
    }
}

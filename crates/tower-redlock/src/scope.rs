//! The locks of one request: taken through its extensions, owned and released by the layer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, select_all};
use parking_lot::Mutex;
use redlock_core::{Guard, IntoKey, Key, Lease, LockError, LostReason};
use tokio::sync::Notify;

use crate::rejection::Rejection;
use crate::settings::Settings;

/// Takes locks that last as long as the request. [`RedlockLayer`](crate::RedlockLayer) puts one
/// into the extensions of every request; `Locked<R>` uses it, and so may a handler, as an argument
/// of axum's.
///
/// It does not own the locks: the layer does, and releases them before it yields the response.
/// A clone that outlives the request locks nothing any more.
///
/// ```
/// use axum::{Router, body::Body, extract::Path, routing::post};
/// use http::{Request, StatusCode};
/// use redlock_core::Redlock;
/// use tower::ServiceExt;
/// use tower_redlock::{LockScope, RedlockLayer, Rejection};
///
/// async fn transfer(
///     scope: LockScope,
///     Path((from, to)): Path<(String, String)>,
/// ) -> Result<(), Rejection> {
///     scope.lock(format!("account:{from}")).await?;
///     scope.lock(format!("account:{to}")).await?;
///     Ok(()) // both are locked until the response is ready
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let redlock = Redlock::in_memory();
/// let app: Router = Router::new()
///     .route("/transfers/{from}/{to}", post(transfer))
///     .layer(RedlockLayer::scope_only(redlock.clone()));
/// let request = || Request::post("/transfers/7/8").body(Body::empty());
///
/// assert_eq!(app.clone().oneshot(request()?).await?.status(), StatusCode::OK);
/// let _held = redlock.lock("account:8").await?;
/// assert_eq!(app.oneshot(request()?).await?.status(), StatusCode::LOCKED);
/// # Ok(()) }
/// ```
///
/// With other frameworks it is in the extensions of the request.
#[derive(Clone)]
pub struct LockScope {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Arc<Settings>,
    /// Never locked across an await: `Debug`, `Drop` and the loss signal look into it at any time.
    held: Mutex<Held>,
    /// Somebody watches the leases for loss, and there is one more to watch.
    added: Notify,
    /// Locked while a lock is acquired, so of tokio: two that ask for the same key at once share a
    /// lease.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Held {
    /// Of the layer itself: taken first, and no part of the order below.
    own: Option<Guard>,
    guards: Vec<Guard>,
    over: bool,
}

impl Held {
    fn all(&self) -> impl Iterator<Item = &Guard> {
        self.own.iter().chain(&self.guards)
    }

    fn take(&mut self) -> Vec<Guard> {
        self.own.take().into_iter().chain(self.guards.drain(..)).collect()
    }
}

impl LockScope {
    /// The lease of the lock that the layer itself took for this request. `None` if its key
    /// function named no key, or the request is over.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        self.shared.held.lock().own.as_ref().map(|guard| guard.lease().clone())
    }

    /// Locks the key for the rest of the request, with the time to live, waiting and renewal that
    /// the layer was given. A key that this request holds already is not locked twice: its lease
    /// is shared.
    ///
    /// A key that sorts before one that was locked here earlier is not waited for: two requests
    /// that take the same keys in opposite orders would wait for each other.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] to answer with: locked by another request, no lock service, a key of no or
    /// too many bytes, a time to live that makes no sense; a lock of this request with that key was
    /// lost, or the request is over.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the lock is then not taken.
    pub async fn lock(&self, key: impl IntoKey) -> Result<Lease, Rejection> {
        let key = key.into_key().map_err(|error| {
            let detail = error.to_string();
            self.rendered(crate::KeyRejection::from(detail).into())
        })?;
        self.lock_for(key, None).await
    }

    pub(crate) async fn lock_for(
        &self,
        key: Key,
        ttl: Option<Duration>,
    ) -> Result<Lease, Rejection> {
        let _asking = self.shared.asking.lock().await;
        let in_order = {
            let held = self.shared.held.lock();
            if held.over {
                return Err(self.rendered(Rejection::request_over()));
            }
            if let Some(guard) = held.all().find(|guard| *guard.key() == key) {
                return match guard.lost_reason() {
                    None => Ok(guard.lease().clone()),
                    Some(reason) => Err(self.rendered(Rejection::lost(reason))),
                };
            }
            held.guards.iter().all(|guard| *guard.key() < key)
        };
        let mut request = self.shared.settings.request(key);
        if let Some(ttl) = ttl {
            request = request.ttl(ttl);
        }
        if !in_order {
            request = request.wait(Duration::ZERO);
        }
        let guard = request.await.map_err(|error| self.rejected(error))?;
        self.shared.settings.outage.succeeded();
        let lease = guard.lease().clone();
        let mut held = self.shared.held.lock();
        if held.over {
            return Err(self.rendered(Rejection::request_over()));
        }
        held.guards.push(guard);
        drop(held);
        self.shared.added.notify_one();
        Ok(lease)
    }

    fn rejected(&self, error: LockError) -> Rejection {
        self.shared.settings.rejected(error)
    }

    fn rendered(&self, rejection: Rejection) -> Rejection {
        rejection.rendered_by(self.shared.settings.render.as_ref())
    }
}

impl fmt::Debug for LockScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.shared.held.lock();
        f.debug_struct("LockScope")
            .field("held", &held.all().map(Guard::lease).collect::<Vec<_>>())
            .field("over", &held.over)
            .finish()
    }
}

/// The layer's side of a scope. Dropping it ends the scope and releases what it holds in the
/// background.
#[derive(Debug)]
pub(crate) struct ScopeOwner(LockScope);

impl ScopeOwner {
    pub(crate) fn new(settings: Arc<Settings>) -> Self {
        Self(LockScope {
            shared: Arc::new(Shared {
                settings,
                held: Mutex::default(),
                added: Notify::new(),
                asking: tokio::sync::Mutex::default(),
            }),
        })
    }

    pub(crate) fn scope(&self) -> LockScope {
        self.0.clone()
    }

    pub(crate) fn settings(&self) -> &Arc<Settings> {
        &self.0.shared.settings
    }

    /// Takes the lock of the layer itself into the scope.
    pub(crate) fn own(&self, guard: Guard) {
        self.settings().outage.succeeded();
        self.0.shared.held.lock().own = Some(guard);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.shared.held.lock().all().next().is_none()
    }

    /// Resolves when a lock of the scope is lost.
    pub(crate) fn lost(&self) -> impl Future<Output = LostReason> + Send + use<> {
        let scope = self.scope();
        async move {
            let shared = &*scope.shared;
            loop {
                let leases: Vec<Lease> =
                    shared.held.lock().all().map(|guard| guard.lease().clone()).collect();
                let any_lost = async {
                    if leases.is_empty() {
                        return std::future::pending().await;
                    }
                    select_all(leases.iter().map(|lease| Box::pin(lease.lost()))).await.0
                };
                tokio::select! {
                    biased;
                    reason = any_lost => return reason,
                    () = shared.added.notified() => {}
                }
            }
        }
    }

    /// Ends the scope; the future waits until the releases are answered or their deadlines have passed.
    pub(crate) fn release(self) -> impl Future<Output = ()> + Send + use<> {
        let guards = self.end();
        async move {
            join_all(guards.into_iter().map(Guard::release)).await;
        }
    }

    fn end(&self) -> Vec<Guard> {
        let mut held = self.0.shared.held.lock();
        held.over = true;
        held.take()
    }
}

impl Drop for ScopeOwner {
    fn drop(&mut self) {
        drop(self.end());
    }
}

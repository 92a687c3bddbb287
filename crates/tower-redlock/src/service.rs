//! The service: derives the key of a request and starts to lock it.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::body::ResponseBody;
use crate::future::{Call, ResponseFuture};
use crate::scope::ScopeOwner;
use crate::settings::Settings;

/// A service that calls the inner one under a lock. Made by [`RedlockLayer`](crate::RedlockLayer).
///
/// It is always ready. The readiness of the inner service is awaited under the lock, so that a limit
/// of concurrency there counts requests that are handled and none that waits for its lock.
#[derive(Clone, Debug)]
pub struct RedlockService<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> RedlockService<S> {
    pub(crate) fn new(inner: S, settings: Arc<Settings>) -> Self {
        Self { inner, settings }
    }

    pub(crate) fn inner_mut(&mut self) -> &mut S {
        &mut self.inner
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RedlockService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ResBody: Body + Send + 'static,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, ResBody>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let key = match self.settings.key_of(&parts) {
            Ok(key) => key,
            Err(rejection) => return ResponseFuture::rejected(self.settings.rejected(rejection)),
        };
        let owner = ScopeOwner::new(Arc::clone(&self.settings));
        parts.extensions.insert(owner.scope());
        let lock = key.map(|key| self.settings.request(key));
        let call = Call::new(owner, self.inner.clone(), Request::from_parts(parts, body));
        ResponseFuture::new(lock, call)
    }
}

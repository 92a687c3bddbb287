//! The layer that refuses stale tokens, its service and its future.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use pin_project_lite::pin_project;
use redlock_core::{FencingToken, Key};
use tower_layer::Layer;
use tower_service::Service;

use super::FenceStore;
use crate::body::ResponseBody;
use crate::key::{IntoResourceKey, KeyFn, is_selected};
use crate::outage::Outage;
use crate::rejection::{Rejection, Render};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Observe = Arc<dyn Fn(Key, FencingToken) -> BoxFuture<Result<(), Rejection>> + Send + Sync>;

/// Refuses requests whose fencing token is smaller than one that came before, with 412.
///
/// ```
/// use axum::{Router, body::Body, routing::put};
/// use http::{Method, Request, StatusCode};
/// use tower::ServiceExt;
/// use tower_redlock::{FenceLayer, MemoryFences, fencing, key};
///
/// # async fn write() {}
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let app: Router = Router::new()
///     .route("/invoices/{id}", put(write))
///     .layer(FenceLayer::new(MemoryFences::new(), key::path()).methods([Method::PUT]));
///
/// for (token, status) in [(43, StatusCode::OK), (42, StatusCode::PRECONDITION_FAILED)] {
///     let request = Request::put("/invoices/7").header(fencing::HEADER, token);
///     assert_eq!(app.clone().oneshot(request.body(Body::empty())?).await?.status(), status);
/// }
/// # Ok(()) }
/// ```
///
/// A request without a token is answered with 428, one that can't be read with 400. The token of
/// a request that is let in is in its extensions, for the handler to give to its store. What the
/// layer can't do is said in [the module](crate::fencing).
#[derive(Clone)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct FenceLayer {
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    observe: Observe,
    key_fn: KeyFn,
    methods: Option<Arc<[Method]>>,
    render: Option<Render>,
    outage: Outage,
}

impl FenceLayer {
    /// Checks the tokens of what the key function derives from a request, as that of
    /// [`RedlockLayer`](crate::RedlockLayer::new) does: the resource that was locked, or anything
    /// else that is locked with the same key only. `None` lets the request in as it is.
    pub fn new<F, T>(store: impl FenceStore, key_fn: F) -> Self
    where
        F: Fn(&Parts) -> T + Send + Sync + 'static,
        T: IntoResourceKey,
    {
        let (store, outage) = (Arc::new(store), Outage::default());
        let answers = outage.clone();
        let observe: Observe = Arc::new(move |resource, token| {
            let (store, answers) = (Arc::clone(&store), answers.clone());
            Box::pin(async move {
                let observed = store.observe(&resource, token).await;
                let is_current = observed.map_err(Rejection::no_fences)?;
                answers.succeeded();
                match is_current {
                    true => Ok(()),
                    false => Err(Rejection::stale_token()),
                }
            })
        });
        let key_fn: KeyFn = Arc::new(move |parts| key_fn(parts).into_resource_key());
        Self { settings: Settings { observe, key_fn, methods: None, render: None, outage } }
    }

    /// Checks only requests with these methods. The key function is not called for others, which reach
    /// the handler unchecked.
    ///
    /// Default: all but `OPTIONS`, because a CORS preflight carries no token. Name the methods if a
    /// handler works on every method, as axum's `any` does.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.settings.methods = Some(methods.into_iter().collect());
        self
    }

    /// Makes the response of a request that is refused. Default: [`Rejection::to_problem`].
    pub fn on_rejection<F, B>(mut self, render: F) -> Self
    where
        F: Fn(&Rejection) -> Response<B> + Send + Sync + 'static,
        B: Into<Bytes>,
    {
        self.settings.render = Some(Arc::new(move |rejection| render(rejection).map(Into::into)));
        self
    }
}

impl Settings {
    /// What is to be observed for a request, if anything is.
    fn fence(&self, parts: &Parts) -> Result<Option<(Key, FencingToken)>, Rejection> {
        if !is_selected(self.methods.as_deref(), &parts.method) {
            return Ok(None);
        }
        let Some(resource) = (self.key_fn)(parts)? else { return Ok(None) };
        Ok(Some((resource, super::token(&parts.headers)?)))
    }
}

impl fmt::Debug for FenceLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceLayer")
            .field("methods", &self.settings.methods)
            .finish_non_exhaustive()
    }
}

impl<S> Layer<S> for FenceLayer {
    type Service = FenceService<S>;

    fn layer(&self, inner: S) -> FenceService<S> {
        FenceService { inner, settings: self.settings.clone() }
    }
}

/// A service that calls the inner one if the fencing token is not stale. Made by [`FenceLayer`].
#[derive(Clone)]
pub struct FenceService<S> {
    inner: S,
    settings: Settings,
}

impl<S: fmt::Debug> fmt::Debug for FenceService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FenceService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for FenceService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = FenceFuture<S, ReqBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let fence = self.settings.fence(&parts);
        if let Ok(Some((_, token))) = fence {
            parts.extensions.insert(token);
        }
        let request = Request::from_parts(parts, body);
        let (render, outage) = (self.settings.render.clone(), self.settings.outage.clone());
        let state = match fence {
            Ok(None) => State::Handling { handling: self.inner.call(request) },
            Ok(Some((resource, token))) => {
                // The service that was polled ready is the one to call; its clone may not be ready.
                let unready = self.inner.clone();
                let ready = mem::replace(&mut self.inner, unready);
                let observing = (self.settings.observe)(resource, token);
                State::Observing { observing, call: Some((ready, request)) }
            }
            Err(rejection) => State::Rejected { rejection: Some(rejection) },
        };
        FenceFuture { state, render, outage }
    }
}

pin_project! {
    /// The response of [`FenceService`].
    pub struct FenceFuture<S, ReqBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, ReqBody, S::Future>,
        render: Option<Render>,
        outage: Outage,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, ReqBody, F> {
        Observing {
            observing: BoxFuture<Result<(), Rejection>>,
            call: Option<(S, Request<ReqBody>)>,
        },
        Handling {
            #[pin]
            handling: F,
        },
        Rejected {
            rejection: Option<Rejection>,
        },
    }
}

impl<S, ReqBody, ResBody> Future for FenceFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Observing { observing, call } => {
                    match (ready!(observing.as_mut().poll(cx)), call.take()) {
                        (Ok(()), Some((mut service, request))) => {
                            State::Handling { handling: service.call(request) }
                        }
                        (outcome, _) => State::Rejected { rejection: outcome.err() },
                    }
                }
                StateProj::Handling { handling } => {
                    let response = ready!(handling.poll(cx))?;
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
                StateProj::Rejected { rejection } => {
                    // Polled again after it was ready: there is nothing more to say.
                    let Some(rejection) = rejection.take() else { return Poll::Pending };
                    let rejection = rejection.rendered_by(this.render.as_ref()).logged(this.outage);
                    return Poll::Ready(Ok(rejection.into_bytes().map(ResponseBody::whole)));
                }
            };
            this.state.set(next);
        }
    }
}

impl<S, ReqBody> fmt::Debug for FenceFuture<S, ReqBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Observing { .. } => "observing",
            State::Handling { .. } => "handling",
            State::Rejected { .. } => "rejected",
        };
        f.debug_struct("FenceFuture").field("state", &state).finish_non_exhaustive()
    }
}

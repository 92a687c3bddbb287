//! The way of one request: the lock is acquired, the handler runs, the lock is released.

use std::fmt;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use redlock_core::{Guard, LockError, LostReason};
use tokio::task::JoinHandle;
use tower_service::Service;

use crate::body::ResponseBody;
use crate::rejection::Rejection;
use crate::scope::ScopeOwner;
use crate::settings::{Disconnect, Hold, Lost, Settings};

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Handled<B, E> = Result<Response<ResponseBody<B>>, E>;

pin_project! {
    /// The response of [`RedlockService`](crate::RedlockService).
    ///
    /// Dropping it drops the handler, then releases the lock in the background; with
    /// [`Disconnect::Detach`] a handler that has begun goes on.
    pub struct ResponseFuture<S, ReqBody, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        #[pin]
        state: State<S, ReqBody, S::Future, ResBody, S::Error>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, ReqBody, F, ResBody, E> {
        Acquiring {
            acquiring: BoxFuture<Result<Guard, LockError>>,
            call: Option<Call<S, ReqBody>>,
        },
        Readying {
            lost: Option<BoxFuture<LostReason>>,
            call: Option<Call<S, ReqBody>>,
        },
        Handling {
            #[pin]
            handling: Handling<F, ResBody, E>,
        },
        Detached {
            task: JoinHandle<Handled<ResBody, E>>,
            settings: Arc<Settings>,
        },
        Rejected {
            rejection: Option<Rejection>,
        },
    }
}

/// A request on its way to the inner service, and the locks that it takes along.
pub(crate) struct Call<S, ReqBody> {
    service: S,
    request: Request<ReqBody>,
    // After the service: the locks outlive the place that it may have reserved.
    owner: ScopeOwner,
}

impl<S, ReqBody> Call<S, ReqBody> {
    pub(crate) fn new(owner: ScopeOwner, service: S, request: Request<ReqBody>) -> Self {
        Self { service, request, owner }
    }
}

impl<S, ReqBody, ResBody> ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ResBody: Body + Send + 'static,
{
    pub(crate) fn rejected(rejection: Rejection) -> Self {
        Self { state: State::Rejected { rejection: Some(rejection) } }
    }

    /// Acquires the lock, if there is one to acquire, and then calls the service.
    pub(crate) fn new(lock: Option<redlock_core::Request>, call: Call<S, ReqBody>) -> Self {
        let state = match lock {
            Some(lock) => State::Acquiring { acquiring: lock.into_future(), call: Some(call) },
            None => State::Readying { lost: None, call: Some(call) },
        };
        Self { state }
    }
}

impl<S, ReqBody, ResBody> State<S, ReqBody, S::Future, ResBody, S::Error>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ResBody: Body + Send + 'static,
{
    /// The lock is there, and the inner service may not be ready. Whatever becomes of a handler
    /// without its lock, one that has not begun does not begin then.
    fn readying(guard: Guard, call: Call<S, ReqBody>) -> Self {
        call.owner.own(guard);
        let lost: BoxFuture<LostReason> = Box::pin(call.owner.lost());
        Self::Readying { lost: Some(lost), call: Some(call) }
    }

    /// The inner service is ready.
    fn begin(call: Call<S, ReqBody>, lost: Option<BoxFuture<LostReason>>) -> Self {
        let Call { owner, mut service, request } = call;
        let settings = Arc::clone(owner.settings());
        let handling = Handling::new(service.call(request), owner, lost);
        match settings.on_disconnect {
            Disconnect::Cancel => Self::Handling { handling },
            Disconnect::Detach => {
                Self::Detached { task: settings.detached.spawn(handling), settings }
            }
        }
    }

    /// The inner service is not called: the locks are released before this is yielded.
    fn ended(handled: Handled<ResBody, S::Error>, call: Call<S, ReqBody>) -> Self {
        Self::Handling { handling: Handling::ended(handled, call.owner) }
    }
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ResBody: Body + Send + 'static,
{
    type Output = Handled<ResBody, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Acquiring { acquiring, call } => {
                    let acquired = ready!(acquiring.as_mut().poll(cx));
                    match (acquired, call.take()) {
                        (Ok(guard), Some(call)) => State::readying(guard, call),
                        (Err(error), Some(call)) => {
                            let rejection = call.owner.settings().rejected(error);
                            State::Rejected { rejection: Some(rejection) }
                        }
                        (_, None) => State::Rejected { rejection: None },
                    }
                }
                StateProj::Readying { lost, call } => {
                    let gone = poll_lost(lost, cx);
                    let ready = match call {
                        Some(call) if gone.is_none() => ready!(call.service.poll_ready(cx)),
                        _ => Ok(()),
                    };
                    match (gone, ready, call.take()) {
                        (Some(reason), _, Some(call)) => {
                            let lost = Rejection::lost(reason).before_the_handler();
                            let rejection = call.owner.settings().rejected(lost);
                            State::ended(Ok(respond(rejection)), call)
                        }
                        (None, Err(error), Some(call)) => State::ended(Err(error), call),
                        (None, Ok(()), Some(call)) => State::begin(call, lost.take()),
                        (_, _, None) => State::Rejected { rejection: None },
                    }
                }
                StateProj::Handling { handling } => return handling.poll(cx),
                StateProj::Detached { task, settings } => {
                    return Poll::Ready(match ready!(Pin::new(task).poll(cx)) {
                        Ok(handled) => handled,
                        Err(error) => match error.try_into_panic() {
                            Ok(panic) => resume_unwind(panic),
                            Err(_) => Ok(respond(settings.rejected(Rejection::stopped()))),
                        },
                    });
                }
                StateProj::Rejected { rejection } => {
                    // Polled again after it was ready: there is nothing more to say.
                    let Some(rejection) = rejection.take() else { return Poll::Pending };
                    return Poll::Ready(Ok(respond(rejection)));
                }
            };
            state.set(next);
        }
    }
}

/// Why a lock is lost, if one is.
fn poll_lost(lost: &mut Option<BoxFuture<LostReason>>, cx: &mut Context<'_>) -> Option<LostReason> {
    match lost.as_mut()?.as_mut().poll(cx) {
        Poll::Ready(reason) => Some(reason),
        Poll::Pending => None,
    }
}

impl<S, ReqBody, ResBody> fmt::Debug for ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Acquiring { .. } => "acquiring",
            State::Readying { .. } => "readying",
            State::Handling { .. } => "handling",
            State::Detached { .. } => "detached",
            State::Rejected { .. } => "rejected",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish_non_exhaustive()
    }
}

fn respond<B>(rejection: Rejection) -> Response<ResponseBody<B>> {
    rejection.into_bytes().map(ResponseBody::whole)
}

pin_project! {
    /// A handler that runs under the locks of its scope, and their release.
    struct Handling<F, B, E> {
        // Before the owner, here and when dropped: the locks outlive the handler.
        #[pin]
        handler: Option<F>,
        lost: Option<BoxFuture<LostReason>>,
        owner: Option<ScopeOwner>,
        handled: Option<Handled<B, E>>,
        releasing: Option<BoxFuture<()>>,
    }
}

impl<F, B, E> Handling<F, B, E> {
    fn new(handler: F, owner: ScopeOwner, lost: Option<BoxFuture<LostReason>>) -> Self {
        let lost = match owner.settings().on_lost {
            Lost::Abort => Some(lost.unwrap_or_else(|| Box::pin(owner.lost()))),
            Lost::Continue => None,
        };
        Self { handler: Some(handler), lost, owner: Some(owner), handled: None, releasing: None }
    }

    /// The handler is not called.
    fn ended(handled: Handled<B, E>, owner: ScopeOwner) -> Self {
        let releasing = Some(Box::pin(owner.release()) as BoxFuture<()>);
        Self { handler: None, lost: None, owner: None, handled: Some(handled), releasing }
    }
}

impl<F, B, E> Future for Handling<F, B, E>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Body,
{
    type Output = Handled<B, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(handler) = this.handler.as_mut().as_pin_mut() {
            let handled = match poll_lost(this.lost, cx) {
                Some(reason) => Err(reason),
                None => Ok(ready!(handler.poll(cx))),
            };
            this.handler.set(None);
            let Some(owner) = this.owner.take() else { return Poll::Pending };
            let settings = Arc::clone(owner.settings());
            *this.handled = Some(match handled {
                Err(reason) => Ok(respond(settings.rejected(Rejection::lost(reason)))),
                Ok(Err(error)) => Err(error),
                Ok(Ok(response)) if settings.hold == Hold::Body && !owner.is_empty() => {
                    let lost = this.lost.take();
                    return Poll::Ready(Ok(
                        response.map(|body| ResponseBody::held(body, owner, lost))
                    ));
                }
                Ok(Ok(response)) => Ok(response.map(ResponseBody::inner)),
            });
            this.lost.take();
            if !owner.is_empty() {
                *this.releasing = Some(Box::pin(owner.release()));
            }
        }
        if let Some(releasing) = this.releasing {
            ready!(releasing.as_mut().poll(cx));
        }
        match this.handled.take() {
            Some(handled) => Poll::Ready(handled),
            None => Poll::Pending,
        }
    }
}

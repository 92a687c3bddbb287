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
            call: Option<(ScopeOwner, S, Request<ReqBody>)>,
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

    pub(crate) fn acquiring(
        lock: redlock_core::Request,
        owner: ScopeOwner,
        service: S,
        request: Request<ReqBody>,
    ) -> Self {
        let call = Some((owner, service, request));
        Self { state: State::Acquiring { acquiring: lock.into_future(), call } }
    }

    pub(crate) fn handling(owner: ScopeOwner, service: S, request: Request<ReqBody>) -> Self {
        Self { state: State::begin(owner, service, request) }
    }
}

impl<S, ReqBody, ResBody> State<S, ReqBody, S::Future, ResBody, S::Error>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    ResBody: Body + Send + 'static,
{
    fn begin(owner: ScopeOwner, mut service: S, request: Request<ReqBody>) -> Self {
        let settings = Arc::clone(owner.settings());
        let handling = Handling::new(service.call(request), owner);
        match settings.on_disconnect {
            Disconnect::Cancel => Self::Handling { handling },
            Disconnect::Detach => {
                Self::Detached { task: settings.detached.spawn(handling), settings }
            }
        }
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
                        (Ok(guard), Some((owner, service, request))) => {
                            owner.own(guard);
                            State::begin(owner, service, request)
                        }
                        (Err(error), Some((owner, ..))) => {
                            State::Rejected { rejection: Some(owner.settings().rejected(error)) }
                        }
                        (_, None) => State::Rejected { rejection: None },
                    }
                }
                StateProj::Handling { handling } => return handling.poll(cx),
                StateProj::Detached { task, settings } => {
                    return Poll::Ready(match ready!(Pin::new(task).poll(cx)) {
                        Ok(handled) => handled,
                        Err(error) => match error.try_into_panic() {
                            Ok(panic) => resume_unwind(panic),
                            Err(_) => Ok(respond(settings.rejected(Rejection::shutting_down()))),
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

impl<S, ReqBody, ResBody> fmt::Debug for ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Acquiring { .. } => "acquiring",
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
    fn new(handler: F, owner: ScopeOwner) -> Self {
        let lost = match owner.settings().on_lost {
            Lost::Abort => Some(Box::pin(owner.lost()) as BoxFuture<LostReason>),
            Lost::Continue => None,
        };
        Self { handler: Some(handler), lost, owner: Some(owner), handled: None, releasing: None }
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
            let lost = this.lost.as_mut().map_or(Poll::Pending, |lost| lost.as_mut().poll(cx));
            let handled = match lost {
                Poll::Ready(reason) => Err(reason),
                Poll::Pending => Ok(ready!(handler.poll(cx))),
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

//! The way of one request: its record is looked up, or it is carried out under its lock and
//! recorded.

use std::error::Error;
use std::future::poll_fn;
use std::mem;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tower_service::Service;

use super::body::BufferedBody;
use super::key::{Fingerprint, RecordId};
use super::record::{Record, RecordStore, Saved, publish_expiry};
use super::settings::Settings;
use crate::body::ResponseBody;
use crate::read_body;
use crate::rejection::Rejection;
use crate::scope::LockScope;
use crate::service::RedlockService;

type BoxError = Box<dyn Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A service that carries a request out once. Made by
/// [`IdempotencyLayer`](super::IdempotencyLayer).
#[derive(Debug)]
pub struct IdempotencyService<S, T> {
    locked: RedlockService<Recording<S, T>>,
}

impl<S, T> IdempotencyService<S, T> {
    pub(super) fn new(locked: RedlockService<Recording<S, T>>) -> Self {
        Self { locked }
    }
}

impl<S: Clone, T> Clone for IdempotencyService<S, T> {
    fn clone(&self) -> Self {
        Self { locked: self.locked.clone() }
    }
}

impl<S, T, ReqBody, ResBody> Service<Request<ReqBody>> for IdempotencyService<S, T>
where
    S: Service<Request<BufferedBody<ReqBody>>, Response = Response<ResBody>>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    T: RecordStore,
    ReqBody: Body<Error: Into<BoxError>> + Send + 'static,
    ResBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<ResponseBody<BufferedBody<ResBody>>>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.locked.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        // The service that was polled ready is the one to call; its clone may not be ready.
        let unready = self.locked.clone();
        let mut locked = mem::replace(&mut self.locked, unready);
        let recording = locked.inner_mut();
        let (settings, store) = (Arc::clone(&recording.settings), Arc::clone(&recording.store));
        Box::pin(async move {
            let refuse = |rejection| Ok(settings.refuse(rejection).map(ResponseBody::whole));
            let id = match settings.id(&parts) {
                Ok(Some(id)) => id,
                Ok(None) => {
                    let inner = &mut locked.inner_mut().inner;
                    poll_fn(|cx| inner.poll_ready(cx)).await?;
                    let request = Request::from_parts(parts, BufferedBody::unread(body));
                    let response = inner.call(request).await?;
                    return Ok(response.map(BufferedBody::unread).map(ResponseBody::inner));
                }
                Err(rejection) => return refuse(rejection),
            };
            // Before the lock is acquired: a slow upload holds no lock.
            let (max, within) = (settings.max_request_body, settings.max_request_wait);
            let (bytes, trailers) = match read_body::read(body, max, within).await {
                Ok(body) => body.into_parts(),
                Err(rejection) => return refuse(rejection),
            };
            let fingerprint = settings.fingerprint(&parts, &bytes);
            // A recorded answer needs no lock.
            if let Some(answer) = answered(&*store, &settings, &id, fingerprint).await {
                return Ok(answer.map(ResponseBody::inner));
            }
            parts.extensions.insert(id);
            parts.extensions.insert(fingerprint);
            let body = BufferedBody::whole(bytes, trailers);
            locked.call(Request::from_parts(parts, body)).await
        })
    }
}

/// The answer to a request that was handled before, or can't be looked up.
async fn answered<B>(
    store: &impl RecordStore,
    settings: &Settings,
    id: &RecordId,
    fingerprint: Fingerprint,
) -> Option<Response<BufferedBody<B>>> {
    let rejection = match store.find(id).await {
        Ok(record) => {
            settings.outage.succeeded();
            let record = record?;
            if record.fingerprint != fingerprint {
                Rejection::key_reused()
            } else if let Some(answer) = settings.replay(&record) {
                return Some(answer);
            } else {
                Rejection::answer_not_kept(record.status)
            }
        }
        Err(error) => Rejection::no_records(error),
    };
    Some(refused(settings, rejection))
}

fn refused<B>(settings: &Settings, rejection: Rejection) -> Response<BufferedBody<B>> {
    settings.refuse(rejection).map(|bytes| BufferedBody::whole(bytes, HeaderMap::new()))
}

/// Under the lock: carries a request out unless that was done, and records what came of it.
#[derive(Debug)]
pub struct Recording<S, T> {
    inner: S,
    settings: Arc<Settings>,
    store: Arc<T>,
}

impl<S, T> Recording<S, T> {
    pub(super) fn new(inner: S, settings: Arc<Settings>, store: Arc<T>) -> Self {
        Self { inner, settings, store }
    }
}

impl<S: Clone, T> Clone for Recording<S, T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            settings: Arc::clone(&self.settings),
            store: Arc::clone(&self.store),
        }
    }
}

impl<S, T, ReqBody, ResBody> Service<Request<ReqBody>> for Recording<S, T>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    T: RecordStore,
    ReqBody: Send + 'static,
    ResBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<BufferedBody<ResBody>>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let unready = self.inner.clone();
        let ready = Self {
            inner: mem::replace(&mut self.inner, unready),
            settings: Arc::clone(&self.settings),
            store: Arc::clone(&self.store),
        };
        Box::pin(ready.carry_out(request))
    }
}

impl<S, T: RecordStore> Recording<S, T> {
    async fn carry_out<ReqBody, ResBody>(
        self,
        request: Request<ReqBody>,
    ) -> Result<Response<BufferedBody<ResBody>>, S::Error>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let Self { mut inner, settings, store } = self;
        let extensions = request.extensions();
        let (Some(id), Some(fingerprint)) =
            (extensions.get().copied(), extensions.get::<Fingerprint>().copied())
        else {
            return Ok(inner.call(request).await?.map(BufferedBody::unread));
        };
        let scope = extensions.get::<LockScope>().cloned();
        // Another request may have been carried out since the first look.
        if let Some(answer) = answered(&*store, &settings, &id, fingerprint).await {
            return Ok(answer);
        }
        let handled = AssertUnwindSafe(async {
            let (parts, body) = inner.call(request).await?.into_parts();
            let mut body = BufferedBody::unread(body);
            let recorded = settings.is_recorded(&parts);
            let (max, wait) = (settings.max_response_body, settings.max_response_wait);
            let broken = recorded && body.read_for(max, wait).await.is_err();
            Ok((parts, body, recorded, broken))
        });
        let (mut parts, mut body, recorded, broken) = match handled.catch_unwind().await {
            Ok(Ok(handled)) => handled,
            failed => {
                // Part of the work may be done.
                let record = settings.record_of_failure(fingerprint);
                save(&*store, &id, record, scope).await;
                return match failed {
                    Ok(failed) => failed.map(|(parts, body, ..)| Response::from_parts(parts, body)),
                    Err(panic) => resume_unwind(panic),
                };
            }
        };
        if !recorded {
            return Ok(Response::from_parts(parts, body));
        }
        let kept = if broken { None } else { body.as_whole() };
        let record = settings.record(fingerprint, &parts, kept);
        let expires_at = record.expires_at;
        if save(&*store, &id, record, scope).await {
            publish_expiry(expires_at, &mut parts.headers);
        }
        Ok(match broken {
            false => Response::from_parts(parts, body),
            true => refused(&settings, Rejection::answer_not_kept(parts.status)),
        })
    }
}

/// Saves a record and returns whether the store keeps it. The request was handled in either case, so
/// its answer is sent in either case.
async fn save(
    store: &impl RecordStore,
    id: &RecordId,
    record: Record,
    scope: Option<LockScope>,
) -> bool {
    let lease = scope.as_ref().and_then(LockScope::lease);
    let token = lease.and_then(|lease| lease.fencing_token());
    match store.save(id, record, token).await {
        Ok(Saved::Saved) => true,
        outcome => {
            unrecorded(id, &outcome);
            false
        }
    }
}

#[cfg(feature = "tracing")]
fn unrecorded(id: &RecordId, outcome: &Result<Saved, BoxError>) {
    match outcome {
        Ok(_) => {
            tracing::warn!(%id, "the handler ran without its lock; a later answer for this key is stored already")
        }
        Err(error) => {
            tracing::warn!(%id, %error, "the handler ran and its answer was not stored; a repeated request runs it again")
        }
    }
}

#[cfg(not(feature = "tracing"))]
fn unrecorded(_: &RecordId, _: &Result<Saved, BoxError>) {}

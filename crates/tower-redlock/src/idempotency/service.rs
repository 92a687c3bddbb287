//! The way of one request: its record is looked up, or it is carried out under its lock and
//! recorded.

use std::error::Error;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tower_service::Service;

use super::key::{Fingerprint, RecordId};
use super::layer::Settings;
use super::record::{Record, RecordStore, Saved};
use crate::body::ResponseBody;
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
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    T: RecordStore,
    ReqBody: Body<Data: Send, Error: Into<BoxError>> + From<Bytes> + Send + 'static,
    ResBody: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<ResponseBody<ResponseBody<ResBody>>>;
    type Error = S::Error;
    type Future = BoxFuture<Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.locked.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let recording = self.locked.inner_mut();
        let id = match recording.settings.id(&parts) {
            Ok(Some(id)) => id,
            Ok(None) => {
                let mut inner = recording.inner.clone();
                return Box::pin(async move {
                    // The lock layer is ready whether or not the inner service is.
                    poll_fn(|cx| inner.poll_ready(cx)).await?;
                    let response = inner.call(Request::from_parts(parts, body)).await?;
                    Ok(as_it_is(as_it_is(response)))
                });
            }
            Err(rejection) => {
                let refused = recording.settings.refuse(rejection);
                return Box::pin(async { Ok(refused.map(ResponseBody::whole)) });
            }
        };
        let (settings, store) = (Arc::clone(&recording.settings), Arc::clone(&recording.store));
        // The service that was polled ready is the one to call; its clone may not be ready.
        let unready = self.locked.clone();
        let mut locked = mem::replace(&mut self.locked, unready);
        Box::pin(async move {
            // Before anything is locked: a slow upload holds nothing.
            let body = match read(body, settings.max_request_body).await {
                Ok(body) => body,
                Err(rejection) => return Ok(settings.refuse(rejection).map(ResponseBody::whole)),
            };
            let fingerprint = settings.fingerprint(&parts, &body);
            // What was carried out is answered again without a lock.
            if let Some(answer) = answered(&*store, &settings, &id, fingerprint).await {
                return Ok(answer.map(ResponseBody::whole));
            }
            parts.extensions.insert(id);
            parts.extensions.insert(fingerprint);
            locked.call(Request::from_parts(parts, body.into())).await
        })
    }
}

/// The answer to a request that was carried out before, or can't be looked up.
async fn answered(
    store: &impl RecordStore,
    settings: &Settings,
    id: &RecordId,
    fingerprint: Fingerprint,
) -> Option<Response<Bytes>> {
    let record = match store.find(id).await {
        Ok(record) => record,
        Err(error) => return Some(settings.refuse(Rejection::no_records(error))),
    };
    settings.outage.succeeded();
    let record = record?;
    if record.fingerprint != fingerprint {
        return Some(settings.refuse(Rejection::key_reused()));
    }
    Some(record.response().unwrap_or_else(|| settings.refuse(not_kept(&record))))
}

fn not_kept(record: &Record) -> Rejection {
    Rejection::answer_not_kept(record.status)
}

async fn read<B>(body: B, max: usize) -> Result<Bytes, Rejection>
where
    B: Body<Data: Send, Error: Into<BoxError>>,
{
    match Limited::new(body, max).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Rejection::body_too_large(max)),
        Err(error) => Err(Rejection::broken_body(error)),
    }
}

fn as_it_is<B>(response: Response<B>) -> Response<ResponseBody<B>> {
    response.map(ResponseBody::inner)
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
    type Response = Response<ResponseBody<ResBody>>;
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
        mut self,
        request: Request<ReqBody>,
    ) -> Result<Response<ResponseBody<ResBody>>, S::Error>
    where
        S: Service<Request<ReqBody>, Response = Response<ResBody>>,
        ResBody: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        let extensions = request.extensions();
        let (Some(id), Some(fingerprint)) =
            (extensions.get().copied(), extensions.get::<Fingerprint>().copied())
        else {
            return Ok(as_it_is(self.inner.call(request).await?));
        };
        let scope = extensions.get::<LockScope>().cloned();
        // Another request may have been carried out since the first look.
        if let Some(answer) = answered(&*self.store, &self.settings, &id, fingerprint).await {
            return Ok(answer.map(ResponseBody::whole));
        }
        let response = self.inner.call(request).await?;
        if !self.settings.is_recorded(response.status()) {
            return Ok(as_it_is(response));
        }
        let max = self.settings.max_response_body;
        let (mut parts, body) = response.into_parts();
        let small = body.size_hint().exact().is_some_and(|length| length <= max as u64);
        let (kept, body) = match small {
            false => (None, Ok(ResponseBody::inner(body))),
            true => match read(body, max).await {
                Ok(bytes) => (Some(bytes.clone()), Ok(ResponseBody::whole(bytes))),
                Err(_) => (None, Err(Rejection::answer_not_kept(parts.status))),
            },
        };
        let record = self.settings.record(fingerprint, &parts, kept);
        record.publish_expiry(&mut parts.headers);
        save(&*self.store, &id, record, scope).await;
        Ok(match body {
            Ok(body) => Response::from_parts(parts, body),
            Err(rejection) => self.settings.refuse(rejection).map(ResponseBody::whole),
        })
    }
}

/// The request was carried out: whether or not that could be recorded, its answer is true.
async fn save(store: &impl RecordStore, id: &RecordId, record: Record, scope: Option<LockScope>) {
    let lease = scope.as_ref().and_then(LockScope::lease);
    let token = lease.and_then(|lease| lease.fencing_token());
    match store.save(id, record, token).await {
        Ok(Saved::Saved) => {}
        outcome => unrecorded(id, &outcome),
    }
}

#[cfg(feature = "tracing")]
fn unrecorded(id: &RecordId, outcome: &Result<Saved, BoxError>) {
    match outcome {
        Ok(_) => {
            tracing::warn!(%id, "a request was carried out twice: its lock was lost meanwhile")
        }
        Err(error) => tracing::warn!(%id, %error, "a request was carried out and not recorded"),
    }
}

#[cfg(not(feature = "tracing"))]
fn unrecorded(_: &RecordId, _: &Result<Saved, BoxError>) {}

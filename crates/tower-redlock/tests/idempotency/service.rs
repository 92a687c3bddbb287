//! The layer with the service below, with its lock and with a store that fails.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use futures_util::future::{Ready, ready};
use http::Request;
use parking_lot::Mutex;
use redlock_core::{FencingToken, Redlock};
use tower::{Layer, Service, ServiceExt};
use tower_redlock::idempotency::{
    BufferedBody, EXPIRES_IN, IdempotencyLayer, MemoryRecords, Record, RecordId, RecordStore, Saved,
};

use crate::support::Log;
use crate::{Store, Work, is_replayed, keyed, once, send};

/// A service of which only the instance that was polled ready may be called, and only once.
#[derive(Default)]
struct Strict {
    ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl<B> Service<Request<B>> for Strict {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "the service was not polled ready");
        ready(Ok(Response::new(Body::empty())))
    }
}

#[tokio::test]
async fn the_service_below_is_polled_ready_before_each_call() {
    let mut service = once(&Store::default()).optional().layer(Strict::default());
    for key in ["a", "b"] {
        for request in [keyed(key), Request::post("/")] {
            let ready = ServiceExt::<Request<Body>>::ready(&mut service).await.unwrap();
            let answer = ready.call(request.body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), 200);
        }
    }
}

#[tokio::test]
async fn a_limit_of_one_below_the_layer_is_given_back_after_each_request() {
    let service = tower::service_fn(|_: Request<BufferedBody<Body>>| async {
        Ok::<_, Infallible>(Response::new(Body::empty()))
    });
    let limited = tower::limit::ConcurrencyLimit::new(service, 1);
    let mut service = once(&Store::default()).optional().layer(limited);
    for key in [Some("a"), None, Some("a"), Some(""), None, Some("b")] {
        let request = key.map_or_else(|| Request::post("/"), keyed).body(Body::empty()).unwrap();
        let answered = async {
            ServiceExt::<Request<Body>>::ready(&mut service).await.unwrap().call(request).await
        };
        tokio::time::timeout(crate::SOON, answered)
            .await
            .expect("a place under the limit")
            .unwrap();
    }
}

/// A store that notes the tokens, and fails to save when the test wants it.
#[derive(Default)]
struct Noting {
    records: MemoryRecords,
    tokens: Mutex<Vec<Option<FencingToken>>>,
    fails: bool,
    is_late: bool,
}

impl RecordStore for Noting {
    async fn find(&self, id: &RecordId) -> Result<Option<Record>, Box<dyn Error + Send + Sync>> {
        self.records.find(id).await
    }

    async fn save(
        &self,
        id: &RecordId,
        record: Record,
        token: Option<FencingToken>,
    ) -> Result<Saved, Box<dyn Error + Send + Sync>> {
        self.tokens.lock().push(token);
        if self.fails {
            return Err("the disk is full".into());
        }
        if self.is_late {
            return Ok(Saved::Superseded);
        }
        self.records.save(id, record, token).await
    }
}

#[tokio::test]
async fn a_record_is_saved_with_the_fencing_token_of_its_lock() {
    let store = Arc::new(Noting::default());
    let app = Work::ungated().app(IdempotencyLayer::new(Redlock::in_memory(), Arc::clone(&store)));
    send(&app, keyed("a"), "").await;
    send(&app, keyed("b").header("answer", "500"), "").await;
    let tokens = store.tokens.lock().clone();
    assert_eq!(tokens.len(), 2);
    assert!(tokens.iter().all(Option::is_some), "{tokens:?}");
}

#[tokio::test]
async fn a_store_that_fails_to_save_is_a_warning_in_the_log_without_the_key() {
    let log = Log::default();
    let write = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || write.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let store = Noting { fails: true, ..Noting::default() };
    let app = Work::ungated().app(IdempotencyLayer::new(Redlock::in_memory(), store));
    assert!(!is_replayed(&send(&app, keyed("very-secret"), "").await));
    let text = log.text();
    assert!(text.contains("WARN") && text.contains("the disk is full"), "{text}");
    assert!(!text.contains("very-secret"), "{text}");
}

#[tokio::test]
async fn an_answer_names_its_expiry_only_if_it_is_recorded() {
    let failing = Noting { fails: true, ..Noting::default() };
    let late = Noting { is_late: true, ..Noting::default() };
    for (store, recorded) in [(Noting::default(), true), (failing, false), (late, false)] {
        let app = Work::ungated().app(IdempotencyLayer::new(Redlock::in_memory(), store));
        let answer = send(&app, keyed("k"), "").await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["number"]), (201, &1.into()));
        assert_eq!(answer.headers().contains_key(EXPIRES_IN), recorded);
    }
}

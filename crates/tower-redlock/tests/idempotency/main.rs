//! Requests with an `Idempotency-Key`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod answers;
mod callers;
mod outcomes;
mod requests;
mod rows;
mod service;
mod stores;
#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::any;
use http::request::Builder;
use http::{Request, header};
use redlock_core::Redlock;
use support::Gate;
use tower::ServiceExt;
use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords, REPLAYED, RecordStore};

const SOON: Duration = Duration::from_secs(20);

type Store = Arc<MemoryRecords>;

/// A handler that counts, and answers as the request asks it to.
#[derive(Clone, Default)]
struct Work {
    done: Arc<AtomicUsize>,
    gate: Gate,
}

impl Work {
    fn ungated() -> Self {
        let work = Self::default();
        work.gate.open();
        work
    }

    fn app<T: RecordStore>(&self, layer: IdempotencyLayer<T>) -> Router {
        let work = self.clone();
        let handler = move |request: Request<Body>| async move { work.handle(request).await };
        Router::new().route("/", any(handler.clone())).route("/other", any(handler)).layer(layer)
    }

    async fn handle(self, request: Request<Body>) -> Response {
        self.gate.pass().await;
        let number = self.done.fetch_add(1, Ordering::SeqCst) + 1;
        let status = request
            .headers()
            .get("answer")
            .map_or(201, |status| status.to_str().unwrap().parse().unwrap());
        assert_ne!(status, 666, "this panic is part of the test");
        Response::builder()
            .status(status)
            .header("number", number)
            .header(header::SET_COOKIE, "session=secret")
            .body(Body::from(format!("{number}")))
            .unwrap()
    }

    fn times(&self) -> usize {
        self.done.load(Ordering::SeqCst)
    }
}

fn once(store: &Store) -> IdempotencyLayer<Store> {
    IdempotencyLayer::new(Redlock::in_memory(), Arc::clone(store))
}

fn keyed(key: &str) -> Builder {
    Request::post("/").header("idempotency-key", key)
}

async fn send(app: &Router, request: Builder, body: impl Into<Body>) -> Response {
    let answer = app.clone().oneshot(request.body(body.into()).unwrap());
    tokio::time::timeout(2 * SOON, answer).await.expect("an answer").unwrap()
}

fn is_replayed(response: &Response) -> bool {
    response.headers().get(REPLAYED).is_some_and(|value| value == "true")
}

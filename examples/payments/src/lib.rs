//! A payment service that charges once, however often and by however many it is asked.
//!
//! - The **lock** (`tower-redlock`) lets one request per idempotency key run at a time, over all
//!   instances of the service: the others are told 423 while it runs.
//! - The **record** ([`Store`]) makes a payment idempotent: it is written before anybody is
//!   charged, and finished in the same transaction as the charge. A lock alone could not do that.
//! - The **fence** is the token of the lock, which the store checks with every write: a request
//!   that was paused until its lock was gone is refused.
//! - The **provider** ([`Provider`]) is given the id of the payment, so that one which was cut off
//!   in the middle is not charged twice when it is taken up again.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod accounts;
mod fence;
mod idempotency;
mod payments;
mod problem;
mod provider;
mod settings;
mod store;

use std::time::Duration;

use axum::extract::{DefaultBodyLimit, FromRef, State};
use axum::http::{Method, StatusCode};
use axum::middleware::map_response;
use axum::routing::{get, post};
use axum::{Json, Router};
use redlock_core::Redlock;
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::RequestBodyTimeoutLayer;
use tower_http::trace::TraceLayer;
use tower_redlock::{Detached, Disconnect, RedlockLayer};

pub use crate::provider::Provider;
pub use crate::settings::{Settings, SettingsError};
pub use crate::store::Store;

const MAX_BODY: usize = 64 * 1024;

/// A client that stops in the middle of its request must not keep a lock.
const MAX_BODY_PAUSE: Duration = Duration::from_secs(10);

/// What the handlers work with.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "whoever runs the service has all three")]
pub struct App {
    /// Where payments are kept.
    pub store: Store,
    /// Who moves the money.
    pub provider: Provider,
    /// Who keeps requests apart.
    pub redlock: Redlock,
}

impl FromRef<App> for Store {
    fn from_ref(app: &App) -> Self {
        app.store.clone()
    }
}

impl FromRef<App> for Provider {
    fn from_ref(app: &App) -> Self {
        app.provider.clone()
    }
}

/// The routes of the service, and the payments that go on when their client is gone: wait for
/// them before the process ends.
pub fn app(app: App) -> (Router, Detached) {
    // A charge that has begun must end, whether or not anybody waits for the answer.
    let one_per_key = RedlockLayer::new(app.redlock.clone(), idempotency::lock_key)
        .methods([Method::POST])
        .on_disconnect(Disconnect::Detach);
    let detached = one_per_key.detached();
    let one_per_account = RedlockLayer::scope_only(app.redlock.clone());

    let router = Router::new()
        .route("/payments", post(payments::pay).layer(one_per_key))
        .route("/payments/{id}", get(payments::show))
        .route("/accounts/{id}", get(accounts::show))
        .route("/accounts/{id}/withdrawals", post(accounts::withdraw).layer(one_per_account))
        .route("/healthz", get(health))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(RequestBodyTimeoutLayer::new(MAX_BODY_PAUSE))
        .layer(CatchPanicLayer::new())
        .layer(map_response(problem::instead_of_text))
        .layer(TraceLayer::new_for_http())
        .with_state(app);
    (router, detached)
}

async fn health(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let database = app.store.ready().await.is_ok();
    let locks = app.redlock.ready().await.is_ok();
    let status = if database && locks { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "database": database, "locks": locks })))
}

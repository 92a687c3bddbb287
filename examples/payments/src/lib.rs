//! A payment service that charges once, however often and by however many it is asked.
//!
//! - The **lock** (`tower-redlock`) lets one request per idempotency key run at a time, over all
//!   instances of the service: the others are told 423 while it runs.
//! - The **record** ([`Store`]) makes a payment idempotent: it is written before anybody is
//!   charged, and finished in the same transaction as the charge. A lock alone could not do that.
//! - The **fence** is the token of the lock, which the store checks with every write: a request
//!   that was paused until its lock was gone is refused.
//! - The **provider** ([`Provider`]) is given the id of the payment, so that one which was cut off
//!   in the middle is not charged twice when it is taken up again, by a retry or by [`recover`].

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod accounts;
mod answer;
mod body;
mod demo;
mod events;
mod feed;
mod fence;
mod health;
mod hosts;
mod idempotency;
mod name;
mod page;
mod payments;
mod problem;
mod provider;
mod recovery;
mod servers;
mod settings;
mod store;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::FromRef;
use axum::http::Method;
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use redlock_core::Redlock;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::csrf::CsrfLayer;
use tower_http::trace::TraceLayer;
use tower_redlock::{Detached, Disconnect, ReadBodyLayer, RedlockLayer};

pub use crate::demo::{Demo, Locks};
use crate::feed::Feed;
pub use crate::hosts::Hosts;
pub use crate::provider::{Behaviour, Provider, Simulation};
pub use crate::recovery::recover;
pub use crate::servers::Servers;
pub use crate::settings::{Settings, SettingsError};
pub use crate::store::{DatabaseUrl, Store, UrlError};

const MAX_BODY: usize = 64 * 1024;

/// A body is read before anything is locked. A client that sends it slowly keeps only its connection.
const MAX_BODY_TIME: Duration = Duration::from_secs(10);

/// A quarter of the file descriptors that a process usually has.
const MAX_READERS: usize = 250;

/// What the handlers work with. Cheap to clone; clones are the same service.
#[derive(Clone, Debug)]
pub struct App {
    store: Store,
    provider: Provider,
    redlock: Redlock,
    feed: Feed,
    metrics: Metrics,
    demo: Option<Demo>,
    hosts: Hosts,
}

/// What `/metrics` shows, if anything was installed that records.
#[derive(Clone)]
struct Metrics(Option<PrometheusHandle>);

impl App {
    /// A service that keeps payments in `store`, has `provider` move the money, and keeps requests
    /// apart by `redlock`.
    #[must_use]
    pub fn new(store: Store, provider: Provider, redlock: Redlock) -> Self {
        let metrics = Metrics(None);
        let (feed, hosts) = (Feed::new(MAX_READERS), Hosts::default());
        Self { store, provider, redlock, feed, metrics, demo: None, hosts }
    }

    /// Answers under these hosts. Default: those of this machine.
    #[must_use]
    pub fn hosts(mut self, hosts: Hosts) -> Self {
        self.hosts = hosts;
        self
    }

    /// Shows what was recorded at `/metrics`.
    #[must_use]
    pub fn metrics(mut self, metrics: PrometheusHandle) -> Self {
        self.metrics = Metrics(Some(metrics));
        self
    }

    /// Lets the page send bursts, and stop the servers of the demonstration.
    #[must_use]
    pub fn demo(mut self, demo: Demo) -> Self {
        self.demo = Some(demo);
        self
    }

    /// Streams events to at most this number of clients at a time. Default: 250.
    #[must_use]
    pub fn max_readers(mut self, readers: usize) -> Self {
        self.feed = Feed::new(readers);
        self
    }

    /// Ends the streams of events, which would go on for ever.
    pub fn close_streams(&self) {
        self.feed.close();
    }

    /// The routes of the service, and the payments that go on when their client is gone: wait for
    /// them before the process ends.
    pub fn routes(self) -> (Router, Detached) {
        // A charge that has begun must end, whether or not anybody waits for the answer.
        let one_per_key = RedlockLayer::new(self.redlock.clone(), idempotency::lock_key)
            .methods([Method::POST])
            .on_disconnect(Disconnect::Detach);
        let detached = one_per_key.detached();
        let one_per_account = RedlockLayer::scope_only(self.redlock.clone());
        let watched = from_fn_with_state(self.clone(), watch::watch);

        let router = Router::new()
            .route("/payments", post(payments::pay).layer(one_per_key).layer(watched))
            .route("/payments/{id}", get(payments::show))
            .route("/accounts/{id}", get(accounts::show))
            .route("/accounts/{id}/ledger", get(accounts::ledger))
            .route("/accounts/{id}/withdrawals", post(accounts::withdraw).layer(one_per_account))
            .route("/healthz", get(health::alive))
            .route("/ready", get(health::ready))
            .route("/metrics", get(health::metrics))
            .route("/events", get(events::events))
            .merge(page::routes())
            .merge(demo::routes())
            .layer(ReadBodyLayer::new(MAX_BODY, MAX_BODY_TIME))
            .layer(CatchPanicLayer::new())
            // No page of somebody else may pay, or stop a server, by the browser of a user.
            .layer(CsrfLayer::new())
            .layer(from_fn_with_state(Arc::new(self.hosts.clone()), hosts::check))
            .layer(map_response(problem::instead_of_text))
            .layer(TraceLayer::new_for_http())
            .with_state(self);
        (router, detached)
    }
}

macro_rules! state {
    ($($part:ident: $type:ty),*) => {$(
        impl FromRef<App> for $type {
            fn from_ref(app: &App) -> Self {
                app.$part.clone()
            }
        }
    )*};
}

state!(store: Store, provider: Provider, feed: Feed, metrics: Metrics);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Metrics").field(&self.0.is_some()).finish()
    }
}

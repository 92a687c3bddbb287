//! The service in this process, on the memory lock and a database of its own.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use payments::{App, Demo, Locks, Provider, Simulation, Store};
use redlock_core::Redlock;
use redlock_tests::eventually;
use serde_json::{Value, json};
use tower::ServiceExt;
use tower_redlock::Detached;

use super::{Database, SOON, provider};

/// Requests are sent to the router, without a socket.
pub struct Service {
    pub store: Store,
    pub provider: Provider,
    pub simulation: Simulation,
    pub router: Router,
    pub detached: Detached,
    pub database: Database,
}

pub type Answer = (u16, axum::http::HeaderMap, Bytes);

impl Service {
    pub async fn start(database: Database, provider_delay: Duration) -> Self {
        let store = database.store().await;
        let (provider, simulation) = provider(provider_delay).await;
        let app = App::new(store.clone(), provider.clone(), Redlock::in_memory());
        let app = app.demo(Demo::new("http://localhost:1".into(), Locks::Memory));
        let (router, detached) = app.routes();
        Self { store, provider, simulation, router, detached, database }
    }

    pub async fn send(
        &self,
        request: axum::http::request::Builder,
        body: impl Into<Body>,
    ) -> Answer {
        let request = request.body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status.as_u16(), parts.headers, body.collect().await.unwrap().to_bytes())
    }

    /// Sends a withdrawal, with an idempotency key if there is one.
    pub async fn withdraw(&self, key: Option<&str>, account: &str, amount_cents: i64) -> Answer {
        let path = format!("/accounts/{account}/withdrawals");
        let mut request = axum::http::Request::post(path);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.send(request, json!({ "amount_cents": amount_cents }).to_string()).await
    }

    pub async fn pay(&self, key: &str, account: &str, amount_cents: i64) -> Answer {
        let request = axum::http::Request::post("/payments").header("idempotency-key", key);
        let body = json!({ "account": account, "amount_cents": amount_cents });
        self.send(request, body.to_string()).await
    }

    /// Waits until a payment is noted, which is before its provider is asked.
    pub async fn begun(&self) {
        let pool = self.database.pool().await;
        eventually(SOON, "the payment is noted", async || {
            let noted = sqlx::query_scalar("SELECT count(*) FROM payments").fetch_one(&pool).await;
            noted.is_ok_and(|noted: i64| noted == 1)
        })
        .await;
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let (status, _, body) = self.send(axum::http::Request::get(path), Body::empty()).await;
        (status, serde_json::from_slice(&body).unwrap())
    }

    pub async fn balance(&self, account: &str) -> (i64, i64) {
        let (_, account) = self.get(&format!("/accounts/{account}")).await;
        (account["balance_cents"].as_i64().unwrap(), account["charges"].as_i64().unwrap())
    }
}

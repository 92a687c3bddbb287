//! A provider for tests and demonstrations: a small HTTP service with a ledger of its own, which
//! takes its time and fails as it is told.
//!
//! It keeps its ledger in memory: it has to live longer than the services that it serves.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{IDEMPOTENCY_KEY, MAX_DELAY, ProviderDelay};
use crate::body::Object;
use crate::problem::Problem;

/// How the provider behaves. Set over HTTP with `PUT /behaviour`.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::exhaustive_structs, reason = "tests set what they need")]
pub struct Behaviour {
    /// How long a charge takes, in milliseconds.
    pub latency_ms: u64,
    /// The share of requests, 0 to 1, that fail before anybody is charged.
    pub fail_before: f64,
    /// The share of requests, 0 to 1, that fail after the account was charged: the answer is lost.
    pub fail_after: f64,
}

/// The simulated provider.
#[derive(Clone, Debug, Default)]
pub struct Simulation {
    state: Arc<Mutex<Ledger>>,
}

#[derive(Debug, Default)]
struct Ledger {
    behaviour: Behaviour,
    /// What was charged, by reference.
    charges: HashMap<String, Charge>,
    /// How often a charge was asked for.
    requests: u64,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Charge {
    account: String,
    amount_cents: i64,
}

impl Simulation {
    /// A provider that behaves like this, with nothing charged.
    #[must_use]
    pub fn new(behaviour: Behaviour) -> Self {
        let simulation = Self::default();
        simulation.ledger().behaviour = behaviour;
        simulation
    }

    /// Behaves differently from now on, as `PUT /behaviour` has it.
    pub fn behave(&self, behaviour: Behaviour) {
        self.ledger().behaviour = behaviour;
    }

    /// How many payments were charged.
    #[must_use]
    pub fn charges(&self) -> usize {
        self.ledger().charges.len()
    }

    /// Serves until the future is dropped.
    ///
    /// # Errors
    ///
    /// If the listener fails.
    ///
    /// # Cancel safety
    ///
    /// Requests that are under way go on; new ones find nobody there.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let router = Router::new()
            .route("/charges", post(charge).get(list))
            .route("/behaviour", put(behave))
            .route("/healthz", get(async || "ok"))
            .with_state(self);
        axum::serve(listener, router).await
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn charge(
    State(simulation): State<Simulation>,
    ProviderDelay(delay): ProviderDelay,
    headers: HeaderMap,
    Object(charge): Object<Charge>,
) -> Result<(StatusCode, Json<Value>), StatusCode> {
    let reference = headers.get(IDEMPOTENCY_KEY).and_then(|key| key.to_str().ok());
    let reference = reference.ok_or(StatusCode::BAD_REQUEST)?.to_owned();
    let behaviour = {
        let mut ledger = simulation.ledger();
        ledger.requests += 1;
        ledger.behaviour
    };
    tokio::time::sleep(delay.unwrap_or_else(|| Duration::from_millis(behaviour.latency_ms))).await;
    if fastrand::f64() < behaviour.fail_before {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    {
        let mut ledger = simulation.ledger();
        let known = ledger.charges.entry(reference.clone()).or_insert_with(|| charge.clone());
        if *known != charge {
            return Err(StatusCode::UNPROCESSABLE_ENTITY);
        }
    }
    if fastrand::f64() < behaviour.fail_after {
        return Err(StatusCode::INTERNAL_SERVER_ERROR);
    }
    Ok((StatusCode::CREATED, Json(json!({ "reference": reference, "status": "charged" }))))
}

/// The charges by reference, and how often one was asked for.
async fn list(State(simulation): State<Simulation>) -> Json<Value> {
    let ledger = simulation.ledger();
    Json(json!({ "charges": ledger.charges, "requests": ledger.requests }))
}

async fn behave(
    State(simulation): State<Simulation>,
    Object(behaviour): Object<Behaviour>,
) -> Result<(), Problem> {
    let refuse = |detail| Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    let Behaviour { latency_ms, fail_before, fail_after } = behaviour;
    if Duration::from_millis(latency_ms) > MAX_DELAY {
        let most = MAX_DELAY.as_millis();
        return refuse(format!("`latency_ms` is {latency_ms}: it must be 0 to {most}"));
    }
    for (field, share) in [("fail_before", fail_before), ("fail_after", fail_after)] {
        if !(0.0..=1.0).contains(&share) {
            return refuse(format!("`{field}` is {share}: it must be 0 to 1"));
        }
    }
    simulation.behave(behaviour);
    Ok(())
}

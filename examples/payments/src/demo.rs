//! What only the page asks for: twenty requests at once, and servers that stop.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::future::join_all;
use redlock_core::{GroupHealth, NodeAnswer};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_redlock::idempotency::HEADER;

use crate::App;
use crate::body::Object;
use crate::feed::millis;
use crate::health::word;
use crate::idempotency::{IdempotencyKey, TENANT};
use crate::problem::Problem;
use crate::servers::Servers;

/// A browser sends six requests at once and lets the others wait: it would not be a burst.
const MAX_BURST: usize = 50;

/// What a demonstration has that a service would not have.
#[derive(Clone, Debug)]
pub struct Demo {
    url: String,
    http: reqwest::Client,
    locks: Locks,
}

/// Where the locks of a demonstration are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Locks {
    /// In the memory of this process.
    Memory,
    /// On servers that were there before.
    Servers,
    /// On servers of its own, which may be stopped.
    Own(Arc<Servers>),
}

impl Demo {
    /// For a service that is reached at `url`.
    #[must_use]
    pub fn new(url: String, locks: Locks) -> Self {
        // To itself, whatever proxy the environment names for others.
        let http = reqwest::Client::builder().no_proxy().build().unwrap_or_default();
        Self { url, http, locks }
    }

    fn server(&self, index: usize) -> Result<(&Servers, usize), Problem> {
        match &self.locks {
            Locks::Own(servers) if index < servers.len() => Ok((servers, index)),
            _ => Err(Problem::not_found("server of its own", &index.to_string())),
        }
    }
}

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/demo", get(about))
        .route("/demo/bursts", post(burst))
        .route("/demo/servers", get(servers))
        .route("/demo/servers/{index}/stop", post(stop))
        .route("/demo/servers/{index}/start", post(start))
}

/// What the page has to know about this service.
async fn about(State(app): State<App>) -> Result<Json<Value>, Problem> {
    let locks = app.demo.as_ref().map(|demo| match demo.locks {
        Locks::Memory => "memory",
        Locks::Servers => "servers",
        Locks::Own(_) => "own",
    });
    Ok(Json(json!({
        "accounts": app.store.accounts().await?,
        "database": app.store.name(),
        "locks": locks,
    })))
}

/// The same payment, so many times at once.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Burst {
    times: usize,
    payment: Value,
}

/// Sends a payment to this service again and again, over sockets of their own, under the key and
/// the tenant of this request.
async fn burst(
    State(app): State<App>,
    IdempotencyKey { tenant, key }: IdempotencyKey,
    Object(Burst { times, payment }): Object<Burst>,
) -> Result<Json<Value>, Problem> {
    let demo = demo(&app)?;
    if !(1..=MAX_BURST).contains(&times) {
        let detail = format!("`times` is {times}: it must be 1 to {MAX_BURST}");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
    }
    let send = async || {
        let request = demo.http.post(format!("{}/payments", demo.url)).json(&payment);
        // In quotes, in which a key may have spaces.
        let request = request.header(HEADER, format!("{key:?}")).header(TENANT, &*tenant);
        request.send().await.ok().map(|response| response.status().as_u16())
    };
    Ok(Json(json!(join_all((0..times).map(|_| send())).await)))
}

/// The lock servers in order: the state of each, and for one in quarantine when it votes again.
async fn servers(State(app): State<App>) -> Json<Value> {
    let groups = app.redlock.health().await.unwrap_or_default();
    let majority = !groups.is_empty() && groups.iter().all(GroupHealth::has_majority);
    let nodes = groups.iter().flat_map(|group| &group.nodes);
    let servers: Vec<Value> = nodes.map(|node| show(&node.answer)).collect();
    Json(json!({ "majority": majority, "servers": servers }))
}

fn show(answer: &NodeAnswer) -> Value {
    match answer {
        NodeAnswer::Quarantined { ready_in } => {
            json!({ "state": word(answer), "votes_in_ms": millis(*ready_in) })
        }
        _ => json!({ "state": word(answer) }),
    }
}

async fn stop(State(app): State<App>, Path(index): Path<usize>) -> Result<StatusCode, Problem> {
    let (servers, index) = demo(&app)?.server(index)?;
    servers.stop(index).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a server again, on its port and without its data: it is quarantined first.
async fn start(State(app): State<App>, Path(index): Path<usize>) -> Result<StatusCode, Problem> {
    let (servers, index) = demo(&app)?.server(index)?;
    servers.start(index).await.map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the server: {error}"))
    })?;
    Ok(StatusCode::NO_CONTENT)
}

fn demo(app: &App) -> Result<&Demo, Problem> {
    let none = || Problem::new(StatusCode::NOT_FOUND, "this service gives no demonstration");
    app.demo.as_ref().ok_or_else(none)
}

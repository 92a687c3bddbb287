//! `GET /healthz`, `GET /ready` and `GET /metrics`, for whoever operates the service.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use metrics_exporter_prometheus::PrometheusHandle;
use redlock_core::{GroupHealth, NodeAnswer};
use serde_json::{Value, json};

use crate::{App, Metrics};

/// Whether the service works: 200, or 503 if it does not.
pub(crate) async fn alive(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let database = app.store.ready().await.is_ok();
    let locks = app.redlock.ready().await.is_ok();
    (status(database && locks), Json(json!({ "database": database, "locks": locks })))
}

/// Whether requests should be sent here: the database answers, and a majority of every group of
/// lock servers. Their addresses are not told.
pub(crate) async fn ready(State(app): State<App>) -> (StatusCode, Json<Value>) {
    let database = app.store.ready().await.is_ok();
    let groups = app.redlock.health().await.unwrap_or_default();
    let ready = database && !groups.is_empty() && groups.iter().all(GroupHealth::has_majority);
    let groups: Vec<Value> = groups.iter().map(show).collect();
    let body = json!({ "ready": ready, "database": database, "groups": groups });
    (status(ready), Json(body))
}

/// Everything that was recorded in this process, in the text format of Prometheus.
pub(crate) async fn metrics(State(Metrics(metrics)): State<Metrics>) -> Result<String, StatusCode> {
    metrics.as_ref().map(PrometheusHandle::render).ok_or(StatusCode::NOT_FOUND)
}

fn show(group: &GroupHealth) -> Value {
    let servers: Vec<&str> = group.nodes.iter().map(|node| word(&node.answer)).collect();
    json!({ "majority": group.has_majority(), "servers": servers })
}

pub(crate) fn word(answer: &NodeAnswer) -> &'static str {
    match answer {
        NodeAnswer::Granted | NodeAnswer::Held { .. } | NodeAnswer::NotHeld => "votes",
        NodeAnswer::Quarantined { .. } => "quarantined",
        NodeAnswer::TimedOut => "silent",
        _ => "unreachable",
    }
}

fn status(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

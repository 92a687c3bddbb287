//! Looks at each payment from outside of its lock: for the page and for the metrics.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::RETRY_AFTER;
use axum::middleware::Next;
use axum::response::Response;
use metrics::{counter, histogram};

use crate::answer::REPLAYED;
use crate::feed::{self, Answered, Feed, millis};
use crate::idempotency::IdempotencyKey;

pub(crate) async fn watch(State(feed): State<Feed>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let key = IdempotencyKey::of(&parts).ok();
    let number = feed.number();
    let tell = |answer| {
        if let Some(IdempotencyKey { tenant, key }) = &key {
            let (tenant, key) = (tenant.clone(), key.clone());
            feed.request(feed::Request { number, tenant, key, answer });
        }
    };
    tell(None);
    let response = next.run(Request::from_parts(parts, body)).await;
    let took = started.elapsed();
    let outcome = outcome(&response);
    counter!("payments_requests_total", "outcome" => outcome).increment(1);
    histogram!("payments_request_duration_seconds", "outcome" => outcome)
        .record(took.as_secs_f64());
    let retry_after = response.headers().get(RETRY_AFTER);
    tell(Some(Answered {
        status: response.status().as_u16(),
        outcome,
        retry_after: retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok()),
        took_ms: millis(took),
    }));
    response
}

/// What became of a request, in one word.
fn outcome(response: &Response) -> &'static str {
    let replayed = response.headers().contains_key(&REPLAYED);
    match response.status() {
        _ if replayed => "replayed",
        StatusCode::CREATED => "charged",
        StatusCode::PAYMENT_REQUIRED => "refused",
        StatusCode::LOCKED => "locked",
        StatusCode::CONFLICT => "late",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        StatusCode::BAD_GATEWAY => "unknown",
        status if status.is_client_error() => "mistaken",
        _ => "failed",
    }
}

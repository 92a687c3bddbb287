//! Errors as the client sees them: RFC 9457 problems.

use axum::body::to_bytes;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::fence::WriteError;
use crate::provider::Unknown;

/// Says what is wrong with a request, or that we are.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    retry_after: Option<u32>,
}

pub(crate) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Longer than any text that axum answers with.
const MAX_TEXT: usize = 4096;

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let passes = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
        Self { status, detail: detail.into(), retry_after: passes.then_some(1) }
    }

    /// Sets the seconds after which the same request may be sent again. Default: 1 with 502 and 503.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub(crate) fn not_found(what: &str, id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what} `{id}`"))
    }

    pub(crate) fn insufficient_funds(account: &str) -> Self {
        let detail = format!("the balance of `{account}` is too low");
        Self::new(StatusCode::PAYMENT_REQUIRED, detail)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn body(&self) -> String {
        let title = self.status.canonical_reason().unwrap_or("Error");
        json!({
            "type": "about:blank",
            "title": title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        })
        .to_string()
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        tracing::error!(%error, "the database failed");
        let detail = "the payment store failed; send the same request again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }
}

impl From<WriteError> for Problem {
    fn from(error: WriteError) -> Self {
        let status = match error {
            // Not 412: the client made no condition. Its request met another one, which came later
            // and was let in because this one took too long.
            WriteError::Stale => StatusCode::CONFLICT,
            WriteError::NoToken => StatusCode::INTERNAL_SERVER_ERROR,
            WriteError::Failed(error) => return error.into(),
        };
        Self::new(status, error.to_string())
    }
}

impl From<Unknown> for Problem {
    fn from(error: Unknown) -> Self {
        tracing::warn!(%error, "a payment is left in progress");
        let detail = "the payment provider failed, and it is not known whether you were charged; \
                      send the same request again";
        Self::new(StatusCode::BAD_GATEWAY, detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = self.body();
        let mut response = (self.status, [(CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, seconds.into());
        }
        response
    }
}

/// Gives what axum itself answers the form of our problems: no such route, no such method, a path
/// that is not UTF-8, a panic.
pub(crate) async fn instead_of_text(response: Response) -> Response {
    let status = response.status();
    let text = |kind: &HeaderValue| kind.as_bytes().starts_with(b"text/");
    let failed = status.is_client_error() || status.is_server_error();
    if !failed || !response.headers().get(CONTENT_TYPE).is_none_or(text) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = to_bytes(body, MAX_TEXT).await.unwrap_or_default();
    let detail = match String::from_utf8_lossy(&text).into_owned() {
        empty if empty.is_empty() => "the service refused the request without a reason".into(),
        text => text,
    };
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, PROBLEM_JSON);
    Response::from_parts(parts, Problem::new(status, detail).body().into())
}

/// Amounts are positive.
pub(crate) fn check_amount(amount_cents: i64) -> Result<(), Problem> {
    if amount_cents > 0 {
        return Ok(());
    }
    let detail = format!("`amount_cents` is {amount_cents}: it must be greater than 0");
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
}

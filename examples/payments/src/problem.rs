//! Errors as the client sees them: RFC 9457 problems.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::json;

/// Says what is wrong with a request, or that we are.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
}

pub(crate) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
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
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the payment store failed; try again later")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, [(CONTENT_TYPE, PROBLEM_JSON)], self.body()).into_response()
    }
}

/// Reads a JSON body, whatever type it is declared as: `curl -d` declares a form.
pub(crate) fn parse<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
) -> Result<T, Problem> {
    let body = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
    serde_json::from_slice(&body).map_err(|error| {
        let status = match error.classify() {
            serde_json::error::Category::Data => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::BAD_REQUEST,
        };
        Problem::new(status, format!("the body is not what this endpoint takes: {error}"))
    })
}

/// Amounts are positive.
pub(crate) fn check_amount(amount_cents: i64) -> Result<(), Problem> {
    if amount_cents > 0 {
        return Ok(());
    }
    let detail = format!("`amount_cents` is {amount_cents}: it must be greater than 0");
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
}

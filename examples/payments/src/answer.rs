//! The answer to a payment or a withdrawal, which is stored and sent again.

use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

use crate::problem::{PROBLEM_JSON, Problem};

/// Marks an answer that was given before.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

impl Answer {
    /// The same answer once more, marked with [`REPLAYED`].
    pub(crate) fn replay(self) -> Response {
        ([(REPLAYED, HeaderValue::from_static("true"))], self).into_response()
    }
}

impl From<&Problem> for Answer {
    fn from(problem: &Problem) -> Self {
        Self { status: problem.status(), body: problem.body() }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let json = HeaderValue::from_static("application/json");
        let content_type = if self.status.is_success() { json } else { PROBLEM_JSON };
        (self.status, [(CONTENT_TYPE, content_type)], self.body).into_response()
    }
}

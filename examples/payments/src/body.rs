//! The body of a request: one JSON object.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use crate::problem::Problem;

/// The number of characters of an error of serde that the client gets.
const SHOWN: usize = 600;

/// Reads a JSON object, whatever content type is declared: `curl -d` declares a form.
///
/// An array is refused, although serde reads a struct from its elements.
#[derive(Debug)]
pub(crate) struct Object<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Object<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let body = Bytes::from_request(request, state).await;
        let body = body.map_err(|error| Problem::new(error.status(), error.body_text()))?;
        parse(&body).map(Self)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    if first == Some(&b'{') {
        return serde_json::from_slice(body).map_err(|error| unreadable(&error));
    }
    serde_json::from_slice::<IgnoredAny>(body).map_err(|error| unreadable(&error))?;
    let detail = "the body is not a JSON object: send one with named fields, in braces";
    Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
}

fn unreadable(error: &serde_json::Error) -> Problem {
    let status = match error.classify() {
        Category::Data => StatusCode::UNPROCESSABLE_ENTITY,
        Category::Io | Category::Syntax | Category::Eof => StatusCode::BAD_REQUEST,
    };
    // The error of serde repeats the value that it refuses, which may be the whole body.
    let shown: String = error.to_string().chars().take(SHOWN).collect();
    Problem::new(status, format!("this endpoint can't read the body: {shown}"))
}

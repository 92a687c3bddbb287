//! `GET /events`: the requests and locks of a tenant while they happen.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use crate::feed::Feed;
use crate::name::Tenant;
use crate::problem::Problem;

#[derive(Debug, Deserialize)]
pub(crate) struct Listener {
    #[serde(default)]
    tenant: Tenant,
}

/// Streams the events `request` and `locks`, and `missed` with the number of requests that are not
/// shown. A real service takes the tenant from its authentication.
pub(crate) async fn events(
    State(feed): State<Feed>,
    Query(Listener { tenant }): Query<Listener>,
) -> Result<Response, Problem> {
    let Some(reader) = feed.subscribe(tenant) else {
        let detail = "the service has no free place for another event stream; try again later";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(5));
    };
    let frames = stream::unfold(reader, async |mut reader| {
        let frame = reader.next().await?;
        Some((Ok::<_, Infallible>(frame), reader))
    });
    let headers = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(frames)).into_response())
}

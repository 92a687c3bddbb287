//! Which requests are the same, and what the handler sees of them.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::any;
use futures_util::stream;
use http::request::Parts;
use http::{HeaderMap, Request, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use crate::support::{problem, text};
use crate::{Store, Work, is_replayed, keyed, once, send};

fn with_trailers(data: &'static str) -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert("checksum", "7".parse().unwrap());
    let frames = [Frame::data(Bytes::from_static(data.as_bytes())), Frame::trailers(trailers)];
    Body::new(StreamBody::new(stream::iter(frames.map(Ok::<_, std::io::Error>))))
}

#[tokio::test]
async fn the_trailers_of_a_request_reach_the_handler() {
    let handler = |request: Request<Body>| async move {
        let read = request.into_body().collect().await.unwrap();
        let checksum = read.trailers().map(|trailers| trailers["checksum"].clone());
        format!("{checksum:?} {:?}", read.to_bytes())
    };
    let app = Router::new().route("/", any(handler)).layer(once(&Store::default()));
    for data in ["", "data"] {
        let answer = send(&app, keyed(&format!("k{data}")), with_trailers(data)).await;
        assert_eq!(text(answer).await, format!("Some(\"7\") b{data:?}"));
    }
}

fn multipart(boundary: &str, amount: &str) -> (http::request::Builder, String) {
    let request = keyed("k")
        .header(header::CONTENT_TYPE, format!("multipart/form-data; boundary=\"{boundary}\""));
    let part = |name: &str, value: &str| {
        format!("--{boundary}\r\ncontent-disposition: form-data; name={name}\r\n\r\n{value}\r\n")
    };
    (request, format!("{}{}--{boundary}--\r\n", part("amount", amount), part("to", "bob")))
}

#[tokio::test]
async fn a_multipart_body_is_the_same_with_another_boundary() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()));
    let (request, body) = multipart("one", "5");
    assert_eq!(send(&app, request, body).await.status(), StatusCode::CREATED);
    let (request, body) = multipart("two-and-longer", "5");
    assert!(is_replayed(&send(&app, request, body).await));
    let (request, body) = multipart("one", "6");
    assert_eq!(send(&app, request, body).await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(work.times(), 1);
}

#[tokio::test]
async fn a_multipart_body_is_the_same_with_another_boundary_where_its_type_counts() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()).fingerprint_headers([header::CONTENT_TYPE]));
    let (request, body) = multipart("one", "5");
    send(&app, request, body).await;
    let (request, body) = multipart("two-and-longer", "5");
    assert!(is_replayed(&send(&app, request, body).await));
    let (_, body) = multipart("one", "5");
    let related = keyed("k").header(header::CONTENT_TYPE, "multipart/related; boundary=one");
    assert_eq!(send(&app, related, body).await.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(work.times(), 1);
}

#[tokio::test]
async fn the_service_compares_requests_as_it_likes() {
    let work = Work::ungated();
    let amount = |parts: &Parts, body: &Bytes| {
        let currency = parts.uri.query().unwrap_or_default().to_lowercase();
        format!("{currency}:{}", body.iter().map(|digit| u64::from(*digit)).sum::<u64>())
    };
    let layer = once(&Store::default()).fingerprint(amount).fingerprint_headers([header::HOST]);
    let app = work.app(layer);
    let request = |query: &str, host: &str| {
        Request::post(format!("/?{query}")).header("idempotency-key", "k").header("host", host)
    };
    send(&app, request("EUR", "a"), "12").await;
    assert!(is_replayed(&send(&app, request("eur", "a"), "21").await));
    for (request, body) in
        [(request("usd", "a"), "12"), (request("eur", "a"), "13"), (request("eur", "b"), "12")]
    {
        let refused = send(&app, request, body).await;
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    }
    assert_eq!(work.times(), 1);
}

#[tokio::test]
async fn a_client_with_a_reused_key_is_not_told_to_do_the_work_twice() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()));
    send(&app, keyed("k"), r#"{"a":1,"b":2}"#).await;
    let refused = send(&app, keyed("k"), r#"{"b":2,"a":1}"#).await;
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let problem = problem(refused).await;
    let detail = problem["detail"].as_str().unwrap();
    assert!(!detail.contains("send a new"), "{detail}");
    assert!(detail.contains("exactly the same") && detail.contains("in addition"), "{detail}");
}

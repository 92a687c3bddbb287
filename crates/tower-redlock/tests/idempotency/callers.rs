//! Whose answer it is, and which headers of it are never recorded.

use axum::Router;
use axum::routing::any;
use http::request::Parts;
use http::{HeaderName, StatusCode, header};
use tower_redlock::idempotency::CREDENTIAL_HEADERS;

use crate::support::text;
use crate::{Store, Work, is_replayed, keyed, once, send};

#[tokio::test]
async fn a_caller_does_not_get_the_answer_of_another_caller() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()));
    let of = |credentials: &str| keyed("k").header(header::AUTHORIZATION, credentials);
    assert_eq!(text(send(&app, of("Bearer alice"), "").await).await, "1");
    let other = send(&app, of("Bearer mallory"), "").await;
    assert!(!is_replayed(&other));
    assert_eq!(text(other).await, "2");
    assert!(!is_replayed(&send(&app, keyed("k"), "").await), "without credentials");
    let twice = of("Bearer alice").header(header::AUTHORIZATION, "Bearer mallory");
    assert!(!is_replayed(&send(&app, twice, "").await));
    let again = send(&app, of("Bearer alice"), "").await;
    assert!(is_replayed(&again));
    assert_eq!(text(again).await, "1");
}

#[tokio::test]
async fn a_tenant_takes_the_place_of_the_credentials() {
    let work = Work::ungated();
    let tenant = |parts: &Parts| parts.headers.get("tenant").map(|name| name.as_bytes().to_vec());
    let tenant = move |parts: &Parts| tenant(parts).map(redlock_core::Key::hashed);
    let app = work.app(once(&Store::default()).tenant(tenant));
    let of = |tenant: &str, credentials: &str| {
        keyed("k").header("tenant", tenant).header(header::AUTHORIZATION, credentials)
    };
    send(&app, of("acme", "alice"), "").await;
    assert!(is_replayed(&send(&app, of("acme", "alice with a new token"), "").await));
    assert!(!is_replayed(&send(&app, of("other", "alice"), "").await));
    let without_tenant = |credentials: &str| keyed("k").header(header::AUTHORIZATION, credentials);
    assert!(!is_replayed(&send(&app, without_tenant("alice"), "").await));
    assert!(!is_replayed(&send(&app, without_tenant("bob"), "").await));
    assert!(is_replayed(&send(&app, without_tenant("alice"), "").await));
}

#[tokio::test]
async fn answers_are_shared_between_callers_where_the_service_says_so() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()).shared_between_callers());
    let of = |credentials: &str| keyed("k").header(header::AUTHORIZATION, credentials);
    send(&app, of("alice"), "").await;
    assert!(is_replayed(&send(&app, of("bob"), "").await));
    assert!(is_replayed(&send(&app, keyed("k"), "").await));
}

#[tokio::test]
async fn the_headers_that_are_not_recorded_are_a_setting() {
    let ours = HeaderName::from_static("x-upload-token");
    for (names, csrf_is_replayed) in [
        (vec![ours.clone()], true),
        (CREDENTIAL_HEADERS.iter().cloned().chain([ours]).collect(), false),
    ] {
        let handler = || async { [("x-upload-token", "secret"), ("x-csrf-token", "secret")] };
        let layer = once(&Store::default()).unrecorded_headers(names);
        let app = Router::new().route("/", any(handler)).layer(layer);
        send(&app, keyed("k"), "").await;
        let again = send(&app, keyed("k"), "").await;
        assert!(is_replayed(&again) && !again.headers().contains_key("x-upload-token"));
        assert_eq!(again.headers().contains_key("x-csrf-token"), csrf_is_replayed);
    }
}

const CREDENTIALS: [&str; 12] = [
    "set-cookie",
    "authorization",
    "proxy-authorization",
    "authentication-info",
    "proxy-authentication-info",
    "cookie",
    "x-csrf-token",
    "csrf-token",
    "x-xsrf-token",
    "x-auth-token",
    "x-access-token",
    "x-api-key",
];

#[tokio::test]
async fn credentials_in_an_answer_are_sent_once_and_never_recorded() {
    let handler = || async {
        let mut headers = http::HeaderMap::new();
        for name in CREDENTIALS {
            headers.append(name, "secret".parse().unwrap());
            headers.append(name, "secret again".parse().unwrap());
        }
        headers.insert("location", "/payments/7".parse().unwrap());
        (StatusCode::CREATED, headers)
    };
    let app = Router::new().route("/", any(handler)).layer(once(&Store::default()));
    let first = send(&app, keyed("k"), "").await;
    let again = send(&app, keyed("k"), "").await;
    assert!(is_replayed(&again));
    assert_eq!(again.headers()["location"], "/payments/7");
    for name in CREDENTIALS {
        assert_eq!(first.headers().get_all(name).iter().count(), 2, "{name}");
        assert!(!again.headers().contains_key(name), "{name}");
    }
}

#[tokio::test]
async fn credentials_reach_no_store_and_leave_none() {
    let handler = || async { [("x-csrf-token", "secret"), ("location", "/7")] };
    let store = Store::default();
    let app = |layer| Router::new().route("/", any(handler)).layer(layer);
    // As an earlier version of the service recorded them.
    send(&app(once(&store).unrecorded_headers([])), keyed("k"), "").await;
    let careless = app(once(&store).unrecorded_headers([]));
    assert!(send(&careless, keyed("k"), "").await.headers().contains_key("x-csrf-token"));
    let careful = app(once(&store));
    assert!(!send(&careful, keyed("k"), "").await.headers().contains_key("x-csrf-token"));
    send(&careful, keyed("other"), "").await;
    let recorded = send(&careless, keyed("other"), "").await;
    assert!(is_replayed(&recorded) && recorded.headers().contains_key("location"));
    assert!(!recorded.headers().contains_key("x-csrf-token"));
}

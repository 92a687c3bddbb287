//! Fencing tokens over HTTP: a service that works under a lock, and the one that it calls.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Path;
use axum::response::IntoResponse;
use axum::routing::{any, post};
use axum::{Extension, Router};
use http::{HeaderMap, Method, Request, StatusCode};
use redlock_core::{Config, FencingToken, Key, Redlock, Safety};
use support::{problem, send, text};
use tower_redlock::{
    FenceLayer, FenceStore, LockResource, LockScope, Locked, MemoryFences, RedlockLayer, Rejection,
    RejectionKind, fencing, key,
};

/// Echoes the token that its request came with, checked.
fn store() -> Router {
    let echo = |Extension(token): Extension<FencingToken>| async move { token.to_string() };
    Router::new().route("/{account}", any(echo))
}

fn fenced() -> Router {
    store().layer(FenceLayer::new(MemoryFences::new(), key::path()))
}

fn write(path: &str, token: impl std::fmt::Display) -> http::request::Builder {
    Request::post(path).header(fencing::HEADER, format!("{token}"))
}

/// The tokens of two locks, one after the other.
async fn two_locks() -> [FencingToken; 2] {
    let redlock = Redlock::in_memory();
    let mut tokens = [FencingToken::new(0); 2];
    for token in &mut tokens {
        let guard = redlock.lock("account:7").await.unwrap();
        *token = guard.fencing_token().unwrap();
        guard.release().await;
    }
    tokens
}

#[tokio::test]
async fn a_request_of_an_earlier_lock_is_refused_when_a_later_one_was_there() {
    let [earlier, later] = two_locks().await;
    let app = fenced();
    for token in [earlier, earlier, later, later] {
        let response = send(app.clone(), write("/7", token)).await;
        assert_eq!(text(response).await, token.to_string(), "the same lock may write twice");
    }
    let refused = send(app.clone(), write("/7", earlier)).await;
    assert_eq!(refused.status(), StatusCode::PRECONDITION_FAILED);
    let body = problem(refused).await;
    assert_eq!(body["type"], "https://docs.rs/tower-redlock/#stale-token");
    assert!(!body.to_string().contains(&later.to_string()), "{body}");

    let elsewhere = send(app, write("/8", earlier)).await;
    assert_eq!(elsewhere.status(), StatusCode::OK, "tokens of other keys do not count");
    let unfenced = Router::new().route("/7", post(|| async {}));
    assert_eq!(send(unfenced, write("/7", earlier)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_request_without_a_token_is_428_and_one_that_cannot_be_read_is_400() {
    let app = fenced();
    let missing = send(app.clone(), Request::post("/7")).await;
    assert_eq!(missing.status(), StatusCode::PRECONDITION_REQUIRED);
    assert_eq!(problem(missing).await["type"], "https://docs.rs/tower-redlock/#bad-fencing-token");
    for token in ["", "-1", "x", "9007199254740992", "7; q=1"] {
        let unreadable = send(app.clone(), write("/7", token)).await;
        assert_eq!(unreadable.status(), StatusCode::BAD_REQUEST, "{token}");
        assert!(problem(unreadable).await["detail"].as_str().unwrap().contains("2^53"));
    }
    assert_eq!(send(app.clone(), write("/7", 1).header("fencing-token", 2)).await.status(), 400);
    assert_eq!(send(app, write("/7", 0)).await.status(), StatusCode::OK, "none was remembered");
}

#[tokio::test]
async fn other_methods_and_requests_that_name_no_resource_need_no_token() {
    let app = Router::new().route("/", any(|| async {}));
    let writes = FenceLayer::new(MemoryFences::new(), key::path()).methods([Method::PUT]);
    let writes = app.clone().layer(writes);
    assert_eq!(send(writes.clone(), Request::get("/")).await.status(), StatusCode::OK);
    assert_eq!(send(writes, Request::put("/")).await.status(), StatusCode::PRECONDITION_REQUIRED);

    let nothing = |_: &http::request::Parts| None::<Key>;
    let app = app.layer(FenceLayer::new(MemoryFences::new(), nothing));
    assert_eq!(send(app.clone(), write("/", 9)).await.status(), StatusCode::OK);
    assert_eq!(send(app, write("/", 1)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn routes_that_share_a_store_share_what_it_saw() {
    let fences = Arc::new(MemoryFences::new());
    let layer = |fences: &Arc<MemoryFences>| FenceLayer::new(Arc::clone(fences), key::path());
    let [one, two] = [store().layer(layer(&fences)), store().layer(layer(&fences))];
    assert_eq!(send(one, write("/7", 5)).await.status(), StatusCode::OK);
    assert_eq!(send(two, write("/7", 4)).await.status(), StatusCode::PRECONDITION_FAILED);
}

#[tokio::test]
async fn a_store_that_fails_lets_nobody_in() {
    struct Broken;
    impl FenceStore for Broken {
        async fn observe(
            &self,
            _: &Key,
            _: FencingToken,
        ) -> Result<bool, Box<dyn Error + Send + Sync>> {
            Err("the disk of db-7 is full".into())
        }
    }
    let app = store().layer(FenceLayer::new(Broken, key::path()));
    let refused = send(app, write("/7", 1)).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    let body = problem(refused).await;
    assert_eq!(body["type"], "https://docs.rs/tower-redlock/#fences-unavailable");
    assert!(!body.to_string().contains("db-7"), "{body}");

    let layer = FenceLayer::new(Broken, key::path()).on_rejection(|rejection| {
        let why = rejection.source().unwrap().to_string();
        assert!(rejection.lock_error().is_none() && why.contains("db-7"), "{why}");
        let mut response = http::Response::new("later");
        *response.status_mut() = StatusCode::IM_A_TEAPOT;
        response
    });
    let refused = send(store().layer(layer), write("/7", 1)).await;
    assert_eq!(refused.status(), StatusCode::IM_A_TEAPOT);
}

/// A handler that checks in the transaction that writes: no layer can call it back once it runs.
#[tokio::test]
async fn a_handler_can_check_by_itself() {
    let fences = Arc::new(MemoryFences::new());
    let handler = move |Path(account): Path<String>, headers: HeaderMap| async move {
        let token = fencing::token(&headers)?;
        let account = Key::hashed(account);
        match fences.observe(&account, token).await.unwrap() {
            true => Ok(()),
            false => Err(Rejection::stale_token()),
        }
    };
    let app = Router::new().route("/{account}", post(handler));
    assert_eq!(send(app.clone(), write("/7", 5)).await.status(), StatusCode::OK);
    assert_eq!(send(app.clone(), write("/7", 4)).await.status(), StatusCode::PRECONDITION_FAILED);
    assert_eq!(send(app, Request::post("/7")).await.status(), StatusCode::PRECONDITION_REQUIRED);
}

#[derive(serde::Deserialize)]
struct AccountId(String);

impl LockResource for AccountId {
    fn lock_key(&self) -> Key {
        Key::hashed(format!("account:{}", self.0))
    }
}

#[tokio::test]
async fn a_handler_sends_the_token_of_its_lock_on() {
    let bank = fenced();
    let forward = move |token: Option<FencingToken>| {
        let bank = bank.clone();
        async move { send(bank, write("/7", token.unwrap())).await.into_response() }
    };
    let (by_argument, by_layer) = (forward.clone(), forward);
    let redlock = Redlock::in_memory();
    let app = Router::new()
        .route(
            "/argument/{id}",
            post(move |account: Locked<Path<AccountId>>| by_argument(account.fencing_token())),
        )
        .route(
            "/layer",
            post(move |scope: LockScope| {
                by_layer(scope.lease().and_then(|lease| lease.fencing_token()))
            }),
        )
        .layer(RedlockLayer::new(redlock, |parts: &http::request::Parts| {
            (parts.uri.path() == "/layer").then_some("account:7")
        }));
    let mut last = 0_u64;
    for path in ["/argument/7", "/layer", "/argument/7"] {
        let response = send(app.clone(), Request::post(path)).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let token = text(response).await.parse().unwrap();
        assert!(token > last, "{token} after {last}");
        last = token;
    }
}

#[tokio::test]
async fn a_scope_shows_the_lock_of_its_layer_while_the_request_lasts() {
    let kept = Arc::new(std::sync::Mutex::new(None));
    let keep = Arc::clone(&kept);
    let handler = move |scope: LockScope| async move {
        scope.lock("own").await.unwrap();
        let own = scope.lease().map(|lease| format!("{:?}", lease.key()));
        keep.lock().unwrap().replace(scope);
        format!("{own:?}")
    };
    let app = Router::new().route("/", post(handler));
    let redlock = Redlock::in_memory();
    let keyed = app.clone().layer(RedlockLayer::new(redlock.clone(), key::path()));
    assert_eq!(text(send(keyed, Request::post("/")).await).await, r#"Some("Key(\"path:/\")")"#);
    assert!(kept.lock().unwrap().take().unwrap().lease().is_none(), "the request is over");

    let unkeyed = app.layer(RedlockLayer::scope_only(redlock));
    assert_eq!(text(send(unkeyed, Request::post("/")).await).await, "None");
}

#[tokio::test]
async fn plain_locks_have_no_token_to_send() {
    let plain = Config::memory().safety(Safety::Plain).ttl(Duration::from_secs(9)).build().unwrap();
    let handler = |account: Locked<Path<AccountId>>| async move {
        account.fencing_token().is_none().to_string()
    };
    let app = Router::new().route("/{id}", post(handler)).layer(RedlockLayer::scope_only(plain));
    assert_eq!(text(send(app, Request::post("/7")).await).await, "true");
}

#[test]
fn debug_says_what_a_layer_does() {
    let layer = FenceLayer::new(MemoryFences::new(), key::path()).methods([Method::PUT]);
    assert!(format!("{layer:?}").contains("PUT"));
    let refused = Rejection::stale_token();
    assert_eq!(refused.kind(), RejectionKind::StaleToken);
    assert!(format!("{refused:?}").contains("StaleToken") && refused.retry_after().is_none());
}

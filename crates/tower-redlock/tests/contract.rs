//! The HTTP contract: what is locked, when, and what a client is told.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use http::{Method, Request, StatusCode};
use redlock_core::{Config, Key, Redlock};
use serde::Deserialize;
use support::{Gate, problem, send};
use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
use tower_redlock::{
    FenceLayer, KeyRejection, LockResource, LockScope, Locked, LockedRejection, MemoryFences,
    RedlockLayer, Rejection, RejectionKind, key,
};

#[derive(Deserialize)]
struct AccountId(String);

impl LockResource for AccountId {
    fn lock_key(&self) -> Key {
        Key::hashed(format!("account:{}", self.0))
    }

    fn ttl(&self) -> Option<Duration> {
        Some(Duration::from_secs(7))
    }
}

fn keyed(redlock: &Redlock) -> RedlockLayer {
    RedlockLayer::new(redlock.clone(), key::header("idempotency-key"))
}

fn with_key(uri: &str, key: &str) -> http::request::Builder {
    Request::post(uri).header("idempotency-key", key)
}

async fn is_held(redlock: &Redlock, key: &str) -> bool {
    redlock.inspect(key).await.unwrap().held
}

#[tokio::test]
async fn a_second_request_with_the_key_of_a_running_one_is_answered_423() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let app = Router::new().route("/", post(gate.handler())).layer(keyed(&redlock));

    let first = tokio::spawn(send(app.clone(), with_key("/", "k")));
    gate.entered().await;
    let refused = send(app.clone(), with_key("/", "k")).await;
    assert_eq!(refused.status(), StatusCode::LOCKED);
    let pause: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((9..=10).contains(&pause), "{pause}");
    let body = problem(refused).await;
    assert_eq!(body["type"], "https://docs.rs/tower-redlock/#locked");
    assert!(body["retry_after_ms"].as_u64().unwrap() <= 10_000);

    gate.open();
    assert_eq!(first.await.unwrap().status(), StatusCode::OK);
    assert!(
        !is_held(&redlock, "header:idempotency-key:k").await,
        "released before the response is yielded"
    );
    assert_eq!(send(app, with_key("/", "k")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn other_keys_run_at_once() {
    let gate = Gate::default();
    let config = Config::memory().build().unwrap();
    let layer = RedlockLayer::new(config, key::header("idempotency-key"));
    let app = Router::new().route("/", post(gate.handler())).layer(layer);
    let requests = ["a", "b", "c"].map(|key| tokio::spawn(send(app.clone(), with_key("/", key))));
    for _ in &requests {
        gate.entered().await;
    }
    gate.open();
    for request in requests {
        assert_eq!(request.await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_request_that_may_wait_gets_its_turn() {
    let gate = Gate::default();
    let layer = keyed(&Redlock::in_memory()).wait(Duration::from_secs(30));
    let app = Router::new().route("/", post(gate.handler())).layer(layer);
    let first = tokio::spawn(send(app.clone(), with_key("/", "k")));
    gate.entered().await;
    let second = tokio::spawn(send(app, with_key("/", "k")));
    gate.open();
    assert_eq!(first.await.unwrap().status(), StatusCode::OK);
    assert_eq!(second.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_request_without_a_usable_key_is_refused_with_the_status_of_the_key_function() {
    let redlock = Redlock::in_memory();
    let app = Router::new().route("/", any(|| async {})).layer(keyed(&redlock));
    let refused = send(app, Request::post("/")).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let body = problem(refused).await;
    assert_eq!(body["detail"], "the header `idempotency-key` is missing");
    assert!(body.get("retry_after_ms").is_none());

    let sign_in = |_: &http::request::Parts| {
        Err::<String, _>(KeyRejection::new(StatusCode::UNAUTHORIZED, "sign in"))
    };
    let layer = RedlockLayer::new(redlock, sign_in);
    let app = Router::new().route("/", any(|| async {})).layer(layer);
    assert_eq!(send(app, Request::post("/")).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn other_methods_and_requests_without_a_key_lock_nothing() {
    let redlock = Redlock::in_memory();
    let _held = redlock.lock("header:idempotency-key:k").await.unwrap();
    let app = Router::new().route("/", any(|| async {}));
    let posts = app.clone().layer(keyed(&redlock).methods([Method::POST, Method::PUT]));
    assert_eq!(send(posts.clone(), Request::get("/")).await.status(), StatusCode::OK);
    assert_eq!(send(posts, with_key("/", "k")).await.status(), StatusCode::LOCKED);

    let never = app.layer(RedlockLayer::new(redlock, |_: &http::request::Parts| None::<String>));
    assert_eq!(send(never, with_key("/", "k")).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_preflight_needs_no_key_unless_its_method_is_named() {
    let redlock = Redlock::in_memory();
    let preflight = || {
        Request::builder()
            .method(Method::OPTIONS)
            .uri("/")
            .header("origin", "https://shop.example")
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "idempotency-key")
    };
    let app = Router::new().route("/", any(|| async {}));
    let by_default = app.clone().layer(keyed(&redlock));
    assert_eq!(send(by_default.clone(), preflight()).await.status(), StatusCode::OK);
    for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::TRACE] {
        let keyless = Request::builder().method(method.clone()).uri("/");
        let response = send(by_default.clone(), keyless).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{method}");
    }
    let named = app.clone().layer(keyed(&redlock).methods([Method::OPTIONS]));
    assert_eq!(send(named, preflight()).await.status(), StatusCode::BAD_REQUEST);

    let fences = FenceLayer::new(MemoryFences::new(), key::path());
    let fenced = app.clone().layer(fences.clone());
    assert_eq!(send(fenced, preflight()).await.status(), StatusCode::OK);
    let named = app.layer(fences.methods([Method::OPTIONS]));
    assert_eq!(send(named, preflight()).await.status(), StatusCode::PRECONDITION_REQUIRED);
}

#[tokio::test]
async fn an_idempotent_request_is_locked_with_every_method_that_is_named() {
    let gate = Gate::default();
    let layer = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new());
    let layer = layer.methods([Method::OPTIONS]);
    let app = Router::new().route("/", any(gate.handler())).layer(layer);
    let request =
        || Request::builder().method(Method::OPTIONS).uri("/").header("idempotency-key", "k");
    let first = tokio::spawn(send(app.clone(), request()));
    gate.entered().await;
    assert_eq!(send(app, request()).await.status(), StatusCode::LOCKED);
    gate.open();
    assert_eq!(first.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_header_can_not_lock_a_resource_of_a_handler() {
    let redlock = Redlock::in_memory();
    let gate = Gate::default();
    let app = Router::new()
        .route("/payments", post(gate.handler()).layer(keyed(&redlock)))
        .route("/accounts/{id}", post(|_: Locked<Path<AccountId>>| async {}))
        .layer(RedlockLayer::scope_only(redlock));
    let hostile = tokio::spawn(send(app.clone(), with_key("/payments", "account:7")));
    gate.entered().await;
    assert_eq!(send(app, Request::post("/accounts/7")).await.status(), StatusCode::OK);
    gate.open();
    assert_eq!(hostile.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_closed_lock_service_is_503() {
    let redlock = Redlock::in_memory();
    redlock.close(Duration::ZERO).await;
    let app = Router::new().route("/", post(|| async {})).layer(keyed(&redlock));
    let refused = send(app, with_key("/", "k")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    let body = problem(refused).await;
    assert_eq!(body["type"], "https://docs.rs/tower-redlock/#closing");
    assert!(!body["detail"].to_string().contains("reached"), "{body}");
}

#[tokio::test]
async fn a_layer_that_asks_for_nonsense_is_500() {
    let layer = keyed(&Redlock::in_memory()).ttl(Duration::ZERO);
    let app = Router::new().route("/", post(|| async {})).layer(layer);
    let refused = send(app, with_key("/", "k")).await;
    assert_eq!(refused.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(problem(refused).await["type"], "https://docs.rs/tower-redlock/#lock-misconfigured");
}

#[tokio::test]
async fn rejections_can_be_changed_for_the_layer_and_for_extractors() {
    let redlock = Redlock::in_memory();
    let _held = redlock.lock("header:idempotency-key:k").await.unwrap();
    let _account = redlock.lock("account:7").await.unwrap();
    let layer = keyed(&redlock).methods([Method::POST]).on_rejection(|rejection| {
        let mut response = http::Response::new("busy");
        *response.status_mut() = match rejection.kind() {
            RejectionKind::Locked => StatusCode::CONFLICT,
            _ => rejection.status(),
        };
        response
    });
    let app = Router::new().route("/{id}", any(|_: Locked<Path<AccountId>>| async {})).layer(layer);
    assert_eq!(send(app.clone(), with_key("/7", "k")).await.status(), StatusCode::CONFLICT);
    assert_eq!(send(app, Request::get("/7")).await.status(), StatusCode::CONFLICT);
}

#[tokio::test]
async fn an_extracted_resource_is_locked_until_the_response_and_not_until_it_is_dropped() {
    let redlock = Redlock::in_memory();
    let inspected = redlock.clone();
    let kept = Arc::new(std::sync::Mutex::new(None));
    let keep = Arc::clone(&kept);
    let handler = move |account: Locked<Path<AccountId>>, scope: LockScope| async move {
        assert_eq!(account.0.0, "7");
        assert!(account.lease().remaining() > Duration::from_secs(5), "the ttl of the resource");
        keep.lock().unwrap().replace((account.clone_lease(), scope));
        drop(account);
        is_held(&inspected, "account:7").await.to_string()
    };
    let app = Router::new()
        .route("/accounts/{id}", post(handler))
        .layer(RedlockLayer::scope_only(redlock.clone()));
    for _ in 0..2 {
        let response = send(app.clone(), Request::post("/accounts/7")).await;
        assert_eq!(support::text(response).await, "true");
        assert!(!is_held(&redlock, "account:7").await);
    }
    let (lease, scope) = kept.lock().unwrap().take().unwrap();
    assert!(lease.remaining().is_zero());
    let late = scope.lock("account:7").await.unwrap_err();
    assert_eq!(late.kind(), RejectionKind::Lost, "a request that is over locks nothing");
    assert!(!is_held(&redlock, "account:7").await);
}

trait CloneLease {
    fn clone_lease(&self) -> redlock_core::Lease;
}

impl<R> CloneLease for Locked<R> {
    fn clone_lease(&self) -> redlock_core::Lease {
        self.lease().clone()
    }
}

#[tokio::test]
async fn an_account_that_is_locked_is_423_and_a_bad_path_what_axum_says() {
    let redlock = Redlock::in_memory();
    let _held = redlock.lock("account:7").await.unwrap();
    #[derive(Deserialize)]
    struct Number(#[expect(dead_code)] u32);
    impl LockResource for Number {
        fn lock_key(&self) -> Key {
            Key::hashed("number")
        }
    }
    let app = Router::new()
        .route("/accounts/{id}", post(|_: Locked<Path<AccountId>>| async {}))
        .route("/numbers/{id}", post(|_: Locked<Path<Number>>| async {}))
        .layer(RedlockLayer::scope_only(redlock));
    assert_eq!(send(app.clone(), Request::post("/accounts/7")).await.status(), StatusCode::LOCKED);
    assert_eq!(send(app.clone(), Request::post("/accounts/8")).await.status(), StatusCode::OK);
    assert_eq!(send(app, Request::post("/numbers/x")).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_missing_layer_is_500_and_named() {
    for handler in [post(|_: Locked<Path<AccountId>>| async {}), post(|_: LockScope| async {})] {
        let app: Router = Router::new().route("/{id}", handler);
        let response = send(app, Request::post("/7")).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let detail = problem(response).await["detail"].to_string();
        assert!(detail.contains("tower_redlock::RedlockLayer"), "{detail}");
    }
}

#[tokio::test]
async fn a_handler_can_see_why_it_has_no_lock() {
    let redlock = Redlock::in_memory();
    let _held = redlock.lock("account:7").await.unwrap();
    type Outcome =
        Result<Locked<Path<AccountId>>, LockedRejection<axum::extract::rejection::PathRejection>>;
    let handler = |account: Outcome| async {
        match account {
            Err(LockedRejection::Lock(rejection)) => {
                format!("{:?}", rejection.kind()).into_response()
            }
            other => other.map(|_| ()).into_response(),
        }
    };
    let app = Router::new().route("/{id}", post(handler)).layer(RedlockLayer::scope_only(redlock));
    assert_eq!(support::text(send(app, Request::post("/7")).await).await, "Locked");
}

#[tokio::test]
async fn a_request_shares_its_own_locks_and_never_deadlocks_with_another() {
    let redlock = Redlock::in_memory();
    let layer = RedlockLayer::new(redlock.clone(), |parts: &http::request::Parts| {
        parts.uri.path().trim_start_matches('/').to_owned()
    });
    let app = Router::new()
        .route(
            "/own",
            post(|scope: LockScope| async move {
                let (first, again) = tokio::join!(scope.lock("own"), scope.lock("own"));
                assert_eq!(first?.token(), again?.token());
                Ok::<_, Rejection>(())
            }),
        )
        .route("/ab", post(|scope: LockScope| both(scope, ["a", "b"])))
        .route("/ba", post(|scope: LockScope| both(scope, ["b", "a"])))
        .layer(layer.wait(Duration::from_secs(60)));
    assert_eq!(send(app.clone(), Request::post("/own")).await.status(), StatusCode::OK);

    let requests = ["/ab", "/ba"].map(|path| tokio::spawn(send(app.clone(), Request::post(path))));
    let waiting = async {
        let [ab, ba] = requests;
        [ab.await.unwrap().status(), ba.await.unwrap().status()]
    };
    let [ab, ba] = tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    assert_eq!(ab, StatusCode::OK, "in order: waits");
    assert!([StatusCode::OK, StatusCode::LOCKED].contains(&ba), "against the order: {ba}");
}

async fn both(scope: LockScope, keys: [&'static str; 2]) -> Result<(), Rejection> {
    scope.lock(keys[0]).await?;
    tokio::task::yield_now().await;
    scope.lock(keys[1]).await?;
    Ok(())
}

#[tokio::test]
async fn nested_routers_lock_the_whole_path() {
    let redlock = Redlock::in_memory();
    let _held = redlock.lock("path:/eu/orders").await.unwrap();
    let orders = Router::new()
        .route("/orders", get(|| async {}))
        .layer(RedlockLayer::new(redlock, key::path()));
    let app = Router::new().nest("/eu", orders.clone()).nest("/us", orders);
    assert_eq!(send(app.clone(), Request::get("/eu/orders")).await.status(), StatusCode::LOCKED);
    assert_eq!(send(app, Request::get("/us/orders")).await.status(), StatusCode::OK);
}

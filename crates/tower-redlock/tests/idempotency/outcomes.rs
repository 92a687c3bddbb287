//! Which outcomes are recorded: all of them, except refusals of a lock or of this layer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Path;
use axum::response::Response;
use axum::routing::any;
use http::{Request, StatusCode};
use redlock_core::{Key, Redlock};
use redlock_tests::eventually;
use tokio::sync::Semaphore;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http::timeout::TimeoutLayer;
use tower_redlock::fencing::MemoryFences;
use tower_redlock::{
    Disconnect, FenceLayer, LockResource, LockScope, Locked, Lost, RedlockLayer, Rejection,
};

use crate::support::{problem, text};
use crate::{SOON, Store, Work, is_replayed, keyed, once, send};

#[tokio::test(start_paused = true)]
async fn a_timeout_below_the_layer_is_recorded_for_every_status_that_it_may_answer_with() {
    for status in [408, 500, 502, 503, 504].map(|status| StatusCode::from_u16(status).unwrap()) {
        let charged = Arc::new(AtomicUsize::new(0));
        let charge = Arc::clone(&charged);
        let handler = move || async move {
            charge.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        };
        let timeout = TimeoutLayer::with_status_code(status, Duration::from_secs(1));
        let app =
            Router::new().route("/", any(handler)).layer(timeout).layer(once(&Store::default()));
        for replayed in [false, true, true] {
            let answer = send(&app, keyed("k"), "").await;
            assert_eq!((answer.status(), is_replayed(&answer)), (status, replayed));
        }
        assert_eq!(charged.load(Ordering::SeqCst), 1, "{status}");
    }
}

#[tokio::test]
async fn a_lock_that_a_handler_does_not_get_is_not_recorded() {
    let redlock = Redlock::in_memory();
    let handler = |scope: LockScope| async move {
        scope.lock("account").await?;
        Ok::<_, Rejection>(StatusCode::CREATED)
    };
    let rendered = RedlockLayer::scope_only(redlock.clone()).on_rejection(|rejection| {
        http::Response::builder().status(409).body(rejection.detail().to_owned()).unwrap()
    });
    for (layer, refused) in [
        (RedlockLayer::scope_only(redlock.clone()), StatusCode::LOCKED),
        (rendered, StatusCode::CONFLICT),
    ] {
        let app =
            Router::new().route("/", any(handler)).layer(layer).layer(once(&Store::default()));
        let held = redlock.lock("account").await.unwrap();
        for _ in 0..2 {
            let answer = send(&app, keyed("k"), "").await;
            assert_eq!((answer.status(), is_replayed(&answer)), (refused, false));
        }
        held.release().await;
        let answer = send(&app, keyed("k"), "").await;
        assert_eq!((answer.status(), is_replayed(&answer)), (StatusCode::CREATED, false));
        assert!(is_replayed(&send(&app, keyed("k"), "").await));
    }
}

#[derive(serde::Deserialize)]
struct Account(String);

impl LockResource for Account {
    fn lock_key(&self) -> Key {
        Key::hashed(&self.0)
    }
}

#[tokio::test]
async fn a_locked_argument_that_is_contended_or_has_no_lock_service_is_not_recorded() {
    let handler = |_: Locked<Path<Account>>| async { StatusCode::CREATED };
    let store = Store::default();
    let app = |redlock| {
        let scope = RedlockLayer::scope_only(redlock);
        Router::new().route("/{account}", any(handler)).layer(scope).layer(once(&store))
    };
    let request = || Request::post("/alice").header("idempotency-key", "k");
    let closed = Redlock::in_memory();
    closed.close(Duration::ZERO).await;
    let redlock = Redlock::in_memory();
    let held = redlock.lock("alice").await.unwrap();
    for (app, refused) in [(app(closed), 503), (app(redlock.clone()), 423)] {
        let answer = send(&app, request(), "").await;
        assert_eq!((answer.status().as_u16(), is_replayed(&answer)), (refused, false));
    }
    held.release().await;
    let answer = send(&app(redlock), request(), "").await;
    assert_eq!((answer.status(), is_replayed(&answer)), (StatusCode::CREATED, false));
}

#[tokio::test]
async fn a_lock_that_a_layer_below_does_not_get_is_not_recorded() {
    let redlock = Redlock::in_memory();
    let work = Work::ungated();
    let below = RedlockLayer::new(redlock.clone(), |_: &_| "account");
    let inside = work.clone();
    let handler = move |request: Request<Body>| async move { inside.handle(request).await };
    let app = Router::new().route("/", any(handler)).layer(below).layer(once(&Store::default()));
    let held = redlock.lock("account").await.unwrap();
    assert_eq!(send(&app, keyed("k"), "").await.status(), StatusCode::LOCKED);
    held.release().await;
    assert_eq!(text(send(&app, keyed("k"), "").await).await, "1");
}

#[tokio::test]
async fn a_missing_fencing_token_below_the_layer_is_not_recorded() {
    let work = Work::ungated();
    let fence = FenceLayer::new(MemoryFences::new(), |_: &_| "account");
    let inside = work.clone();
    let handler = move |request: Request<Body>| async move { inside.handle(request).await };
    let app = Router::new().route("/", any(handler)).layer(fence).layer(once(&Store::default()));
    let refused = send(&app, keyed("k"), "").await;
    assert_eq!(refused.status(), StatusCode::PRECONDITION_REQUIRED);
    let answer = send(&app, keyed("k").header("fencing-token", "7"), "").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_handler_that_lost_a_lock_half_way_is_recorded() {
    let redlock = Redlock::in_memory();
    let work = Work::default();
    let (thief, inside) = (redlock.clone(), work.clone());
    let handler = move |scope: LockScope| async move {
        inside.done.fetch_add(1, Ordering::SeqCst);
        let lease = scope.lease().unwrap();
        thief.unlock(lease.key(), lease.token()).await.unwrap();
        inside.gate.pass().await;
    };
    let below = RedlockLayer::new(redlock, |_: &_| "account").ttl(Duration::from_millis(300));
    let app = Router::new().route("/", any(handler)).layer(below).layer(once(&Store::default()));
    for replayed in [false, true] {
        let lost = send(&app, keyed("k"), "").await;
        assert_eq!(is_replayed(&lost), replayed);
        assert_eq!(problem(lost).await["type"], "https://docs.rs/tower-redlock/#lock-lost");
    }
    assert_eq!(work.times(), 1);
}

#[tokio::test]
async fn a_lock_below_that_is_lost_before_the_handler_begins_is_not_recorded() {
    let (redlock, store, work) = (Redlock::in_memory(), Store::default(), Work::ungated());
    let below = RedlockLayer::new(redlock.clone(), |_: &_| "account");
    let places = Arc::new(Semaphore::new(0));
    let limit = GlobalConcurrencyLimitLayer::with_semaphore(places);
    let inside = work.clone();
    let handler = move |request: Request<Body>| async move { inside.handle(request).await };
    let layers = ServiceBuilder::new().layer(once(&store)).layer(below).layer(limit);
    let app = Router::new().route("/", any(handler).layer(layers));
    let close = async {
        eventually(SOON, "the lock below is held", async || {
            redlock.inspect("account").await.unwrap().held
        })
        .await;
        redlock.close(Duration::ZERO).await
    };
    let (lost, _) = tokio::join!(send(&app, keyed("k"), ""), close);
    assert_eq!(problem(lost).await["type"], "https://docs.rs/tower-redlock/#lock-lost");
    assert_eq!(work.times(), 0);
    assert!(format!("{store:?}").contains("len: 0"), "{store:?}");
}

#[test]
fn a_detached_handler_below_that_ends_with_its_runtime_is_recorded() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let work = Work::default();
    let below = RedlockLayer::new(Redlock::in_memory(), |_: &_| "account");
    // The layer itself outlives the runtime of the handler.
    let once = once(&Store::default())
        .lock(|lock| lock.on_disconnect(Disconnect::Cancel).on_lost(Lost::Continue));
    let inside = work.clone();
    let handler = move |_: Request<Body>| async move {
        inside.done.fetch_add(1, Ordering::SeqCst);
        inside.gate.pass().await;
    };
    let app = Router::new()
        .route("/", any(handler))
        .layer(below.on_disconnect(Disconnect::Detach))
        .layer(once);

    let (first, second) = (runtime(), runtime());
    let mut answer = Box::pin(send(&app, keyed("k"), ""));
    first.block_on(async {
        tokio::select! {
            _ = &mut answer => panic!("the handler is at the gate"),
            () = work.gate.entered() => {}
        }
    });
    first.shutdown_timeout(SOON);
    let stopped = second.block_on(answer);
    assert_eq!((stopped.status(), is_replayed(&stopped)), (StatusCode::SERVICE_UNAVAILABLE, false));
    let stopped = second.block_on(problem(stopped));
    assert_eq!(stopped["type"], "https://docs.rs/tower-redlock/#closing");

    work.gate.open();
    let again = second.block_on(send(&app, keyed("k"), ""));
    assert_eq!((again.status(), is_replayed(&again)), (StatusCode::SERVICE_UNAVAILABLE, true));
    assert_eq!(work.times(), 1);
}

#[tokio::test]
async fn an_error_of_the_service_below_is_recorded_as_an_outcome_without_an_answer() {
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let service = tower::service_fn(move |_: Request<_>| {
        count.fetch_add(1, Ordering::SeqCst);
        async { Err::<Response, _>(io::Error::other("cut off")) }
    });
    let service = once(&Store::default()).layer(service);
    let send = || service.clone().oneshot(keyed("k").body(Body::from(Bytes::new())).unwrap());
    assert_eq!(send().await.unwrap_err().to_string(), "cut off");
    assert_eq!(send().await.unwrap().status(), StatusCode::GONE);
    assert_eq!(done.load(Ordering::SeqCst), 1);
}

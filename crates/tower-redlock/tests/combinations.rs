//! However a layer is set, and however a request ends: its key is free afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::body::Body;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::BodyExt;
use redlock_core::{Config, Redlock};
use redlock_tests::eventually;
use support::Gate;
use tower::{Layer, ServiceExt, service_fn};
use tower_redlock::{Disconnect, Hold, LockScope, Lost, RedlockLayer};

const SOON: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug)]
enum End {
    Returns,
    Fails,
    Panics,
    ClientLeaves,
    ClientLeavesTheBody,
    LockLost,
}

use End::{ClientLeaves, ClientLeavesTheBody, Fails, LockLost, Panics, Returns};

async fn handle(end: End, scope: LockScope, gate: Gate, redlock: Redlock) -> Result<(), String> {
    let lease = scope.lock("k").await.unwrap();
    assert!(redlock.try_lock("k").await.is_err(), "two at once");
    match end {
        Returns | ClientLeavesTheBody => {}
        Fails => return Err("on purpose".into()),
        Panics => panic!("on purpose"),
        ClientLeaves => gate.pass().await,
        LockLost => {
            redlock.unlock("k", lease.token()).await.unwrap();
            lease.lost().await;
        }
    }
    Ok(())
}

async fn is_free_after(hold: Hold, disconnect: Disconnect, lost: Lost, end: End) {
    let config = Config::memory().ttl(Duration::from_millis(400));
    let redlock = Redlock::new(config.build().unwrap());
    let gate = Gate::default();
    let (inside, locks) = (gate.clone(), redlock.clone());
    let handler = service_fn(move |request: Request<Body>| {
        let scope = request.extensions().get::<LockScope>().unwrap().clone();
        let handling = handle(end, scope, inside.clone(), locks.clone());
        async { handling.await.map(|()| Response::new(Body::from("done"))) }
    });
    let layer = RedlockLayer::new(redlock.clone(), |_: &http::request::Parts| "k")
        .hold(hold)
        .on_disconnect(disconnect)
        .on_lost(lost);
    let detached = layer.detached();
    let request = Request::new(Body::empty());
    let response = tokio::spawn(layer.layer(handler).oneshot(request));
    if matches!(end, ClientLeaves) {
        gate.entered().await;
        response.abort();
        gate.open();
    }
    let response = response.await.ok().and_then(Result::ok);
    let answered = response.as_ref().map(|response| response.status().as_u16());
    match end {
        Returns | ClientLeavesTheBody => assert_eq!(answered, Some(200)),
        LockLost if lost == Lost::Abort => assert_eq!(answered, Some(503)),
        LockLost => assert_eq!(answered, Some(200)),
        Fails | Panics | ClientLeaves => assert_eq!(answered, None),
    }
    if let Some(response) = response.filter(|_| !matches!(end, ClientLeavesTheBody)) {
        assert!(response.into_body().collect().await.is_ok());
    }
    tokio::time::timeout(SOON, detached.finished()).await.unwrap();
    drop(eventually(SOON, "the key is free", async || redlock.try_lock("k").await).await);
}

#[tokio::test(start_paused = true)]
async fn a_key_is_free_after_every_end_of_a_request_under_every_setting() {
    let mut cases = Vec::new();
    for hold in [Hold::Response, Hold::Body] {
        for disconnect in [Disconnect::Cancel, Disconnect::Detach] {
            for lost in [Lost::Abort, Lost::Continue] {
                for end in [Returns, Fails, Panics, ClientLeaves, ClientLeavesTheBody, LockLost] {
                    let case = AssertUnwindSafe(is_free_after(hold, disconnect, lost, end));
                    let case = case.catch_unwind();
                    cases.push(case.map(move |done| (done.is_ok(), hold, disconnect, lost, end)));
                }
            }
        }
    }
    assert_eq!(cases.len(), 48);
    let failed: Vec<_> = join_all(cases).await.into_iter().filter(|(fine, ..)| !fine).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

//! Keys and tokens are looked for in what is logged and answered.
//!
//! Nothing else is tested here: whether anybody listens to an event is decided once, for all
//! threads of a process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use http::Request;
use parking_lot::Mutex;
use redlock_core::{Config, Redlock, Renew};
use support::{Log, send, text};
use tower_redlock::{FenceLayer, LockScope, MemoryFences, RedlockLayer, fencing, key};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

const VALUE: &str = "patient-4711";
const KEY: &str = "header:idempotency-key:patient-4711";

fn post_with_key() -> http::request::Builder {
    Request::post("/").header("idempotency-key", VALUE)
}

#[tokio::test]
async fn no_key_and_no_token_is_in_a_log_line_or_an_answer() {
    let log = Log::default();
    let writer = log.clone();
    let events = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(false);
    let _listening = events.with_writer(move || writer.clone()).finish().set_default();

    let redlock =
        Redlock::new(Config::memory().ttl(Duration::from_secs(60)).label("ward").build().unwrap());
    let thief = redlock.clone();
    let halves = Arc::new(Mutex::new(Vec::new()));
    let tokens = Arc::clone(&halves);
    let handler = move |scope: LockScope| async move {
        let lease = scope.lease().unwrap();
        let token = lease.token().to_string();
        tokens.lock().push(token.rsplit_once(':').unwrap().1.to_owned());
        assert!(format!("{lease:?}").contains("ward:…"));
        thief.unlock(KEY, lease.token()).await.unwrap();
        std::future::pending::<()>().await;
    };
    let brief = RedlockLayer::new(redlock.clone(), key::header("idempotency-key"))
        .renew(Renew::No)
        .max_hold(Duration::from_millis(50));
    let app = Router::new().route("/", post(handler)).layer(brief);
    let fenced = FenceLayer::new(MemoryFences::new(), key::header("idempotency-key"));
    let fenced = Router::new().route("/", post(|| async {})).layer(fenced);
    let lost = send(app.clone(), post_with_key()).await;
    let held = redlock.lock(KEY).await.unwrap();
    halves.lock().push(held.token().as_str().rsplit_once(':').unwrap().1.to_owned());
    let locked = send(app.clone(), post_with_key()).await;
    let late = post_with_key().header(fencing::HEADER, "7100000000000001");
    send(fenced.clone(), late).await;
    let late = post_with_key().header(fencing::HEADER, "7100000000000000");
    let stale = send(fenced.clone(), late).await;
    redlock.close(Duration::ZERO).await;
    let closed = send(app.clone(), post_with_key()).await;
    let statuses = [&lost, &locked, &stale, &closed].map(|answer| answer.status().as_u16());
    assert_eq!(statuses, [503, 423, 412, 503]);
    let mut answers = String::new();
    for answer in [lost, locked, stale, closed] {
        answers.push_str(&format!("{:?}\n", answer.headers()));
        answers.push_str(&text(answer).await);
    }
    let log = log.text();
    for heard in ["its lock was lost", "another request", "a newer lock", "closed"] {
        assert!(log.contains(heard), "{heard}: {log}");
    }
    let halves = halves.lock();
    assert_eq!(halves.len(), 2);
    for secret in halves.iter().map(String::as_str).chain([VALUE, "710000000000000"]) {
        assert!(!log.contains(secret) && !answers.contains(secret), "{secret}: {log} {answers}");
    }
}

//! The log of a service whose lock servers fail: one line when that begins, one when it ends.
//!
//! Nothing else is tested here: whether anybody listens to an event is decided once, for all
//! threads of a process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use http::{Request, StatusCode};
use redlock_core::testing::Cluster;
use redlock_core::{FencingToken, Key, Redlock};
use support::{Log, problem, send};
use tokio::time::sleep;
use tower_redlock::idempotency::{IdempotencyLayer, Record, RecordId, RecordStore, Saved};
use tower_redlock::{FenceLayer, FenceStore, LockScope, RedlockLayer, fencing, key};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

impl Log {
    /// The lines of the layers since the last call, without those of the core.
    fn lines(&self, seen: &mut usize) -> Vec<String> {
        let text = self.text();
        let lines = text.lines().filter(|line| line.contains("tower_redlock::"));
        let new: Vec<String> = lines.skip(*seen).map(str::to_owned).collect();
        *seen += new.len();
        new
    }
}

fn levels(lines: &[String]) -> [usize; 4] {
    ["ERROR", "WARN", "INFO", "DEBUG"]
        .map(|level| lines.iter().filter(|line| line.contains(&format!(" {level} "))).count())
}

/// A store that fails if it is told to.
#[derive(Clone, Default)]
struct Store(Arc<AtomicBool>);

impl Store {
    fn fails(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        if self.0.load(Ordering::SeqCst) { Err("connection refused".into()) } else { Ok(()) }
    }
}

impl FenceStore for Store {
    async fn observe(
        &self,
        _: &Key,
        _: FencingToken,
    ) -> Result<bool, Box<dyn Error + Send + Sync>> {
        self.fails().map(|()| true)
    }
}

impl RecordStore for Store {
    async fn find(&self, _: &RecordId) -> Result<Option<Record>, Box<dyn Error + Send + Sync>> {
        self.fails().map(|()| None)
    }

    async fn save(
        &self,
        _: &RecordId,
        _: Record,
        _: Option<FencingToken>,
    ) -> Result<Saved, Box<dyn Error + Send + Sync>> {
        self.fails().map(|()| Saved::Saved)
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_one_warning_and_its_end_one_line_with_counts() {
    let log = Log::default();
    let writer = log.clone();
    let events = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE).with_ansi(false);
    let _listening = events.with_writer(move || writer.clone()).finish().set_default();
    let mut seen = 0;

    let cluster = Cluster::new(3);
    let redlock = cluster.redlock();
    let layer = RedlockLayer::new(redlock.clone(), key::path());
    let app = Router::new()
        .route("/a", post(|| async {}).layer(layer.clone()))
        .route("/b", post(|| async {}).layer(layer));
    let send_to = async |path: &str| send(app.clone(), Request::post(path)).await.status();
    assert_eq!(send_to("/a").await, StatusCode::OK);
    assert_eq!(levels(&log.lines(&mut seen)), [0; 4], "nothing to tell");

    // Two servers of three are down, also with successes in between.
    let down = |is_down: bool| {
        for node in 0..2 {
            if is_down { cluster.node(node).pause() } else { cluster.node(node).heal() }
        }
    };
    for _ in 0..5 {
        down(true);
        for path in ["/a", "/b"].repeat(10) {
            assert_eq!(send_to(path).await, StatusCode::SERVICE_UNAVAILABLE);
        }
        down(false);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(send_to("/a").await, StatusCode::OK);
    }
    let lines = log.lines(&mut seen);
    assert_eq!(levels(&lines), [0, 1, 0, 99], "{lines:#?}");
    assert!(lines[0].contains("an outage begins") && lines[0].contains("Unavailable"));

    sleep(Duration::from_secs(5)).await;
    assert_eq!(send_to("/b").await, StatusCode::OK);
    assert_eq!(send_to("/b").await, StatusCode::OK);
    let lines = log.lines(&mut seen);
    assert_eq!(levels(&lines), [0, 0, 1, 0], "{lines:#?}");
    assert!(lines[0].contains("refused=100"), "{lines:#?}");

    // Servers that lost their data vote again when all locks have expired.
    for node in 0..2 {
        cluster.node(node).restart_empty();
    }
    sleep(Duration::from_secs(1)).await;
    let refused = send(app.clone(), Request::post("/a")).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key("retry-after"));
    let body = problem(refused).await;
    assert_eq!(body["type"], "https://docs.rs/tower-redlock/#lock-quarantined");
    assert!(!body["detail"].to_string().contains("reached"), "{body}");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(send_to("/a").await, StatusCode::OK);
    let lines = log.lines(&mut seen);
    assert_eq!(levels(&lines), [0, 1, 1, 0], "{lines:#?}");
    assert!(lines[0].contains("Quarantined") && lines[1].contains("refused=1 "), "{lines:#?}");

    // A lock of another request, and a service that closes, are nothing to be woken up for.
    let held = redlock.lock("path:/a").await.unwrap();
    assert_eq!(send_to("/a").await, StatusCode::LOCKED);
    held.release().await;
    redlock.close(Duration::ZERO).await;
    let closed = send(app.clone(), Request::post("/a")).await;
    assert_eq!(problem(closed).await["type"], "https://docs.rs/tower-redlock/#closing");
    let lines = log.lines(&mut seen);
    assert_eq!(levels(&lines), [0, 0, 0, 2], "{lines:#?}");
    assert!(lines[1].contains("closing"), "{lines:#?}");

    // Mistakes in the service.
    let mistaken = RedlockLayer::new(Redlock::in_memory(), key::header("no name"));
    let endless = RedlockLayer::new(Redlock::in_memory(), key::path()).ttl(Duration::MAX);
    let broken = Router::new()
        .route("/missing", post(|_: LockScope| async {}))
        .route("/mistaken", post(|| async {}).layer(mistaken))
        .route("/endless", post(|| async {}).layer(endless));
    let lines = log.lines(&mut seen);
    assert_eq!(levels(&lines), [2, 0, 0, 0], "when the layers are built: {lines:#?}");
    assert!(lines[0].contains("header=\"no name\""), "{lines:#?}");
    assert!(lines[1].contains("error=ttl = "), "{lines:#?}");
    for path in ["/missing", "/mistaken", "/endless"] {
        let response = send(broken.clone(), Request::post(path)).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR, "{path}");
    }
    let lines = log.lines(&mut seen);
    assert_eq!(levels(&lines), [3, 0, 0, 0], "{lines:#?}");

    // The stores of other layers.
    let store = Store::default();
    let fenced = FenceLayer::new(store.clone(), key::path());
    let once = IdempotencyLayer::new(Redlock::in_memory(), store.clone());
    let app = Router::new()
        .route("/fenced", post(|| async {}).layer(fenced))
        .route("/once", post(|| async {}).layer(once));
    for path in ["/fenced", "/once"] {
        let request = || {
            let request = Request::post(path).header(fencing::HEADER, 7);
            request.header("idempotency-key", "k")
        };
        store.0.store(true, Ordering::SeqCst);
        for _ in 0..10 {
            let response = send(app.clone(), request()).await;
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        store.0.store(false, Ordering::SeqCst);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(send(app.clone(), request()).await.status(), StatusCode::OK);
        let lines = log.lines(&mut seen);
        assert_eq!(levels(&lines), [0, 1, 1, 9], "{path}: {lines:#?}");
        assert!(lines[0].contains("connection refused"), "{lines:#?}");
        assert!(lines[10].contains("refused=10"), "{lines:#?}");
    }
}

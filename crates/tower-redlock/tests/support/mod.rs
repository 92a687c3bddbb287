//! A handler that can be held, and requests to applications that are not served.
#![allow(dead_code, unreachable_pub)]

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use redlock_core::{Config, Redlock, Safety};
use redlock_tests::Fleet;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::ServiceExt;

/// Plain locks on these servers. A machine that is busy with other tests must not look like a
/// server that is down.
pub fn redlock_on(fleet: &Fleet) -> Redlock {
    let config = Config::servers(fleet.urls())
        .safety(Safety::Plain)
        .node_deadline(Duration::from_millis(400));
    Redlock::new(config.build().unwrap())
}

/// What was logged.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

/// How long an answer may take: a test that waits for ever tells nothing.
const ANSWERED: Duration = Duration::from_secs(120);

/// Where handlers stand until the test lets them go on.
#[derive(Clone)]
pub struct Gate(Arc<Counts>);

struct Counts {
    entered: Semaphore,
    open: Semaphore,
    dropped: Semaphore,
    finished: AtomicUsize,
}

impl Default for Gate {
    fn default() -> Self {
        let [entered, open, dropped] = [(); 3].map(|()| Semaphore::new(0));
        Self(Arc::new(Counts { entered, open, dropped, finished: AtomicUsize::new(0) }))
    }
}

/// Counts a handler that ends in the middle.
struct Inside<'g>(&'g Gate, bool);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.0.dropped.add_permits(1);
        }
    }
}

impl Gate {
    pub async fn pass(&self) {
        let mut inside = Inside(self, false);
        self.0.entered.add_permits(1);
        self.0.open.acquire().await.unwrap().forget();
        self.0.open.add_permits(1);
        inside.1 = true;
        self.0.finished.fetch_add(1, Ordering::SeqCst);
    }

    pub fn handler(
        &self,
    ) -> impl Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Clone + Send + Sync + 'static {
        let gate = self.clone();
        move || {
            let gate = gate.clone();
            Box::pin(async move { gate.pass().await })
        }
    }

    /// Lets everybody pass, now and later.
    pub fn open(&self) {
        self.0.open.add_permits(1);
    }

    /// Waits until one more handler stands at the gate.
    pub async fn entered(&self) {
        let entered = timeout(PATIENCE, self.0.entered.acquire()).await;
        entered.expect("a handler is called").unwrap().forget();
    }

    /// Waits until one more handler was dropped at the gate.
    pub async fn dropped(&self) {
        let dropped = timeout(PATIENCE, self.0.dropped.acquire()).await;
        dropped.expect("the handler is dropped").unwrap().forget();
    }

    pub fn finished(&self) -> usize {
        self.0.finished.load(Ordering::SeqCst)
    }
}

/// Panics if there is no answer in time.
pub async fn send(app: Router, request: http::request::Builder) -> Response {
    let answer = app.oneshot(request.body(Body::empty()).unwrap());
    timeout(ANSWERED, answer).await.expect("an answer in time").unwrap()
}

pub async fn text(response: Response) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub async fn problem(response: Response) -> serde_json::Value {
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    serde_json::from_str(&text(response).await).unwrap()
}

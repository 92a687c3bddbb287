//! What the page is told while it happens.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use payments::App;
use redlock_core::Redlock;
use serde_json::Value;
use tokio::time::timeout;
use tower::ServiceExt;

use crate::support::processes::{Running, service};
use crate::support::{Database, SOON, provider};

/// A reader of the stream, with what it has not parsed yet and the number of pieces that it got.
struct Events(Body, String, u32);

impl Events {
    async fn of(app: &Router, tenant: &str) -> Self {
        let request = Request::get(format!("/events?tenant={tenant}")).body(Body::empty());
        let response = app.clone().oneshot(request.unwrap()).await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self(response.into_body(), String::new(), 0)
    }

    /// The next event; `None` at the end.
    async fn next(&mut self) -> Option<(String, Value)> {
        // What only keeps the connection open does not count.
        timeout(SOON, self.read()).await.expect("something is told")
    }

    async fn read(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some((event, rest)) = self.1.split_once("\n\n") {
                let field = |name: &str| {
                    event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned)
                };
                let told = field("event: ").zip(field("data: "));
                self.1 = rest.to_owned();
                if let Some((name, data)) = told {
                    return Some((name, serde_json::from_str(&data).unwrap()));
                }
                continue;
            }
            let frame = self.0.frame().await?.unwrap();
            self.2 += 1;
            self.1 += std::str::from_utf8(frame.data_ref().unwrap()).unwrap();
        }
    }

    async fn next_named(&mut self, name: &str) -> Value {
        loop {
            let (named, data) = self.next().await.expect("the stream goes on");
            if named == name {
                return data;
            }
        }
    }
}

async fn app(database: &Database, latency: Duration) -> App {
    let provider = provider(latency).await.0;
    App::new(database.store().await, provider, Redlock::in_memory())
}

async fn pay(app: &Router, tenant: &str, key: &str) -> u16 {
    let request = Request::post("/payments").header("idempotency-key", key);
    let body = Body::from(r#"{"account":"alice","amount_cents":1}"#);
    let request = request.header("x-tenant", tenant).body(body).unwrap();
    app.clone().oneshot(request).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_tenant_is_told_of_its_own_requests_and_locks_and_of_no_key_of_others() {
    let database = Database::sqlite();
    let app = app(&database, Duration::from_secs(1)).await.routes().0;
    let mut mine = Events::of(&app, "me").await;
    assert_eq!(mine.next().await.unwrap().1["locks"], Value::Array(Vec::new()));
    let paid = tokio::spawn({
        let app = app.clone();
        async move {
            let both = tokio::join!(pay(&app, "them", "their-key"), pay(&app, "me", "my-key"));
            (both, pay(&app, "me", "my-key").await)
        }
    });

    let (mut outcomes, mut held, mut others) = (Vec::new(), 0, 0);
    while outcomes.len() < 2 {
        let (name, data) = mine.next().await.unwrap();
        assert!(!data.to_string().contains("their-key"), "{data}");
        match name.as_str() {
            "request" => {
                assert_eq!(data["key"], "my-key");
                outcomes.extend(data["outcome"].as_str().map(str::to_owned));
            }
            _ => {
                let locks = data["locks"].as_array().unwrap();
                held = held.max(locks.len());
                others = others.max(data["of_others"].as_u64().unwrap());
                for lock in locks {
                    assert!(lock["remaining_ms"].as_u64().unwrap() <= 10_000, "{lock}");
                    assert!(lock["fence"].as_u64().unwrap() > 0, "{lock}");
                }
            }
        }
    }
    assert_eq!(paid.await.unwrap(), ((201, 201), 201));
    assert_eq!(outcomes, ["charged", "replayed"]);
    assert_eq!((held, others), (1, 1), "one of mine, and that there is one of others");
}

#[tokio::test]
async fn a_reader_gets_few_pieces_however_many_requests_there_are() {
    let database = Database::sqlite();
    let app = app(&database, Duration::ZERO).await.routes().0;
    let mut reader = Events::of(&app, "me").await;
    reader.next_named("locks").await;
    let started = Instant::now();
    let reading = tokio::spawn(async move {
        let mut answers = 0;
        while answers < 100 {
            let (name, data) = reader.next().await.unwrap();
            answers += match name.as_str() {
                "missed" => data.as_u64().unwrap(),
                _ => u64::from(data["outcome"].is_string()),
            };
        }
        reader.2
    });
    for _ in 0..100 {
        assert_eq!(pay(&app, "me", "k").await, 201);
    }
    let pieces = timeout(SOON, reading).await.unwrap().unwrap();
    let most = 5.0 * started.elapsed().as_secs_f64() + 2.0;
    assert!(f64::from(pieces) <= most, "{pieces} pieces, at most {most}");
}

#[tokio::test]
async fn readers_beyond_the_limit_get_503_until_one_leaves() {
    let database = Database::sqlite();
    let app = app(&database, Duration::ZERO).await.routes().0;
    let open = async |tenant: &str| {
        let request = Request::get(format!("/events?tenant={tenant}")).body(Body::empty());
        app.clone().oneshot(request.unwrap()).await.unwrap()
    };
    let mut readers = Vec::new();
    for number in 0..250 {
        readers.push(open(&format!("tenant-{}", number % 3)).await);
    }
    assert!(readers.iter().all(|reader| reader.status() == 200));
    for _ in 0..2 {
        let refused = open("me").await;
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.headers()["retry-after"], "5");
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
        assert_eq!(pay(&app, "me", "k").await, 201, "payments are taken all the same");
    }
    readers.pop();
    assert_eq!(open("me").await.status(), 200);
}

#[tokio::test]
async fn the_streams_end_when_the_service_does() {
    let database = Database::sqlite();
    let app = app(&database, Duration::ZERO).await;
    let router = app.clone().routes().0;
    let mut listening = Events::of(&router, "me").await;
    listening.next_named("locks").await;
    app.close_streams();
    assert_eq!(listening.next().await, None);
    assert_eq!(Events::of(&router, "me").await.next().await, None, "and no new one begins");

    let mut running = Running::start(service(&database).env("PAYMENTS_GRACE", "20s"));
    let mut stream = running.client.get(format!("{}/events", running.url)).send().await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    let started = Instant::now();
    running.terminate();
    assert!(running.ended().await.success());
    assert!(started.elapsed() < Duration::from_secs(15), "nobody waits for the grace to end");
}

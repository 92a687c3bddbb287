//! Bodies that arrive slowly.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Request;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::processes::{Running, service};
use crate::support::service::Service;
use crate::support::{Database, SOON};

/// A request whose body the service has begun to read.
struct Upload(TcpStream);

impl Upload {
    async fn begin(running: &Running, path: &str, length: usize) -> Self {
        let address = running.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nidempotency-key: k\r\n\
             content-length: {length}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The answer comes when the body is first polled.
        let mut body_is_read = [0; 25];
        timeout(SOON, stream.read_exact(&mut body_is_read)).await.unwrap().unwrap();
        assert_eq!(&body_is_read, b"HTTP/1.1 100 Continue\r\n\r\n");
        Self(stream)
    }

    async fn trickle(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0.write_all(&[*byte]).await.unwrap();
            self.0.flush().await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn answer(mut self) -> String {
        let mut answer = String::new();
        timeout(SOON, self.0.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }
}

#[tokio::test]
async fn an_account_is_free_while_the_body_of_a_withdrawal_trickles_in() {
    let database = Database::sqlite();
    let running = Running::start(&mut service(&database));
    let path = "/accounts/alice/withdrawals";
    let body = br#"{"amount_cents":10}"#;
    let mut slow = Upload::begin(&running, path, body.len()).await;
    for half in body.chunks(10) {
        slow.trickle(&half[..half.len() - 1]).await;
        let quick = running.client.post(format!("{}{path}", running.url));
        let quick = quick.json(&json!({ "amount_cents": 1 })).send().await.unwrap();
        assert_eq!(quick.status(), 200, "{}", quick.text().await.unwrap());
        slow.trickle(&half[half.len() - 1..]).await;
    }
    let answer = slow.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("99988"), "{answer}");
}

#[tokio::test]
async fn an_idempotency_key_is_free_while_the_body_of_a_payment_trickles_in() {
    let database = Database::sqlite();
    let running = Running::start(&mut service(&database));
    let body = br#"{"account":"alice","amount_cents":1999}"#;
    let mut slow = Upload::begin(&running, "/payments", body.len()).await;
    slow.trickle(&body[..10]).await;
    assert_eq!(running.pay("k").await, 201);
    slow.trickle(&body[10..]).await;
    let answer = slow.answer().await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    assert!(answer.contains("idempotent-replayed: true"), "{answer}");
    assert_eq!(running.charges().await, 1);
}

#[tokio::test]
async fn a_body_that_never_ends_is_refused_in_time_and_a_large_one_at_once() {
    let service = Service::start(Database::sqlite(), Duration::ZERO).await;
    tokio::time::pause();
    for path in ["/payments", "/accounts/alice/withdrawals"] {
        let post = || Request::post(path).header("idempotency-key", "k");
        let trickle = futures_util::stream::unfold((), async |()| {
            sleep(Duration::from_secs(4)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b" ")), ()))
        });
        let (status, headers, _) = service.send(post(), Body::from_stream(Box::pin(trickle))).await;
        assert_eq!(status, 408, "{path}");
        assert_eq!(headers["content-type"], "application/problem+json");
        let (status, headers, _) = service.send(post(), " ".repeat(65 * 1024)).await;
        assert_eq!(status, 413, "{path}");
        assert_eq!(headers["content-type"], "application/problem+json");
    }
}

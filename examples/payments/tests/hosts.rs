//! Names under which the service answers: a foreign name that points to it is refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::Value;

use crate::support::Database;
use crate::support::processes::{Running, service};
use crate::support::service::Service;

#[tokio::test]
async fn a_name_that_was_rebound_to_this_machine_is_misdirected() {
    let service = Service::start(Database::sqlite(), Duration::ZERO).await;
    let pay = async |uri: &str, hosts: &[&str]| {
        let mut request = Request::post(uri).header("idempotency-key", "k");
        request = request.header("sec-fetch-site", "same-origin");
        for host in hosts {
            request = request.header("host", *host);
        }
        service.send(request, r#"{"account":"alice","amount_cents":1}"#).await
    };
    for host in [
        "evil.example",
        "evil.example:3000",
        "localhost.evil.example",
        "127.0.0.1.evil.example:3000",
        "192.0.2.7:3000",
        "[2001:db8::1]:3000",
        "user@localhost",
        "localhost,evil.example",
        "",
        ":3000",
    ] {
        let (status, headers, body) = pay("/payments", &[host]).await;
        assert_eq!(status, 421, "{host}");
        assert_eq!(headers["content-type"], "application/problem+json");
        let problem: Value = serde_json::from_slice(&body).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("PAYMENTS_HOSTS") && detail.contains(host), "{detail}");
    }
    assert_eq!(pay("/payments", &["localhost", "evil.example"]).await.0, 421);
    assert_eq!(pay("http://evil.example/payments", &["localhost"]).await.0, 421);
    assert_eq!(service.balance("alice").await, (100_000, 0));
    for host in [
        "localhost",
        "LocalHost.:3000",
        "payments.localhost:3000",
        "127.0.0.1:3000",
        "127.8.8.8",
        "[::1]:3000",
    ] {
        assert_eq!(pay("/payments", &[host]).await.0, 201, "{host}");
    }
    assert_eq!(pay("http://localhost/payments", &["localhost"]).await.0, 201);
}

#[tokio::test]
async fn pages_and_events_are_not_shown_to_a_foreign_name_either() {
    let service = Service::start(Database::sqlite(), Duration::ZERO).await;
    for path in ["/", "/events", "/accounts/alice", "/metrics", "/nowhere"] {
        let request = Request::get(path).header("host", "evil.example");
        assert_eq!(service.send(request, Body::empty()).await.0, 421, "{path}");
    }
}

#[tokio::test]
async fn other_names_are_set_by_payments_hosts() {
    let database = Database::sqlite();
    for (hosts, host, status) in [
        ("", "pay.example", 421),
        ("pay.example, 192.0.2.7", "PAY.example:3000", 200),
        ("pay.example, 192.0.2.7", "192.0.2.7", 200),
        ("pay.example", "localhost", 200),
        ("pay.example", "evil.pay.example", 421),
        ("*", "evil.example", 200),
    ] {
        let running = Running::start(service(&database).env("PAYMENTS_HOSTS", hosts));
        let request = running.client.get(format!("{}/accounts/alice", running.url));
        let answer = request.header("host", host).send().await.unwrap();
        assert_eq!(answer.status(), status, "`{hosts}` and `{host}`");
    }
}

#[tokio::test]
async fn on_all_addresses_of_a_machine_each_address_is_a_host_and_a_name_is_not() {
    let database = Database::sqlite();
    let running = Running::start(service(&database).env("PAYMENTS_ADDR", "0.0.0.0:0"));
    for (host, status) in [("192.0.2.7:3000", 200), ("[2001:db8::1]", 200), ("evil.example", 421)] {
        let request = running.client.get(format!("{}/accounts/alice", running.url));
        assert_eq!(request.header("host", host).send().await.unwrap().status(), status, "{host}");
    }
}

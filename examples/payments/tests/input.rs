//! Input that the service refuses: in bodies, in paths and in headers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::Ipv4Addr;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use payments::Simulation;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::Database;
use crate::support::service::{Answer, Service};

on_both! {
    only_a_json_object_is_a_body,
    an_account_id_is_a_plain_name_in_bodies_and_in_paths,
    other_names_in_paths_and_queries_are_plain_too,
    a_provider_delay_is_a_number_of_milliseconds_up_to_a_limit,
}

/// Checks the status of an answer and returns the detail of its problem.
fn problem((status, headers, body): Answer, expected: u16) -> String {
    assert_eq!(status, expected, "{body:?}");
    assert_eq!(headers["content-type"], "application/problem+json", "{body:?}");
    let problem: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem["status"], expected);
    problem["detail"].as_str().unwrap().to_owned()
}

async fn only_a_json_object_is_a_body(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    for (path, array) in [
        ("/payments", r#"["alice",5]"#),
        ("/accounts/alice/withdrawals", "[5]"),
        ("/demo/bursts", r#"[2,{"account":"alice","amount_cents":5}]"#),
    ] {
        let post = || Request::post(path).header("idempotency-key", "k");
        for body in [array, &format!(" \n\t{array}"), "[]", "5", r#""alice""#, "null"] {
            let detail = problem(service.send(post(), body.to_owned()).await, 422);
            assert!(detail.contains("JSON object"), "{path}: {detail}");
        }
        for body in ["", "[", "nothing", "{", "5 6"] {
            problem(service.send(post(), body).await, 400);
        }
    }
    for body in [
        format!(r#"{{"account":"alice","amount_cents":"{}"}}"#, "\u{1}".repeat(10_000)),
        format!(r#"{{"account":"alice","amount_cents":"{}"}}"#, "5".repeat(10_000)),
    ] {
        let request = Request::post("/payments").header("idempotency-key", "k");
        let (status, _, detail) = service.send(request, body).await;
        assert!([400, 422].contains(&status) && detail.len() < 2_000, "{} bytes", detail.len());
    }
    assert_eq!(service.balance("alice").await, (100_000, 0));
}

#[tokio::test]
async fn the_simulated_provider_takes_only_json_objects_within_its_limits() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let simulation = Simulation::default();
    let serving = tokio::spawn(simulation.clone().serve(listener));
    let client = Client::builder().no_proxy().build().unwrap();
    let send = async |method: Method, path: &str, body: Value| {
        let request = client.request(method, format!("{url}{path}")).json(&body);
        request.header("idempotency-key", "k").send().await.unwrap().status().as_u16()
    };
    assert_eq!(send(Method::POST, "/charges", json!(["alice", 5])).await, 422);
    for (status, behaviour) in [
        (422, json!([1, 0.0, 0.0])),
        (422, json!({ "latency_ms": 3_600_000 })),
        (422, json!({ "fail_before": 1.5 })),
        (422, json!({ "fail_after": -0.1 })),
        (200, json!({ "latency_ms": 10, "fail_before": 0.0, "fail_after": 1.0 })),
    ] {
        assert_eq!(send(Method::PUT, "/behaviour", behaviour.clone()).await, status, "{behaviour}");
    }
    assert_eq!(simulation.charges(), 0);
    serving.abort();
}

const BAD_NAMES: [(&str, &str); 7] = [
    ("alice\0", "alice%00"),
    ("ali\nce", "ali%0Ace"),
    ("alice\u{7f}", "alice%7F"),
    ("alice\u{85}", "alice%C2%85"),
    ("\u{202e}ecila", "%E2%80%AEecila"),
    ("alice ", "alice%20"),
    (
        "alice-alice-alice-alice-alice-alice-alice-alice-alice-alice-alice",
        "alice-alice-alice-alice-alice-alice-alice-alice-alice-alice-alice",
    ),
];

async fn an_account_id_is_a_plain_name_in_bodies_and_in_paths(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    let explained = |detail: String| {
        assert!(detail.contains("account") && detail.contains("1 to 64"), "{detail}");
        assert!(!detail.contains(char::is_control) && detail.len() < 400, "{detail}");
    };
    for (id, encoded) in BAD_NAMES {
        explained(problem(service.pay("k", id, 5).await, 422));
        explained(problem(service.withdraw(None, encoded, 5).await, 400));
        for path in [format!("/accounts/{encoded}"), format!("/accounts/{encoded}/ledger")] {
            explained(problem(service.send(Request::get(path), Body::empty()).await, 400));
        }
    }
    explained(problem(service.pay("k", "", 5).await, 422));
    assert_eq!(service.get("/accounts/Account_7.of-64").await.0, 404, "a plain name");
}

async fn other_names_in_paths_and_queries_are_plain_too(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    for (_, encoded) in BAD_NAMES {
        for path in [format!("/payments/{encoded}"), format!("/events?tenant={encoded}")] {
            let detail = problem(service.send(Request::get(&path), Body::empty()).await, 400);
            assert!(detail.contains("1 to 64"), "{path}: {detail}");
        }
    }
}

async fn a_provider_delay_is_a_number_of_milliseconds_up_to_a_limit(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    let pay = async |delay: &str| {
        let request = Request::post("/payments").header("idempotency-key", "k");
        let request = request.header("x-provider-delay", delay);
        service.send(request, r#"{"account":"alice","amount_cents":5}"#).await
    };
    for delay in ["30001", "18446744073709551615", "18446744073709551616", "-1", "4s", ""] {
        let detail = problem(pay(delay).await, 400);
        assert!(detail.contains("x-provider-delay") && detail.contains("30000"), "{detail}");
        assert!(detail.contains(delay), "{detail}");
    }
    let detail = problem(pay(&"9".repeat(10_000)).await, 400);
    assert!(detail.contains("`9999") && detail.len() < 400, "{} bytes", detail.len());
    assert_eq!(service.balance("alice").await, (100_000, 0));
    assert_eq!(pay("1").await.0, 201);
}

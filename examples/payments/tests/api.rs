//! What the service answers, on the memory lock and a database of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use axum::body::Body;
use payments::App;
use redlock_core::Redlock;
use redlock_tests::eventually;
use serde_json::Value;

use crate::support::service::Service;
use crate::support::{Database, SOON};

on_both! {
    a_payment_is_charged_once_and_replayed_byte_for_byte,
    a_mistake_is_named_and_charges_nobody,
    too_large_a_payment_is_refused_and_stays_refused,
    a_payment_under_way_is_423_and_tenants_are_apart,
    a_payment_that_was_cut_off_is_taken_up_under_the_same_id,
    a_client_that_goes_away_is_charged_all_the_same,
    withdrawals_take_what_there_is,
    without_any_lock_the_record_alone_keeps_a_payment_from_being_charged_twice,
    the_money_of_a_payment_in_progress_is_put_aside,
    what_axum_answers_is_a_problem_too,
}

async fn a_payment_is_charged_once_and_replayed_byte_for_byte(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    let (status, headers, first) = service.pay("k", "alice", 1999).await;
    assert_eq!(status, 201);
    assert!(!headers.contains_key("idempotent-replayed"));
    for key in ["k", "\"k\""] {
        let (status, headers, again) = service.pay(key, "alice", 1999).await;
        assert_eq!((status, &again), (201, &first));
        assert_eq!(headers["idempotent-replayed"], "true");
    }
    assert_eq!(service.balance("alice").await, (98_001, 1));

    let payment: Value = serde_json::from_slice(&first).unwrap();
    let id = payment["payment_id"].as_str().unwrap();
    let (status, shown) = service.get(&format!("/payments/{id}")).await;
    assert_eq!(status, 200);
    assert_eq!(shown["status"], "charged");
    assert_eq!(shown["amount_cents"], 1999);
}

async fn a_mistake_is_named_and_charges_nobody(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    assert_eq!(service.pay("k", "alice", 1).await.0, 201);
    for (status, answer) in [
        (422, service.pay("k", "alice", 2).await),
        (422, service.pay("k", "bob", 1).await),
        (422, service.pay("negative", "alice", -1).await),
        (422, service.pay("zero", "alice", 0).await),
        (404, service.pay("nobody", "mallory", 1).await),
        (400, service.pay("", "alice", 1).await),
        (400, service.pay(&"k".repeat(256), "alice", 1).await),
        (400, service.send(axum::http::Request::post("/payments"), "{}").await),
    ] {
        assert_eq!(answer.0, status, "{:?}", answer.2);
        assert_eq!(answer.1["content-type"], "application/problem+json");
    }
    let keyed = || axum::http::Request::post("/payments").header("idempotency-key", "other");
    for (status, body) in [
        (400, "{".to_owned()),
        (422, r#"{"account":"alice"}"#.into()),
        (422, r#"{"account":"alice","amount_cents":1,"amount":2}"#.into()),
        (413, " ".repeat(65 * 1024)),
    ] {
        assert_eq!(service.send(keyed(), body).await.0, status);
    }
    assert_eq!(service.balance("alice").await, (99_999, 1));
    assert_eq!(service.get("/accounts/mallory").await.0, 404);
    assert_eq!(service.get("/payments/pay_0").await.0, 404);
}

async fn too_large_a_payment_is_refused_and_stays_refused(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    let (status, _, first) = service.pay("k", "bob", 100_001).await;
    assert_eq!(status, 402);
    let (status, headers, again) = service.pay("k", "bob", 100_001).await;
    assert_eq!((status, again), (402, first));
    assert_eq!(headers["idempotent-replayed"], "true");
    assert_eq!(service.balance("bob").await, (100_000, 0));
    assert_eq!(service.pay("all", "bob", 100_000).await.0, 201);
    assert_eq!(service.balance("bob").await, (0, 1));
}

async fn a_payment_under_way_is_423_and_tenants_are_apart(database: Database) {
    let service = Service::start(database, Duration::from_secs(1)).await;
    let acme = || {
        let request = axum::http::Request::post("/payments").header("idempotency-key", "k");
        service.send(request.header("x-tenant", "acme"), r#"{"account":"carol","amount_cents":7}"#)
    };
    let ((first, ..), (other_tenant, ..), refused) =
        tokio::join!(service.pay("k", "carol", 5), acme(), async {
            eventually(SOON, "the first holds its lock", async || {
                service.pay("k", "carol", 5).await.0 == 423
            })
            .await;
            service.pay("k", "carol", 5).await
        });
    assert_eq!((first, other_tenant, refused.0), (201, 201, 423));
    let pause: u64 = refused.1["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=10).contains(&pause));
    assert_eq!(service.balance("carol").await, (99_988, 2));
}

async fn a_payment_that_was_cut_off_is_taken_up_under_the_same_id(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    let pool = service.database.pool().await;
    let cut_off = "INSERT INTO payments (id, tenant, idempotency_key, account, amount_cents)
                   VALUES ('pay_cut_off', 'public', 'k', 'alice', 10)";
    sqlx::query(cut_off).execute(&pool).await.unwrap();
    assert_eq!(service.get("/payments/pay_cut_off").await.1["status"], "in_progress");
    let (status, headers, body) = service.pay("k", "alice", 10).await;
    assert_eq!(status, 201);
    assert!(!headers.contains_key("idempotent-replayed"));
    assert!(String::from_utf8_lossy(&body).contains("pay_cut_off"));
    assert_eq!(service.balance("alice").await, (99_990, 1));
}

async fn a_client_that_goes_away_is_charged_all_the_same(database: Database) {
    let service = Service::start(database, Duration::from_secs(1)).await;
    tokio::select! {
        answer = service.pay("k", "alice", 10) => panic!("not cut off: {answer:?}"),
        () = service.begun() => {}
    }
    tokio::time::timeout(SOON, service.detached.finished()).await.unwrap();
    assert_eq!(service.balance("alice").await, (99_990, 1));
    let (status, headers, _) = service.pay("k", "alice", 10).await;
    assert_eq!((status, headers.contains_key("idempotent-replayed")), (201, true));
}

async fn withdrawals_take_what_there_is(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    let withdraw = async |account: &str, body: &'static str| {
        let path = format!("/accounts/{account}/withdrawals");
        service.send(axum::http::Request::post(path), body).await.0
    };
    assert_eq!(withdraw("alice", r#"{"amount_cents":60000}"#).await, 200);
    assert_eq!(withdraw("alice", r#"{"amount_cents":60000}"#).await, 402);
    assert_eq!(withdraw("alice", r#"{"amount_cents":0}"#).await, 422);
    assert_eq!(withdraw("mallory", r#"{"amount_cents":1}"#).await, 404);
    assert_eq!(service.balance("alice").await, (40_000, 0));
    assert_eq!(service.get("/healthz").await.0, 200);
}

async fn without_any_lock_the_record_alone_keeps_a_payment_from_being_charged_twice(
    database: Database,
) {
    let one = Service::start(database, Duration::from_secs(1)).await;
    // Locks that know nothing of the others: what a process has that was paused for too long.
    let app = App::new(one.store.clone(), one.provider.clone(), Redlock::in_memory());
    let other = Service::start(Database::sqlite(), Duration::ZERO).await;
    let two = Service { router: app.routes().0, ..other };
    for (key, amount, charges) in [("some", 10, 1), ("all", 99_990, 2)] {
        let (first, second) =
            tokio::join!(one.pay(key, "alice", amount), two.pay(key, "alice", amount));
        // Whoever has the later token takes the payment up, unless it was finished before.
        let statuses = [first.0, second.0];
        assert!([[201, 201], [409, 201], [201, 409]].contains(&statuses), "{statuses:?}");
        for answer in [&first, &second].into_iter().filter(|answer| answer.0 == 201) {
            assert!(!answer.1.contains_key("idempotent-replayed"), "both were at it");
            assert_eq!(answer.2, one.pay(key, "alice", amount).await.2);
        }
        assert_eq!(one.simulation.charges(), charges);
    }
    assert_eq!(one.balance("alice").await, (0, 2));
}

async fn the_money_of_a_payment_in_progress_is_put_aside(database: Database) {
    let service = Service::start(database, Duration::from_secs(2)).await;
    let withdraw = async || {
        let request = axum::http::Request::post("/accounts/alice/withdrawals");
        service.send(request, r#"{"amount_cents":1}"#).await.0
    };
    let (paid, (other, withdrawn)) = tokio::join!(service.pay("k", "alice", 100_000), async {
        service.begun().await;
        assert_eq!(withdraw().await, 402);
        (service.pay("other", "alice", 1).await.0, service.balance("alice").await)
    });
    assert_eq!((paid.0, other, withdrawn), (201, 402, (100_000, 0)));
    assert_eq!(service.balance("alice").await, (0, 1));
}

async fn what_axum_answers_is_a_problem_too(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    for (status, method, path) in [
        (404, "GET", "/nowhere"),
        (405, "DELETE", "/payments"),
        (400, "GET", "/accounts/%FF"),
        (400, "POST", "/accounts/%FF/withdrawals"),
    ] {
        let request = axum::http::Request::builder().method(method).uri(path);
        let (answered, headers, body) = service.send(request, Body::empty()).await;
        assert_eq!(answered, status, "{path}");
        assert_eq!(headers["content-type"], "application/problem+json", "{path}");
        let problem: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(problem["status"], status, "{path}");
        assert_eq!(headers.contains_key("allow"), status == 405);
    }
}

//! Withdrawals that are sent again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use axum::http::Request;
use futures_util::future::join_all;
use payments::App;
use redlock_core::Redlock;
use redlock_tests::eventually;

use crate::support::service::Service;
use crate::support::{Database, SOON};

on_both! {
    a_withdrawal_with_a_key_is_booked_once_and_replayed_byte_for_byte,
    a_withdrawal_without_a_key_is_booked_each_time,
    a_withdrawal_that_was_refused_stays_refused_under_its_key,
    the_key_of_one_withdrawal_cannot_be_used_for_another,
    withdrawals_of_two_tenants_and_payments_may_have_the_same_key,
    one_key_sent_by_many_at_once_is_booked_once,
    without_any_lock_the_record_alone_keeps_a_withdrawal_from_being_booked_twice,
}

const REPLAYED: &str = "idempotent-replayed";

async fn a_withdrawal_with_a_key_is_booked_once_and_replayed_byte_for_byte(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    let (status, headers, first) = service.withdraw(Some("k"), "alice", 1999).await;
    assert_eq!((status, headers.contains_key(REPLAYED)), (200, false));
    assert_eq!(first, r#"{"account":"alice","balance_cents":98001,"charges":0}"#);
    assert_eq!(service.withdraw(None, "alice", 1).await.0, 200, "the balance changes meanwhile");
    for key in ["k", "\"k\""] {
        let (status, headers, again) = service.withdraw(Some(key), "alice", 1999).await;
        assert_eq!((status, &again), (200, &first));
        assert_eq!(headers[REPLAYED], "true");
        assert_eq!(headers["content-type"], "application/json");
    }
    assert_eq!(service.balance("alice").await, (98_000, 0));
}

async fn a_withdrawal_without_a_key_is_booked_each_time(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    for balance in [99_990, 99_980] {
        let (status, headers, _) = service.withdraw(None, "alice", 10).await;
        assert_eq!((status, headers.contains_key(REPLAYED)), (200, false));
        assert_eq!(service.balance("alice").await, (balance, 0));
    }
}

async fn a_withdrawal_that_was_refused_stays_refused_under_its_key(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    let (status, headers, first) = service.withdraw(Some("k"), "alice", 100_001).await;
    assert_eq!((status, headers.contains_key(REPLAYED)), (402, false));
    let (status, headers, again) = service.withdraw(Some("k"), "alice", 100_001).await;
    assert_eq!((status, again), (402, first));
    assert_eq!(headers[REPLAYED], "true");
    assert_eq!(headers["content-type"], "application/problem+json");
    assert_eq!(service.balance("alice").await, (100_000, 0));
}

async fn the_key_of_one_withdrawal_cannot_be_used_for_another(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    assert_eq!(service.withdraw(Some("k"), "alice", 10).await.0, 200);
    for (status, (answered, _, body)) in [
        (422, service.withdraw(Some("k"), "alice", 11).await),
        (422, service.withdraw(Some("k"), "bob", 10).await),
        (400, service.withdraw(Some(""), "alice", 10).await),
        (400, service.withdraw(Some(&"k".repeat(256)), "alice", 10).await),
        (404, service.withdraw(Some("nobody"), "mallory", 10).await),
    ] {
        assert_eq!(answered, status, "{body:?}");
    }
    assert_eq!(service.balance("alice").await, (99_990, 0));
    assert_eq!(service.balance("bob").await, (100_000, 0));
}

async fn withdrawals_of_two_tenants_and_payments_may_have_the_same_key(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    assert_eq!(service.withdraw(Some("k"), "alice", 10).await.0, 200);
    let of_acme = Request::post("/accounts/alice/withdrawals").header("idempotency-key", "k");
    let of_acme = of_acme.header("x-tenant", "acme");
    assert_eq!(service.send(of_acme, r#"{"amount_cents":10}"#).await.0, 200);
    assert_eq!(service.pay("k", "alice", 10).await.0, 201);
    assert_eq!(service.balance("alice").await, (99_970, 1));
}

async fn one_key_sent_by_many_at_once_is_booked_once(database: Database) {
    let service = Service::start(database, Duration::ZERO).await;
    let one = async || {
        eventually(SOON, "the account is free", async || {
            let answer = service.withdraw(Some("k"), "alice", 10).await;
            Some(answer).filter(|(status, ..)| *status != 423)
        })
        .await
    };
    let answers = join_all((0..10).map(|_| one())).await;
    assert!(answers.iter().all(|(status, ..)| *status == 200), "{answers:?}");
    let first = answers.iter().filter(|(_, headers, _)| !headers.contains_key(REPLAYED)).count();
    assert_eq!((first, service.balance("alice").await), (1, (99_990, 0)));
}

async fn without_any_lock_the_record_alone_keeps_a_withdrawal_from_being_booked_twice(
    database: Database,
) {
    let one = Service::start(database, Duration::ZERO).await;
    // Locks that exclude nobody from the other instance.
    let app = App::new(one.store.clone(), one.provider.clone(), Redlock::in_memory());
    let other = Service::start(Database::sqlite(), Duration::ZERO).await;
    let two = Service { router: app.routes().0, ..other };
    for key in ["a", "b", "c", "d"] {
        let (first, second) = tokio::join!(
            one.withdraw(Some(key), "alice", 10),
            two.withdraw(Some(key), "alice", 10)
        );
        // A request whose fencing token is the smaller one may be refused as late.
        let statuses = [first.0, second.0];
        assert!([[200, 200], [409, 200], [200, 409]].contains(&statuses), "{statuses:?}");
    }
    assert_eq!(one.balance("alice").await, (99_960, 0));
}

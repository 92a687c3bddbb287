//! A writer that was paused until its lock was gone, and a store that notices.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use payments::{App, Provider, Simulation, Store};
use redlock_core::{Config, FencingToken, Redlock, Safety};
use redlock_tests::eventually;
use sqlx::{AnyPool, query};
use tower::ServiceExt;

use crate::support::{Database, SOON, provider};

on_both! {
    a_withdrawal_whose_lock_has_passed_on_is_refused,
    the_same_withdrawal_is_booked_if_the_store_has_forgotten_the_token,
    a_payment_that_was_taken_up_by_a_later_request_is_finished_by_that_one_alone,
    nobody_writes_under_a_lock_that_has_no_token,
    the_documented_statement_refuses_a_holder_that_read_before_it_was_paused,
}

/// Two instances of the service on one database. Their locks know nothing of each other: what one
/// has that was paused for longer than its locks last.
struct Service {
    one: Router,
    two: Router,
    locks: [Redlock; 2],
    provider: Provider,
    simulation: Simulation,
    store: Store,
    pool: AnyPool,
    _database: Database,
}

impl Service {
    async fn start(database: Database) -> Self {
        let store = database.store().await;
        let (provider, simulation) = provider(Duration::from_secs(1)).await;
        let locks = [Redlock::in_memory(), Redlock::in_memory()];
        let instance = |redlock: &Redlock| {
            App::new(store.clone(), provider.clone(), redlock.clone()).routes().0
        };
        let [one, two] = locks.each_ref().map(instance);
        let pool = database.pool().await;
        Self { one, two, locks, provider, simulation, store, pool, _database: database }
    }

    async fn balance(&self) -> i64 {
        let balance = "SELECT balance_cents FROM accounts WHERE id = 'alice'";
        sqlx::query_scalar(balance).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits until the row of a payment is there, or was taken up by one with a larger token.
    async fn fence_above(&self, last: i64) -> i64 {
        eventually(SOON, "the payment is noted", async || {
            let fence = sqlx::query_scalar("SELECT fence FROM payments").fetch_one(&self.pool);
            fence.await.ok().filter(|fence| *fence > last)
        })
        .await
    }
}

async fn send(app: Router, path: &str, body: Body) -> (u16, String) {
    answer(app, request(path, body)).await
}

fn request(path: &str, body: Body) -> Request<Body> {
    Request::post(path).header("idempotency-key", "k").body(body).unwrap()
}

async fn answer(app: Router, request: Request<Body>) -> (u16, String) {
    let response = app.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

const WITHDRAWALS: &str = "/accounts/alice/withdrawals";
const TEN: &str = r#"{"amount_cents":10}"#;

/// A withdrawal that waits for the row of its account until a later lock has written to it.
async fn late_withdrawal(service: &Service, before_it_writes: &'static str) -> (u16, String) {
    let mut writing = service.pool.begin().await.unwrap();
    let row = query("UPDATE accounts SET fence = fence WHERE id = 'alice'");
    row.execute(&mut *writing).await.unwrap();
    let late = tokio::spawn(send(service.one.clone(), WITHDRAWALS, Body::from(TEN)));
    eventually(SOON, "the first to have its lock", async || {
        service.locks[0].inspect("account:alice").await.unwrap().held
    })
    .await;
    let later = service.locks[1].lock("account:alice").await.unwrap();
    let written = query(
        "UPDATE accounts SET balance_cents = balance_cents - 10, fence = $1
         WHERE id = 'alice' AND fence <= $1",
    );
    let token = i64::try_from(later.fencing_token().unwrap().get()).unwrap();
    assert_eq!(written.bind(token).execute(&mut *writing).await.unwrap().rows_affected(), 1);
    query(before_it_writes).execute(&mut *writing).await.unwrap();
    writing.commit().await.unwrap();
    later.release().await;
    late.await.unwrap()
}

async fn a_withdrawal_whose_lock_has_passed_on_is_refused(database: Database) {
    let service = Service::start(database).await;
    let (status, body) = late_withdrawal(&service, "SELECT 1").await;
    assert_eq!(status, 409, "{body}");
    assert!(body.contains("later request") && body.contains(r#""status":409"#), "{body}");
    assert_eq!(service.balance().await, 99_990);
    // Nothing is wrong with the account: the next lock has a larger token.
    assert_eq!(send(service.one.clone(), WITHDRAWALS, Body::from(TEN)).await.0, 200);
    assert_eq!(service.balance().await, 99_980);
}

/// The control: nothing but the fence would have kept it out.
async fn the_same_withdrawal_is_booked_if_the_store_has_forgotten_the_token(database: Database) {
    let service = Service::start(database).await;
    let (status, body) = late_withdrawal(&service, "UPDATE accounts SET fence = 0").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(service.balance().await, 99_980);
}

async fn a_payment_that_was_taken_up_by_a_later_request_is_finished_by_that_one_alone(
    database: Database,
) {
    let service = Service::start(database).await;
    let pay = |app: &Router, provider_takes_millis: &str| {
        let payment = Body::from(r#"{"account":"alice","amount_cents":10}"#);
        let mut request = request("/payments", payment);
        let delay = provider_takes_millis.parse().unwrap();
        request.headers_mut().insert("x-provider-delay", delay);
        answer(app.clone(), request)
    };
    let first = tokio::spawn(pay(&service.one, "1000"));
    let fence = service.fence_above(0).await;
    // It is to finish after the first has tried to.
    let second = tokio::spawn(pay(&service.two, "4000"));
    let later = service.fence_above(fence).await;
    let (status, body) = first.await.unwrap();
    assert_eq!(status, 409, "{body}");
    assert_eq!(service.balance().await, 100_000, "not booked yet");

    let (status, charged) = second.await.unwrap();
    assert_eq!(status, 201, "{charged}");
    assert_eq!((service.balance().await, service.simulation.charges()), (99_990, 1));
    assert_eq!(service.fence_above(fence).await, later);
    assert_eq!(
        pay(&service.one, "0").await,
        (201, charged),
        "and the first has it on asking again"
    );
}

async fn nobody_writes_under_a_lock_that_has_no_token(database: Database) {
    let service = Service::start(database).await;
    let plain = Config::memory().safety(Safety::Plain).build().unwrap();
    let (store, provider) = (service.store.clone(), service.provider.clone());
    let app = App::new(store, provider, Redlock::new(plain));
    let (status, body) = send(app.routes().0, WITHDRAWALS, Body::from(TEN)).await;
    assert_eq!(status, 500);
    assert!(body.contains("no fencing token"), "{body}");
}

/// The statement of the documentation, with a holder that decides by what it has read.
async fn the_documented_statement_refuses_a_holder_that_read_before_it_was_paused(
    database: Database,
) {
    const FENCED: &str = "UPDATE accounts SET balance_cents = $1, fence = $2
                          WHERE id = 'alice' AND fence <= $2";
    const UNFENCED: &str = "UPDATE accounts SET balance_cents = $1, fence = $2 WHERE id = 'alice'";
    let service = Service::start(database).await;
    for (statement, late_writes, left) in [(FENCED, 0, 40_000), (UNFENCED, 1, 90_000)] {
        let reset = query("UPDATE accounts SET balance_cents = 100000");
        reset.execute(&service.pool).await.unwrap();
        let write = async |balance: i64, token: FencingToken| {
            let write = query(statement).bind(balance).bind(token.get() as i64);
            write.execute(&service.pool).await.unwrap().rows_affected()
        };
        let redlock = &service.locks[0];
        let earlier = redlock.lock("account:alice").await.unwrap();
        let token = earlier.fencing_token().unwrap();
        let read = service.balance().await;
        // It is paused here, and its lock runs out.
        redlock.unlock("account:alice", &earlier.hand_over()).await.unwrap();

        let later = redlock.lock("account:alice").await.unwrap();
        let balance = service.balance().await;
        for spent in [50_000, 60_000] {
            let written = write(balance - spent, later.fencing_token().unwrap()).await;
            assert_eq!(written, 1, "one lock may write twice");
        }
        assert_eq!(write(read - 10_000, token).await, late_writes, "{statement}");
        assert_eq!(service.balance().await, left, "{statement}");
    }
}

//! The rows of the table in the docs, one by one.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::Response;
use axum::routing::any;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode, header};
use redlock_core::{Config, FencingToken, Key, Redlock, Safety};
use redlock_tests::Fleet;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_redlock::idempotency::{
    EXPIRES_IN, IdempotencyLayer, MemoryRecords, Record, RecordId, RecordStore, Saved,
};
use tower_redlock::{KeyRejection, LockScope, ReadBodyLayer};

use crate::support::{problem, text};
use crate::{SOON, Store, Work, is_replayed, keyed, once, send};

#[tokio::test]
async fn row_1_a_key_is_the_same_with_quotes_and_without() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()));
    let first = send(&app, keyed("\"k-1\""), "").await;
    let again = send(&app, keyed("k-1"), "").await;
    assert_eq!((is_replayed(&first), is_replayed(&again)), (false, true));
    assert_eq!((text(first).await, text(again).await, work.times()), ("1".into(), "1".into(), 1));
}

#[tokio::test]
async fn row_2_a_request_without_a_key_is_400_or_carried_out_each_time() {
    let work = Work::ungated();
    let store = Store::default();
    let refused = send(&work.app(once(&store)), Request::post("/"), "").await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    assert_eq!(
        problem(refused).await["type"],
        "https://docs.rs/tower-redlock/#bad-idempotency-key"
    );
    assert_eq!(work.times(), 0);
    let app = work.app(once(&store).optional());
    for number in 1..=2 {
        let answer = send(&app, Request::post("/"), "").await;
        assert!(!answer.headers().contains_key(EXPIRES_IN));
        assert_eq!((answer.status(), work.times()), (StatusCode::CREATED, number));
    }
}

#[tokio::test]
async fn row_3_a_key_that_is_none_is_400() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()));
    for key in ["", "\"", "a b", &"k".repeat(256)] {
        assert_eq!(send(&app, keyed(key), "").await.status(), StatusCode::BAD_REQUEST, "{key}");
    }
    let twice = keyed("a").header("idempotency-key", "b");
    assert_eq!(send(&app, twice, "").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(work.times(), 0);
}

#[tokio::test]
async fn row_4_while_the_first_request_runs_a_second_one_is_423_or_409_or_waits_for_its_answer() {
    let work = Work::default();
    let (store, redlock) = (Store::default(), Redlock::in_memory());
    let layer = || IdempotencyLayer::new(redlock.clone(), Arc::clone(&store));
    let app = work.app(layer());
    let first = tokio::spawn(async move { send(&app, keyed("k"), "").await });
    work.gate.entered().await;
    let locked = send(&work.app(layer()), keyed("k"), "").await;
    assert_eq!(locked.status(), StatusCode::LOCKED);
    assert!(locked.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(problem(locked).await["status"], 423);

    let conflict = send(&work.app(layer().in_progress(StatusCode::CONFLICT)), keyed("k"), "").await;
    assert_eq!(conflict.status(), StatusCode::CONFLICT);
    assert!(conflict.headers().contains_key(header::RETRY_AFTER));
    assert_eq!(problem(conflict).await["status"], 409);

    let app = work.app(layer().lock(|lock| lock.wait(Duration::from_secs(60))));
    let waiting = tokio::spawn(async move { send(&app, keyed("k"), "").await });
    tokio::task::yield_now().await;
    work.gate.open();
    assert_eq!(text(first.await.unwrap()).await, "1");
    let waited = waiting.await.unwrap();
    assert!(is_replayed(&waited));
    assert_eq!((text(waited).await, work.times()), ("1".into(), 1));
}

#[tokio::test]
async fn row_5_a_key_that_comes_with_another_request_is_422() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()).fingerprint_headers([header::CONTENT_LANGUAGE]));
    let language = |of: &str| keyed("k").header(header::CONTENT_LANGUAGE, of);
    assert_eq!(send(&app, language("de"), "body").await.status(), StatusCode::CREATED);
    let query = Request::post("/?a=1").header("idempotency-key", "k");
    for (request, body) in [
        (language("de"), "other"),
        (language("en"), "body"),
        (query.header(header::CONTENT_LANGUAGE, "de"), "body"),
    ] {
        let refused = send(&app, request, body).await;
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let problem = problem(refused).await;
        assert_eq!(problem["type"], "https://docs.rs/tower-redlock/#idempotency-key-reused");
    }
    let again = send(&app, language("de").header("user-agent", "another"), "body").await;
    assert!(is_replayed(&again));
    assert_eq!(work.times(), 1);
}

#[tokio::test]
async fn row_6_successes_and_errors_are_answered_again() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()));
    for status in [
        "200", "201", "303", "400", "401", "402", "403", "404", "408", "409", "413", "422", "423",
        "425", "429", "500", "502", "503", "504",
    ] {
        let request = || keyed(status).header("answer", status);
        let first = send(&app, request(), "").await;
        let again = send(&app, request(), "").await;
        assert_eq!((first.status().as_str(), again.status().as_str()), (status, status));
        assert_eq!(first.headers()["number"], again.headers()["number"]);
        assert!(!is_replayed(&first) && is_replayed(&again), "{status}");
        assert!(first.headers().contains_key(header::SET_COOKIE));
        assert!(!again.headers().contains_key(header::SET_COOKIE), "belongs to its client");
        assert_eq!(text(first).await, text(again).await);
    }
    let done = work.times();
    let successes =
        work.app(once(&Store::default()).record_if(|answer| answer.status.is_success()));
    for _ in 0..2 {
        let answer = send(&successes, keyed("k").header("answer", "500"), "").await;
        assert!(!is_replayed(&answer) && !answer.headers().contains_key(EXPIRES_IN));
    }
    assert_eq!(work.times(), done + 2);
}

fn expires_in(response: &Response) -> u64 {
    response.headers()[EXPIRES_IN].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn row_7_each_answer_says_for_how_long_it_is_given_again() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()));
    let day = 24 * 60 * 60;
    for replayed in [false, true] {
        let answer = send(&app, keyed("k"), "").await;
        assert_eq!(is_replayed(&answer), replayed);
        assert!((day - 60..=day).contains(&expires_in(&answer)), "{}", expires_in(&answer));
    }
    let hour = work.app(once(&Store::default()).keep_for(Duration::from_secs(3600)));
    assert!((3500..=3600).contains(&expires_in(&send(&hour, keyed("k"), "").await)));
}

#[tokio::test]
async fn row_8_a_key_that_has_expired_is_a_new_one() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()).keep_for(Duration::ZERO));
    for number in 1..=3 {
        let answer = send(&app, keyed("k"), "").await;
        assert!(!is_replayed(&answer));
        assert_eq!(text(answer).await, number.to_string());
    }
}

#[tokio::test]
async fn row_9_tenants_methods_and_paths_have_keys_of_their_own() {
    let work = Work::ungated();
    let tenant = |parts: &http::request::Parts| {
        let tenant = parts.headers.get("tenant").and_then(|tenant| tenant.to_str().ok());
        tenant
            .map(str::to_owned)
            .ok_or_else(|| KeyRejection::new(StatusCode::UNAUTHORIZED, "who are you?"))
    };
    let app = work.app(once(&Store::default()).tenant(tenant));
    let of = |method: Method, path: &str, tenant: &str| {
        Request::builder()
            .method(method)
            .uri(path)
            .header("idempotency-key", "k")
            .header("tenant", tenant)
    };
    for request in [
        of(Method::POST, "/", "a"),
        of(Method::POST, "/", "b"),
        of(Method::PATCH, "/", "a"),
        of(Method::POST, "/other", "a"),
    ] {
        assert!(!is_replayed(&send(&app, request, "").await));
    }
    assert!(is_replayed(&send(&app, of(Method::POST, "/", "b"), "").await));
    assert_eq!(work.times(), 4);
    assert_eq!(send(&app, keyed("k"), "").await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn row_10_methods_that_are_idempotent_by_themselves_need_no_key() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default()));
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let request = Request::builder().method(method).uri("/");
        assert_eq!(send(&app, request, "").await.status(), StatusCode::CREATED);
    }
    let puts = work.app(once(&Store::default()).methods([Method::PUT]));
    assert_eq!(send(&puts, Request::put("/"), "").await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(send(&puts, Request::post("/"), "").await.status(), StatusCode::CREATED);
    assert_eq!(work.times(), 4);
}

#[tokio::test]
async fn row_11_a_body_that_is_too_large_or_breaks_off_locks_nothing() {
    let work = Work::ungated();
    let redlock = Redlock::in_memory();
    redlock.close(Duration::ZERO).await;
    let layer = IdempotencyLayer::new(redlock, Store::default()).max_request_body(4);
    let app = work.app(layer);
    let large = send(&app, keyed("k"), "12345").await;
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(problem(large).await["type"], "https://docs.rs/tower-redlock/#bad-body");
    let pieces = [Ok(Bytes::from_static(b"1")), Err(std::io::Error::other("cut"))];
    let broken = Body::from_stream(futures_util::stream::iter(pieces));
    assert_eq!(send(&app, keyed("k"), broken).await.status(), StatusCode::BAD_REQUEST);
    // One that may be has to be locked, and nothing can be.
    assert_eq!(send(&app, keyed("k"), "1234").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(work.times(), 0);
}

/// One byte every four seconds, without an end.
fn trickle() -> Body {
    let bytes = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(4)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b"1")), ()))
    });
    Body::from_stream(bytes)
}

#[tokio::test(start_paused = true)]
async fn row_11_a_body_that_trickles_in_is_408_after_ten_seconds_and_locks_nothing() {
    let work = Work::ungated();
    let redlock = Redlock::in_memory();
    redlock.close(Duration::ZERO).await;
    let app = work.app(IdempotencyLayer::new(redlock, Store::default()));
    let start = tokio::time::Instant::now();
    let late = send(&app, keyed("k"), trickle()).await;
    assert_eq!(late.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(start.elapsed().as_secs(), 10);
    let problem = problem(late).await;
    assert_eq!(problem["type"], "https://docs.rs/tower-redlock/#bad-body");
    assert_eq!(problem["detail"], "the body of the request did not arrive within 10s");
    assert_eq!(work.times(), 0);
}

#[tokio::test(start_paused = true)]
async fn row_11_a_body_that_is_slow_arrives_if_the_wait_has_no_limit() {
    let slow =
        || Body::from_stream(futures_util::StreamExt::take(trickle().into_data_stream(), 20));
    for (wait, status) in [(Duration::MAX, 201), (Duration::from_secs(79), 408)] {
        let app = Work::ungated().app(once(&Store::default()).max_request_wait(wait));
        let request = keyed("k").body(slow()).unwrap();
        assert_eq!(app.oneshot(request).await.unwrap().status().as_u16(), status);
    }
}

#[tokio::test(start_paused = true)]
async fn row_11_a_body_that_another_layer_has_read_is_never_late() {
    let app = Work::ungated().app(once(&Store::default()).max_request_wait(Duration::ZERO));
    let app = app.layer(ReadBodyLayer::new(100, Duration::from_secs(100)));
    let slow = Body::from_stream(futures_util::StreamExt::take(trickle().into_data_stream(), 5));
    assert_eq!(send(&app, keyed("k"), slow).await.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn row_12_an_answer_that_can_not_be_kept_is_sent_and_the_work_is_not_done_again() {
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let handler = move |request: Request<Body>| async move {
        count.fetch_add(1, Ordering::SeqCst);
        let body = match request.headers().contains_key("stream") {
            true => {
                Body::from_stream(futures_util::stream::iter([Ok::<_, std::io::Error>("12345")]))
            }
            false => Body::from("12345"),
        };
        (StatusCode::CREATED, body)
    };
    let app =
        Router::new().route("/", any(handler)).layer(once(&Store::default()).max_response_body(4));
    for (number, request) in
        [keyed("large"), keyed("unknown").header("stream", "1")].into_iter().enumerate()
    {
        let key = request.headers_ref().unwrap()["idempotency-key"].clone();
        let first = send(&app, request, "").await;
        assert_eq!(first.status(), StatusCode::CREATED);
        assert!(text(first).await.starts_with("12"));
        let again = send(&app, keyed(key.to_str().unwrap()), "").await;
        assert_eq!(again.status(), StatusCode::GONE);
        let problem = problem(again).await;
        assert_eq!(problem["type"], "https://docs.rs/tower-redlock/#answer-not-kept");
        assert!(problem["detail"].as_str().unwrap().contains("201"));
        assert_eq!(done.load(Ordering::SeqCst), number + 1);
    }
}

/// A store that fails when the test wants it.
#[derive(Default)]
struct Moody {
    records: MemoryRecords,
    finds: AtomicBool,
    saves: AtomicBool,
}

impl RecordStore for Moody {
    async fn find(&self, id: &RecordId) -> Result<Option<Record>, Box<dyn Error + Send + Sync>> {
        if self.finds.load(Ordering::SeqCst) {
            return Err("the disk at 10.0.0.7 is full".into());
        }
        self.records.find(id).await
    }

    async fn save(
        &self,
        id: &RecordId,
        record: Record,
        token: Option<FencingToken>,
    ) -> Result<Saved, Box<dyn Error + Send + Sync>> {
        if self.saves.load(Ordering::SeqCst) {
            return Err("the disk at 10.0.0.7 is full".into());
        }
        self.records.save(id, record, token).await
    }
}

#[tokio::test]
async fn rows_13_and_14_a_store_that_fails_before_is_503_and_one_that_fails_after_hides_no_answer()
{
    let work = Work::ungated();
    let store = Arc::new(Moody::default());
    let app = work.app(IdempotencyLayer::new(Redlock::in_memory(), Arc::clone(&store)));
    store.finds.store(true, Ordering::SeqCst);
    let refused = send(&app, keyed("k"), "").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.headers().contains_key(header::RETRY_AFTER));
    let problem = problem(refused).await;
    assert_eq!(problem["type"], "https://docs.rs/tower-redlock/#records-unavailable");
    assert!(!problem.to_string().contains("10.0.0.7"));
    assert_eq!(work.times(), 0);

    store.finds.store(false, Ordering::SeqCst);
    store.saves.store(true, Ordering::SeqCst);
    assert_eq!(text(send(&app, keyed("k"), "").await).await, "1");
    store.saves.store(false, Ordering::SeqCst);
    assert_eq!(text(send(&app, keyed("k"), "").await).await, "2", "nobody knew of the first");
    assert_eq!(text(send(&app, keyed("k"), "").await).await, "2");
}

#[tokio::test]
async fn row_15_without_a_lock_service_it_is_503_and_what_was_done_is_answered() {
    let work = Work::ungated();
    let redlock = Redlock::in_memory();
    let app = work.app(IdempotencyLayer::new(redlock.clone(), Store::default()));
    assert_eq!(send(&app, keyed("done"), "").await.status(), StatusCode::CREATED);
    redlock.close(Duration::ZERO).await;
    let refused = send(&app, keyed("new"), "").await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(problem(refused).await["type"], "https://docs.rs/tower-redlock/#closing");
    assert!(is_replayed(&send(&app, keyed("done"), "").await));
    assert_eq!(work.times(), 1);
}

#[tokio::test]
async fn row_16_a_request_that_loses_its_lock_is_503_and_not_recorded() {
    let work = Work::default();
    let redlock = Redlock::in_memory();
    let store = Store::default();
    let (thief, inside) = (redlock.clone(), work.clone());
    let handler = move |scope: LockScope| async move {
        let lease = scope.lease().unwrap();
        thief.unlock(lease.key(), lease.token()).await.unwrap();
        inside.gate.pass().await;
        inside.done.fetch_add(1, Ordering::SeqCst);
    };
    let layer = IdempotencyLayer::new(redlock, Arc::clone(&store))
        .lock(|lock| lock.ttl(Duration::from_millis(300)));
    let app = Router::new().route("/", any(handler)).layer(layer);
    let lost = send(&app, keyed("k"), "").await;
    assert_eq!(lost.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(problem(lost).await["type"], "https://docs.rs/tower-redlock/#lock-lost");
    work.gate.dropped().await;
    assert_eq!(work.times(), 0);
    assert!(format!("{store:?}").contains("len: 0"), "{store:?}");
}

#[tokio::test]
async fn row_17_a_client_that_goes_away_gets_the_answer_when_it_asks_again() {
    let work = Work::default();
    let layer = once(&Store::default());
    let detached = layer.detached();
    let app = work.app(layer);
    let gone = app.clone();
    let request = tokio::spawn(async move { send(&gone, keyed("k"), "").await });
    work.gate.entered().await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    assert_eq!(send(&app, keyed("k"), "").await.status(), StatusCode::LOCKED);
    work.gate.open();
    tokio::time::timeout(SOON, detached.finished()).await.expect("the handler ends");
    let answer = send(&app, keyed("k"), "").await;
    assert!(is_replayed(&answer));
    assert_eq!((text(answer).await, work.times()), ("1".into(), 1));
}

#[tokio::test]
async fn row_18_a_panic_frees_the_lock_and_the_work_is_not_done_again() {
    let work = Work::ungated();
    let app = work.app(once(&Store::default())).layer(CatchPanicLayer::new());
    let panicked = send(&app, keyed("k").header("answer", "666"), "").await;
    assert_eq!(panicked.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let again = send(&app, keyed("k").header("answer", "666"), "").await;
    assert_eq!(again.status(), StatusCode::GONE);
    assert!(problem(again).await["detail"].as_str().unwrap().contains("500"));
    assert_eq!(work.times(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_duplicates_at_two_instances_are_carried_out_once() {
    let fleet = Fleet::start(3).await;
    let work = Work::ungated();
    let store = Store::default();
    let instance = || {
        let config = Config::servers(fleet.urls())
            .safety(Safety::Plain)
            .node_deadline(Duration::from_millis(400));
        let redlock = Redlock::new(config.build().unwrap());
        work.app(IdempotencyLayer::new(redlock, Arc::clone(&store)))
    };
    let instances = [instance(), instance()];
    for round in 1..=20 {
        let key = round.to_string();
        let answers =
            join_all((0..50).map(|number| send(&instances[number % 2], keyed(&key), ""))).await;
        for answer in answers {
            let known = [StatusCode::CREATED, StatusCode::LOCKED].contains(&answer.status());
            assert!(known, "{}", answer.status());
        }
        assert_eq!(work.times(), round);
    }
    fleet.eventually_empty(SOON).await;
}

#[tokio::test]
async fn no_key_in_clear_reaches_the_lock_servers_or_the_records() {
    let redlock = Redlock::in_memory();
    let seen: Arc<parking_lot::Mutex<Option<(Key, RecordId)>>> = Arc::default();
    let see = Arc::clone(&seen);
    let handler = move |scope: LockScope, id: axum::Extension<RecordId>| async move {
        *see.lock() = Some((scope.lease().unwrap().key().clone(), id.0));
    };
    let layer = IdempotencyLayer::new(redlock, Store::default()).tenant(|_: &_| "acme");
    let app = Router::new().route("/", any(handler)).layer(layer);
    send(&app, keyed("very-secret"), "").await;
    let (key, id) = seen.lock().take().unwrap();
    let shown = format!("{} {id} {id:?}", key.as_bytes().escape_ascii());
    assert!(!shown.contains("secret") && !shown.contains("acme"), "{shown}");
    assert!(shown.starts_with(&format!("idempotency:{id}")), "{shown}");
}

//! The duties of every store, and those of each of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use http::StatusCode;
use redlock_core::{FencingToken, Redlock};
use redlock_tests::eventually;
use tower_redlock::idempotency::{
    EXPIRES_IN, Fingerprint, IdempotencyLayer, MemoryRecords, Record, RecordId, RecordStore, Saved,
};

use crate::{SOON, Store, Work, is_replayed, keyed, once, send};

/// The duties of every store; it gets ids of its own.
async fn never_replaces_what_was_saved_since(
    store: &impl RecordStore,
    id: RecordId,
    other: RecordId,
) {
    let record = |body: &'static str, keep_for: u64| {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let mut headers = http::HeaderMap::new();
        headers.append("x", "1".parse().unwrap());
        headers.append("x", http::HeaderValue::from_bytes(b"\xff").unwrap());
        headers.append("content-length", "4".parse().unwrap());
        let fingerprint = Fingerprint::from_bytes([7; 32]);
        Record::new(
            fingerprint,
            StatusCode::IM_A_TEAPOT,
            headers,
            Some(body.into()),
            now + keep_for,
        )
        .with_trailers(
            [(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())]
                .into_iter()
                .collect(),
        )
    };
    let token = |token| Some(FencingToken::new(token));
    let body = async |id: &RecordId| store.find(id).await.unwrap().and_then(|record| record.body);
    let saved = async |record, token| store.save(&id, record, token).await.unwrap();

    assert!(store.find(&id).await.unwrap().is_none());
    assert_eq!(saved(record("plain", 60), None).await, Saved::Saved);
    assert_eq!(saved(record("plain again", 60), None).await, Saved::Superseded);
    assert_eq!(saved(record("7", 60), token(7)).await, Saved::Saved);
    assert_eq!(saved(record("6", 60), token(6)).await, Saved::Superseded);
    assert_eq!(saved(record("7 again", 60), token(7)).await, Saved::Superseded);
    assert_eq!(body(&id).await.unwrap(), "7");
    assert_eq!(saved(record("8", 0), token(8)).await, Saved::Saved);
    assert_eq!(body(&id).await, None, "expired at once");
    assert_eq!(saved(record("6", 60), token(6)).await, Saved::Saved, "nothing is there any more");
    assert_eq!(body(&id).await.unwrap(), "6");

    let mut bodiless = record("", 60);
    bodiless.body = None;
    store.save(&other, bodiless, None).await.unwrap();
    let found = store.find(&other).await.unwrap().unwrap();
    assert_eq!((found.body.is_none(), found.status), (true, StatusCode::IM_A_TEAPOT));
    assert_eq!(found.fingerprint, Fingerprint::from_bytes([7; 32]));
    assert_eq!(found.headers, record("", 60).headers);
    assert_eq!(found.trailers["grpc-status"], "0");
    assert_eq!(found.headers.get_all("x").iter().count(), 2);
    assert!(!found.headers.contains_key("content-length"));
}

/// Ids are made by the layer only.
async fn two_ids() -> [RecordId; 2] {
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let see = Arc::clone(&seen);
    let handler = move |id: axum::Extension<RecordId>| async move { see.lock().push(id.0) };
    let app = Router::new().route("/", any(handler)).layer(once(&Store::default()));
    for key in ["a", "b"] {
        send(&app, keyed(key), "").await;
    }
    let ids: Vec<_> = seen.lock().clone();
    ids.try_into().unwrap()
}

#[tokio::test]
async fn row_16_records_in_memory_are_never_replaced_by_what_is_late() {
    let [id, other] = two_ids().await;
    never_replaces_what_was_saved_since(&MemoryRecords::new(), id, other).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn row_16_records_in_sqlite_are_never_replaced_by_what_is_late() {
    use tower_redlock::idempotency::SqlRecords;
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/records.db?mode=rwc", directory.path().display());
    let records = SqlRecords::connect(&url).await.unwrap();
    records.create_table().await.unwrap();
    records.create_table().await.unwrap();
    let [id, other] = two_ids().await;
    never_replaces_what_was_saved_since(&records, id, other).await;
    assert_eq!(records.delete_expired().await.unwrap(), 0);

    let work = Work::ungated();
    let app = work
        .app(IdempotencyLayer::new(Redlock::in_memory(), records.clone()).keep_for(Duration::ZERO));
    send(&app, keyed("k"), "").await;
    assert_eq!(records.delete_expired().await.unwrap(), 1);
    let app = work.app(IdempotencyLayer::new(Redlock::in_memory(), records));
    send(&app, keyed("k"), "").await;
    assert!(is_replayed(&send(&app, keyed("k"), "").await));
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn a_record_that_is_kept_for_ever_is_saved_in_sqlite_and_answered_again() {
    use tower_redlock::idempotency::SqlRecords;
    let records = SqlRecords::connect("sqlite::memory:").await.unwrap();
    records.create_table().await.unwrap();
    let work = Work::ungated();
    let layer = IdempotencyLayer::new(Redlock::in_memory(), records.clone());
    let app = work.app(layer.keep_for(Duration::MAX));
    for replayed in [false, true] {
        let answer = send(&app, keyed("k"), "").await;
        assert_eq!((answer.status(), is_replayed(&answer)), (StatusCode::CREATED, replayed));
        let left = answer.headers()[EXPIRES_IN].to_str().unwrap().parse::<u64>().unwrap();
        let centuries = u64::pow(10, 12);
        assert!(left > centuries, "{left}");
    }
    assert_eq!((records.delete_expired().await.unwrap(), work.times()), (0, 1));
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn row_16_records_in_postgresql_are_never_replaced_by_what_is_late() {
    use tower_redlock::idempotency::SqlRecords;
    let server = redlock_tests::Postgres::start();
    let records = eventually(SOON, "PostgreSQL takes connections", async || {
        SqlRecords::connect(&server.url("postgres")).await
    })
    .await;
    records.create_table().await.unwrap();
    records.create_table().await.unwrap();
    let [id, other] = two_ids().await;
    never_replaces_what_was_saved_since(&records, id, other).await;
    assert_eq!(records.delete_expired().await.unwrap(), 0);
}

#[tokio::test]
async fn memory_is_bounded_and_the_first_is_forgotten_first() {
    let work = Work::ungated();
    let app = work.app(once(&Arc::new(MemoryRecords::new().max_records(2))));
    for key in ["a", "b", "c"] {
        send(&app, keyed(key), "").await;
    }
    assert!(is_replayed(&send(&app, keyed("b"), "").await));
    assert!(is_replayed(&send(&app, keyed("c"), "").await));
    assert!(!is_replayed(&send(&app, keyed("a"), "").await));
}

#[tokio::test]
async fn memory_is_bounded_in_bytes_and_shared_out_among_callers() {
    let handler = || async { vec![7; 100_000] };
    let store = Arc::new(MemoryRecords::new().max_bytes(1_000_000));
    let app = Router::new().route("/", any(handler)).layer(once(&store));
    let of = |caller: &str, number: usize| {
        keyed(&number.to_string()).header(http::header::AUTHORIZATION, caller)
    };
    for number in 0..4 {
        send(&app, of("alice", number), "").await;
    }
    for number in 0..30 {
        send(&app, of("mallory", number), "").await;
    }
    for number in 0..4 {
        assert!(is_replayed(&send(&app, of("alice", number), "").await), "{number}");
    }
    let mut kept = 0;
    for number in (0..30).rev() {
        let answer = send(&app, of("mallory", number), "").await;
        kept += usize::from(is_replayed(&answer));
        if !is_replayed(&answer) {
            break;
        }
    }
    assert_eq!(kept, 5, "{store:?}");
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_instances_create_the_table_in_postgresql_at_once() {
    use tower_redlock::idempotency::SqlRecords;
    let server = redlock_tests::Postgres::start();
    let url = server.url("postgres");
    eventually(SOON, "PostgreSQL takes connections", async || SqlRecords::connect(&url).await)
        .await;
    let pool = sqlx::AnyPool::connect(&url).await.unwrap();
    for _ in 0..5 {
        let together = Arc::new(tokio::sync::Barrier::new(10));
        let create = |_| {
            let (url, together) = (url.clone(), Arc::clone(&together));
            tokio::spawn(async move {
                let records = SqlRecords::connect(&url).await.unwrap();
                together.wait().await;
                records.create_table().await.map_err(|error| error.to_string())
            })
        };
        for created in futures_util::future::join_all((0..10).map(create)).await {
            assert_eq!(created.unwrap(), Ok(()));
        }
        sqlx::raw_sql("DROP TABLE idempotency_records").execute(&pool).await.unwrap();
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_instances_create_the_file_and_the_table_in_sqlite_at_once() {
    use tower_redlock::idempotency::SqlRecords;
    let directory = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let url = format!("sqlite://{}/records-{round}.db", directory.path().display());
        let create = |_| {
            let url = url.clone();
            tokio::spawn(async move {
                let records = SqlRecords::connect(&url).await.map_err(|error| error.to_string())?;
                records.create_table().await.map_err(|error| error.to_string())
            })
        };
        for created in futures_util::future::join_all((0..10).map(create)).await {
            assert_eq!(created.unwrap(), Ok(()));
        }
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn sqlite_in_memory_is_one_database() {
    use tower_redlock::idempotency::SqlRecords;
    for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite://?mode=memory"] {
        let records = SqlRecords::connect(url).await.unwrap();
        records.create_table().await.unwrap();
        let work = Work::ungated();
        let app = work.app(IdempotencyLayer::new(Redlock::in_memory(), records));
        let sent = (0..20).map(|number| {
            let app = app.clone();
            async move { send(&app, keyed(&number.to_string()), "").await.status() }
        });
        for status in futures_util::future::join_all(sent).await {
            assert_eq!(status, StatusCode::CREATED, "{url}");
        }
        assert!(is_replayed(&send(&app, keyed("7"), "").await), "{url}");
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn sqlite_in_memory_by_several_connections_is_refused() {
    use sqlx::any::AnyPoolOptions;
    use tower_redlock::idempotency::SqlRecords;
    sqlx::any::install_default_drivers();
    for (connections, works) in [(1, true), (2, false)] {
        let pool = AnyPoolOptions::new().max_connections(connections);
        let records = SqlRecords::new(pool.connect("sqlite::memory:").await.unwrap());
        let created = records.create_table().await.map_err(|error| error.to_string());
        assert_eq!(created.is_ok(), works, "{created:?}");
        assert!(works || created.unwrap_err().contains("set `max_connections` to 1"));
    }
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn sqlite_is_not_created_where_the_url_forbids_it() {
    use tower_redlock::idempotency::SqlRecords;
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/records.db?mode=rw", directory.path().display());
    assert!(SqlRecords::connect(&url).await.unwrap_err().to_string().contains("unable to open"));
}

//! The service under test: it charges what it is asked to, once, because it holds a lock.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use parking_lot::Mutex;
use redlock_core::{Config, Redlock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;
use tower_http::catch_panic::CatchPanicLayer;
use tower_redlock::{Disconnect, LockScope, RedlockLayer};

use crate::ledger::Ledger;
use crate::options::{Job, Lock, TTL};

/// How long a charge takes at whoever moves the money.
const CHARGING: Duration = Duration::from_millis(2);

/// What has begun may take as long to finish when the service ends.
const GRACE: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
struct App {
    ledger: Ledger,
    running: Arc<Mutex<HashMap<String, usize>>>,
}

pub(crate) async fn serve(job: Job) -> ExitCode {
    let ledger = Ledger::open(&job.ledger).await.expect("the ledger can be opened");
    let app = App { ledger: ledger.clone(), running: Arc::default() };
    let config = Config::servers(job.servers)
        .ttl(TTL)
        .node_deadline(Duration::from_millis(250))
        .retry_interval(Duration::from_millis(5), Duration::from_millis(50))
        .reconnection_interval(Duration::from_millis(5), Duration::from_millis(50))
        .build()
        .expect("the configuration is right");
    let redlock = Redlock::new(config);
    let locked = RedlockLayer::new(redlock.clone(), lock_key)
        .wait(Duration::from_secs(5))
        .on_disconnect(Disconnect::Detach);
    let detached = locked.detached();
    let charge = match job.lock {
        Lock::On => post(charge).layer(locked),
        Lock::Off => post(charge),
    };
    let router = Router::new()
        .route("/charges", charge)
        .route("/running/{account}", get(running))
        .layer(CatchPanicLayer::new())
        .with_state(app);
    let listener = TcpListener::bind(("127.0.0.1", job.port)).await.expect("the port is free");
    println!("{}", listener.local_addr().expect("it is bound").port());
    let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
    let stop = async move {
        terminate.recv().await;
    };
    let finished = async {
        axum::serve(listener, router).with_graceful_shutdown(stop).await.expect("it serves");
        detached.finished().await;
        redlock.close(GRACE).await;
        ledger.close().await;
    };
    finished.await;
    ExitCode::SUCCESS
}

fn lock_key(parts: &http::request::Parts) -> Result<String, (StatusCode, &'static str)> {
    let account =
        header(&parts.headers, "x-account").ok_or((StatusCode::BAD_REQUEST, "account"))?;
    Ok(format!("account:{account}"))
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// Counts a handler for as long as it runs.
struct Running {
    app: App,
    account: String,
}

impl Running {
    fn new(app: &App, account: &str) -> Self {
        *app.running.lock().entry(account.to_owned()).or_default() += 1;
        Self { app: app.clone(), account: account.to_owned() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.app.running.lock();
        if let Some(count) = running.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                running.remove(&self.account);
            }
        }
    }
}

async fn running(State(app): State<App>, Path(account): Path<String>) -> String {
    app.running.lock().get(&account).copied().unwrap_or(0).to_string()
}

/// Looks, charges, writes: in three steps, between which others may do the same.
async fn charge(
    State(app): State<App>,
    scope: Option<axum::Extension<LockScope>>,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, &'static str) {
    let (Some(name), Some(account)) =
        (header(&headers, "idempotency-key"), header(&headers, "x-account"))
    else {
        return (StatusCode::BAD_REQUEST, "a header is missing");
    };
    let _running = Running::new(&app, account);
    let plan = header(&headers, "x-plan").unwrap_or_default();
    let token = scope.and_then(|scope| token_of(&scope));
    match charge_once(&app.ledger, name, account, token, plan).await {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("{} bytes for {name}: {error}", body.len());
            (StatusCode::INTERNAL_SERVER_ERROR, "the ledger failed")
        }
    }
}

fn token_of(scope: &LockScope) -> Option<i64> {
    i64::try_from(scope.lease()?.fencing_token()?.get()).ok()
}

async fn charge_once(
    ledger: &Ledger,
    name: &str,
    account: &str,
    token: Option<i64>,
    plan: &str,
) -> sqlx::Result<(StatusCode, &'static str)> {
    const TOO_LATE: (StatusCode, &str) = (StatusCode::PRECONDITION_FAILED, "a later one was here");
    if let Some(token) = token
        && !ledger.take_up(account, token).await?
    {
        return Ok(TOO_LATE);
    }
    if ledger.is_charged(name).await? {
        return Ok((StatusCode::OK, "charged before"));
    }
    assert!(plan != "panic-before", "a handler that panics before it charges");
    sleep(if plan == "long" { 2 * TTL } else { CHARGING }).await;
    if !ledger.charge(name, account, token).await? {
        return Ok(TOO_LATE);
    }
    assert!(plan != "panic-after", "a handler that panics after it charged");
    Ok((StatusCode::CREATED, "charged"))
}

//! How often is a request carried out that many send at once? Side by side: this layer and
//! axum-idempotent, each with one handler that counts.
//!
//! `cargo run -p tower-redlock --example duplicates`

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use axum_idempotent::{IdempotentLayer, IdempotentOptions};
use futures_util::future::join_all;
use http::header::{COOKIE, SET_COOKIE};
use http::{HeaderValue, Request, StatusCode};
use redlock_core::Redlock;
use ruts::store::moka::MokaStore;
use ruts::{CookieOptions, Session, SessionLayer, store::Ttl};
use tower::ServiceExt;
use tower_cookies::CookieManagerLayer;
use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};

const DUPLICATES: usize = 50;
const ROUNDS: usize = 20;

/// Takes a while, as a payment does, and counts how often it ran.
fn counting(ran: &Arc<AtomicUsize>) -> axum::routing::MethodRouter {
    let ran = Arc::clone(ran);
    post(move || async move {
        tokio::time::sleep(Duration::from_millis(10)).await;
        ran.fetch_add(1, Ordering::SeqCst).to_string()
    })
}

fn ours(ran: &Arc<AtomicUsize>) -> Router {
    let once = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new());
    Router::new().route("/", counting(ran).layer(once))
}

/// Its records live in a session, which the client has to have first.
fn theirs(ran: &Arc<AtomicUsize>) -> Router {
    let options = IdempotentOptions::default()
        .use_idempotency_key_header(Some("idempotency-key"), true)
        .expire_after(60);
    let sign_in = get(|session: Session<MokaStore>| async move {
        let ttl = Ttl::new(60).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        let set = session.set("user", &String::from("alice"), ttl, None).await;
        set.map(|_| ()).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
    });
    let cookie = CookieOptions::build().name("session").max_age(60).path("/");
    Router::new()
        .route("/", counting(ran))
        .layer(IdempotentLayer::<MokaStore>::new(options))
        .route("/sign-in", sign_in)
        .layer(
            SessionLayer::new(Arc::new(MokaStore::builder().build())).with_cookie_options(cookie),
        )
        .layer(CookieManagerLayer::new())
}

async fn session(app: &Router) -> Result<HeaderValue, Box<dyn Error>> {
    let response = app.clone().oneshot(Request::get("/sign-in").body(Body::empty())?).await?;
    let cookie = response.headers().get(SET_COOKIE).ok_or("no session")?.to_str()?;
    let pair = cookie.split(';').next().unwrap_or_default();
    Ok(HeaderValue::from_str(pair)?)
}

/// Sends all duplicates of a round at once, and then one more.
async fn run(
    name: &str,
    app: &Router,
    ran: &AtomicUsize,
    cookie: Option<HeaderValue>,
) -> Result<(), Box<dyn Error>> {
    let mut answers = std::collections::BTreeMap::<String, usize>::new();
    let mut replayed = 0;
    for round in 0..ROUNDS {
        let request = || {
            let request = Request::post("/").header("idempotency-key", round);
            let request = match &cookie {
                Some(cookie) => request.header(COOKIE, cookie),
                None => request,
            };
            request.body(Body::empty())
        };
        let requests: Vec<_> = (0..DUPLICATES).map(|_| request()).collect::<Result<_, _>>()?;
        let sent = requests.into_iter().map(|request| tokio::spawn(app.clone().oneshot(request)));
        for answer in join_all(sent).await {
            *answers.entry(answer??.status().to_string()).or_default() += 1;
        }
        let later = app.clone().oneshot(request()?).await?;
        let headers = ["idempotent-replayed", "idempotency-replayed"];
        replayed += usize::from(headers.iter().any(|name| later.headers().contains_key(*name)));
    }
    let ran = ran.load(Ordering::SeqCst);
    println!("{name:<16} handler ran {ran:>4} times for {ROUNDS} keys; answers: {answers:?}");
    println!("{:<16} of {ROUNDS} later requests {replayed} got the recorded answer", "");
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("{DUPLICATES} requests at once, {ROUNDS} times, each time with a new key:");
    let ran = Arc::default();
    run("tower-redlock", &ours(&ran), &ran, None).await?;
    let ran = Arc::default();
    let app = theirs(&ran);
    let cookie = session(&app).await?;
    run("axum-idempotent", &app, &ran, Some(cookie)).await
}

//! A server that cannot vote costs one vote, and everybody is told why, but never a password.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod commands;
mod least_rights;
mod login;
mod not_redis;
mod roles;

use std::time::Duration;

use redlock_core::{
    Config, ErrorKind, LockError, NodeAnswer, NodeReport, Redlock, Released, Safety,
};
use redlock_tests::{Fleet, eventually};
use tokio::time::timeout;

/// What no password in these tests is without.
const SECRET: &str = "s3cret";

/// A hang, also on a machine with too much to do.
const HANG: Duration = Duration::from_secs(20);

/// Retries and reconnections are frequent, so that a test is short; deadlines are generous, so
/// that a busy machine is no failure.
fn redlock<S: AsRef<str>>(urls: &[S]) -> Redlock {
    let config = Config::servers(urls.iter().map(AsRef::as_ref))
        .ttl(Duration::from_secs(30))
        .node_deadline(Duration::from_secs(2))
        .retry_interval(Duration::from_millis(5), Duration::from_millis(20))
        .reconnection_interval(Duration::from_millis(5), Duration::from_millis(20))
        .label("refusals")
        .safety(Safety::Plain)
        .build();
    Redlock::new(config.expect("the URLs are good"))
}

/// The two servers do not vote for `reason`: one of them among three does no harm, and with both
/// of them there is no lock.
async fn never_votes(bad: [String; 2], reason: &str) {
    one_of_three_does_no_harm(&bad[0], reason).await;
    two_of_three_are_no_service(&bad, reason).await;
}

async fn one_of_three_does_no_harm(bad: &str, reason: &str) {
    let good = Fleet::start(2).await;
    let redlock = redlock(&[&good[0].url(), bad, &good[1].url()]);
    // A machine with too much to do may need more than one try to connect to the other two.
    let guard = eventually(HANG, "a lock on two", async || redlock.lock("order").await).await;
    assert_eq!(good.total_keys().await, 2);

    eventually(HANG, &format!("a report of {reason:?}"), async || {
        let inspection = redlock.inspect("order").await.map_err(|error| error.to_string())?;
        assert!(inspection.held);
        assert_eq!(inspection.holder.as_deref(), Some("refusals"));
        says(&inspection.nodes[1], reason)
    })
    .await;
    assert_eq!(guard.release().await, Released::Released);
    good.eventually_empty(HANG).await;
}

async fn two_of_three_are_no_service(bad: &[String; 2], reason: &str) {
    let good = Fleet::start(1).await;
    let redlock = redlock(&[&bad[0], &bad[1], &good[0].url()]);
    let error = eventually(HANG, &format!("both to report {reason:?}"), async || {
        let error = no_lock(&redlock).await;
        says(&error.nodes()[0], reason).and_then(|()| says(&error.nodes()[1], reason))?;
        Ok::<_, String>(error)
    })
    .await;
    assert!(error.retry_after().is_some());
    assert_eq!(error.nodes().len(), 3);
    assert!(error.to_string().contains(reason), "{error}");
    // What the third one had granted is taken back.
    good.eventually_empty(HANG).await;

    let error = timeout(HANG, redlock.inspect("order")).await.expect("no hang").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_discreet(&error);
    let error = timeout(HANG, redlock.ready()).await.expect("no hang").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

/// Tries to lock in one round, and says why there is no lock service.
async fn no_lock(redlock: &Redlock) -> LockError {
    let tried = timeout(HANG, redlock.try_lock("order").into_future()).await.expect("no hang");
    let error = tried.expect_err("there is no majority");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_discreet(&error);
    error
}

/// Whether the node did not vote, and said why.
fn says(node: &NodeReport, reason: &str) -> Result<(), String> {
    let shown = node.to_string();
    assert!(!shown.contains(['\n', '\r']), "a report is one line of a log: {shown:?}");
    let voted =
        matches!(node.answer, NodeAnswer::Granted | NodeAnswer::Held { .. } | NodeAnswer::NotHeld);
    if !voted && shown.contains(reason) { Ok(()) } else { Err(shown) }
}

fn assert_discreet(error: &LockError) {
    for shown in [error.to_string(), format!("{error:?}"), format!("{error:#?}")] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

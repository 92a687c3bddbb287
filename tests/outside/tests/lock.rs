//! Locks with the features and the crypto providers that the application has.

use std::time::Duration;

use redlock_core::{Config, ErrorKind, Redlock, Released, Safety, Server};
use redlock_outside::{Redis, block_on};

fn redlock(server: Server) -> Redlock {
    let config = Config::servers([server]).safety(Safety::Plain);
    Redlock::new(config.node_deadline(Duration::from_secs(4)).build().unwrap())
}

async fn locks_and_releases(server: Server) {
    let redlock = redlock(server);
    let guard = redlock.lock("order").await.unwrap();
    let refused = redlock.try_lock("order").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Contended, "{refused}");
    assert_eq!(guard.release().await, Released::Released);
}

#[test]
fn locks_without_tls() {
    let redis = Redis::start();
    block_on(locks_and_releases(redis.plain()));
}

#[test]
fn locks_over_tls_with_no_provider_installed() {
    let redis = Redis::start();
    block_on(locks_and_releases(redis.tls()));
}

#[test]
fn an_authority_that_is_not_trusted_is_named_as_the_reason() {
    let redis = Redis::start();
    let error = block_on(async {
        let redlock = redlock(redis.tls_by_the_system());
        redlock.try_lock("order").await.unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
}

#[test]
fn a_request_runs_under_a_lock_without_default_features() {
    use tower_redlock::RedlockLayer;
    let layer = RedlockLayer::new(Redlock::in_memory(), tower_redlock::key::path());
    assert!(format!("{layer:?}").contains("RedlockLayer"), "{layer:?}");
}

//! Locks in a process with a default crypto provider, among two in its tree.

use std::time::Duration;

use redlock_core::{Config, Redlock, Released, Safety};
use redlock_outside::{Redis, block_on};

#[test]
fn locks_over_tls_with_a_provider_installed() {
    rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap();
    let redis = Redis::start();
    let config =
        Config::servers([redis.tls()]).safety(Safety::Plain).node_deadline(Duration::from_secs(4));
    let released = block_on(async {
        let redlock = Redlock::new(config.build().unwrap());
        redlock.lock("order").await.unwrap().release().await
    });
    assert_eq!(released, Released::Released);
}

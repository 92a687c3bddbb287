//! Locks without TLS, axum and tracing. A server that needs TLS is refused with what to do.

use std::time::Duration;

use redlock_core::Config;
use tower_redlock::{RedlockLayer, key};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let redlock = outside::plain();
    outside::locks(&redlock).await;
    let _layer = RedlockLayer::new(redlock, key::path()).ttl(Duration::from_secs(5));

    let error = Config::from_env().expect_err("this build has no TLS").to_string();
    assert!(error.contains("enable the feature tls of redlock-core"), "{error}");
}

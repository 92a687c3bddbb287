//! What each application does with its locks. The program `servers` sets the environment.

use std::time::Duration;

use redlock_core::{Config, ErrorKind, Redlock, Released, Safety};
use tokio::time::{Instant, sleep};

/// Longer than three servers and a busy machine need.
const PATIENCE: Duration = Duration::from_secs(30);

/// The servers with TLS and a certificate authority of their own.
pub fn by_tls() -> Redlock {
    Redlock::new(Config::from_env().expect("REDLOCK_SERVERS has URLs"))
}

/// The same servers without TLS. Without a guard, which refuses a second configuration.
pub fn plain() -> Redlock {
    let urls = std::env::var("PLAIN_SERVERS").expect("PLAIN_SERVERS has URLs");
    let config = Config::servers(urls.split(',')).safety(Safety::Plain);
    Redlock::new(config.build().expect("PLAIN_SERVERS has URLs"))
}

/// Takes and releases a lock. Waits for the first connections.
pub async fn locks(redlock: &Redlock) {
    let deadline = Instant::now() + PATIENCE;
    let guard = loop {
        match redlock.lock("order:42").await {
            Ok(guard) => break guard,
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                assert!(Instant::now() < deadline, "{error}");
                sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(guard.release().await, Released::Released);
}

/// Waits for an error that says `words`. A lock is a failure.
pub async fn fails(redlock: &Redlock, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let error = redlock.try_lock("order:42").await.expect_err("the servers are out of reach");
        let error = error.to_string();
        if error.contains(words) {
            return;
        }
        assert!(Instant::now() < deadline, "waited for {words:?}: {error}");
        sleep(Duration::from_millis(20)).await;
    }
}

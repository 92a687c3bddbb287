//! A background task that panics, or whose runtime ends, is reported and replaced.
//!
//! The log of the application is what panics here: the library calls it from all of its tasks.
//! Nothing else is tested here, because the log is the one of the process.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fmt::Debug;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;
use redlock_core::{
    CheckPolicy, Config, ConfigBuilder, Redlock, Released, Renew, Safety, ServerCheck,
};
use redlock_tests::{RedisServer, eventually};
use tokio::runtime::Runtime;
use tokio::time::{Instant, timeout};
use tracing::field::Field;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

const PATIENCE: Duration = Duration::from_secs(20);

/// Two texts each: the log panics at an event that has both.
static POISON: LazyLock<Mutex<Vec<[String; 2]>>> = LazyLock::new(|| {
    tracing_subscriber::registry().with(Log).init();
    Mutex::default()
});

struct Log;

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = String::new();
        let mut write = |field: &Field, value: &dyn Debug| text += &format!("{field}={value:?} ");
        event.record(&mut write);
        let is_poison = |both: &[String; 2]| both.iter().all(|part| text.contains(part));
        let panics = POISON.lock().iter().any(is_poison);
        assert!(!panics, "the log is full");
    }
}

fn poison(about: impl Into<String>, event: &str) {
    POISON.lock().push([about.into(), event.to_owned()]);
}

fn heal(about: &str) {
    POISON.lock().retain(|[poisoned, _]| poisoned != about);
}

fn address(server: &RedisServer) -> String {
    format!("127.0.0.1:{}", server.port())
}

fn config(server: &RedisServer) -> ConfigBuilder {
    Config::servers([server.url()])
        .safety(Safety::Plain)
        .node_deadline(Duration::from_secs(2))
        .reconnection_interval(Duration::from_millis(5), Duration::from_millis(20))
}

async fn locks(redlock: &Redlock) {
    let guard = eventually(PATIENCE, "a lock", async || redlock.try_lock("order").await).await;
    assert_eq!(guard.release().await, Released::Released);
}

#[tokio::test]
async fn a_panic_while_connecting_is_an_error_with_its_message_and_not_a_timeout() {
    let server = RedisServer::start().await;
    poison(address(&server), "server check failed");
    let config = config(&server).check(ServerCheck::Persistence, CheckPolicy::Warn);
    let redlock = Redlock::new(config.build().unwrap());
    for _ in 0..3 {
        let error = redlock.try_lock("order").await.unwrap_err().to_string();
        assert!(error.contains("connecting panicked: the log is full"), "{error}");
        assert!(!error.contains("within"), "{error}");
    }
    heal(&address(&server));
    locks(&redlock).await;
}

#[tokio::test]
async fn a_panic_in_the_connection_task_is_the_cause_and_the_server_votes_again() {
    let server = RedisServer::start().await;
    let redlock = Redlock::new(config(&server).build().unwrap());
    locks(&redlock).await;
    poison(address(&server), "node does not vote");
    server.kill();
    eventually(PATIENCE, "the panic as the cause", async || {
        let error = redlock.try_lock("order").await.unwrap_err().to_string();
        if error.contains("connection task panicked: the log is full") {
            Ok(())
        } else {
            Err(error)
        }
    })
    .await;
    heal(&address(&server));
    server.restart().await;
    locks(&redlock).await;
}

#[tokio::test]
async fn a_panic_at_the_loss_of_a_lock_keeps_neither_the_loss_nor_other_renewals() {
    const TTL: Duration = Duration::from_secs(2);
    let server = RedisServer::start().await;
    let config = config(&server).ttl(TTL).label("full-log").node_deadline(TTL / 4);
    let redlock = Redlock::new(config.build().unwrap());
    let lock = async |key| redlock.lock(key).renew(Renew::Yes).await;
    let kept = eventually(PATIENCE, "a lock", async || lock("kept").await).await;
    let lost = lock("lost").await.unwrap();
    poison("full-log", "lock lost");
    server.delete("lost").await;
    timeout(PATIENCE, lost.lease().lost()).await.expect("the loss is announced");
    let since = Instant::now();
    eventually(PATIENCE, "some renewals", async || {
        assert_eq!(kept.lease().lost_reason(), None);
        since.elapsed() > 3 * TTL
    })
    .await;
    heal("full-log");
    assert_eq!(kept.release().await, Released::Released);
}

#[test]
fn a_server_that_was_away_when_a_runtime_ended_votes_in_the_next() {
    let first = Runtime::new().unwrap();
    let server = first.block_on(RedisServer::start());
    let redlock = Redlock::new(config(&server).build().unwrap());
    server.kill();
    first.block_on(async {
        eventually(PATIENCE, "the server to be away", async || {
            let error = redlock.try_lock("order").await.expect_err("the server is away");
            error.to_string().contains("refused")
        })
        .await;
    });
    drop(first);
    Runtime::new().unwrap().block_on(async {
        server.restart().await;
        locks(&redlock).await;
    });
}

//! A log tells what became of each lock, without its key. On real Redis servers.
//!
//! Nothing else is tested here: whether anybody listens to an event is decided once, for all
//! threads of a process.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use http::{Request, Response};
use redlock_core::Released;
use redlock_tests::{Fleet, eventually};
use support::{Log, redlock_on};
use tower::{Layer, ServiceExt, service_fn};
use tower_redlock::RedlockLayer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

const SOON: Duration = Duration::from_secs(20);

impl Log {
    /// What is told of one lock, in order.
    fn story(&self, lock: &str) -> Vec<String> {
        let text = self.text();
        let mine = |line: &&str| {
            line.split_whitespace().any(|word| word == lock) && line.contains("redlock_core")
        };
        let chapter = |line: &str| {
            let messages =
                ["acquired", "extended", "not extended", "released", "lost", "handed over"];
            let found = messages.iter().find(|message| line.contains(&format!("lock {message}")));
            (*found.unwrap_or_else(|| panic!("{line}"))).to_owned()
        };
        text.lines().filter(mine).map(chapter).collect()
    }

    fn locks(&self) -> Vec<String> {
        let text = self.text();
        let acquired = text.lines().filter(|line| line.contains("lock acquired"));
        acquired
            .map(|line| {
                let event = line.rsplit("lock acquired").next().unwrap();
                let mut words = event.split_whitespace();
                words.find(|word| word.starts_with("lock=")).expect(line).to_owned()
            })
            .collect()
    }
}

#[tokio::test]
async fn a_log_tells_the_story_of_each_lock_and_not_its_key() {
    let log = Log::default();
    let writer = log.clone();
    let events = tracing_subscriber::fmt().with_max_level(LevelFilter::DEBUG).with_ansi(false);
    let _listening = events.with_writer(move || writer.clone()).finish().set_default();
    let fleet = Fleet::start(3).await;
    let redlock = redlock_on(&fleet);

    // One that a request holds.
    let handler = service_fn(|request: Request<()>| async move {
        let scope: &tower_redlock::LockScope = request.extensions().get().unwrap();
        let lease = scope.lease().unwrap();
        assert!(lease.remaining() > Duration::ZERO);
        Ok::<_, std::convert::Infallible>(Response::new(
            http_body_util::Empty::<bytes::Bytes>::new(),
        ))
    });
    let layer = RedlockLayer::new(redlock.clone(), |_: &http::request::Parts| "very-secret-key");
    layer.layer(handler).oneshot(Request::new(())).await.unwrap();
    let extended = redlock.lock("very-secret-key").await.unwrap();
    extended.extend(Duration::from_secs(20)).await.unwrap();
    extended.release().await;
    let lost = redlock.lock("very-secret-key").await.unwrap();
    let thief = redlock_on(&fleet);
    eventually(SOON, "the key is gone", async || {
        let gone = thief.unlock("very-secret-key", lost.token()).await;
        matches!(gone, Ok(Released::Released | Released::AlreadyExpired))
    })
    .await;
    lost.extend(Duration::from_secs(20)).await.unwrap_err();
    drop(lost);
    let _token = redlock.lock("very-secret-key-2").await.unwrap().hand_over();

    let locks = log.locks();
    let text = log.text();
    assert_eq!(locks.len(), 4, "{text}");
    let stories: Vec<_> = locks.iter().map(|lock| log.story(lock).join(", ")).collect();
    assert_eq!(
        stories,
        [
            "acquired, released",
            "acquired, extended, released",
            "acquired, lost, not extended",
            "acquired, handed over"
        ],
        "{text}"
    );
    assert!(!text.contains("very-secret"), "{text}");
}

//! Figures of locks, on real Redis servers.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use redlock_core::{ErrorKind, LostReason, Redlock, Released, Token};
use redlock_tests::{Fleet, eventually};
use support::redlock_on;

const SOON: Duration = Duration::from_secs(20);

/// The figures so far, by name and labels. A snapshot has what changed since the last one.
#[derive(Default)]
struct Figures(BTreeMap<String, f64>);

impl Figures {
    fn add(&mut self, snapshotter: &Snapshotter) {
        for (key, _, _, value) in snapshotter.snapshot().into_vec() {
            let labels: Vec<_> = key
                .key()
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            let name = format!("{} {}", key.key().name(), labels.join(" "));
            let name = name.trim_end().to_owned();
            match value {
                DebugValue::Counter(count) => *self.0.entry(name).or_default() += count as f64,
                DebugValue::Gauge(change) => {
                    *self.0.entry(name).or_default() += change.into_inner()
                }
                DebugValue::Histogram(samples) => {
                    *self.0.entry(name).or_default() += samples.len() as f64;
                }
            }
        }
    }

    fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or_default()
    }
}

/// Somebody else deletes the key on a majority.
async fn steal(thief: &Redlock, token: &Token) {
    eventually(SOON, "the key is gone", async || {
        let gone = thief.unlock("very-secret-key", token).await;
        matches!(gone, Ok(Released::Released | Released::AlreadyExpired))
    })
    .await;
}

/// One of everything that can become of a lock. The recorder is that of this thread, so this is
/// for a runtime of one thread.
async fn everything_happens() -> (Figures, Vec<String>) {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut figures = Figures::default();

    let fleet = Fleet::start(3).await;
    let (ours, theirs) = (redlock_on(&fleet), redlock_on(&fleet));
    let guard = ours.lock("very-secret-key").await.unwrap();
    figures.add(&snapshotter);
    assert_eq!(figures.of("redlock_held"), 1.0);
    guard.extend(Duration::from_secs(20)).await.unwrap();
    theirs.try_lock("very-secret-key").await.unwrap_err();
    let waiting = theirs.request("very-secret-key").wait(SOON).into_future();
    assert!(tokio::time::timeout(Duration::from_millis(20), waiting).await.is_err());
    guard.release().await;
    drop(ours.lock("very-secret-key").await.unwrap());

    let lost = ours.lock("very-secret-key").await.unwrap();
    steal(&theirs, lost.token()).await;
    lost.extend(Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(lost.lost().await, LostReason::TakenOver);
    lost.release().await;
    let token = ours.lock("very-secret-key").await.unwrap().hand_over();
    theirs.unlock("very-secret-key", &token).await.unwrap();
    ours.lock("").await.unwrap_err();

    let held = ours.lock("very-secret-key").await.unwrap();
    fleet.kill(0);
    fleet.kill(1);
    let down = eventually(SOON, "the servers are known to be down", async || {
        let refused = theirs.try_lock("very-secret-key").await.err();
        refused.filter(|error| error.kind() == ErrorKind::Unavailable)
    })
    .await;
    held.extend(Duration::from_secs(20)).await.unwrap_err();
    held.release().await;
    let _closed = ours.lock("another").await;
    ours.close(Duration::ZERO).await;
    ours.lock("very-secret-key").await.unwrap_err();
    let nodes = down.nodes().iter().map(|report| report.node.clone()).collect();
    figures.add(&snapshotter);
    (figures, nodes)
}

#[tokio::test]
async fn each_figure_counts_what_it_says() {
    let (figures, nodes) = everything_happens().await;
    let exact = [
        ("redlock_acquire_total outcome=acquired", 5.0),
        ("redlock_acquire_total outcome=cancelled", 1.0),
        ("redlock_acquire_total outcome=closed", 1.0),
        ("redlock_acquire_total outcome=invalid", 1.0),
        ("redlock_extend_total outcome=extended", 1.0),
        ("redlock_extend_total outcome=lost", 1.0),
        ("redlock_extend_total outcome=unavailable", 1.0),
        ("redlock_hold_duration_seconds", 5.0),
        ("redlock_held", 0.0),
        ("redlock_lost_total reason=taken_over", 1.0),
        ("redlock_release_total outcome=already_expired", 1.0),
        ("redlock_release_total outcome=background", 1.0),
        ("redlock_release_total outcome=indeterminate", 1.0),
        ("redlock_release_total outcome=released", 1.0),
    ];
    for (name, expected) in exact {
        assert_eq!(figures.of(name), expected, "{name} of {:#?}", figures.0);
    }
    assert!(figures.of("redlock_acquire_total outcome=contended") >= 1.0);
    assert!(figures.of("redlock_acquire_total outcome=unavailable") >= 1.0);
    let acquired: f64 = figures
        .0
        .iter()
        .filter(|(name, _)| name.starts_with("redlock_acquire_total"))
        .map(|(_, count)| count)
        .sum();
    assert_eq!(figures.of("redlock_acquire_duration_seconds"), acquired, "each has taken a time");
    for down in &nodes[..2] {
        let failed = ["down", "silent", "cut"]
            .map(|kind| figures.of(&format!("redlock_node_errors_total node={down} kind={kind}")));
        assert!(failed.iter().sum::<f64>() >= 1.0, "{down} of {:#?}", figures.0);
    }
    let shown = format!("{:?}", figures.0);
    assert!(!shown.contains("secret"), "{shown}");
}

/// A dashboard that asks for a name that nobody records shows nothing, and looks fine.
#[tokio::test]
async fn the_dashboard_asks_for_figures_that_are_recorded() {
    let text = include_str!("../../../docs/grafana/redlock.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() >= 8);
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let asked: BTreeSet<&str> = text
        .split(|c| !is_name(c))
        .filter(|word| word.starts_with("redlock_"))
        .map(|word| word.trim_end_matches("_bucket"))
        .collect();
    let (figures, _) = everything_happens().await;
    let name = |full: &String| full.split(' ').next().unwrap().to_owned();
    let recorded: BTreeSet<String> = figures.0.keys().map(name).collect();
    let recorded: BTreeSet<&str> = recorded.iter().map(String::as_str).collect();
    assert_eq!(asked, recorded);
}

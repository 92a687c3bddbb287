//! A server whose wall clock was set drops keys too soon, or too late. With `max_clock_skew` it does
//! not vote (H7).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redlock_core::{Clock, Config, ConfigBuilder, Guard, Moment, NodeAnswer, Redlock, SystemClock};
use redlock_tests::{Fleet, RedisServer, eventually};

use crate::{HANG, LONG, settings};

/// Longer than a busy machine takes to bring a command to a server; the clock is set by more.
const SKEW: Duration = Duration::from_secs(2);

/// The clock is set by more than a lock lasts: the key is gone at once.
const JUMP_MILLIS: i64 = 120_000;

async fn fleet() -> Fleet {
    Fleet::start_with(3, RedisServer::options().own_clock()).await
}

fn builder(fleet: &Fleet) -> ConfigBuilder {
    settings(&fleet.urls(), LONG)
}

fn looking(fleet: &Fleet) -> Redlock {
    Redlock::new(builder(fleet).max_clock_skew(SKEW).build().unwrap())
}

/// A lock on two of three servers, one of which has its clock set forward and drops it.
async fn locked_on_a_server_that_drops_it(fleet: &Fleet, holder: &Redlock) -> Guard {
    holder.provision().await.unwrap();
    let guard = holder.lock("order").await.unwrap();
    eventually(HANG, "all three to have the key", async || fleet.total_keys().await == 3).await;
    fleet[2].delete("order").await;
    fleet[0].set_clock(JUMP_MILLIS);
    eventually(HANG, "the key to expire", async || fleet[0].keys().await.is_empty()).await;
    guard
}

fn is_skewed(redlock_error: &redlock_core::LockError) -> bool {
    let ahead = |answer: &NodeAnswer| match answer {
        NodeAnswer::Skewed { ahead: true, by } => *by > SKEW,
        _ => false,
    };
    redlock_error.nodes().first().is_some_and(|node| ahead(&node.answer))
}

#[tokio::test]
async fn a_server_whose_clock_was_set_forward_gives_no_lock_away_and_none_after_it_was_set_back() {
    let fleet = fleet().await;
    let holder = looking(&fleet);
    let guard = locked_on_a_server_that_drops_it(&fleet, &holder).await;
    let rival = looking(&fleet);
    let error = eventually(HANG, "the clock to be noticed", async || {
        let error = rival.try_lock("order").await.err().ok_or("the lock was given away")?;
        if is_skewed(&error) { Ok(error) } else { Err(error.to_string()) }
    })
    .await;
    assert!(error.to_string().contains("ahead of ours, see max_clock_skew"), "{error}");

    fleet[0].set_clock(0);
    // It may have dropped locks in between.
    let ready_in = quarantined_first(&rival).await;
    assert!(ready_in > LONG - HANG, "{ready_in:?}");
    assert!(!guard.is_lost());
}

async fn quarantined_first(redlock: &Redlock) -> Duration {
    eventually(HANG, "the first to be in quarantine", async || {
        let error = redlock.try_lock("order").await.err().ok_or("the lock was given away")?;
        match error.nodes().first().map(|node| &node.answer) {
            Some(NodeAnswer::Quarantined { ready_in }) => Ok(*ready_in),
            _ => Err(error.to_string()),
        }
    })
    .await
}

/// Without the setting two hold the same lock.
#[tokio::test]
async fn a_server_whose_clock_was_set_forward_would_give_a_lock_away_twice_if_nobody_looked() {
    let fleet = fleet().await;
    let holder = Redlock::new(builder(&fleet).build().unwrap());
    let guard = locked_on_a_server_that_drops_it(&fleet, &holder).await;
    let rival = Redlock::new(builder(&fleet).build().unwrap());
    let second = eventually(HANG, "a second lock", async || rival.try_lock("order").await).await;
    assert!(!guard.is_lost() && !second.is_lost());
}

#[tokio::test]
async fn a_server_whose_clock_is_wrong_costs_no_lock_and_counts_for_no_extension() {
    for ahead in [-JUMP_MILLIS, JUMP_MILLIS] {
        let fleet = fleet().await;
        let redlock = looking(&fleet);
        redlock.provision().await.unwrap();
        fleet[0].set_clock(ahead);
        let guard =
            eventually(HANG, "a lock of the others", async || redlock.try_lock("order").await)
                .await;
        fleet.kill(1);
        eventually(HANG, "an extension to fail", async || guard.extend(LONG).await.is_err()).await;
        let error = redlock.try_lock("another").await.unwrap_err();
        assert!(error.is_unavailable(), "{error}");
        assert!(!guard.is_lost(), "the old end stands");
    }
}

#[derive(Debug)]
struct WrongClock(SystemClock);

impl Clock for WrongClock {
    fn now(&self) -> Moment {
        self.0.now()
    }

    fn unix_micros(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::try_from((now + 2 * LONG).as_micros()).unwrap()
    }
}

#[tokio::test]
async fn a_process_whose_own_clock_is_wrong_gets_no_lock_and_takes_none_from_others() {
    let fleet = fleet().await;
    let right = looking(&fleet);
    right.provision().await.unwrap();
    let wrong: Config =
        builder(&fleet).max_clock_skew(SKEW).clock(WrongClock(SystemClock::new())).build().unwrap();
    let wrong = Redlock::new(wrong);
    let behind = |answer: &NodeAnswer| matches!(answer, NodeAnswer::Skewed { ahead: false, .. });
    eventually(HANG, "all three to disagree", async || {
        let error = wrong.try_lock("order").await.unwrap_err();
        error.is_unavailable() && error.nodes().iter().filter(|n| behind(&n.answer)).count() == 3
    })
    .await;
    eventually(HANG, "a lock", async || right.try_lock("order").await).await.release().await;
}

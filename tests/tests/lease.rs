//! What a lease is worth: extended, renewed, lost, taken over, handed over; one key or several.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use futures_util::FutureExt;
use redlock_core::{Config, ErrorKind, LostReason, Redlock, Released, Renew, Safety};
use redlock_tests::{Fleet, Proxy, RedisServer, all_vote, eventually};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);
const TTL: Duration = Duration::from_secs(60);

fn redlock<S: AsRef<str>>(urls: &[S], label: &str) -> Redlock {
    let config = Config::servers(urls.iter().map(AsRef::as_ref))
        .ttl(TTL)
        .node_deadline(Duration::from_millis(200))
        .label(label)
        .safety(Safety::Plain);
    Redlock::new(config.build().unwrap())
}

async fn on(fleet: &Fleet) -> Redlock {
    let redlock = redlock(&fleet.urls(), "lease");
    all_vote(&redlock).await;
    redlock
}

async fn everywhere(fleet: &Fleet) {
    eventually(SOON, "every key", async || fleet.total_keys().await == fleet.len()).await;
}

/// The servers have executed all that was sent: also releases that nobody waits for.
async fn everything_arrived(redlock: &Redlock) {
    assert_eq!(redlock.close(SOON).await.unreleased, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_sets_the_time_to_live_on_every_server() {
    let fleet = Fleet::start(3).await;
    let redlock = on(&fleet).await;
    let guard = redlock.lock("k").await.unwrap();
    everywhere(&fleet).await;
    for ttl in [Duration::from_secs(600), Duration::from_secs(30)] {
        let validity = guard.extend(ttl).await.unwrap();
        assert!(
            validity <= ttl - ttl / 100 && validity > ttl - ttl / 50,
            "{validity:?} of {ttl:?}"
        );
        eventually(SOON, "the new time to live on every server", async || {
            for server in fleet.iter() {
                let left = server.pttl("k").await.expect("the key is there");
                if left > ttl || left < ttl - SOON {
                    return false;
                }
            }
            true
        })
        .await;
        assert!(guard.remaining() <= validity);
    }
    assert_eq!(guard.release().await, Released::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_somebody_else_has_is_not_extended_and_not_deleted() {
    let fleet = Fleet::start(3).await;
    let redlock = on(&fleet).await;
    let guard = redlock.lock("k").await.unwrap();
    everywhere(&fleet).await;
    for server in fleet.iter() {
        server.set_foreign("k", "somebody else", TTL).await;
    }
    let error = guard.extend(2 * TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), LostReason::TakenOver);
    assert_eq!(guard.release().await, Released::AlreadyExpired);
    everything_arrived(&redlock).await;
    for server in fleet.iter() {
        assert_eq!(server.get("k").await.as_deref(), Some("somebody else"));
        assert!(server.pttl("k").await.unwrap() <= TTL);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_was_deleted_is_not_extended_and_not_brought_back() {
    let fleet = Fleet::start(3).await;
    let redlock = on(&fleet).await;
    let guard = redlock.lock("k").await.unwrap();
    everywhere(&fleet).await;
    // One server without the key is a minority.
    fleet[2].delete("k").await;
    guard.extend(TTL).await.unwrap();
    fleet[1].delete("k").await;
    let error = guard.extend(TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(guard.lost_reason(), Some(LostReason::TakenOver));
    assert!(guard.remaining().is_zero());
    assert_eq!(guard.release().await, Released::AlreadyExpired);
    everything_arrived(&redlock).await;
    assert_eq!(fleet.total_keys().await, 0, "no extension has set the key, the release left none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_without_a_majority_keeps_the_old_end() {
    let fleet = Fleet::start(3).await;
    let redlock = on(&fleet).await;
    let guard = redlock.lock("k").await.unwrap();
    everywhere(&fleet).await;
    fleet.pause(0);
    fleet.pause(1);
    let error = guard.extend(10 * TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(!guard.is_lost());
    assert!(guard.remaining() < TTL);
    fleet.resume(0);
    fleet.resume(1);
    eventually(SOON, "an extension", async || guard.extend(TTL).await).await;
    drop(guard);
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_time_to_live_counts_from_when_it_is_sent_also_if_nobody_awaits_the_answer() {
    let fleet = Fleet::start(3).await;
    let redlock = on(&fleet).await;
    let guard = redlock.lock("k").await.unwrap();
    everywhere(&fleet).await;
    fleet.iter().for_each(RedisServer::pause);
    assert!(guard.extend(Duration::from_secs(1)).now_or_never().is_none());
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), LostReason::Expired);
    fleet.iter().for_each(RedisServer::resume);
    drop(guard);
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_lease_outlives_its_ttl_until_max_hold() {
    let fleet = Fleet::start(3).await;
    let redlock = on(&fleet).await;
    let ttl = Duration::from_secs(1);
    let max_hold = 3 * ttl;
    let start = Instant::now();
    let guard = redlock.lock("k").ttl(ttl).renew(Renew::Yes).max_hold(max_hold).await.unwrap();
    let other = self::redlock(&fleet.urls(), "other");
    let waiting = other.lock("k").wait(SOON).into_future();
    let waiting = tokio::spawn(async { (waiting.await.unwrap(), Instant::now()) });
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), LostReason::MaxHold);
    assert!(start.elapsed() >= max_hold, "lost after {:?}", start.elapsed());
    assert_eq!(guard.release().await, Released::AlreadyExpired);
    let (next, acquired) = waiting.await.unwrap();
    assert!(acquired >= start + max_hold, "acquired by another after {:?}", acquired - start);
    next.release().await;
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_at_max_hold_however_long_its_ttl_is() {
    let fleet = Fleet::start(3).await;
    let redlock = on(&fleet).await;
    let max_hold = Duration::from_millis(500);
    let guard = redlock.lock("k").max_hold(max_hold).await.unwrap();
    assert!(guard.remaining() <= max_hold);
    // It is lost already if this machine was slow.
    if let Ok(validity) = guard.extend(TTL).await {
        assert!(validity <= max_hold);
    }
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), LostReason::MaxHold);
    assert_eq!(guard.release().await, Released::AlreadyExpired);
    fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewing_lease_is_told_when_its_key_is_deleted() {
    let fleet = Fleet::start(3).await;
    let redlock = on(&fleet).await;
    let guard = redlock.lock("k").ttl(Duration::from_secs(3)).renew(Renew::Yes).await.unwrap();
    everywhere(&fleet).await;
    for node in [0, 1] {
        fleet[node].delete("k").await;
    }
    assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), LostReason::TakenOver);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_at_its_validity_whether_or_not_a_server_answers() {
    let fleet = Fleet::start(3).await;
    let mut proxies = Vec::new();
    for server in fleet.iter() {
        proxies.push(Proxy::in_front_of(server).await);
    }
    let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
    let redlock = redlock(&urls, "lease");
    let ttl = Duration::from_secs(2);
    for (key, silence) in [
        ("hung", &(|| (0..3).for_each(|node| fleet.pause(node))) as &dyn Fn()),
        ("swallowed", &|| proxies.iter().for_each(Proxy::blackhole)),
    ] {
        let guard = redlock.lock(key).ttl(ttl).renew(Renew::Yes).wait(SOON).await.unwrap();
        let start = Instant::now();
        let validity = guard.remaining();
        silence();
        assert_eq!(timeout(SOON, guard.lost()).await.unwrap(), LostReason::Expired, "{key}");
        let elapsed = start.elapsed();
        // A renewal may have been on its way when the servers fell silent.
        assert!(elapsed < validity + ttl / 2, "{key}: told after {elapsed:?} of {validity:?}");
        drop(guard);
        (0..3).for_each(|node| fleet.resume(node));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_guard_does_not_release_its_successor() {
    let fleet = Fleet::start(3).await;
    let (redlock, other) = (on(&fleet).await, redlock(&fleet.urls(), "other"));
    let stale = redlock.lock("k").ttl(Duration::from_secs(1)).await.unwrap();
    let successor = other.lock("k").wait(SOON).await.unwrap();
    // On one server the old key may have lived a moment longer: two of three are enough.
    assert!(stale.is_lost());
    let error = stale.extend(TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    assert_eq!(stale.release().await, Released::AlreadyExpired);
    everything_arrived(&redlock).await;
    assert_eq!(successor.extend(TTL).await.map(|_| ()).map_err(|error| error.kind()), Ok(()));
    assert!(fleet.total_keys().await >= 2);
    assert_eq!(successor.release().await, Released::Released);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_the_token_can_go_on_with_a_lock() {
    let fleet = Fleet::start(3).await;
    let (redlock, other) = (on(&fleet).await, redlock(&fleet.urls(), "other"));
    let token = redlock.lock("k").renew(Renew::Yes).await.unwrap().hand_over();
    everywhere(&fleet).await;
    let token = token.as_str().parse().expect("a token can be sent as text");

    let validity = other.extend("k", &token, 10 * TTL).await.unwrap();
    assert!(validity > 9 * TTL, "{validity:?}");
    let inspection = other.inspect("k").await.unwrap();
    assert_eq!((inspection.held, inspection.holder.as_deref()), (true, Some("lease")));
    assert!(inspection.free_in.unwrap() > 9 * TTL);
    assert_eq!(other.unlock("k", &token).await.unwrap(), Released::Released);
    fleet.eventually_empty(SOON).await;

    assert_eq!(other.unlock("k", &token).await.unwrap(), Released::AlreadyExpired);
    assert_eq!(other.extend("k", &token, TTL).await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(!other.inspect("k").await.unwrap().held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_under_a_lock_is_stopped_when_the_lock_is_lost() {
    let fleet = Fleet::start(3).await;
    let redlock = on(&fleet).await;
    assert!(redlock.with_lock("k", |lease| async move { !lease.is_lost() }).await.unwrap());
    assert!(fleet.total_keys().await <= 1, "released on a majority before it returns");

    let quick = Redlock::new(
        Config::servers(fleet.urls())
            .ttl(Duration::from_secs(2))
            .node_deadline(Duration::from_millis(200))
            .safety(Safety::Plain)
            .build()
            .unwrap(),
    );
    let (still_works, dropped) = tokio::sync::oneshot::channel::<()>();
    let work = quick.with_lock("k", async |_| {
        let _still_works = still_works;
        everywhere(&fleet).await;
        for server in fleet.iter() {
            server.delete("k").await;
        }
        std::future::pending::<()>().await;
    });
    let error = timeout(SOON, work).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(dropped.await.is_err(), "the work was dropped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_keys_are_locked_in_one_order_all_or_none() {
    let fleet = Fleet::start(3).await;
    let (one, two) = (on(&fleet).await, redlock(&fleet.urls(), "two"));
    let keys = ["a", "b", "c"];
    let mut backwards = keys;
    backwards.reverse();
    // Opposite orders, at once, and nobody gives up: who waits for each other waits forever.
    let lock_often = async |keys: [&'static str; 3]| {
        let pauses = (Duration::from_millis(1), Duration::from_millis(5));
        let config = Config::servers(fleet.urls()).ttl(TTL).max_retry(u32::MAX);
        let config = config.safety(Safety::Plain).node_deadline(Duration::from_millis(500));
        let patient = Redlock::new(config.retry_interval(pauses.0, pauses.1).build().unwrap());
        for _ in 0..50 {
            let guards = patient.lock_all(keys).await.unwrap();
            assert_eq!(guards.len(), 3);
            for guard in guards {
                guard.release().await;
            }
        }
    };
    let both = async { tokio::join!(lock_often(keys), lock_often(backwards)) };
    timeout(SOON, both).await.expect("somebody always gets on");
    fleet.eventually_empty(SOON).await;

    let held = one.lock("b").await.unwrap();
    assert_eq!(two.lock_all(keys).await.unwrap_err().kind(), ErrorKind::Contended);
    eventually(SOON, "only the held key to be left", async || {
        fleet.keys().await.values().all(|keys| keys == &["b"])
    })
    .await;
    held.release().await;
    fleet.eventually_empty(SOON).await;
}

//! What users can rely on in their own unit tests: the memory backend under paused time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use redlock_core::{
    Config, ErrorKind, Guard, Lease, LockError, LostReason, Redlock, Released, Renew, Request,
};
use tokio::time::{Instant, advance, sleep, timeout};

const TTL: Duration = Duration::from_secs(10);

#[test]
fn everything_can_be_sent_and_shared_between_threads() {
    fn send_and_sync<T: Send + Sync>() {}
    fn send<T: Send>(_: T) {}
    send_and_sync::<Redlock>();
    send_and_sync::<Guard>();
    send_and_sync::<Lease>();
    send_and_sync::<LockError>();
    send_and_sync::<Config>();
    fn futures(redlock: &Redlock, guard: Guard) {
        send(IntoFuture::into_future(redlock.lock("k")));
        send(redlock.with_lock("k", |_| async {}));
        send(redlock.lock_all(["a", "b"]));
        send(redlock.inspect("k"));
        send(redlock.close(TTL));
        send(guard.lease().clone().lost());
        send(guard.release());
    }
    let _compiles: fn(&Redlock, Guard) = futures;
    let _named: Option<Request> = None;
}

#[tokio::test(start_paused = true)]
async fn a_held_key_is_contended_until_it_is_released() {
    let redlock = Redlock::in_memory();
    let guard = redlock.lock("k").label("first").await.unwrap();
    let error = redlock.try_lock("k").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Contended);
    assert_eq!(error.holder(), Some("first"));
    assert!(error.retry_after().unwrap() <= TTL);
    assert_eq!(guard.release().await, Released::Released);
    assert_eq!(redlock.try_lock("k").await.unwrap().release().await, Released::Released);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_renewed_is_lost_at_the_end_of_its_validity() {
    let redlock = Redlock::in_memory();
    let guard = redlock.lock("k").await.unwrap();
    let start = Instant::now();
    let validity = guard.remaining();
    assert_eq!(validity, TTL - TTL / 100 - Duration::from_millis(2));
    assert_eq!(guard.lost().await, LostReason::Expired);
    let elapsed = start.elapsed();
    assert!(elapsed >= validity && elapsed <= validity + Duration::from_millis(1), "{elapsed:?}");
    assert_eq!(guard.release().await, Released::AlreadyExpired);
}

#[tokio::test(start_paused = true)]
async fn a_renewed_lease_outlives_its_ttl_and_ends_at_max_hold() {
    let redlock = Redlock::in_memory();
    let max_hold = Duration::from_secs(60);
    let guard = redlock.lock("k").renew(Renew::Yes).max_hold(max_hold).await.unwrap();
    let start = Instant::now();
    for _ in 0..59 {
        advance(Duration::from_secs(1)).await;
        // Lets the keeper see the time.
        sleep(Duration::from_millis(1)).await;
        assert!(!guard.is_lost(), "lost after {:?}", start.elapsed());
        assert!(redlock.inspect("k").await.unwrap().held);
    }
    assert_eq!(guard.lost().await, LostReason::MaxHold);
    assert!(start.elapsed() <= max_hold + Duration::from_millis(2));
}

#[tokio::test(start_paused = true)]
async fn waiters_get_the_key_when_the_holder_loses_it_without_releasing() {
    let redlock = Redlock::in_memory();
    let stuck = redlock.lock("k").ttl(Duration::from_secs(1)).await.unwrap();
    let next = redlock.lock("k").wait(Duration::from_secs(5)).await.unwrap();
    assert!(stuck.is_lost());
    assert!(!next.is_lost());
    drop(stuck);
    assert!(redlock.inspect("k").await.unwrap().held, "the stale guard released its successor");
}

#[tokio::test(start_paused = true)]
async fn with_lock_drops_the_work_when_the_lock_is_lost() {
    let redlock = Redlock::in_memory();
    let thief = redlock.clone();
    let outcome = redlock.with_lock("k", |lease| async move {
        thief.unlock("k", lease.token()).await.unwrap();
        sleep(Duration::from_secs(3_600)).await;
    });
    let error = timeout(TTL, outcome).await.expect("told at the next renewal").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn closing_releases_what_is_held_and_turns_waiters_away() {
    let redlock = Redlock::in_memory();
    let guard = redlock.lock("k").await.unwrap();
    let waiting = tokio::spawn(IntoFuture::into_future(redlock.lock("k").wait(TTL)));
    tokio::task::yield_now().await;
    assert_eq!(redlock.close(TTL).await.unreleased, 0);
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(guard.lost().await, LostReason::Closed);
    let token = guard.token();
    let refused = [
        redlock.lock("k").await.unwrap_err(),
        redlock.inspect("k").await.unwrap_err(),
        redlock.unlock("k", token).await.unwrap_err(),
        redlock.extend("k", token, TTL).await.unwrap_err(),
        redlock.ready().await.unwrap_err(),
    ];
    assert!(refused.iter().all(|error| error.kind() == ErrorKind::Closed), "{refused:?}");
    assert_eq!(redlock.close(TTL).await.unreleased, 0);
}

#[tokio::test(start_paused = true)]
async fn keys_in_opposite_orders_do_not_wait_for_each_other() {
    let redlock = Redlock::in_memory();
    let (a, b) = tokio::join!(
        async { redlock.lock_all(["a", "b", "a"]).await.map(|guards| guards.len()) },
        async { redlock.lock_all(["b", "a"]).await.map(|guards| guards.len()) },
    );
    assert_eq!((a.unwrap(), b.unwrap()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_handed_over_is_extended_and_released_by_its_token() {
    let redlock = Redlock::new(Config::memory().max_ttl(2 * TTL).build().unwrap());
    let token = redlock.lock("k").await.unwrap().hand_over();
    assert!(redlock.inspect("k").await.unwrap().held);
    let validity = redlock.extend("k", &token, 2 * TTL).await.unwrap();
    assert!(validity > TTL);
    assert_eq!(redlock.unlock("k", &token).await.unwrap(), Released::Released);
    let late = redlock.extend("k", &token, TTL).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Lost);
    assert_eq!(redlock.unlock("k", &token).await.unwrap(), Released::AlreadyExpired);
}

#[tokio::test(start_paused = true)]
async fn bad_input_is_named() {
    let redlock = Redlock::in_memory();
    for (request, expected) in [
        (redlock.lock(""), "key"),
        (redlock.lock("k").ttl(Duration::ZERO), "ttl"),
        (redlock.lock("k").ttl(Duration::from_millis(50)), "ttl"),
        (redlock.lock("k").label("a:b"), "label"),
    ] {
        let error = request.await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

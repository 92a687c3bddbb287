//! What is on the servers, and for how long it counts.

use std::time::{Duration, Instant};

use redlock_tests::{Fleet, eventually};

use crate::{PATIENCE, build, millis, settings};

#[tokio::test]
async fn the_ttl_is_what_the_servers_count_down() {
    let fleet = Fleet::start(3).await;
    let redlock = build(settings(&fleet).ttl(millis(40_000)));
    for (ttl, request) in [
        (millis(40_000), redlock.lock("configured")),
        (millis(90_000), redlock.lock("requested").ttl(millis(90_000))),
        (millis(20_000), redlock.lock("cut off").ttl(Duration::from_micros(20_000_999))),
    ] {
        let began = Instant::now();
        let guard = request.await.unwrap();
        let key = String::from_utf8(guard.key().as_bytes().to_vec()).unwrap();
        for server in &fleet {
            let left = eventually(PATIENCE, "the key", async || server.pttl(&key).await).await;
            // It was set after `began`; the server rounds to milliseconds.
            assert!(
                left <= ttl && left + began.elapsed() + millis(2) >= ttl,
                "{left:?} of {ttl:?}"
            );
        }
        guard.release().await;
    }
}

#[tokio::test]
async fn the_drift_factor_shortens_the_validity_and_not_the_ttl_on_the_servers() {
    let fleet = Fleet::start(3).await;
    for (factor, drift) in [(0.0, millis(2)), (0.01, millis(602)), (0.25, millis(15_002))] {
        let redlock = build(settings(&fleet).drift_factor(factor));
        let began = Instant::now();
        let guard = redlock.lock("order").await.unwrap();
        let (remaining, elapsed) = (guard.remaining(), began.elapsed());
        let most = Duration::from_secs(60) - drift;
        assert!(remaining < most, "{remaining:?} of at most {most:?}");
        // The system's clocks may be set, and then the lease is cut a little shorter.
        assert!(remaining + elapsed + millis(50) >= most, "{remaining:?} of {most:?}");
        let on_server =
            eventually(PATIENCE, "the key", async || fleet[0].pttl("order").await).await;
        assert!(on_server + began.elapsed() + millis(2) >= Duration::from_secs(60));

        let began = Instant::now();
        let validity = guard.extend(Duration::from_secs(60)).await.unwrap();
        assert!(validity < most && validity + began.elapsed() + millis(50) >= most);
        guard.release().await;
        fleet.eventually_empty(PATIENCE).await;
    }
}

#[tokio::test]
async fn the_key_prefix_is_in_front_of_every_key_and_of_nothing_else() {
    let fleet = Fleet::start(3).await;
    let guards = [
        build(settings(&fleet)).lock("order").await.unwrap(),
        build(settings(&fleet).key_prefix("shop:")).lock("order").await.unwrap(),
        build(settings(&fleet).key_prefix("bank:")).lock("order").await.unwrap(),
    ];
    eventually(PATIENCE, "the keys of all three", async || {
        fleet.keys().await.values().all(|keys| keys == &["bank:order", "order", "shop:order"])
    })
    .await;
    assert!(guards.iter().all(|guard| guard.key().as_bytes() == b"order"));
}

#[tokio::test]
async fn the_label_tells_others_who_holds_a_lock() {
    let fleet = Fleet::start(3).await;
    let rival = build(settings(&fleet));
    for (label, redlock) in [
        ("web-1/4711", build(settings(&fleet).label("web-1/4711"))),
        (rival.config().label(), build(settings(&fleet))),
    ] {
        let guard = redlock.lock("order").await.unwrap();
        let value = eventually(PATIENCE, "the key", async || fleet[0].get("order").await).await;
        assert_eq!(value, guard.token().as_str());
        assert!(value.starts_with(&format!("{label}:")), "{value}");
        let error = rival.try_lock("order").await.unwrap_err();
        assert_eq!(error.holder(), Some(label));
        assert!(
            error.to_string().starts_with(&format!("locked by {label} for another")),
            "{error}"
        );
        guard.release().await;
    }
}

//! A lock retries and succeeds while servers stall, are away, or are far away.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use redlock_core::{Config, ConfigBuilder, ErrorKind, NodeAnswer, Redlock, Released, Safety};
use redlock_tests::{FakeServer, Fleet, Proxy, RedisServer, Reply, eventually};
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

const MODES: [Safety; 2] = [Safety::Plain, Safety::Guarded];

async fn proxies(fleet: &Fleet) -> Vec<Proxy> {
    join_all(fleet.iter().map(Proxy::in_front_of)).await
}

/// Waits until the servers vote, and returns the configuration.
async fn usable(proxies: &[Proxy], safety: Safety) -> ConfigBuilder {
    let config = Config::servers(proxies.iter().map(Proxy::url)).safety(safety);
    let first = Redlock::new(config.clone().build().unwrap());
    eventually(PATIENCE, "servers that vote", async || first.provision().await).await;
    first.close(PATIENCE).await;
    config
}

#[tokio::test]
async fn a_stall_of_all_servers_that_is_longer_than_the_deadline_fails_no_lock() {
    const STALL: Duration = Duration::from_millis(60);
    for safety in MODES {
        let fleet = Fleet::start(3).await;
        let proxies = proxies(&fleet).await;
        let config = usable(&proxies, safety).await;
        let redlock = Redlock::new(config.build().unwrap());
        redlock.lock("order").await.unwrap().release().await;
        fleet.iter().for_each(RedisServer::pause);
        let mut locks = Vec::new();
        let resume = async {
            sleep(STALL).await;
            fleet.iter().for_each(RedisServer::resume);
        };
        let request = async {
            for number in 0..40 {
                let redlock = redlock.clone();
                let lock = async move { redlock.lock(format!("order:{number}")).await };
                locks.push(tokio::spawn(lock));
                sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::join!(resume, request);
        for (number, lock) in locks.into_iter().enumerate() {
            let locked = lock.await.unwrap();
            let guard = locked.unwrap_or_else(|error| panic!("{safety:?}, {number}: {error}"));
            assert_eq!(guard.release().await, Released::Released);
        }
    }
}

#[tokio::test]
async fn a_lock_that_finds_all_servers_away_retries_until_they_are_back() {
    for safety in MODES {
        let fleet = Fleet::start(3).await;
        let proxies = proxies(&fleet).await;
        let pause = Duration::from_millis(100);
        let config = usable(&proxies, safety).await.max_retry(50).retry_interval(pause, pause);
        let redlock = Redlock::new(config.build().unwrap());
        for proxy in &proxies {
            proxy.refuse().await;
        }
        let mut lock = Box::pin(redlock.lock("order").into_future());
        let at_once = timeout(Duration::from_millis(300), &mut lock).await;
        assert!(at_once.is_err(), "{safety:?}: {at_once:?}");
        for proxy in &proxies {
            proxy.accept().await;
        }
        let locked = timeout(PATIENCE, lock).await.expect("it ends");
        assert_eq!(locked.unwrap().release().await, Released::Released, "{safety:?}");
    }
}

#[tokio::test]
async fn one_hang_is_connected_to_again_at_once_and_a_second_within_a_second_is_not() {
    let server = RedisServer::start().await;
    let acquisitions = AtomicUsize::new(0);
    let hangs = FakeServer::in_front_of(&server, move |command| {
        let is_lock = command.name() == "SET" && command.args().contains(&"NX".to_owned());
        let is_second = is_lock && acquisitions.fetch_add(1, Ordering::SeqCst) % 2 == 1;
        is_second.then_some(Reply::Silence)
    });
    let never = Duration::from_secs(3600);
    let config = Config::servers([hangs.url()])
        .safety(Safety::Plain)
        .node_deadline(Duration::from_millis(100))
        .reconnection_interval(never, never);
    let redlock = Redlock::new(config.build().unwrap());
    let lock = async |key: &str| match redlock.try_lock(key).await {
        Ok(guard) => {
            guard.release().await;
            NodeAnswer::Granted
        }
        Err(error) => error.nodes()[0].answer.clone(),
    };
    assert_eq!(lock("first").await, NodeAnswer::Granted);
    assert_eq!(lock("hangs").await, NodeAnswer::TimedOut);
    assert_eq!(lock("on a new connection").await, NodeAnswer::Granted);
    // A machine that is slow may take more than a second between two of them.
    for _ in 0..20 {
        assert_eq!(lock("hangs again").await, NodeAnswer::TimedOut);
        match lock("next").await {
            NodeAnswer::Granted => {}
            NodeAnswer::Refused(reason) if reason.contains("no answer within 100ms") => return,
            answer => panic!("{answer:?}"),
        }
    }
    panic!("the server is asked again and again");
}

#[tokio::test]
async fn each_of_many_requests_for_a_key_learns_that_the_servers_are_away() {
    for safety in MODES {
        let fleet = Fleet::start(3).await;
        let proxies = proxies(&fleet).await;
        let redlock = Redlock::new(usable(&proxies, safety).await.build().unwrap());
        redlock.lock("order").await.unwrap().release().await;
        for proxy in &proxies {
            proxy.refuse().await;
            proxy.cut().await;
        }
        let requests = (0..30).map(|number| {
            let request = redlock.lock("order");
            match number % 3 {
                0 => request.into_future(),
                1 => request.wait(Duration::ZERO).into_future(),
                _ => request.wait(Duration::from_secs(1)).into_future(),
            }
        });
        for (number, locked) in join_all(requests).await.into_iter().enumerate() {
            let error = locked.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{safety:?}, {number}: {error}");
        }
    }
}

#[tokio::test]
async fn the_first_lock_of_a_process_waits_for_the_connection_to_servers_that_are_far_away() {
    let fleet = Fleet::start(3).await;
    let proxies = proxies(&fleet).await;
    for safety in MODES {
        for one_way in [25, 50].map(Duration::from_millis) {
            proxies.iter().for_each(Proxy::pass);
            let config = usable(&proxies, safety).await;
            for proxy in &proxies {
                proxy.delay_requests(one_way);
                proxy.delay_replies(one_way);
            }
            // Enough for the round trip of a vote, and less than the two of connecting.
            let redlock = Redlock::new(config.node_deadline(one_way * 39 / 10).build().unwrap());
            let guard = redlock.lock("order").await;
            let guard = guard.unwrap_or_else(|error| panic!("{safety:?}, {one_way:?}: {error}"));
            assert_eq!(guard.release().await, Released::Released, "{safety:?}, {one_way:?}");
        }
    }
}

//! Keys are spread over groups of servers, and a lock has to do with one group only.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use redlock_core::{
    Config, ConfigBuilder, ErrorKind, Group, Redlock, Released, RingScheme, Safety,
};
use redlock_tests::{Fleet, eventually};

const PATIENCE: Duration = Duration::from_secs(30);
const NAMES: [&str; 3] = ["eu", "us", "ap"];
const SCHEMES: [RingScheme; 2] = [RingScheme::Xxh3, RingScheme::Ketama];

/// The groups of a fleet: three servers each, in order.
fn groups(fleet: &Fleet) -> Vec<Group> {
    let urls = fleet.urls();
    NAMES.iter().zip(urls.chunks(3)).map(|(name, urls)| Group::named(*name, urls)).collect()
}

fn settings(groups: Vec<Group>) -> ConfigBuilder {
    Config::cluster(groups)
        .safety(Safety::Plain)
        .ttl(Duration::from_secs(60))
        .node_deadline(Duration::from_secs(2))
        .reconnection_interval(Duration::from_millis(5), Duration::from_millis(20))
        .label("ring")
}

fn redlock(fleet: &Fleet, scheme: RingScheme) -> Redlock {
    Redlock::new(settings(groups(fleet)).ring(scheme).build().unwrap())
}

/// Which group has each key. Waits until every server has voted; a key that is on anything but
/// exactly the servers of one group is an error.
async fn places(fleet: &Fleet, keys: usize) -> BTreeMap<String, usize> {
    eventually(PATIENCE, "every vote", async || {
        let mut servers = BTreeMap::<String, Vec<usize>>::new();
        for (server, keys) in fleet.keys().await {
            keys.into_iter().for_each(|key| servers.entry(key).or_default().push(server));
        }
        if servers.len() != keys {
            return Err(format!("{} of {keys} keys", servers.len()));
        }
        let group_of = |(key, servers): (String, Vec<usize>)| {
            let group = servers[0] / 3;
            let all: Vec<_> = (3 * group..3 * group + 3).collect();
            if servers == all { Ok((key, group)) } else { Err(format!("{key} on {servers:?}")) }
        };
        servers.into_iter().map(group_of).collect::<Result<_, _>>()
    })
    .await
}

#[tokio::test]
async fn every_key_is_on_all_servers_of_one_group_and_on_no_other() {
    let fleet = Fleet::start(9).await;
    for scheme in SCHEMES {
        let redlock = redlock(&fleet, scheme);
        let keys: Vec<_> = (0..90).map(|order| format!("order:{order}")).collect();
        let guards = join_all(keys.iter().map(|key| redlock.lock(key).into_future())).await;
        let guards = guards.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
        let places = places(&fleet, keys.len()).await;
        for group in 0..3 {
            let share = places.values().filter(|place| **place == group).count();
            assert!((10..60).contains(&share), "{scheme:?}: group {group} has {share} of 90 keys");
        }
        for released in join_all(guards.into_iter().map(|guard| guard.release())).await {
            assert_eq!(released, Released::Released);
        }
        fleet.eventually_empty(PATIENCE).await;
    }
}

/// The groups were computed with other implementations: see the tests of the ring itself.
#[tokio::test]
async fn keys_are_where_other_clients_of_the_same_ring_look_for_them() {
    let fleet = Fleet::start(9).await;
    for (scheme, expected) in [
        (
            RingScheme::Ketama,
            [("bar", 2), ("example_key:42", 1), ("foo", 2), ("order:1001", 0), ("payment:9f8e", 1)],
        ),
        (
            RingScheme::Xxh3,
            [("bar", 1), ("example_key:42", 1), ("foo", 1), ("order:1001", 0), ("order:43", 2)],
        ),
    ] {
        // The place is that of the key without the prefix.
        for prefix in ["", "shop:"] {
            let settings = settings(groups(&fleet)).ring(scheme).key_prefix(prefix);
            let redlock = Redlock::new(settings.build().unwrap());
            let guards = join_all(expected.map(|(key, _)| redlock.lock(key).into_future())).await;
            let expected = expected.map(|(key, group)| (format!("{prefix}{key}"), group));
            assert_eq!(places(&fleet, expected.len()).await, BTreeMap::from(expected));
            drop(guards);
            fleet.eventually_empty(PATIENCE).await;
        }
    }
}

#[tokio::test]
async fn a_group_that_is_down_takes_its_own_keys_along_and_no_others() {
    let fleet = Fleet::start(9).await;
    let redlock = redlock(&fleet, RingScheme::Xxh3);
    redlock.ready().await.unwrap();
    // Of "us", which owns foo and bar, one server is left.
    fleet.kill(3);
    fleet.kill(4);
    let theirs: Vec<_> =
        (3..6).map(|server| format!("127.0.0.1:{}/0", fleet[server].port())).collect();

    for key in ["foo", "bar", "example_key:42"] {
        let error = redlock.try_lock(key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{key}: {error}");
        let asked: Vec<_> = error.nodes().iter().map(|node| node.node.clone()).collect();
        assert_eq!(asked, theirs);
        assert_eq!(redlock.inspect(key).await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
    for key in ["order:1001", "order:43"] {
        let guard = redlock.try_lock(key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
        assert!(redlock.inspect(key).await.unwrap().held);
        assert_eq!(guard.release().await, Released::Released);
    }
    let error = redlock.ready().await.unwrap_err();
    assert_eq!(error.nodes().iter().map(|node| node.node.clone()).collect::<Vec<_>>(), theirs);

    fleet.restart(3).await;
    let guard = eventually(PATIENCE, "the group", async || redlock.try_lock("foo").await).await;
    assert_eq!(guard.release().await, Released::Released);
    redlock.ready().await.unwrap();
    fleet.eventually_empty(PATIENCE).await;
}

#[tokio::test]
async fn one_server_of_every_group_may_be_down() {
    let fleet = Fleet::start(9).await;
    let redlock = redlock(&fleet, RingScheme::Ketama);
    for server in [0, 4, 8] {
        fleet.kill(server);
    }
    redlock.ready().await.unwrap();
    for order in 0..30 {
        let guard = redlock.lock(format!("order:{order}")).await.unwrap();
        assert_eq!(guard.release().await, Released::Released);
    }
    fleet.eventually_empty(PATIENCE).await;
}

#[tokio::test]
async fn all_who_use_the_same_ring_meet_at_the_same_locks() {
    let fleet = Fleet::start(9).await;
    let other_order = || {
        let mut groups = groups(&fleet);
        groups.reverse();
        groups
    };
    let here = redlock(&fleet, RingScheme::Xxh3);
    // By name, a group's place does not depend on where it is listed.
    let there = Redlock::new(settings(other_order()).build().unwrap());
    for order in 0..30 {
        let key = format!("order:{order}");
        let guard = here.lock(&key).await.unwrap();
        let error = there.try_lock(&key).await.unwrap_err();
        assert_eq!((error.kind(), error.holder()), (ErrorKind::Contended, Some("ring")));
        guard.release().await;
    }
    // By position it does: that is why the same order is asked for.
    let here = redlock(&fleet, RingScheme::Ketama);
    let there = Redlock::new(settings(other_order()).ring(RingScheme::Ketama).build().unwrap());
    let _guard = here.lock("order:1001").await.unwrap();
    let _both = there.try_lock("order:1001").await.unwrap();
}

#[tokio::test]
async fn several_keys_of_several_groups_are_locked_together_or_not_at_all() {
    let fleet = Fleet::start(9).await;
    let redlock = redlock(&fleet, RingScheme::Xxh3);
    let keys = ["foo", "order:1001", "order:43"];
    let guards = redlock.lock_all(keys).await.unwrap();
    let places = places(&fleet, 3).await;
    assert_eq!(places.into_values().collect::<Vec<_>>(), [1, 0, 2]);
    drop(guards);
    fleet.eventually_empty(PATIENCE).await;

    // The last of them in the order of locking, "order:43", has no group.
    (6..9).for_each(|server| fleet.kill(server));
    let error = redlock.lock_all(keys).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    fleet.eventually_empty(PATIENCE).await;
}

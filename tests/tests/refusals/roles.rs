//! Redis servers that are not independent primaries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redlock_core::{ErrorKind, Released};
use redlock_tests::{FakeServer, Fleet, RedisServer, Reply, eventually};

use crate::{HANG, never_votes, no_lock, redlock, says};

async fn replica_of(primary: &RedisServer, read_only: &str) -> RedisServer {
    let replica = RedisServer::options()
        .config("replicaof", &format!("127.0.0.1 {}", primary.port()))
        .config("replica-read-only", read_only)
        .start()
        .await;
    eventually(HANG, "the replica to follow", async || {
        let info: String = redis::cmd("INFO")
            .arg("replication")
            .query_async(&mut replica.connection().await)
            .await
            .unwrap();
        info.contains("master_link_status:up")
    })
    .await;
    replica
}

#[tokio::test]
async fn a_replica_does_not_vote() {
    let primary = RedisServer::start().await;
    // One that takes writes is no better: it forgets them when it next syncs.
    let (first, second) = tokio::join!(replica_of(&primary, "yes"), replica_of(&primary, "no"));
    let reason = "its role is slave; name an independent primary";
    never_votes([first.url(), second.url()], reason).await;
    assert!(primary.keys().await.is_empty());
}

#[tokio::test]
async fn a_primary_that_becomes_a_replica_votes_no_more() {
    let fleet = Fleet::start(3).await;
    let other = RedisServer::start().await;
    let redlock = redlock(&fleet.urls());
    redlock.lock("order").await.unwrap().release().await;
    for server in [&fleet[0], &fleet[1]] {
        let mut follow = redis::cmd("REPLICAOF");
        follow.arg("127.0.0.1").arg(other.port());
        follow.exec_async(&mut server.connection().await).await.unwrap();
    }
    // By a write that they refuse, or by what they say when they are connected to again.
    let reason = "name an independent primary";
    eventually(HANG, "both replicas to be found out", async || {
        let error = no_lock(&redlock).await;
        says(&error.nodes()[0], reason).and_then(|()| says(&error.nodes()[1], reason))
    })
    .await;

    for server in [&fleet[0], &fleet[1]] {
        let mut lead = redis::cmd("REPLICAOF");
        lead.arg("NO").arg("ONE").exec_async(&mut server.connection().await).await.unwrap();
    }
    let guard =
        eventually(HANG, "the primaries to vote again", async || redlock.try_lock("order").await)
            .await;
    assert_eq!(guard.release().await, Released::Released);
}

#[tokio::test]
async fn a_server_in_cluster_mode_does_not_vote() {
    let cluster = RedisServer::options().config("cluster-enabled", "yes");
    let servers = Fleet::start_with(2, cluster).await;
    let urls = [0, 1].map(|i| servers[i].url());
    never_votes(urls, "it runs in cluster mode; name a standalone server").await;
}

#[tokio::test]
async fn a_valkey_server_in_cluster_mode_does_not_vote() {
    let cluster = RedisServer::options().binary("valkey-server").config("cluster-enabled", "yes");
    let servers = Fleet::start_with(2, cluster).await;
    let urls = [0, 1].map(|i| servers[i].url());
    never_votes(urls, "it runs in cluster mode; name a standalone server").await;
}

/// A server in front of which it is decided whether it still loads its data. HELLO and INFO are
/// answered then, too.
fn loading(server: &RedisServer, loads: &Arc<AtomicBool>) -> FakeServer {
    let loads = Arc::clone(loads);
    FakeServer::in_front_of(server, move |command| {
        let answered = ["HELLO", "AUTH", "INFO", "CLIENT", "COMMAND", "SELECT", "SCRIPT"];
        let refused = loads.load(Ordering::SeqCst) && !answered.contains(&&*command.name());
        refused.then(|| Reply::Error("LOADING Redis is loading the dataset in memory".into()))
    })
}

#[tokio::test]
async fn a_server_that_loads_its_data_does_not_vote_until_it_is_done() {
    let servers = Fleet::start(2).await;
    let loads = Arc::new(AtomicBool::new(true));
    let fakes = [0, 1].map(|i| loading(&servers[i], &loads));
    let urls = [fakes[0].url(), fakes[1].url()];
    never_votes(urls.clone(), "LOADING Redis is loading the dataset in memory").await;

    let good = RedisServer::start().await;
    let redlock = redlock(&[&urls[0], &urls[1], &good.url()]);
    no_lock(&redlock).await;
    loads.store(false, Ordering::SeqCst);
    let guard = eventually(HANG, "the servers to vote", async || redlock.try_lock("order").await);
    assert_eq!(guard.await.release().await, Released::Released);

    // They start to load again while they are connected: a replica that syncs does that.
    loads.store(true, Ordering::SeqCst);
    let error = no_lock(&redlock).await;
    says(&error.nodes()[0], "LOADING").unwrap();
    says(&error.nodes()[1], "LOADING").unwrap();
}

#[tokio::test]
async fn one_server_under_two_addresses_has_one_vote() {
    let (twin, other) = (RedisServer::start().await, RedisServer::start().await);
    let by_name = format!("redis://localhost:{}/", twin.port());
    let redlock = redlock(&[twin.url(), by_name, other.url()]);
    let refused = eventually(HANG, "the second address to be refused", async || {
        // With one good server and half a one there may be a majority, or not yet.
        let guard = redlock.lock("order").await.map_err(|error| error.to_string())?;
        let nodes = redlock.inspect("order").await.map_err(|error| error.to_string())?.nodes;
        guard.release().await;
        let twins = [&nodes[0], &nodes[1]];
        twins
            .iter()
            .find_map(|node| {
                says(node, "it is the same server as").ok().map(|()| node.node.clone())
            })
            .ok_or_else(|| format!("{nodes:?}"))
    })
    .await;
    assert!(refused.contains(&twin.port().to_string()), "{refused}");
    other.kill();
    let error = redlock.try_lock("order").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "one server gave two votes: {error}");
}

#[tokio::test]
async fn one_server_under_three_addresses_is_no_majority() {
    let server = RedisServer::options().unix_socket().start().await;
    let by_name = format!("redis://localhost:{}/", server.port());
    let redlock = redlock(&[server.url(), by_name, server.unix_url()]);
    let error = eventually(HANG, "two addresses to be refused", async || {
        let error = no_lock(&redlock).await;
        let same = |node: &&_| says(node, "name independent servers").is_ok();
        let refused = error.nodes().iter().filter(same).count();
        if refused == 2 { Ok(error) } else { Err(error.to_string()) }
    })
    .await;
    assert!(error.to_string().contains("it is the same server as"), "{error}");
    eventually(HANG, "the only vote to be taken back", async || server.keys().await.is_empty())
        .await;
}

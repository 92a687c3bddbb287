//! Servers that vote in general, and refuse the one command that matters.

use std::time::Duration;

use redlock_core::{ErrorKind, Released};
use redlock_tests::{FakeServer, Fleet, RedisServer, Reply, eventually};

use crate::{HANG, no_lock, redlock, says};

/// A server whose memory is used up from the start. One that a client fills may have room again: Redis
/// 6.2 has it as soon as the buffers of this client are freed.
async fn out_of_memory() -> RedisServer {
    RedisServer::options().maxmemory(1, "noeviction").start().await
}

#[tokio::test]
async fn a_server_out_of_memory_costs_one_vote() {
    let (full, good) = (out_of_memory().await, Fleet::start(2).await);
    let redlock = redlock(&[full.url(), good[0].url(), good[1].url()]);
    let guard = redlock.lock("order").await.unwrap();
    assert_eq!(good.total_keys().await, 2);
    assert_eq!(full.get("order").await, None);
    assert_eq!(guard.release().await, Released::Released);
    good.eventually_empty(HANG).await;
}

#[tokio::test]
async fn a_majority_out_of_memory_is_no_lock_service_and_says_so() {
    let (first, second) = tokio::join!(out_of_memory(), out_of_memory());
    let good = Fleet::start(1).await;
    let error = no_lock(&redlock(&[first.url(), second.url(), good[0].url()])).await;
    for node in &error.nodes()[..2] {
        says(node, "OOM command not allowed when used memory > 'maxmemory'").unwrap();
    }
    good.eventually_empty(HANG).await;
}

#[tokio::test]
async fn a_lock_is_extended_and_released_on_servers_that_ran_out_of_memory() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet.urls());
    let guard = redlock.lock("order").await.unwrap();
    eventually(HANG, "the third vote", async || fleet.total_keys().await == 3).await;
    for server in &fleet {
        server.config_set("maxmemory-policy", "noeviction").await;
        server.config_set("maxmemory", "1").await;
    }
    assert_eq!(redlock.try_lock("other").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(guard.extend(Duration::from_secs(60)).await.unwrap() > Duration::from_secs(45));
    assert_eq!(guard.release().await, Released::Released);
    fleet.eventually_empty(HANG).await;
}

#[tokio::test]
async fn what_a_server_says_to_a_lock_is_reported_word_for_word() {
    for refusal in [
        "MISCONF Redis is configured to save RDB snapshots, but it is unable to persist to disk",
        "NOREPLICAS Not enough good replicas to write",
        "BUSY Redis is busy running a script",
        "MASTERDOWN Link with MASTER is down",
        "ERR something that this library has never heard of",
    ] {
        let servers = Fleet::start(3).await;
        let refuses = |i: usize| {
            FakeServer::in_front_of(&servers[i], move |command| {
                (command.name() == "SET").then(|| Reply::Error(refusal.into()))
            })
        };
        let (first, second) = (refuses(0), refuses(1));
        let redlock = redlock(&[first.url(), second.url(), servers[2].url()]);
        let error = no_lock(&redlock).await;
        says(&error.nodes()[0], refusal).unwrap();
        says(&error.nodes()[1], refusal).unwrap();
        servers.eventually_empty(HANG).await;
    }
}

#[tokio::test]
async fn scripts_that_a_server_forgot_are_sent_again() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet.urls());
    let guard = redlock.lock("order").await.unwrap();
    eventually(HANG, "the third vote", async || fleet.total_keys().await == 3).await;
    for server in &fleet {
        server.flush_scripts().await;
    }
    assert!(guard.extend(Duration::from_secs(60)).await.unwrap() > Duration::from_secs(45));
    for server in &fleet {
        server.flush_scripts().await;
    }
    assert!(redlock.inspect("order").await.unwrap().held);
    for server in &fleet {
        server.flush_scripts().await;
    }
    assert_eq!(guard.release().await, Released::Released);
    fleet.eventually_empty(HANG).await;
    assert!(fleet.commands().await["eval"] >= 3, "no script was sent in full");
}

async fn push_to_a_list(server: &RedisServer) {
    let mut push = redis::cmd("RPUSH");
    push.arg("order").arg("of-another-program");
    push.exec_async(&mut server.connection().await).await.unwrap();
}

#[tokio::test]
async fn a_key_that_another_program_uses_on_one_server_costs_one_vote_and_stays() {
    let fleet = Fleet::start(3).await;
    push_to_a_list(&fleet[0]).await;
    let redlock = redlock(&fleet.urls());
    let guard = redlock.lock("order").await.unwrap();
    let inspection = eventually(HANG, "all three to answer", async || {
        let inspection = redlock.inspect("order").await.map_err(|error| error.to_string())?;
        says(&inspection.nodes[0], "WRONGTYPE").map(|()| inspection)
    })
    .await;
    assert!(inspection.held);
    assert_eq!(guard.release().await, Released::Released);
    eventually(HANG, "only the list to be left", async || {
        fleet.keys().await.values().map(Vec::len).eq([1, 0, 0])
    })
    .await;
}

#[tokio::test]
async fn a_key_that_another_program_uses_everywhere_is_never_locked() {
    let fleet = Fleet::start(3).await;
    for server in &fleet {
        push_to_a_list(server).await;
    }
    let redlock = redlock(&fleet.urls());
    let told = "another program keeps data under this key, set `key_prefix`";
    let error = redlock.try_lock("order").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Contended, "{error}");
    assert!(error.to_string().contains(told), "{error}");
    let error = redlock.inspect("order").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(told), "{error}");
    assert_eq!(fleet.total_keys().await, 3);
}

#[tokio::test]
async fn an_answer_that_breaks_the_protocol_is_no_vote_and_costs_the_connection() {
    let servers = Fleet::start(3).await;
    let breaks = |i: usize| {
        FakeServer::in_front_of(&servers[i], |command| {
            (command.name() == "SET").then(|| Reply::Raw(b"HTTP/1.1 200 OK\r\n\r\n".into()))
        })
    };
    let (first, second) = (breaks(0), breaks(1));
    let redlock = redlock(&[first.url(), second.url(), servers[2].url()]);
    let error = no_lock(&redlock).await;
    says(&error.nodes()[0], "failed: ").unwrap();
    says(&error.nodes()[1], "failed: ").unwrap();
    // They may have set it before they broke: the release waits for a new connection.
    eventually(HANG, "new connections", async || {
        first.connections() >= 2 && second.connections() >= 2
    })
    .await;
    assert_eq!(redlock.close(HANG).await.unreleased, 0);
    servers.eventually_empty(HANG).await;
}

//! A server votes only while its dataset says that it is the process that kept it (H2, H3, H4, H5).

use std::time::{Duration, Instant};

use redlock_core::{FenceBasis, NodeAnswer, Provisioned, Redlock, Released};
use redlock_tests::{Fleet, RedisServer, eventually};

use crate::{HANG, LONG, provisioned, quarantined, redlock, settings};

const SHORT: Duration = Duration::from_millis(1_500);

#[tokio::test]
async fn servers_that_were_never_used_do_not_vote_for_one_max_ttl() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet, LONG);
    let ready_in = quarantined(&redlock).await;
    assert!(ready_in > LONG - HANG && ready_in <= LONG + LONG / 50, "{ready_in:?}");
    let error = redlock.try_lock("order").await.unwrap_err();
    assert!(error.retry_after().unwrap() > LONG - HANG, "{error}");
    assert_eq!(fleet.total_keys().await, 0);
    assert!(redlock.ready().await.unwrap_err().is_unavailable());
}

#[tokio::test]
async fn connecting_waits_for_the_end_of_the_quarantine() {
    let fleet = Fleet::start(3).await;
    let began = Instant::now();
    let redlock = Redlock::connect(settings(&fleet.urls(), SHORT).build().unwrap()).await.unwrap();
    assert!(began.elapsed() >= SHORT, "{:?}", began.elapsed());
    redlock.try_lock("order").await.unwrap().release().await;
}

#[tokio::test]
async fn new_servers_that_are_put_to_use_vote_at_once_and_others_are_left_alone() {
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet, LONG).await;
    redlock.try_lock("order").await.unwrap().release().await;
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::InUse);

    fleet.restart(1).await;
    let again = eventually(HANG, "all to answer", async || redlock.provision().await).await;
    assert_eq!(again, Provisioned::InUse, "a server that lost its data was taken for a new one");
    fleet.kill(0);
    quarantined(&redlock).await;

    fleet.kill(1);
    let error = redlock.provision().await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
}

/// The second of two locks is refused though a majority has forgotten the first.
async fn is_not_given_away_twice(loss: impl AsyncFnOnce(&Fleet)) {
    let fleet = Fleet::start(3).await;
    let holder = provisioned(&fleet, LONG).await;
    let guard = holder.lock("order").await.unwrap();
    eventually(HANG, "all three to have the key", async || fleet.total_keys().await == 3).await;
    loss(&fleet).await;

    let rival = redlock(&fleet, LONG);
    let error = eventually(HANG, "both to be in quarantine", async || {
        let error = rival.try_lock("order").await.err().ok_or("the lock was given away")?;
        let is_quarantined = |answer: &NodeAnswer| matches!(answer, NodeAnswer::Quarantined { .. });
        let nodes = error.nodes().iter().filter(|node| is_quarantined(&node.answer)).count();
        if nodes == 2 { Ok(error) } else { Err(error.to_string()) }
    })
    .await;
    assert!(error.is_unavailable(), "{error}");
    // A server that is in quarantine does not count for the holder either.
    let extended = guard.extend(LONG).await.unwrap_err();
    assert!(extended.is_unavailable(), "{extended}");
    assert!(!guard.is_lost(), "the old end stands");
}

#[tokio::test]
async fn servers_that_restart_empty_do_not_give_a_lock_away_twice() {
    is_not_given_away_twice(async |fleet| {
        fleet.restart(0).await;
        fleet.restart(1).await;
    })
    .await;
}

#[tokio::test]
async fn servers_that_are_flushed_do_not_give_a_lock_away_twice() {
    is_not_given_away_twice(async |fleet| {
        for server in [&fleet[0], &fleet[1]] {
            redis::cmd("FLUSHALL").exec_async(&mut server.connection().await).await.unwrap();
        }
    })
    .await;
}

/// What a replica had before it was promoted, or a server restored from the backup of another,
/// names the run of the other.
#[tokio::test]
async fn servers_with_the_data_of_another_do_not_give_a_lock_away_twice() {
    is_not_given_away_twice(async |fleet| {
        let other = RedisServer::start().await;
        for server in [&fleet[0], &fleet[1]] {
            let mut connection = server.connection().await;
            let mut follow = redis::cmd("REPLICAOF");
            follow.arg("127.0.0.1").arg(other.port());
            follow.exec_async(&mut connection).await.unwrap();
            eventually(HANG, "the replica to follow", async || {
                let info = redis::cmd("INFO").arg("replication").clone();
                let info: String = info.query_async(&mut connection).await.unwrap();
                info.contains("master_link_status:up")
            })
            .await;
            let mut lead = redis::cmd("REPLICAOF");
            lead.arg("NO").arg("ONE").exec_async(&mut connection).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn one_server_that_lost_its_data_costs_no_lock_and_is_back_after_its_quarantine() {
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet, SHORT).await;
    redlock.try_lock("order").await.unwrap().release().await;
    fleet.restart(2).await;
    let guard =
        eventually(HANG, "a lock of the other two", async || redlock.try_lock("order").await).await;
    let earlier = guard.fencing_token();
    assert_eq!(guard.release().await, Released::Released);
    // When its quarantine is over, those who remember teach it all counters.
    eventually(HANG, "the server to know its counters", async || {
        redlock.try_lock("another").await.unwrap().release().await;
        let mut connection = fleet[2].connection().await;
        let fields =
            redis::cmd("HLEN").arg("{redlock}:node").query_async::<usize>(&mut connection).await;
        fields.unwrap() >= 1024
    })
    .await;
    // It is needed now.
    fleet.kill(0);
    let guard =
        eventually(HANG, "a lock of the other two", async || redlock.try_lock("order").await).await;
    assert!(guard.fencing_token() > earlier);
    assert_eq!(guard.fence_basis(), Some(FenceBasis::Majority));
    assert_eq!(guard.release().await, Released::Released);
}

#[tokio::test]
async fn a_restart_of_durable_servers_is_no_quarantine_but_the_loss_of_their_data_is() {
    let options =
        RedisServer::options().config("appendonly", "yes").config("appendfsync", "always");
    let fleet = Fleet::start_with(3, options).await;
    let config = settings(&fleet.urls(), LONG).durable(true);
    let redlock = Redlock::new(config.build().unwrap());
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    let guard = redlock.lock("order").await.unwrap();
    for server in 0..3 {
        fleet.restart(server).await;
    }
    let error = eventually(HANG, "all servers to vote", async || {
        let error = redlock.try_lock("order").await.err().ok_or("it was forgotten")?;
        if error.is_contended() { Ok(error) } else { Err(error.to_string()) }
    });
    assert!(error.await.is_contended());
    guard.release().await;
    for server in &fleet {
        redis::cmd("FLUSHALL").exec_async(&mut server.connection().await).await.unwrap();
    }
    quarantined(&redlock).await;
}

/// A proxy that connects to the restarted server by itself hides the restart from every client;
/// the script looks inside the dataset (H21).
#[tokio::test]
async fn a_full_server_refuses_locks_and_still_releases_them() {
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet, LONG).await;
    let guard = redlock.lock("order").await.unwrap();
    eventually(HANG, "all three to have the key", async || fleet.total_keys().await == 3).await;
    for server in &fleet {
        server.config_set("maxmemory", "1").await;
    }
    let error = redlock.try_lock("other").await.unwrap_err();
    assert!(error.to_string().contains("OOM"), "{error}");
    assert!(guard.extend(LONG).await.is_ok());
    assert_eq!(guard.release().await, Released::Released);
    fleet.eventually_empty(HANG).await;
    for server in &fleet {
        server.config_set("maxmemory", "0").await;
    }
    redlock.try_lock("other").await.unwrap().release().await;
}

#[tokio::test]
async fn servers_that_forget_scripts_lock_and_release_all_the_same() {
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet, LONG).await;
    for round in 0..20 {
        for server in &fleet {
            server.flush_scripts().await;
        }
        let guard = redlock.try_lock(format!("order:{round}")).await.unwrap();
        for server in &fleet {
            server.flush_scripts().await;
        }
        assert_eq!(guard.release().await, Released::Released);
    }
    fleet.eventually_empty(HANG).await;
}

//! What a readiness endpoint is told: whether a majority of each group can vote, and who can't.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use redlock_core::{Config, ErrorKind, GroupHealth, Redlock, Safety};
use redlock_tests::{Fleet, eventually};

const SOON: Duration = Duration::from_secs(20);

fn config(fleet: &Fleet) -> redlock_core::ConfigBuilder {
    Config::servers(fleet.urls()).node_deadline(Duration::from_millis(500))
}

/// Waits until so many servers of the only group vote.
async fn voting(redlock: &Redlock, servers: usize) -> GroupHealth {
    eventually(SOON, "the servers to stand as they should", async || {
        let group = redlock.health().await.unwrap().remove(0);
        if group.voting() == servers { Ok(group) } else { Err(format!("{group:?}")) }
    })
    .await
}

#[tokio::test]
async fn one_stopped_server_of_three_leaves_a_majority_and_two_do_not() {
    let fleet = Fleet::start(3).await;
    let redlock = Redlock::new(config(&fleet).safety(Safety::Plain).build().unwrap());
    let all = voting(&redlock, 3).await;
    assert!(all.has_majority());

    for (stop, restart) in [(Fleet::kill as fn(&Fleet, usize), true), (Fleet::pause, false)] {
        stop(&fleet, 0);
        let two = voting(&redlock, 2).await;
        assert!(two.has_majority() && redlock.ready().await.is_ok(), "{two:?}");
        // Each has its place, with its address and what is wrong with it.
        for (node, url) in two.nodes.iter().zip(fleet.urls()) {
            assert!(url.contains(node.node.split('/').next().unwrap()), "{url}: {node:?}");
        }
        assert!(!two.nodes[0].answer.to_string().starts_with("not held"), "{two:?}");

        stop(&fleet, 1);
        let one = voting(&redlock, 1).await;
        assert!(!one.has_majority() && redlock.ready().await.is_err(), "{one:?}");

        for server in [0, 1] {
            if restart { fleet.restart(server).await } else { fleet.resume(server) }
        }
        assert!(voting(&redlock, 3).await.has_majority());
    }
    redlock.close(Duration::ZERO).await;
    assert_eq!(redlock.health().await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test]
async fn each_group_stands_for_itself() {
    let (here, there) = (Fleet::start(1).await, Fleet::start(1).await);
    let config = Config::cluster([here.urls(), there.urls()]).safety(Safety::Plain);
    let redlock = Redlock::new(config.build().unwrap());
    eventually(SOON, "both groups to vote", async || {
        redlock.health().await.unwrap().iter().all(GroupHealth::has_majority)
    })
    .await;
    there.kill(0);
    eventually(SOON, "the second group to be gone", async || {
        let groups = redlock.health().await.unwrap();
        groups[0].has_majority() && !groups[1].has_majority()
    })
    .await;
}

#[tokio::test]
async fn a_server_in_quarantine_answers_but_does_not_vote() {
    let fleet = Fleet::start(3).await;
    let redlock = Redlock::new(config(&fleet).ttl(Duration::from_secs(60)).build().unwrap());
    eventually(SOON, "the servers to be quarantined", async || {
        let group = redlock.health().await.unwrap().remove(0);
        let quarantined = |node: &redlock_core::NodeReport| {
            matches!(node.answer, redlock_core::NodeAnswer::Quarantined { .. })
        };
        !group.has_majority() && group.voting() == 0 && group.nodes.iter().all(quarantined)
    })
    .await;
}

//! A lock needs a majority of the servers and no more: whether the others are dead, deaf or gone.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::{Duration, Instant};

use redlock_core::{Config, ErrorKind, NodeAnswer, Redlock, Released, Safety};
use redlock_tests::{Fleet, Proxy, all_vote, eventually};
use tokio::time::timeout;

/// Far longer than anything takes, so that whoever waits for a deadline is found out.
const NODE_DEADLINE: Duration = Duration::from_secs(2);

const SOON: Duration = Duration::from_secs(20);

/// What can be wrong with a server.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// The process is gone: connections break, and are refused.
    Killed,
    /// The process is stopped: connections are accepted by the kernel, nothing is answered.
    Hung,
    /// The server runs, but the way to it is closed.
    Refusing,
}

impl Trouble {
    /// The reason that is given for a node without a vote must lead to its trouble.
    fn assert_explains(self, answer: &NodeAnswer) {
        let explained = match (self, answer) {
            // Found out when the question was sent, or known before.
            (Self::Hung, NodeAnswer::TimedOut) => true,
            // Without an answer the client connects again, and gets no answer to that either.
            (Self::Hung, NodeAnswer::Refused(reason)) => reason.contains("no connection within 1s"),
            (
                Self::Killed | Self::Refusing,
                NodeAnswer::Failed(reason) | NodeAnswer::Refused(reason),
            ) => {
                let reasons = ["refused", "closed", "broken pipe", "reset"];
                reasons.iter().any(|words| reason.to_lowercase().contains(words))
            }
            _ => false,
        };
        assert!(explained, "{self:?}: {answer:?}");
    }
}

const TROUBLES: [Trouble; 3] = [Trouble::Killed, Trouble::Hung, Trouble::Refusing];

/// Servers, each behind a proxy.
struct Servers {
    fleet: Fleet,
    proxies: Vec<Proxy>,
}

impl Servers {
    async fn start(n: usize) -> Self {
        let fleet = Fleet::start(n).await;
        let mut proxies = Vec::new();
        for server in fleet.iter() {
            proxies.push(Proxy::in_front_of(server).await);
        }
        Self { fleet, proxies }
    }

    fn redlock(&self) -> Redlock {
        let urls = self.proxies.iter().map(Proxy::url);
        let config = Config::servers(urls)
            .safety(Safety::Plain)
            .ttl(Duration::from_secs(60))
            .node_deadline(NODE_DEADLINE);
        Redlock::new(config.build().unwrap())
    }

    async fn afflict(&self, node: usize, trouble: Trouble) {
        match trouble {
            Trouble::Killed => self.fleet.kill(node),
            Trouble::Hung => self.fleet.pause(node),
            Trouble::Refusing => {
                self.proxies[node].refuse().await;
                self.proxies[node].cut().await;
            }
        }
    }

    async fn heal(&self, node: usize, trouble: Trouble) {
        match trouble {
            Trouble::Killed => self.fleet.restart(node).await,
            Trouble::Hung => self.fleet.resume(node),
            Trouble::Refusing => self.proxies[node].accept().await,
        }
    }
}

async fn a_minority_in_trouble_is_not_noticed(n: usize, bad: usize, trouble: Trouble) {
    let servers = Servers::start(n).await;
    let redlock = servers.redlock();
    all_vote(&redlock).await;
    for node in 0..bad {
        servers.afflict(node, trouble).await;
    }
    let start = Instant::now();
    for round in 0..20 {
        let guard = redlock.try_lock("order").await;
        let guard = guard.unwrap_or_else(|error| panic!("{trouble:?}, round {round}: {error}"));
        let error = redlock.try_lock("order").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Contended, "{trouble:?}: {error}");
        assert_eq!(guard.release().await, Released::Released, "{trouble:?}");
    }
    assert!(start.elapsed() < NODE_DEADLINE, "{trouble:?}: {:?}", start.elapsed());

    let stranger = servers.redlock();
    let guard = stranger.lock("order").wait(SOON).await.expect("a newcomer gets it too");
    assert_eq!(guard.release().await, Released::Released);

    for node in 0..bad {
        servers.heal(node, trouble).await;
    }
    servers.fleet.eventually_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_may_be_killed_hung_or_refusing() {
    for trouble in TROUBLES {
        a_minority_in_trouble_is_not_noticed(3, 1, trouble).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_may_be_killed_hung_or_refusing() {
    for trouble in TROUBLES {
        a_minority_in_trouble_is_not_noticed(5, 2, trouble).await;
    }
}

async fn without_a_majority_it_is_unavailable_and_then_back(trouble: Trouble) {
    let servers = Servers::start(3).await;
    let redlock = servers.redlock();
    all_vote(&redlock).await;
    for node in [0, 2] {
        servers.afflict(node, trouble).await;
    }

    // The first to ask finds out, the second knows.
    for _ in 0..2 {
        let start = Instant::now();
        let error = redlock.try_lock("order").await.unwrap_err();
        let took = start.elapsed();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{trouble:?}: {error}");
        assert!(took < 2 * NODE_DEADLINE, "{trouble:?}: {took:?}");
        assert!(error.retry_after().is_some());
        assert_eq!(error.nodes().len(), 3);
        for node in [0, 2] {
            let answer = &error.nodes()[node].answer;
            trouble.assert_explains(answer);
        }
        // The verdict does not wait for it.
        let healthy = &error.nodes()[1].answer;
        let (granted, not_yet) = (&NodeAnswer::Granted, &NodeAnswer::NoAnswer);
        assert!(healthy == granted || healthy == not_yet, "{trouble:?}: {error}");
    }
    // A server that is known to be down costs a retry nothing.
    let error = timeout(2 * NODE_DEADLINE, redlock.lock("order").into_future()).await.unwrap();
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unavailable);

    // A machine that is busy with something else can only make it seem slower: the best of a few
    // counts.
    let mut best = Duration::MAX;
    for _ in 0..5 {
        for node in [0, 2] {
            servers.heal(node, trouble).await;
        }
        let start = Instant::now();
        let guard = eventually(SOON, "a lock", async || redlock.try_lock("order").await).await;
        best = best.min(start.elapsed());
        guard.release().await;
        servers.fleet.eventually_empty(SOON).await;
        if best < Duration::from_secs(1) {
            return;
        }
        for node in [0, 2] {
            servers.afflict(node, trouble).await;
        }
        eventually(SOON, "no lock", async || redlock.try_lock("order").await.is_err()).await;
    }
    panic!("{trouble:?}: back in use after {best:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_three_killed_it_is_unavailable_and_back_within_a_second() {
    without_a_majority_it_is_unavailable_and_then_back(Trouble::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_three_hung_it_is_unavailable_and_back_within_a_second() {
    without_a_majority_it_is_unavailable_and_then_back(Trouble::Hung).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_two_of_three_refusing_it_is_unavailable_and_back_within_a_second() {
    without_a_majority_it_is_unavailable_and_then_back(Trouble::Refusing).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_wait_gets_the_lock_when_the_servers_are_back() {
    let servers = Servers::start(3).await;
    let redlock = servers.redlock();
    all_vote(&redlock).await;
    servers.fleet.kill(0);
    servers.fleet.kill(1);
    let waiting = tokio::spawn(redlock.lock("order").wait(SOON).into_future());
    eventually(SOON, "the outage to be known", async || redlock.ready().await.is_err()).await;
    servers.fleet.restart(0).await;
    servers.fleet.restart(1).await;
    waiting.await.unwrap().unwrap().release().await;
}

//! How a lease stands: told in time, whatever becomes of the servers, the network and the process.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redlock_core::{ErrorKind, LeaseState, LostReason, Provisioned, Redlock, Renew};
use redlock_tests::{Fleet, Proxy, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

use crate::{HANG, LONG, provisioned, settings};

const TTL: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_no_majority_renews_is_in_jeopardy_until_one_does() {
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet, TTL).await;
    let guard = redlock.lock("order").renew(Renew::Yes).await.unwrap();
    assert_eq!(guard.state(), LeaseState::Held);
    fleet.pause(0);
    fleet.pause(1);
    let seen = timeout(HANG, guard.changed(LeaseState::Held)).await.unwrap();
    assert_eq!(seen, LeaseState::Jeopardy, "it is told before the lock is lost");
    assert!(guard.ensure(Duration::from_millis(1)).is_ok(), "it is still valid");
    fleet.resume(0);
    fleet.resume(1);
    let seen = timeout(HANG, guard.changed(LeaseState::Jeopardy)).await.unwrap();
    assert_eq!(seen, LeaseState::Held);
    let lease = guard.lease().clone();
    guard.release().await;
    assert_eq!(lease.state(), LeaseState::Released);
    assert_eq!(lease.ensure(Duration::ZERO).unwrap_err().kind(), ErrorKind::Lost);
}

/// No reset and no refusal: the network just does not deliver any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loss_is_told_no_later_than_the_end_of_validity_when_packets_are_dropped() {
    let fleet = Fleet::start(3).await;
    let proxies = join_all(fleet.iter().map(Proxy::in_front_of)).await;
    let urls: Vec<String> = proxies.iter().map(Proxy::url).collect();
    // The margin is what a slow machine may take to tell it.
    let redlock = Redlock::new(settings(&urls, TTL).drift_factor(0.3).build().unwrap());
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    let guard = redlock.lock("order").renew(Renew::Yes).await.unwrap();
    for proxy in &proxies {
        proxy.blackhole();
    }
    // The last renewal that can have been confirmed was sent before now.
    let end = Instant::now() + TTL;
    assert_eq!(timeout(HANG, guard.lost()).await.unwrap(), LostReason::Expired);
    assert!(guard.remaining().is_zero());
    let late = Instant::now().saturating_duration_since(end);
    assert!(late.is_zero(), "told {late:?} after the servers may have given the lock away");
}

/// One that comes late could otherwise cut off what a later one was confirmed for.
#[tokio::test]
async fn a_shorter_extension_ends_the_lease_sooner_and_the_key_no_sooner() {
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet, LONG).await;
    let guard = redlock.lock("order").await.unwrap();
    let validity = guard.extend(LONG / 4).await.unwrap();
    assert!(validity < LONG / 4 && guard.remaining() < LONG / 4);
    for server in &fleet {
        let left = eventually(HANG, "the key", async || server.pttl("order").await).await;
        assert!(left > LONG / 2, "{left:?}");
    }
    assert!(guard.extend(LONG).await.unwrap() > LONG / 2);
}

#[tokio::test]
async fn ensuring_more_than_is_left_says_how_much_there_is() {
    let fleet = Fleet::start(1).await;
    let redlock = provisioned(&fleet, LONG).await;
    let guard = redlock.lock("order").await.unwrap();
    guard.ensure(LONG / 2).unwrap();
    let error = guard.ensure(2 * LONG).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
    assert!(error.to_string().contains("and 120.0s are needed"), "{error}");
}

/// The process does nothing between two polls but to be stopped for longer than the lease lasts: no
/// timer and no task of the library has had a turn.
#[tokio::test]
async fn a_process_that_was_stopped_knows_at_its_first_poll() {
    let fleet = Fleet::start(3).await;
    let mut holder = Command::new(env!("CARGO_BIN_EXE_contender"))
        .arg("stopped")
        .args(fleet.urls())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "held, lost: not yet");
    let pid = Pid::from_raw(holder.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    fleet.eventually_empty(HANG).await;
    kill_process(pid, Signal::CONT).unwrap();
    writeln!(holder.stdin.take().unwrap()).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "lost: Expired, remaining: 0ns");
    assert!(holder.wait().unwrap().success());
}

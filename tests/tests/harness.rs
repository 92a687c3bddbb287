//! The tests leave nothing running, whatever becomes of them, and say what they need.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use redlock_tests::{Fleet, RedisServer, eventually};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

const SOON: Duration = Duration::from_secs(20);

fn is_alive(pid: u32) -> bool {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    test_kill_process(pid) != Err(Errno::SRCH)
}

async fn all_end(pids: &[u32]) {
    assert!(!pids.is_empty());
    eventually(SOON, "the servers to be gone", async || !pids.iter().any(|pid| is_alive(*pid)))
        .await;
}

fn pids(fleet: &Fleet) -> Vec<u32> {
    fleet.iter().map(RedisServer::pid).collect()
}

#[tokio::test]
async fn a_fleet_ends_with_its_test() {
    let fleet = Fleet::start(3).await;
    let pids = pids(&fleet);
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    drop(fleet);
    all_end(&pids).await;
}

#[tokio::test]
async fn a_fleet_ends_when_its_test_panics_also_one_that_is_paused() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let panics = tokio::spawn(async {
        let fleet = Fleet::start(3).await;
        fleet.pause(1);
        sender.send(pids(&fleet)).unwrap();
        panic!("this panic is part of the test");
    });
    assert!(panics.await.unwrap_err().is_panic());
    all_end(&receiver.await.unwrap()).await;
}

#[tokio::test]
async fn a_fleet_ends_when_its_process_is_killed() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_contender"))
        .arg("fleet")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let pids: Vec<u32> = lines.take(3).map(|line| line.unwrap().parse().unwrap()).collect();
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    process.kill().unwrap();
    process.wait().unwrap();
    all_end(&pids).await;
}

#[tokio::test]
async fn without_the_binary_the_command_that_installs_it_is_named() {
    let error = RedisServer::options().binary("redis-server-that-is-not-there").try_start().await;
    let said = error.unwrap_err().to_string();
    assert!(said.contains("apt-get install") && said.contains("redis-server"), "{said}");
}

#[tokio::test]
async fn a_server_that_comes_back_has_its_port_and_lost_its_data() {
    let fleet = Fleet::start(1).await;
    let port = fleet[0].port();
    fleet[0].set_foreign("k", "v", SOON).await;
    assert_eq!(fleet.total_keys().await, 1);
    fleet.kill(0);
    fleet.restart(0).await;
    assert_eq!((fleet[0].port(), fleet.total_keys().await), (port, 0));
}

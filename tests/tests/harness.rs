//! The tests leave nothing running, whatever becomes of them, and say what they need.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use redlock_core::{Config, Redlock, Safety};
use redlock_tests::{
    Fleet, History, Ledger, Monitor, RedisServer, Stamp, all_vote, check, eventually,
};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

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

/// A process with a fleet, and the process ids of the servers.
fn another_process(directory: &TempDir) -> (Child, Vec<u32>) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_contender"))
        .arg("fleet")
        // Whoever is killed cannot remove its temporary files.
        .env("TMPDIR", directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let pids = lines.take(3).map(|line| line.unwrap().parse().unwrap()).collect();
    (process, pids)
}

#[tokio::test]
async fn a_fleet_ends_when_its_process_is_killed() {
    let directory = TempDir::new().unwrap();
    let (mut process, pids) = another_process(&directory);
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    process.kill().unwrap();
    process.wait().unwrap();
    all_end(&pids).await;
}

/// Whoever ends a server's shell with a signal, the server is not left behind.
#[tokio::test]
async fn a_server_ends_with_the_shell_that_watches_it() {
    let signals = [Signal::TERM, Signal::HUP, Signal::INT, Signal::PIPE];
    for signal in signals.into_iter().filter(|signal| !is_ignored(*signal)) {
        let server = RedisServer::start().await;
        let shell = parent(server.pid());
        kill_process(Pid::from_raw(shell.try_into().unwrap()).unwrap(), signal).unwrap();
        all_end(&[server.pid()]).await;
    }
}

/// Whether this process was started to ignore `signal`, as `nohup` does: so do its shells then,
/// and they go on watching. SIGPIPE is ignored by Rust itself, and is not passed on.
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
    signal != Signal::PIPE && mask >> (signal.as_raw() - 1) & 1 == 1
}

fn parent(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    line.trim().parse().unwrap()
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

#[tokio::test]
async fn a_monitor_counts_what_comes_over_the_network_and_not_what_scripts_run() {
    let fleet = Fleet::start(3).await;
    let settings = Config::servers(fleet.urls()).safety(Safety::Plain);
    let redlock = Redlock::new(settings.node_deadline(Duration::from_secs(2)).build().unwrap());
    // What connections do when they are opened is over then, on all three.
    all_vote(&redlock).await;
    let monitor = Monitor::start(&fleet).await;
    redlock.lock("order").await.unwrap().release().await;
    redlock.close(SOON).await;
    let commands = monitor.commands(&fleet).await;
    assert_eq!(commands, [("evalsha".to_owned(), 3), ("set".to_owned(), 3)].into());
}

#[tokio::test]
async fn the_checker_finds_the_overlap_among_many_holds() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("history");
    let (one, two) = (History::to_file(&path).unwrap(), History::to_file(&path).unwrap());
    let until = Stamp::now() + SOON;
    for _ in 0..500 {
        for (history, client) in [(&one, "one"), (&two, "two")] {
            history.acquired("k", client, until);
            history.released("k", client);
        }
    }
    check(&History::read(&path).unwrap()).assert_exclusive();

    one.acquired("k", "one", until);
    two.acquired("k", "two", until);
    two.released("k", "two");
    one.released("k", "one");
    let verdict = check(&History::read(&path).unwrap());
    assert_eq!((verdict.holds, verdict.overlaps.len()), (1_002, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_misses_what_was_counted_without_a_lock() {
    let directory = TempDir::new().unwrap();
    let ledger = Ledger::file(&directory.path().join("ledger")).unwrap();
    for _ in 0..50 {
        ledger.increment().await;
    }
    assert_eq!(ledger.total().await, 50);
    join_all((0..50).map(|_| ledger.increment())).await;
    assert!(ledger.total().await < 100, "{} of 100", ledger.total().await);
}

//! Three processes of 64 tasks each want the same keys: never two at once. And a lock that does
//! not work is found out.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use redlock_tests::{Fleet, History, Ledger, Verdict, check};
use tempfile::TempDir;

const PROCESSES: usize = 3;
const SECONDS: u64 = 3;

/// What came of a contest.
struct Contest {
    verdict: Verdict,
    /// How often the processes counted, each.
    counted: Vec<u64>,
    /// What their ledgers say.
    total: u64,
}

async fn contest(fleet: &Fleet, lock: &str, disturb: impl AsyncFnOnce(&Fleet)) -> Contest {
    let directory = TempDir::new().unwrap();
    let contenders: Vec<_> = (0..PROCESSES)
        .map(|_| {
            Command::new(env!("CARGO_BIN_EXE_contender"))
                .arg(lock)
                .arg(directory.path())
                .arg(SECONDS.to_string())
                .args(fleet.urls())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    disturb(fleet).await;
    let mut counted = Vec::new();
    for contender in contenders {
        let output = tokio::task::spawn_blocking(|| contender.wait_with_output()).await;
        let output = output.unwrap().unwrap();
        assert!(output.status.success(), "a contender failed");
        counted.push(String::from_utf8(output.stdout).unwrap().trim().parse().unwrap());
    }
    let history = History::read(&directory.path().join("history")).unwrap();
    Contest { verdict: check(&history), counted, total: total(directory.path()).await }
}

async fn total(directory: &Path) -> u64 {
    let mut total = 0;
    for key in 0..8 {
        total += Ledger::file(&directory.join(format!("key-{key}"))).unwrap().total().await;
    }
    total
}

impl Contest {
    fn assert_exclusive(&self) {
        self.verdict.assert_exclusive();
        let counted: u64 = self.counted.iter().sum();
        assert_eq!(self.total, counted, "increments were lost");
        assert!(counted > 200, "only {counted} turns: nothing was contended");
        assert!(self.counted.iter().all(|counted| *counted > 0), "{:?}", self.counted);
    }
}

async fn undisturbed(_: &Fleet) {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_of_64_tasks_on_three_servers_exclude_each_other() {
    let fleet = Fleet::start(3).await;
    contest(&fleet, "sound", undisturbed).await.assert_exclusive();
    fleet.eventually_empty(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_of_64_tasks_on_five_servers_exclude_each_other() {
    let fleet = Fleet::start(5).await;
    contest(&fleet, "sound", undisturbed).await.assert_exclusive();
    fleet.eventually_empty(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_exclude_each_other_while_servers_hang_in_turn() {
    let fleet = Fleet::start(3).await;
    let hang_in_turn = async |fleet: &Fleet| {
        for turn in 0..8 {
            fleet.pause(turn % 3);
            tokio::time::sleep(Duration::from_millis(250)).await;
            fleet.resume(turn % 3);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    contest(&fleet, "sound", hang_in_turn).await.assert_exclusive();
    fleet.eventually_empty(Duration::from_secs(20)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_asks_one_server_is_found_out() {
    let fleet = Fleet::start(3).await;
    let contest = contest(&fleet, "broken", undisturbed).await;
    assert!(!contest.verdict.overlaps.is_empty(), "two held the same key, and nobody noticed");
    let counted: u64 = contest.counted.iter().sum();
    assert!(contest.total < counted, "{} of {counted} increments", contest.total);
}

//! A process that ends right after it dropped a guard: what is left on the servers then.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use redlock_tests::{Fleet, eventually};
use tokio::task::spawn_blocking;

const ROUNDS: usize = 10;

const SOON: Duration = Duration::from_secs(20);

/// How many keys are on the servers when `main` has returned, for both modes together.
async fn left_behind(flavor: &'static str, how: &'static str, fleet: &Fleet) -> usize {
    let mut left = 0;
    for safety in ["plain", "guarded"] {
        let urls = fleet.urls();
        let ended = spawn_blocking(move || {
            let mut main = Command::new(env!("CARGO_BIN_EXE_leaver"));
            main.args([flavor, how, safety]).args(urls).output().unwrap()
        });
        let ended = ended.await.unwrap();
        assert!(ended.status.success(), "{flavor}, {how}, {safety}: {ended:?}");
        // Looked at once: nothing is on its way from a process that is gone. The TTL is of minutes.
        left += fleet.total_keys().await;
        for server in fleet {
            server.delete("k").await;
        }
    }
    left
}

async fn nothing_is_left_behind(flavor: &'static str, how: &'static str) {
    let fleet = Fleet::start(3).await;
    let mut left = 0;
    for _ in 0..ROUNDS {
        left += left_behind(flavor, how, &fleet).await;
    }
    is_mostly_none(left, 2 * ROUNDS * 3);
}

/// A machine that is busy may need longer than the quarter of a second that a process waits.
fn is_mostly_none(left: usize, of: usize) {
    assert!(left * 10 <= of, "{left} of {of} keys are left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_dropped_at_the_end_of_a_main_with_threads_is_released() {
    nothing_is_left_behind("multi_thread", "drop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_dropped_at_the_end_of_a_main_with_one_thread_is_released() {
    nothing_is_left_behind("current_thread", "drop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_in_a_task_that_the_end_of_main_drops_is_released() {
    nothing_is_left_behind("multi_thread", "task").await;
    nothing_is_left_behind("current_thread", "task").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_dropped_after_the_runtime_of_main_has_ended_is_released() {
    nothing_is_left_behind("none", "drop").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_released_at_the_end_of_main_is_gone_from_all_servers() {
    for flavor in ["multi_thread", "current_thread"] {
        let fleet = Fleet::start(3).await;
        is_mostly_none(left_behind(flavor, "release", &fleet).await, 2 * 3);
    }
}

/// A `main` that has a lock and returns when its standard input ends.
struct Waiting(Child);

impl Waiting {
    fn start(flavor: &str, fleet: &Fleet) -> Self {
        let mut main = Command::new(env!("CARGO_BIN_EXE_leaver"));
        main.args([flavor, "told", "guarded"]).args(fleet.urls());
        let mut main = main.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(main.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "locked\n");
        Self(main)
    }

    fn returns(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_does_not_keep_the_end_of_main_from_releasing_on_the_others() {
    let mut left = 0;
    for flavor in ["multi_thread", "current_thread", "none"] {
        for silent in 0..3 {
            let fleet = Fleet::start(3).await;
            let main = Waiting::start(flavor, &fleet);
            eventually(SOON, "all three keys", async || fleet.total_keys().await == 3).await;
            fleet.pause(silent);
            main.returns();
            for node in (0..3).filter(|node| *node != silent) {
                left += fleet[node].keys().await.len();
            }
            fleet.resume(silent);
        }
    }
    is_mostly_none(left, 2 * 3 * 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_servers_keep_a_main_that_returns_for_a_moment_only() {
    for flavor in ["multi_thread", "current_thread", "none"] {
        let fleet = Fleet::start(3).await;
        let main = Waiting::start(flavor, &fleet);
        (0..3).for_each(|node| fleet.pause(node));
        let returns = Instant::now();
        main.returns();
        // It is a quarter of a second; a node deadline would be twenty.
        assert!(returns.elapsed() < Duration::from_secs(5), "{flavor}: {:?}", returns.elapsed());
        (0..3).for_each(|node| fleet.resume(node));
    }
}

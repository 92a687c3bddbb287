//! A few seconds of the harness that injects faults; `--bin faults` runs it for as long as you
//! like.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::time::Duration;

use redlock_tests::faults::{Kind, Options, Report, Switch, run};
use redlock_tests::{History, check};

async fn run_for_a_few_seconds(options: Options) -> Report {
    let options = Options { seconds: 8, every: Duration::from_millis(250).into(), ..options };
    let report = run(&options, Path::new(env!("CARGO_BIN_EXE_faults"))).await;
    println!("{report}");
    // One at a time takes time.
    let few = if options.spacing.is_some() { 2 } else { 10 };
    assert!(report.fault_count() > few, "hardly any faults");
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_holds_what_another_holds_whatever_fails() {
    let report = run_for_a_few_seconds(Options::new()).await;
    assert_eq!(report.problems(), Vec::<String>::new());
    assert!(report.tokens.checked >= report.exclusion.holds, "a lock without a token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_guard_two_hold_the_same_when_servers_lose_their_data() {
    let loses = vec![Kind::Kill, Kind::Flush, Kind::Promote];
    let options = Options { guard: Switch::Off, only: loses, ..Options::new() };
    let report = run_for_a_few_seconds(options).await;
    assert!(!report.exclusion.overlaps.is_empty(), "nobody noticed");
    assert_eq!(report.orphans, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_kept_can_be_judged_again() {
    let folder = tempfile::tempdir().unwrap();
    let keep = Some(folder.path().to_owned());
    let wanted =
        Options { keep, monitor: true, tasks: 8, keys: 40, hot: Some(2), ..Options::new() };
    let report = run_for_a_few_seconds(wanted).await;
    let history = History::read_all(&folder.path().join("history")).unwrap();
    assert_eq!(check(&history), report.exclusion);
    let lines = |name: &str| {
        std::fs::read_to_string(folder.path().join(name)).unwrap().lines().count() as u64
    };
    assert_eq!(lines("faults.jsonl"), report.fault_count() + report.faults_in_vain);
    assert!(lines("unknown-counters.jsonl") > 0, "no server forgot anything");
    assert!(lines("server-0.monitor") > 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_whose_clocks_are_set_give_a_lock_away_twice() {
    let options = Options { only: vec![Kind::Clock], guard: Switch::Off, ..Options::new() };
    let report = run_for_a_few_seconds(options).await;
    assert!(!report.exclusion.overlaps.is_empty(), "nobody noticed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_does_if_servers_whose_clocks_were_set_do_not_vote() {
    let skew = Some(Duration::from_millis(30).into());
    let one_at_a_time = Some(Duration::from_secs(2).into());
    let options = Options {
        only: vec![Kind::Clock],
        max_clock_skew: skew,
        spacing: one_at_a_time,
        ..Options::new()
    };
    let report = run_for_a_few_seconds(options).await;
    assert_eq!(report.problems(), Vec::<String>::new());
    assert!(report.exclusion.holds > 0, "nobody got a lock");
}

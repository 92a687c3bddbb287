//! A few seconds of the harness that injects faults; `--bin faults` runs it for as long as you
//! like.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::Path;
use std::time::Duration;

use redlock_tests::faults::{Kind, Options, Report, Switch, run};

async fn run_for_a_few_seconds(options: Options) -> Report {
    let options = Options { seconds: 8, every: Duration::from_millis(250).into(), ..options };
    let report = run(&options, Path::new(env!("CARGO_BIN_EXE_faults"))).await;
    println!("{report}");
    assert!(report.fault_count() > 10, "hardly any faults");
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

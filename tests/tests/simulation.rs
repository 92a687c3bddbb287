//! Simulated runs: a few hundred here, as many as wanted by
//! `cargo run --release -p redlock-tests --bin sim -- --seeds N`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use redlock_tests::simulation::{Mistake, Outcome, Simulation};

fn run(seed: u64, mistake: Option<Mistake>) -> Outcome {
    Simulation { seed, nodes: Simulation::nodes_of(seed), mistake }.run()
}

#[test]
fn no_run_has_two_holders_a_token_that_shrinks_a_key_that_is_left_or_no_lock_in_the_end() {
    let (mut holds, mut faults) = (0, 0);
    for seed in 0..200 {
        let outcome = run(seed, None);
        assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
        holds += outcome.holds;
        faults += outcome.faults;
    }
    assert!(holds > 2_000 && faults > 10_000, "{holds} locks, {faults} faults");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [1, 7, 42] {
        let first = run(seed, None);
        let lines = |outcome: &Outcome| outcome.lines.join("\n");
        assert!(first.lines.len() > 100, "{}", lines(&first));
        let again = run(seed, None);
        assert_eq!(lines(&again), lines(&first), "seed {seed}");
        assert_eq!(again.trace, first.trace);
        assert_ne!(run(seed + 1, None).trace, first.trace);
    }
}

#[test]
fn every_mistake_is_found() {
    for mistake in Mistake::ALL {
        let found = (0..400).find(|seed| !run(*seed, Some(mistake)).violations.is_empty());
        assert!(found.is_some(), "{mistake:?} is not found in 400 runs");
    }
}

//! What the models of the algorithm have to say, where a debug build says it within seconds.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use redlock_tests::model::cases::{Outcome, Verdict, all};
use redlock_tests::model::fence_rules::{Counter, Step, after_grants};
use redlock_tests::model::mutant::Mutant;

/// More than any of these needs: a search that grows shows.
const CAP: usize = 2_000_000;

fn outcome_of(model: &str) -> Outcome {
    let case = all().into_iter().find(|case| case.mutant().is_none() && case.to_string() == model);
    case.expect(model).run(CAP)
}

fn refutations_of(mutant: Mutant) -> Vec<Outcome> {
    let cases = all().into_iter().filter(|case| case.mutant() == Some(mutant));
    cases.map(|case| case.run(CAP)).collect()
}

#[track_caller]
fn assert_refuted(mutant: Mutant, fault: &str, last_words: &str) {
    for outcome in refutations_of(mutant) {
        assert_eq!(outcome.verdict, Verdict::Refuted, "{}", outcome.model);
        assert_eq!(outcome.fault, Some(fault), "{}", outcome.model);
        let last = outcome.trace.last().unwrap();
        assert!(last.ends_with(last_words), "{last}");
    }
}

#[test]
fn tokens_grow_whatever_expires_or_comes_late() {
    assert_eq!(outcome_of("fence (2,1)").verdict, Verdict::Holds);
    assert_eq!(outcome_of("fence (1,1,1)").verdict, Verdict::Holds);
}

#[test]
fn tokens_grow_while_clocks_propose_nonsense() {
    assert_eq!(outcome_of("fence (2,1), proposals [3, 3, 0]").verdict, Verdict::Holds);
}

#[test]
fn tokens_grow_while_a_server_loses_its_data() {
    assert_eq!(outcome_of("fence (1,1), crashes 1").verdict, Verdict::Holds);
}

#[test]
fn no_two_clients_hold_a_lock_while_clocks_drift_and_servers_lose_their_data() {
    let model = "quarantine (1,1), ttl 4, drift 1+1, crashes 1";
    assert_eq!(outcome_of(model).verdict, Verdict::Holds);
}

#[test]
fn no_two_clients_hold_a_lock_that_is_extended() {
    let model = "extension (1,1), ttl 4, drift 1+1, extensions 1";
    assert_eq!(outcome_of(model).verdict, Verdict::Holds);
}

/// Only a larger model than these finds out what happens otherwise: M19.
#[test]
fn whoever_counts_an_unknown_counter_asks_for_all() {
    let grants = [Counter::known(2), Counter::known(2), Counter::unknown(1, 0)];
    assert_eq!(after_grants(3, &grants), Step::Read);
}

#[test]
fn without_a_confirm_two_locks_have_the_same_token() {
    assert_refuted(Mutant::NoConfirm, "two locks have the same token", "RETURNS with token 2");
}

#[test]
fn a_confirmation_of_a_server_that_was_not_counted_gives_a_token_twice() {
    let fault = "two locks have the same token";
    assert_refuted(Mutant::UncountedConfirm, fault, "RETURNS with token 2");
}

#[test]
fn half_a_margin_or_a_short_quarantine_gives_a_lock_to_two() {
    for mutant in [Mutant::HalfMargin, Mutant::ShortQuarantine, Mutant::ReusedToken] {
        assert_refuted(mutant, "two clients hold the lock", "B1 HOLDS the lock");
    }
}

#[test]
fn a_search_that_is_cut_short_says_so() {
    let case = all().into_iter().find(|case| case.to_string() == "fence (2,1)").unwrap();
    assert_eq!(case.run(10_000).verdict, Verdict::HoldsSoFar);
}

#[test]
fn a_mistake_that_is_not_found_out_in_time_is_missed() {
    let case = all().into_iter().find(|case| case.mutant() == Some(Mutant::ConfirmOfAll)).unwrap();
    assert_eq!(case.run(10_000).verdict, Verdict::Missed);
}

/// A mistake that no case makes is a mistake that no model finds out.
#[test]
fn every_mistake_is_made_in_some_case() {
    use clap::ValueEnum;
    for mutant in Mutant::value_variants() {
        assert!(all().iter().any(|case| case.mutant() == Some(*mutant)), "{mutant}");
        let value = mutant.to_possible_value().unwrap();
        assert_eq!(value.get_name(), mutant.number());
    }
}

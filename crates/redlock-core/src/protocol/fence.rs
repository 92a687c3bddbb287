//! Fencing tokens over a majority: larger for every later lock of a key, whatever clocks, pauses
//! and networks do.
//!
//! Every node keeps a counter for the key and raises it with each grant. Counters alone are not
//! enough: the largest of a majority may stand on one node only, and the next majority need not
//! contain that node. So a token counts only once a majority has it *while it still holds the lock
//! for us*: a majority of those whose grants were counted, as a grant that was not may have raised
//! its counter further. Two such majorities share a node, and on that node one lock came before the
//! other: the later grant raised the counter above the earlier token.
//!
//! A node that lost its data does not know its counter, which is not the same as zero. If the grant
//! of one is counted, all nodes are asked, after the grants: a majority of counters that are known
//! contains a node that every earlier token has passed.

#![cfg_attr(not(feature = "test-util"), allow(unreachable_pub))]
#![allow(clippy::exhaustive_enums, clippy::exhaustive_structs, reason = "public to checkers only")]

pub use super::quorum::Counter;
use super::quorum::majority;

/// What makes a token larger than all earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FenceBasis {
    /// A majority of the servers remembers the earlier tokens: no clock is involved.
    Majority,
    /// A majority of the servers lost its data, or the key was never locked before: the token is
    /// larger if the wall clocks of those who lock agree to within one `max_ttl`.
    Clock,
}

/// What a lock that was won still needs for its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A majority has this token already.
    Done(u64),
    /// Have a majority take this token, of those whose grants were counted and that still hold the
    /// lock for us.
    Confirm {
        /// The token.
        token: u64,
        /// What makes it larger.
        basis: FenceBasis,
    },
    /// Ask all nodes for their counters, then see [`after_reads`].
    Read,
    /// There is no token now: it could be smaller than one that a node remembers which does not
    /// answer.
    Stuck,
}

/// What follows from the counters that came with the grants that are counted, of a majority out of
/// `nodes`.
#[must_use]
pub fn after_grants(nodes: usize, grants: &[Counter]) -> Step {
    let quorum = majority(nodes);
    if grants.len() < quorum || grants.iter().any(|grant| !grant.known) {
        return Step::Read;
    }
    let token = largest(grants);
    let have_it = grants.iter().filter(|counter| counter.value == token);
    if have_it.count() >= quorum {
        Step::Done(token)
    } else {
        Step::Confirm { token, basis: FenceBasis::Majority }
    }
}

/// What follows when the counters of all nodes were read after the grants were in. `proposal` is
/// what the nodes were asked to raise their counters to.
#[must_use]
pub fn after_reads(nodes: usize, grants: &[Counter], reads: &[Counter], proposal: u64) -> Step {
    let (known, unknown): (Vec<Counter>, Vec<Counter>) =
        reads.iter().partition(|counter| counter.known);
    let granted = largest(grants);
    if known.len() >= majority(nodes) {
        let token = granted.max(largest(&known).saturating_add(1));
        Step::Confirm { token, basis: FenceBasis::Majority }
    } else if unknown.len() >= majority(nodes) {
        Step::Confirm { token: granted.max(proposal), basis: FenceBasis::Clock }
    } else {
        Step::Stuck
    }
}

/// What a node that lost its counter can be taught, from what all others were asked after it had
/// said so: with it, the node is as good as one that never lost it. Every token that it once had is
/// one of a lock that has ended since, and stands on a majority; so do some of those who remember.
#[must_use]
pub fn to_learn(nodes: usize, reads: &[Counter]) -> Option<u64> {
    let known: Vec<Counter> = reads.iter().copied().filter(|counter| counter.known).collect();
    (known.len() >= majority(nodes)).then(|| largest(&known))
}

fn largest(counters: &[Counter]) -> u64 {
    counters.iter().map(|counter| counter.value).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn known(value: u64) -> Counter {
        Counter::known(value)
    }

    const fn unknown(value: u64) -> Counter {
        Counter::unknown(value, 9)
    }

    #[test]
    fn a_majority_that_agrees_is_done_in_one_round_trip() {
        assert_eq!(after_grants(3, &[known(7), known(7)]), Step::Done(7));
        assert_eq!(after_grants(5, &[known(7), known(6), known(7), known(7)]), Step::Done(7));
        assert_eq!(after_grants(1, &[known(1)]), Step::Done(1));
    }

    #[test]
    fn the_largest_counter_of_a_majority_that_disagrees_is_to_be_confirmed() {
        let confirm = |token| Step::Confirm { token, basis: FenceBasis::Majority };
        assert_eq!(after_grants(3, &[known(11), known(2)]), confirm(11));
        assert_eq!(after_grants(3, &[known(2), known(11), known(2)]), confirm(11));
    }

    #[test]
    fn an_unknown_counter_or_less_than_a_majority_is_no_basis() {
        assert_eq!(after_grants(3, &[known(7), unknown(7)]), Step::Read);
        assert_eq!(after_grants(3, &[unknown(7), unknown(7), unknown(7)]), Step::Read);
        assert_eq!(after_grants(3, &[known(2), known(2), unknown(2)]), Step::Read);
        assert_eq!(after_grants(3, &[known(7)]), Step::Read);
    }

    #[test]
    fn a_token_after_a_read_is_larger_than_what_a_majority_remembers() {
        let step = after_reads(3, &[unknown(5), known(5)], &[known(8), known(5)], 5);
        assert_eq!(step, Step::Confirm { token: 9, basis: FenceBasis::Majority });
        let step = after_reads(3, &[unknown(20), known(5)], &[known(8), known(5)], 5);
        assert_eq!(step, Step::Confirm { token: 20, basis: FenceBasis::Majority });
    }

    #[test]
    fn after_the_loss_of_a_majority_only_clocks_order_the_tokens() {
        let lost = [known(8), unknown(5), unknown(4)];
        let step = after_reads(3, &[unknown(5), unknown(4)], &lost, 6);
        assert_eq!(step, Step::Confirm { token: 6, basis: FenceBasis::Clock });
        let step = after_reads(3, &[unknown(9), unknown(4)], &lost[1..], 6);
        assert_eq!(step, Step::Confirm { token: 9, basis: FenceBasis::Clock });
    }

    /// One node lost its data, one does not answer: what it remembers may be larger.
    #[test]
    fn without_a_majority_that_knows_or_forgot_there_is_no_token() {
        let grants = [unknown(5), known(5)];
        assert_eq!(after_reads(3, &grants, &[unknown(5), known(5)], 6), Step::Stuck);
        assert_eq!(after_reads(3, &grants, &[known(5)], 6), Step::Stuck);
    }

    #[test]
    fn only_what_a_majority_remembers_is_taught() {
        assert_eq!(to_learn(3, &[known(8), unknown(20), known(5)]), Some(8));
        assert_eq!(to_learn(3, &[known(8), unknown(20)]), None);
        assert_eq!(to_learn(5, &[known(8), known(9), unknown(20)]), None);
    }

    fn counters() -> impl Strategy<Value = Vec<Counter>> {
        let counter = (0_u64..9, any::<bool>());
        let counter = counter.prop_map(|(value, is_known)| match is_known {
            true => known(value),
            false => unknown(value),
        });
        prop::collection::vec(counter, 0..=5)
    }

    proptest! {
        /// Every node that granted has raised its own counter: a smaller token would be older than
        /// what that node has seen.
        #[test]
        fn no_token_is_smaller_than_any_grant(
            grants in counters(), reads in counters(), proposal in 0_u64..9,
        ) {
            let steps = [after_grants(5, &grants), after_reads(5, &grants, &reads, proposal)];
            for step in steps {
                let token = match step {
                    Step::Done(token) | Step::Confirm { token, .. } => token,
                    Step::Read | Step::Stuck => continue,
                };
                prop_assert!(grants.iter().all(|grant| grant.value <= token));
            }
        }

        #[test]
        fn what_is_done_stands_on_a_majority(grants in counters()) {
            if let Step::Done(token) = after_grants(5, &grants) {
                let have_it = grants.iter().filter(|grant| **grant == known(token)).count();
                prop_assert!(have_it >= 3);
            }
        }

        #[test]
        fn a_basis_of_a_majority_has_passed_what_a_majority_knows(
            grants in counters(), reads in counters(),
        ) {
            let step = after_reads(5, &grants, &reads, 0);
            if let Step::Confirm { token, basis: FenceBasis::Majority } = step {
                let known: Vec<_> = reads.iter().filter(|read| read.known).collect();
                prop_assert!(known.len() >= 3);
                prop_assert!(known.iter().all(|read| read.value < token));
            }
        }
    }
}

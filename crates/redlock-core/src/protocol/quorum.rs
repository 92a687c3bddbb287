//! Votes of a group's nodes and the verdict they add up to.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};

/// How one node answered one command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeAnswer {
    /// The node did what was asked: it set, extended or deleted the key for our token.
    Granted,
    /// Somebody else's token is on the key.
    Held {
        /// The holder's label, if the value on the key is one of this library's tokens.
        label: Option<Arc<str>>,
        /// How long the key still lives on that node, if it was asked.
        remaining: Option<Duration>,
    },
    /// Nobody holds the key on that node.
    NotHeld,
    /// The node may have forgotten locks: it lost its data, or was never used before. It votes
    /// again when none of them can be left.
    Quarantined {
        /// In how long that is.
        ready_in: Duration,
    },
    /// The node's wall clock and this process's differ by more than
    /// [`max_clock_skew`](crate::ConfigBuilder::max_clock_skew): it may drop keys too soon. The
    /// command was not executed.
    Skewed {
        /// Whether the node's clock is the one that is ahead.
        ahead: bool,
        /// By how much they differ.
        by: Duration,
    },
    /// The command was certainly not executed, and why.
    Refused(Arc<str>),
    /// No answer within the node deadline; the command may have been executed.
    TimedOut,
    /// The answer was lost or could not be understood; the command may have been executed.
    Failed(Arc<str>),
    /// The verdict did not need this node's answer.
    NoAnswer,
}

impl NodeAnswer {
    /// Whether somebody else's token is on the key.
    pub(crate) const fn is_held(&self) -> bool {
        matches!(self, Self::Held { .. })
    }

    /// Whether the node took part in the vote, for us or against us.
    pub(crate) const fn is_vote(&self) -> bool {
        matches!(self, Self::Granted | Self::Held { .. } | Self::NotHeld)
    }

    /// Whether the command may have left a key behind. Only a certain "no" is exempt (H10).
    pub(crate) const fn may_have_executed(&self) -> bool {
        !matches!(self, Self::Refused(_) | Self::Quarantined { .. } | Self::Skewed { .. })
    }

    /// Of a node whose clock is ahead by so many milliseconds, or behind if there are fewer than
    /// none.
    pub(crate) const fn skewed(ahead: i64) -> Self {
        Self::Skewed { ahead: ahead > 0, by: Duration::from_millis(ahead.unsigned_abs()) }
    }

    /// Whether the node has looked at its clock before it answered, and did not object.
    const fn agrees_about_the_time(&self) -> bool {
        self.is_vote() || matches!(self, Self::Quarantined { .. })
    }
}

impl fmt::Display for NodeAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted => f.write_str("granted"),
            Self::Held { label, remaining } => {
                f.write_str("held")?;
                if let Some(label) = label {
                    write!(f, " by {label}")?;
                }
                if let Some(remaining) = remaining {
                    write!(f, " for {remaining:.1?}")?;
                }
                Ok(())
            }
            Self::NotHeld => f.write_str("not held"),
            Self::Quarantined { ready_in } => {
                write!(f, "quarantined for another {ready_in:.1?}, as it may have forgotten locks")
            }
            Self::Skewed { ahead, by } => {
                let direction = if *ahead { "ahead of" } else { "behind" };
                write!(f, "its clock is {by:.1?} {direction} ours, see max_clock_skew")
            }
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Failed(why) => write!(f, "failed: {why}"),
            Self::NoAnswer => f.write_str("no answer yet"),
        }
    }
}

/// A node's counter for a key, as told with a grant or when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(unreachable_pub, clippy::exhaustive_structs, reason = "public to checkers only")]
pub struct Counter {
    /// The last token that the node has seen; with a grant, the one that it raised it to.
    pub value: u64,
    /// Whether the node kept its counter for as long as there have been locks. One that lost its
    /// data knows only the locks since.
    pub known: bool,
    /// When the node's last quarantine ended, if it does not know its counter: what it is taught
    /// must not outlive another loss.
    pub since: u64,
}

#[allow(unreachable_pub, reason = "public to checkers only")]
impl Counter {
    /// A counter that was never lost.
    #[must_use]
    pub const fn known(value: u64) -> Self {
        Self { value, known: true, since: 0 }
    }

    /// One that was lost.
    #[must_use]
    pub const fn unknown(value: u64, since: u64) -> Self {
        Self { value, known: false, since }
    }
}

/// An answer, and the counter that came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vote {
    pub(crate) answer: NodeAnswer,
    pub(crate) counter: Option<Counter>,
}

impl From<NodeAnswer> for Vote {
    fn from(answer: NodeAnswer) -> Self {
        Self { answer, counter: None }
    }
}

/// What the answers of a group add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A majority of the whole group granted.
    Granted,
    /// A majority answered, and it can't be a majority for us.
    Denied,
    /// No majority answered.
    Unavailable,
}

/// The answer of a majority of the whole group to a question of yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Majority {
    Yes,
    No,
    /// Neither, and no answer is missing that could change it: those nodes decide that refused,
    /// failed or were silent.
    Open,
}

impl Majority {
    /// `None` while it depends on the answers that are still `missing`.
    const fn of(yes: usize, no: usize, missing: usize, nodes: usize) -> Option<Self> {
        let quorum = majority(nodes);
        if yes >= quorum {
            Some(Self::Yes)
        } else if no >= quorum {
            Some(Self::No)
        } else if yes + missing >= quorum || no + missing >= quorum {
            None
        } else {
            Some(Self::Open)
        }
    }
}

/// The smallest number of nodes of which any two choices out of `nodes` share one.
pub(crate) const fn majority(nodes: usize) -> usize {
    nodes / 2 + 1
}

/// The answers of so many nodes take no allocation of their own.
const USUAL_NODES: usize = 3;

/// The answers to one command that was sent to every node of a group.
#[derive(Debug)]
pub(crate) struct Ballot {
    answers: SmallVec<[NodeAnswer; USUAL_NODES]>,
    /// One per node, or none at all so far.
    counters: SmallVec<[Option<Counter>; USUAL_NODES]>,
    granted: usize,
    denied: usize,
    failed: usize,
    verdict: Option<Verdict>,
}

impl Ballot {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            answers: smallvec![NodeAnswer::NoAnswer; nodes],
            counters: SmallVec::new(),
            granted: 0,
            denied: 0,
            failed: 0,
            // Nobody will ever answer.
            verdict: (nodes == 0).then_some(Verdict::Unavailable),
        }
    }

    /// Counts a node's answer; its first one stands. The verdict comes as soon as no answer that
    /// is still missing could change it, and does not change afterwards.
    pub(crate) fn record(&mut self, node: usize, vote: impl Into<Vote>) -> Option<Verdict> {
        let Vote { answer, counter } = vote.into();
        let Some(slot @ NodeAnswer::NoAnswer) = self.answers.get_mut(node) else {
            return self.verdict;
        };
        match &answer {
            NodeAnswer::Granted => self.granted += 1,
            NodeAnswer::Held { .. } | NodeAnswer::NotHeld => self.denied += 1,
            NodeAnswer::Quarantined { .. }
            | NodeAnswer::Skewed { .. }
            | NodeAnswer::Refused(_)
            | NodeAnswer::TimedOut
            | NodeAnswer::Failed(_) => self.failed += 1,
            NodeAnswer::NoAnswer => return self.verdict,
        }
        *slot = answer;
        if let Some(counter) = counter {
            self.note_counter(node, counter);
        }
        self.verdict = self.verdict.or_else(|| self.count());
        self.verdict
    }

    fn note_counter(&mut self, node: usize, counter: Counter) {
        if self.counters.is_empty() {
            self.counters.resize(self.answers.len(), None);
        }
        if let Some(slot) = self.counters.get_mut(node) {
            *slot = Some(counter);
        }
    }

    fn count(&self) -> Option<Verdict> {
        let quorum = majority(self.answers.len());
        let answered = self.granted + self.denied;
        let missing = self.missing();
        if self.granted >= quorum {
            Some(Verdict::Granted)
        } else if self.granted + missing >= quorum {
            None
        } else if answered >= quorum {
            Some(Verdict::Denied)
        } else if answered + missing < quorum {
            Some(Verdict::Unavailable)
        } else {
            None
        }
    }

    pub(crate) const fn verdict(&self) -> Option<Verdict> {
        self.verdict
    }

    fn missing(&self) -> usize {
        self.answers.len() - self.granted - self.denied - self.failed
    }

    /// Whether the key is, or was, ours. Unlike the verdict on an acquisition, "no" takes a majority
    /// as well: a node that lost the key and one that is silent say nothing about a lock on three.
    pub(crate) fn ours(&self) -> Option<Majority> {
        Majority::of(self.granted, self.denied, self.missing(), self.answers.len())
    }

    /// Whether anybody has the key, if the nodes were asked for that.
    pub(crate) fn held(&self) -> Option<Majority> {
        let held = self.answers.iter().filter(|answer| answer.is_held()).count();
        let free = self.denied.saturating_sub(held);
        Majority::of(held, free, self.missing(), self.answers.len())
    }

    /// Nodes whose clock differs from ours while those of a majority do not.
    pub(crate) fn distrusted(&self) -> Vec<usize> {
        let is_skewed = |answer: &NodeAnswer| matches!(answer, NodeAnswer::Skewed { .. });
        let agree = self.answers.iter().filter(|answer| answer.agrees_about_the_time()).count();
        if agree < majority(self.answers.len()) {
            return Vec::new();
        }
        let nodes = self.answers.iter().enumerate();
        nodes.filter(|(_, answer)| is_skewed(answer)).map(|(node, _)| node).collect()
    }

    pub(crate) fn answers(&self) -> &[NodeAnswer] {
        &self.answers
    }

    /// The counters that came with the answers so far, and whose they are.
    pub(crate) fn counters(&self) -> impl Iterator<Item = (usize, Counter)> {
        let nodes = self.counters.iter().enumerate();
        nodes.filter_map(|(node, counter)| Some((node, (*counter)?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer() -> impl Strategy<Value = NodeAnswer> {
        prop_oneof![
            Just(NodeAnswer::Granted),
            Just(NodeAnswer::Held { label: None, remaining: None }),
            Just(NodeAnswer::NotHeld),
            Just(NodeAnswer::Quarantined { ready_in: Duration::from_secs(1) }),
            Just(NodeAnswer::skewed(-5_000)),
            Just(NodeAnswer::Refused("down".into())),
            Just(NodeAnswer::TimedOut),
            Just(NodeAnswer::Failed("cut".into())),
        ]
    }

    fn ballot(answers: &[NodeAnswer]) -> Ballot {
        let mut ballot = Ballot::new(answers.len());
        for (node, answer) in answers.iter().enumerate() {
            ballot.record(node, answer.clone());
        }
        assert_eq!(ballot.answers(), answers);
        ballot
    }

    fn verdict_of(answers: &[NodeAnswer]) -> Option<Verdict> {
        ballot(answers).verdict()
    }

    #[test]
    fn a_majority_is_more_than_half() {
        let sizes: Vec<usize> = (1..=9).map(majority).collect();
        assert_eq!(sizes, [1, 2, 2, 3, 3, 4, 4, 5, 5]);
    }

    #[test]
    fn a_clock_is_distrusted_only_if_a_majority_agrees_with_ours() {
        let (granted, skewed) = (NodeAnswer::Granted, NodeAnswer::skewed(5_000));
        let quarantined = NodeAnswer::Quarantined { ready_in: Duration::from_secs(1) };
        let distrusted = |answers: &[NodeAnswer]| ballot(answers).distrusted();
        assert_eq!(distrusted(&[granted.clone(), skewed.clone(), quarantined]), [1]);
        let alone: [usize; 0] = [];
        assert_eq!(distrusted(&[granted.clone(), skewed.clone(), NodeAnswer::TimedOut]), alone);
        assert_eq!(distrusted(&[granted, skewed.clone(), skewed]), alone);
    }

    #[test]
    fn a_clock_is_ahead_or_behind_by_what_the_node_says() {
        let skewed =
            |ahead, millis| NodeAnswer::Skewed { ahead, by: Duration::from_millis(millis) };
        assert_eq!(NodeAnswer::skewed(7), skewed(true, 7));
        assert_eq!(NodeAnswer::skewed(-7), skewed(false, 7));
        assert_eq!(NodeAnswer::skewed(0), skewed(false, 0));
    }

    #[test]
    fn two_of_three_grants_decide_without_the_third() {
        let mut ballot = Ballot::new(3);
        assert_eq!(ballot.record(0, NodeAnswer::Granted), None);
        assert_eq!(ballot.record(2, NodeAnswer::Granted), Some(Verdict::Granted));
        assert_eq!(ballot.record(1, NodeAnswer::NotHeld), Some(Verdict::Granted));
    }

    #[test]
    fn one_denial_one_failure_waits_for_the_last_node_to_tell_contended_from_unavailable() {
        let mut ballot = Ballot::new(3);
        ballot.record(0, NodeAnswer::NotHeld);
        assert_eq!(ballot.record(1, NodeAnswer::TimedOut), None);
        assert_eq!(ballot.record(2, NodeAnswer::Granted), Some(Verdict::Denied));
    }

    /// Every way in which so many nodes can answer.
    fn all_answers(nodes: usize) -> impl Iterator<Item = Vec<NodeAnswer>> {
        let answers = [
            NodeAnswer::Granted,
            NodeAnswer::NotHeld,
            NodeAnswer::Held { label: None, remaining: None },
            NodeAnswer::Failed("cut".into()),
            NodeAnswer::TimedOut,
            NodeAnswer::Refused("down".into()),
            NodeAnswer::Quarantined { ready_in: Duration::from_secs(1) },
            NodeAnswer::skewed(5_000),
        ];
        (0..answers.len().pow(u32::try_from(nodes).unwrap())).map(move |number| {
            let digit = |node: usize| number / answers.len().pow(node as u32) % answers.len();
            (0..nodes).map(|node| answers[digit(node)].clone()).collect()
        })
    }

    /// The answer that holds in every case: nodes without a vote may have the key or not.
    fn certainly(
        answers: &[NodeAnswer],
        yes: impl Fn(&NodeAnswer) -> bool,
        no: impl Fn(&NodeAnswer) -> bool,
    ) -> Majority {
        let quorum = majority(answers.len());
        let sure = answers.iter().filter(|answer| yes(answer)).count();
        let possible = answers.iter().filter(|answer| !no(answer)).count();
        match (sure >= quorum, possible >= quorum) {
            (true, _) => Majority::Yes,
            (_, false) => Majority::No,
            _ => Majority::Open,
        }
    }

    #[test]
    fn ownership_is_open_whenever_nodes_without_a_vote_could_change_it() {
        for answers in [1, 3, 5].into_iter().flat_map(all_answers) {
            let is_granted = |answer: &NodeAnswer| *answer == NodeAnswer::Granted;
            let is_denied = |answer: &NodeAnswer| answer.is_vote() && !is_granted(answer);
            let ours = certainly(&answers, is_granted, is_denied);
            let mut ballot = Ballot::new(answers.len());
            for (node, answer) in answers.iter().enumerate() {
                ballot.record(node, answer.clone());
                let early = ballot.ours();
                assert!(early.is_none_or(|early| early == ours), "{early:?} of {answers:?}");
            }
            assert_eq!(ballot.ours(), Some(ours), "{answers:?}");
        }
    }

    #[test]
    fn presence_is_open_whenever_nodes_without_a_vote_could_change_it() {
        // An inspection is granted nothing.
        let looks = |answers: &Vec<NodeAnswer>| !answers.contains(&NodeAnswer::Granted);
        for answers in [1, 3, 5].into_iter().flat_map(all_answers).filter(looks) {
            let is_free = |answer: &NodeAnswer| *answer == NodeAnswer::NotHeld;
            let held = certainly(&answers, NodeAnswer::is_held, is_free);
            let mut ballot = Ballot::new(answers.len());
            for (node, answer) in answers.iter().enumerate() {
                ballot.record(node, answer.clone());
                let early = ballot.held();
                assert!(early.is_none_or(|early| early == held), "{early:?} of {answers:?}");
            }
            assert_eq!(ballot.held(), Some(held), "{answers:?}");
        }
    }

    #[test]
    fn a_second_answer_of_a_node_does_not_count() {
        let mut ballot = Ballot::new(3);
        ballot.record(0, NodeAnswer::Granted);
        assert_eq!(ballot.record(0, NodeAnswer::Granted), None);
    }

    #[test]
    fn an_answer_of_a_node_outside_the_group_does_not_count() {
        let mut ballot = Ballot::new(1);
        assert_eq!(ballot.record(7, NodeAnswer::Granted), None);
    }

    #[test]
    fn a_key_is_held_only_by_what_is_on_it() {
        let held = NodeAnswer::Held { label: None, remaining: None };
        assert!(held.is_held());
        for other in [NodeAnswer::Granted, NodeAnswer::NotHeld, NodeAnswer::TimedOut] {
            assert!(!other.is_held(), "{other}");
        }
    }

    #[test]
    fn a_counter_is_kept_with_the_node_that_told_it_first() {
        let granted =
            |value| Vote { answer: NodeAnswer::Granted, counter: Some(Counter::known(value)) };
        let mut ballot = Ballot::new(3);
        ballot.record(0, NodeAnswer::TimedOut);
        ballot.record(2, granted(7));
        ballot.record(2, granted(9));
        assert_eq!(ballot.counters().collect::<Vec<_>>(), [(2, Counter::known(7))]);
    }

    #[test]
    fn every_answer_reads_as_what_the_node_did() {
        let held = |label: Option<&str>, remaining| NodeAnswer::Held {
            label: label.map(Into::into),
            remaining,
        };
        for (answer, text) in [
            (NodeAnswer::Granted, "granted"),
            (held(None, None), "held"),
            (held(Some("web/1"), Some(Duration::from_millis(1_500))), "held by web/1 for 1.5s"),
            (NodeAnswer::NotHeld, "not held"),
            (NodeAnswer::Refused("down".into()), "refused: down"),
            (NodeAnswer::TimedOut, "timed out"),
            (NodeAnswer::Failed("cut".into()), "failed: cut"),
            (NodeAnswer::NoAnswer, "no answer yet"),
        ] {
            assert_eq!(answer.to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn every_full_ballot_has_the_verdict_of_its_counts(
            answers in (0_usize..5).prop_flat_map(|half| prop::collection::vec(answer(), 2 * half + 1)),
        ) {
            let quorum = majority(answers.len());
            let granted = answers.iter().filter(|a| **a == NodeAnswer::Granted).count();
            let voted = answers.iter().filter(|a| a.is_vote()).count();
            let expected = if granted >= quorum {
                Verdict::Granted
            } else if voted >= quorum {
                Verdict::Denied
            } else {
                Verdict::Unavailable
            };
            prop_assert_eq!(verdict_of(&answers), Some(expected));
        }

        #[test]
        fn a_verdict_never_changes(
            answers in prop::collection::vec(answer(), 5),
            order in Just((0_usize..5).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut ballot = Ballot::new(5);
            let mut first = None;
            for node in order {
                let verdict = ballot.record(node, answers[node].clone());
                prop_assert!(first.is_none() || verdict == first);
                first = verdict;
            }
            prop_assert_eq!(first, verdict_of(&answers));
        }
    }
}

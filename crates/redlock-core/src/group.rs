//! A group: what is asked of all its nodes at once.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::error::{LockError, NodeReport};
use crate::fencing::Highest;
use crate::key::Key;
use crate::node::{Command, Node, Op};
use crate::protocol::quorum::{Ballot, NodeAnswer};
use crate::round::{Round, Seat};
use crate::token::Token;

/// Independent servers that vote on the same keys.
#[derive(Debug)]
pub(crate) struct Group {
    nodes: Box<[Arc<dyn Node>]>,
    /// After which time a node that is down is tried again at the latest.
    back_within: Duration,
    highest: Highest,
    /// When nodes that lost their counters may be taught next; `None` while that is under way.
    pub(crate) next_lesson: Mutex<Option<Instant>>,
}

impl Group {
    pub(crate) fn new(nodes: Vec<Arc<dyn Node>>, back_within: Duration) -> Self {
        Self {
            nodes: nodes.into_boxed_slice(),
            back_within,
            highest: Highest::default(),
            next_lesson: Mutex::new(Some(Instant::now())),
        }
    }

    pub(crate) fn back_within(&self) -> Duration {
        self.back_within
    }

    /// The largest fencing tokens that were seen.
    pub(crate) fn highest(&self) -> &Highest {
        &self.highest
    }

    pub(crate) fn nodes(&self) -> &[Arc<dyn Node>] {
        &self.nodes
    }

    /// Posts a command to every node; the votes come in on the round.
    pub(crate) fn post(&self, op: Op, key: &Key, token: &Token) -> Arc<Round> {
        let round = Arc::new(Round::new(self.nodes.len()));
        for seat in 0..self.nodes.len() {
            self.post_to(seat, op, key, token, &round);
        }
        round
    }

    /// Posts a command to one node; the round is about its vote alone.
    pub(crate) fn post_alone(&self, node: usize, op: Op, key: &Key, token: &Token) -> Arc<Round> {
        let round = Arc::new(Round::new(1));
        let seat = Seat::new(Arc::clone(&round), 0);
        self.nodes[node].post(Command { op, key: key.clone(), token: token.clone(), seat });
        round
    }

    /// Posts a command to every node and waits for each to answer it.
    pub(crate) async fn ask_each(&self, op: Op, key: &Key, token: &Token) -> Vec<NodeReport> {
        let alone = |node| self.post_alone(node, op, key, token);
        let rounds: Vec<Arc<Round>> = (0..self.nodes.len()).map(alone).collect();
        let mut reports = Vec::with_capacity(rounds.len());
        for (node, round) in self.nodes.iter().zip(rounds) {
            round.verdict().await;
            let answer = round.inspect(|ballot| ballot.answers()[0].clone());
            reports.push(NodeReport::new(node.address(), answer));
        }
        reports
    }

    /// Posts the release of what `acquired` may have set: everywhere but where it certainly was
    /// not executed, also where the answer was "no" or is still missing.
    pub(crate) fn release(&self, key: &Key, token: &Token, acquired: &Round) -> Arc<Round> {
        self.undo(Op::Release, key, token, acquired)
    }

    /// Like [`release`](Self::release); the answers say who has the key instead.
    pub(crate) fn reclaim(&self, key: &Key, token: &Token, acquired: &Round) -> Arc<Round> {
        self.undo(Op::Reclaim, key, token, acquired)
    }

    /// Where `acquired` may have set the key.
    fn touched(acquired: &Round) -> SmallVec<[bool; 8]> {
        acquired
            .inspect(|ballot| ballot.answers().iter().map(NodeAnswer::may_have_executed).collect())
    }

    fn undo(&self, op: Op, key: &Key, token: &Token, acquired: &Round) -> Arc<Round> {
        let touched = Self::touched(acquired);
        self.post_where(|node| touched[node], op, key, token, &NodeAnswer::NotHeld)
    }

    /// Posts the release of the lock that `acquired` had won, and right behind it `next`, to each
    /// node in one piece. Returns the rounds of the two, that of `next` first.
    pub(crate) fn succeed(
        &self,
        key: &Key,
        (token, acquired): (&Token, &Round),
        next: (Op, &Token),
    ) -> (Arc<Round>, Arc<Round>) {
        let touched = Self::touched(acquired);
        let round = || Arc::new(Round::new(self.nodes.len()));
        let (taken, released) = (round(), round());
        for (seat, (node, touched)) in self.nodes.iter().zip(touched).enumerate() {
            let command = |(op, token): (Op, &Token), round: &Arc<Round>| Command {
                op,
                key: key.clone(),
                token: token.clone(),
                seat: Seat::new(Arc::clone(round), seat),
            };
            if touched {
                let release = command((Op::Release, token), &released);
                node.post_both(release, command(next, &taken));
            } else {
                released.answer(seat, NodeAnswer::NotHeld);
                node.post(command(next, &taken));
            }
        }
        (taken, released)
    }

    /// Has those of `granted` take a fencing token. The others may hold the lock for us by now, and
    /// their counters may be past it (M16, M17 of the models).
    pub(crate) fn confirm(
        &self,
        fence: u64,
        granted: &[usize],
        key: &Key,
        token: &Token,
    ) -> Arc<Round> {
        let not_counted = NodeAnswer::Refused("its grant came too late to be counted".into());
        let counted = |node: usize| granted.contains(&node);
        self.post_where(counted, Op::Confirm { fence }, key, token, &not_counted)
    }

    /// Has those nodes not vote for a while whose clocks a majority finds wrong, as `asked` tells:
    /// what they held may have expired too soon. Nobody waits for their answers.
    pub(crate) fn distrust_clocks(&self, asked: &Round, key: &Key, token: &Token) {
        for node in asked.inspect(Ballot::distrusted) {
            self.post_alone(node, Op::Distrust, key, token);
        }
    }

    /// Posts a command to some of the nodes; for the others the answer is known.
    fn post_where(
        &self,
        is_asked: impl Fn(usize) -> bool,
        op: Op,
        key: &Key,
        token: &Token,
        otherwise: &NodeAnswer,
    ) -> Arc<Round> {
        let round = Arc::new(Round::new(self.nodes.len()));
        for seat in 0..self.nodes.len() {
            if is_asked(seat) {
                self.post_to(seat, op, key, token, &round);
            } else {
                round.answer(seat, otherwise.clone());
            }
        }
        round
    }

    /// The answers of a round by node, for an error.
    pub(crate) fn report(&self, round: &Round) -> Vec<NodeReport> {
        round.inspect(|ballot| {
            self.nodes
                .iter()
                .zip(ballot.answers())
                .map(|(node, answer)| NodeReport::new(node.address(), answer.clone()))
                .collect()
        })
    }

    /// The error of a round in which no majority answered.
    pub(crate) fn unavailable(&self, round: &Round) -> LockError {
        LockError::unavailable(self.report(round), self.back_within)
    }

    fn post_to(&self, seat: usize, op: Op, key: &Key, token: &Token, round: &Arc<Round>) {
        self.nodes[seat].post(Command {
            op,
            key: key.clone(),
            token: token.clone(),
            seat: Seat::new(Arc::clone(round), seat),
        });
    }
}

//! One command for every node of a group, and the round of votes it starts.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use crate::error::NodeReport;
use crate::key::Key;
use crate::node::{Command, Node, Op, Seat};
use crate::protocol::quorum::{Ballot, NodeAnswer, Verdict};
use crate::token::Token;

/// Independent servers that vote on the same keys.
#[derive(Debug)]
pub(crate) struct Group {
    nodes: Box<[Arc<dyn Node>]>,
}

impl Group {
    pub(crate) fn new(nodes: Vec<Arc<dyn Node>>) -> Self {
        Self { nodes: nodes.into_boxed_slice() }
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

    /// Posts the release of what `acquired` may have set: everywhere but where it certainly was
    /// not executed, also where the answer was "no" or is still missing.
    /// With `report` the answers say who has the key instead.
    pub(crate) fn release(
        &self,
        key: &Key,
        token: &Token,
        acquired: &Round,
        report: bool,
    ) -> Arc<Round> {
        let round = Arc::new(Round::new(self.nodes.len()));
        let touched: Vec<bool> = acquired
            .inspect(|ballot| ballot.answers().iter().map(NodeAnswer::may_have_executed).collect());
        for (seat, touched) in touched.into_iter().enumerate() {
            if touched {
                self.post_to(seat, Op::Release { report }, key, token, &round);
            } else {
                round.answer(seat, NodeAnswer::NotHeld);
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

    fn post_to(&self, seat: usize, op: Op, key: &Key, token: &Token, round: &Arc<Round>) {
        self.nodes[seat].post(Command {
            op,
            key: key.clone(),
            token: token.clone(),
            seat: Seat::new(Arc::clone(round), seat),
        });
    }
}

/// The votes on one command. Nodes cast them, one caller awaits the verdict; who no longer waits
/// may drop the future, the votes are counted all the same.
#[derive(Debug)]
pub(crate) struct Round {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ballot: Ballot,
    waiting: Option<Waker>,
}

impl Round {
    fn new(nodes: usize) -> Self {
        Self { state: Mutex::new(State { ballot: Ballot::new(nodes), waiting: None }) }
    }

    /// Counts the vote of one node and wakes the caller once, when the verdict is known.
    pub(crate) fn answer(&self, seat: usize, answer: NodeAnswer) {
        let waiting = {
            let mut state = self.state.lock();
            match state.ballot.record(seat, answer) {
                Some(_) => state.waiting.take(),
                None => None,
            }
        };
        if let Some(waker) = waiting {
            waker.wake();
        }
    }

    /// Waits for the verdict. Every node answers within its deadline, so this ends.
    pub(crate) async fn verdict(&self) -> Verdict {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            match state.ballot.verdict() {
                Some(verdict) => Poll::Ready(verdict),
                None => {
                    state.waiting = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    pub(crate) fn inspect<T>(&self, look: impl FnOnce(&Ballot) -> T) -> T {
        look(&self.state.lock().ballot)
    }
}

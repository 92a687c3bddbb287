//! A round: one command to every node of a group, and the votes on it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;

use crate::protocol::quorum::{Ballot, Counter, Majority, NodeAnswer, Verdict, Vote};

/// The votes on one command. Nodes cast them, one caller awaits the verdict; who no longer waits
/// may drop the future, the votes are counted all the same.
#[derive(Debug)]
pub(crate) struct Round {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ballot: Ballot,
    waiting: Option<Waiting>,
}

/// The caller, and whether it has its answer.
#[derive(Debug)]
struct Waiting {
    waker: Waker,
    is_known: fn(&Ballot) -> bool,
}

impl Round {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { state: Mutex::new(State { ballot: Ballot::new(nodes), waiting: None }) }
    }

    /// Counts the vote of one node and wakes the caller once, when what it waits for is known.
    pub(crate) fn answer(&self, seat: usize, vote: impl Into<Vote>) {
        let waiting = {
            let mut state = self.state.lock();
            state.ballot.record(seat, vote);
            let State { ballot, waiting } = &mut *state;
            waiting.take_if(|waiting| (waiting.is_known)(ballot))
        };
        if let Some(Waiting { waker, .. }) = waiting {
            waker.wake();
        }
    }

    /// Waits for the verdict. Every node has a deadline, so this ends.
    pub(crate) async fn verdict(&self) -> Verdict {
        self.wait_for(Ballot::verdict, |ballot| ballot.verdict().is_some()).await
    }

    /// Waits until it is known whether the key is, or was, ours.
    pub(crate) async fn ours(&self) -> Majority {
        self.wait_for(Ballot::ours, |ballot| ballot.ours().is_some()).await
    }

    /// Waits until it is known whether anybody has the key.
    pub(crate) async fn held(&self) -> Majority {
        self.wait_for(Ballot::held, |ballot| ballot.held().is_some()).await
    }

    async fn wait_for<T>(
        &self,
        answer: fn(&Ballot) -> Option<T>,
        is_known: fn(&Ballot) -> bool,
    ) -> T {
        poll_fn(|cx| {
            let mut state = self.state.lock();
            match answer(&state.ballot) {
                Some(answer) => Poll::Ready(answer),
                None => {
                    state.waiting = Some(Waiting { waker: cx.waker().clone(), is_known });
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The counters that came with the answers so far, and whose they are.
    pub(crate) fn counters(&self) -> Vec<(usize, Counter)> {
        self.inspect(|ballot| ballot.counters().collect())
    }

    pub(crate) fn inspect<T>(&self, look: impl FnOnce(&Ballot) -> T) -> T {
        look(&self.state.lock().ballot)
    }
}

/// A node's seat in a round. It is vacated by an answer; one that is dropped without has failed,
/// so that no caller waits for a node whose task or runtime is gone.
#[derive(Debug)]
pub(crate) struct Seat {
    round: Option<Arc<Round>>,
    index: usize,
}

impl Seat {
    pub(crate) fn new(round: Arc<Round>, index: usize) -> Self {
        Self { round: Some(round), index }
    }

    pub(crate) fn answer(mut self, vote: impl Into<Vote>) {
        if let Some(round) = self.round.take() {
            round.answer(self.index, vote);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(round) = self.round.take() {
            round.answer(self.index, NodeAnswer::Failed("its connection task ended".into()));
        }
    }
}

//! Mistakes on purpose, for a simulator to find: one that finds none of them checks nothing.

use std::collections::HashMap;

use parking_lot::Mutex;
use twox_hash::XxHash3_64;

pub use crate::node::link::LaneMistake;
use crate::node::{Command, Op};
use crate::protocol::fence::Counter;
use crate::protocol::quorum::{NodeAnswer, Vote};
use crate::token::Token;

/// A mistake that the clients of a cluster make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mutant {
    /// M1: a fencing token counts without a majority having confirmed it.
    NoConfirm,
    /// M2: a server takes a fencing token also from who does not hold the lock any more.
    ConfirmByAnybody,
    /// M3: a counter that was lost is taken for one that counts from zero.
    UnknownIsZero,
    /// M4: a server that lost its data votes at once.
    NoQuarantine,
    /// M5: it votes after half of the time for which a lock may last.
    ShortQuarantine,
    /// M7: all attempts on a key have the same token.
    OneToken,
    /// M8: a lock that was not won is released only where it is known to be set.
    ReleaseGrantedOnly,
    /// M10: half of the servers count as a majority.
    HalfQuorum,
    /// M13: extending a key that is gone sets it again.
    ExtendRecreates,
    /// M9, M16 to M18: a mistake in the lane.
    Lane(LaneMistake),
}

impl Mutant {
    pub(super) fn quarantine(self, millis: u64) -> u64 {
        match self {
            Self::NoQuarantine => 0,
            Self::ShortQuarantine => millis / 2,
            _ => millis,
        }
    }
}

/// A node that granted a token.
#[derive(Debug)]
struct Grant {
    node: usize,
    counter: Option<Counter>,
}

/// What a client does that makes the mistake.
#[derive(Debug)]
pub(super) struct Cheat {
    mutant: Mutant,
    nodes: usize,
    grants: Mutex<HashMap<Token, Vec<Grant>>>,
}

impl Cheat {
    pub(super) fn new(mutant: Mutant, nodes: usize) -> Self {
        Self { mutant, nodes, grants: Mutex::default() }
    }

    pub(super) fn mutant(&self) -> Mutant {
        self.mutant
    }

    /// What is sent to a node instead of a command; `None`: it was answered at once.
    pub(super) fn before(&self, node: usize, mut command: Command) -> Option<Command> {
        let instead = match (self.mutant, command.op) {
            (Mutant::NoConfirm, Op::Confirm { .. }) => NodeAnswer::Granted,
            (Mutant::ReleaseGrantedOnly, Op::Release | Op::Reclaim | Op::Void)
                if !self.has_granted(node, &command.token) =>
            {
                NodeAnswer::NotHeld
            }
            (Mutant::OneToken, _) => {
                let key = XxHash3_64::oneshot(command.key.as_bytes());
                if let Ok(token) = format!("{}:{key:032x}", command.token.label()).parse() {
                    command.token = token;
                }
                return Some(command);
            }
            _ => return Some(command),
        };
        command.seat.answer(instead);
        None
    }

    /// What is counted instead of a vote.
    pub(super) fn after(&self, node: usize, command: &Command, mut vote: Vote) -> Vote {
        let granted = vote.answer == NodeAnswer::Granted;
        match (self.mutant, command.op) {
            (Mutant::UnknownIsZero, _) => {
                if let Some(counter) = &mut vote.counter {
                    *counter = Counter::known(counter.value);
                }
            }
            (Mutant::ReleaseGrantedOnly | Mutant::HalfQuorum, Op::Acquire { .. }) if granted => {
                let grant = Grant { node, counter: vote.counter };
                self.grants.lock().entry(command.token.clone()).or_default().push(grant);
            }
            (Mutant::HalfQuorum, Op::Acquire { .. } | Op::Confirm { .. }) if !granted => {
                let grants = self.grants.lock();
                if let Some(grants) = grants.get(&command.token)
                    && grants.len() >= self.nodes / 2
                {
                    let counter = grants.last().and_then(|grant| grant.counter);
                    return Vote { answer: NodeAnswer::Granted, counter };
                }
            }
            _ => {}
        }
        vote
    }

    fn has_granted(&self, node: usize, token: &Token) -> bool {
        let grants = self.grants.lock();
        grants.get(token).is_some_and(|grants| grants.iter().any(|grant| grant.node == node))
    }
}

//! Outages of one server, each told to the log once: when it begins and when it ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Op;
use crate::protocol::quorum::NodeAnswer;

/// An outage ends with a vote this long after the last failure. A server that fails now and then
/// has one outage and not many.
const CALM: Duration = Duration::from_secs(1);

/// Refusals that are about the server and not about one key or one token.
const ABOUT_THE_SERVER: [&str; 6] =
    ["OOM ", "MISCONF ", "NOREPLICAS ", "BUSY ", "EPOCH ", "CONFIG "];

/// Whether a server votes, as its answers tell.
#[derive(Debug)]
pub(super) struct Outage {
    address: Arc<str>,
    /// The same as whether there is a current one, to be read for each batch.
    is_out: AtomicBool,
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    last_failure: Instant,
    refused: usize,
}

/// What the answers of one batch say about the server.
#[derive(Debug, Default)]
pub(super) struct Standing {
    votes: bool,
    refused: usize,
    cause: Option<Arc<str>>,
}

impl Standing {
    pub(super) fn observe(&mut self, op: Op, answer: &NodeAnswer) {
        if !matches!(op, Op::Acquire { .. } | Op::Count { .. }) {
            return;
        }
        let is_refused = match answer {
            NodeAnswer::Quarantined { .. } | NodeAnswer::Skewed { .. } => true,
            NodeAnswer::Refused(why) => ABOUT_THE_SERVER.iter().any(|code| why.starts_with(code)),
            _ => false,
        };
        self.votes |= answer.is_vote();
        if is_refused {
            self.refused += 1;
            self.cause.get_or_insert_with(|| answer.to_string().into());
        }
    }
}

impl Outage {
    pub(super) fn new(address: Arc<str>) -> Self {
        Self { address, is_out: AtomicBool::new(false), current: Mutex::default() }
    }

    /// The server can't be reached, is silent or is not fit to vote.
    pub(super) fn failed(&self, cause: &str) {
        self.fail(cause, 0);
    }

    /// Commands that were refused for it since it failed.
    pub(super) fn refused(&self, commands: usize) {
        if let Some(current) = &mut *self.current.lock() {
            current.refused = current.refused.saturating_add(commands);
        }
    }

    /// The server has answered a batch.
    pub(super) fn answered(&self, Standing { votes, refused, cause }: Standing) {
        if let Some(cause) = cause {
            self.fail(&cause, refused);
        } else if votes && self.is_out.load(Ordering::Relaxed) {
            self.end();
        }
    }

    fn fail(&self, cause: &str, refused: usize) {
        let last_failure = Instant::now();
        let mut current = self.current.lock();
        match &mut *current {
            Some(current) => {
                current.last_failure = last_failure;
                current.refused = current.refused.saturating_add(refused);
            }
            None => {
                *current = Some(Current { last_failure, refused });
                self.is_out.store(true, Ordering::Relaxed);
                drop(current);
                tracing::warn!(node = %self.address, cause, "node does not vote");
            }
        }
    }

    fn end(&self) {
        let is_calm = |current: &mut Current| current.last_failure.elapsed() >= CALM;
        let mut current = self.current.lock();
        if let Some(Current { refused, .. }) = current.take_if(is_calm) {
            self.is_out.store(false, Ordering::Relaxed);
            drop(current);
            tracing::info!(node = %self.address, refused, "node votes again");
        }
    }
}

//! What comes of an attempt: a tenancy, or why it was not won.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::Moment;
use crate::error::LockError;
use crate::fencing::{Fence, FenceBasis, FencingToken, bucket_of};
use crate::key::Key;
use crate::node::Op;
use crate::observe::Hold;
use crate::posted::Posted;
use crate::protocol::attempt::Outcome;
use crate::protocol::fence::{Step, after_grants, after_reads};
use crate::protocol::quorum::{Counter, Verdict, majority};
use crate::protocol::tenure::{Tenure, Terms};
use crate::queue::Turn;
use crate::service::Service;
use crate::tenancy::Tenancy;

/// An attempt that is not decided yet, or not kept. Dropping it cleans up.
pub(crate) struct Pending<'r> {
    service: &'r Arc<Service>,
    posted: Posted,
}

/// What a lock that was won has to show for it.
#[derive(Clone, Copy)]
pub(crate) struct Won {
    valid_until: Moment,
    fence: Option<Fence>,
}

impl<'r> Pending<'r> {
    pub(crate) fn new(service: &'r Arc<Service>, posted: Posted) -> Self {
        Self { service, posted }
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.posted.attempt.ttl
    }

    /// Until when the lock would be valid, or why it is not ours.
    pub(crate) async fn decided(&mut self) -> Result<Won, LockError> {
        let Posted { attempt, group, full_key, token, round, .. } = &self.posted;
        let verdict = round.verdict().await;
        if self.service.config.max_clock_skew.is_some() {
            group.distrust_clocks(round, full_key, token);
        }
        let mut outcome = attempt.judge(verdict, self.service.now());
        let mut fence = None;
        if matches!(outcome, Outcome::Won { .. }) && self.service.is_guarded() {
            fence = Some(self.fence().await?);
            // Its votes may have taken time, too.
            outcome = attempt.judge(verdict, self.service.now());
        }
        match outcome {
            Outcome::Won { valid_until } => Ok(Won { valid_until, fence }),
            Outcome::Unavailable => Err(group.unavailable(round)),
            Outcome::Expired => Err(LockError::expired(group.report(round))),
            Outcome::Contended => Err(self.find_holder().await),
        }
    }

    /// The fencing token of the lock that a majority has just granted. Mostly they agree on one
    /// already.
    async fn fence(&self) -> Result<Fence, LockError> {
        let Posted { group, full_key, token: owner, proposal, round, .. } = &self.posted;
        let nodes = group.nodes().len();
        // Whose grants are counted: a majority that knows its counters, if there is one.
        let (known, unknown): (Vec<_>, Vec<_>) =
            round.counters().into_iter().partition(|(_, counter)| counter.known);
        let counted = match known.len() >= majority(nodes) {
            true => known,
            false => [known, unknown].concat(),
        };
        let (granted, grants): (Vec<usize>, Vec<Counter>) = counted.into_iter().unzip();
        let mut asked = Arc::clone(round);
        let mut step = after_grants(nodes, &grants);
        if step == Step::Read {
            let count = Op::Count { bucket: bucket_of(full_key) };
            asked = group.post(count, full_key, owner);
            asked.verdict().await;
            let reads: Vec<Counter> =
                asked.counters().into_iter().map(|(_, counter)| counter).collect();
            step = after_reads(nodes, &grants, &reads, *proposal);
        }
        let (token, basis) = match step {
            Step::Done(token) => (token, FenceBasis::Majority),
            Step::Confirm { token, basis } => {
                let confirmed = group.confirm(token, &granted, full_key, owner);
                if confirmed.verdict().await != Verdict::Granted {
                    return Err(group.unavailable(&confirmed));
                }
                (token, basis)
            }
            Step::Read | Step::Stuck => return Err(group.unavailable(&asked)),
        };
        group.highest().observe(full_key, token);
        Ok(Fence { token: FencingToken::new(token), basis })
    }

    /// Cleans up, and learns from the same answers who has the key.
    async fn find_holder(&mut self) -> LockError {
        let cleanup = self.posted.reclaim();
        cleanup.verdict().await;
        let Posted { group, round, .. } = &self.posted;
        let mut nodes = group.report(round);
        for (node, cleaned) in nodes.iter_mut().zip(group.report(&cleanup)) {
            // A refusal says why: the key may hold what is no lock at all.
            let told = cleaned.answer.is_vote() || !cleaned.answer.may_have_executed();
            if node.answer.is_vote() && told {
                *node = cleaned;
            }
        }
        LockError::contended(nodes)
    }

    /// Makes the lock that was won somebody's. The line and the keeper know of it before the
    /// attempt counts as over: closing then looks for locks that are held.
    pub(crate) fn keep(
        mut self,
        key: Key,
        turn: Turn<Tenancy>,
        terms: Terms,
        won: Won,
    ) -> Arc<Tenancy> {
        self.posted.settle();
        let Posted { group, full_key, token, attempt, round, .. } = &self.posted;
        let tenure = Tenure::new(terms, attempt.started, won.valid_until);
        let tenancy = Arc::new(Tenancy {
            key,
            full_key: full_key.clone(),
            token: token.clone(),
            fence: won.fence,
            group: Arc::clone(group),
            acquired: Arc::clone(round),
            config: Arc::clone(&self.service.config),
            tenure: Mutex::new(tenure),
            turn: Mutex::default(),
            released: OnceLock::new(),
            changed: Notify::new(),
            timer: Mutex::default(),
            hold: Hold::begin(),
        });
        turn.hold(&tenancy);
        *tenancy.turn.lock() = Some(turn);
        self.service.keeper.watch(&tenancy);
        tenancy
    }
}

//! An attempt on the way: it ends as a tenancy, or it cleans up.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, RwLockReadGuard};

use crate::clock::Moment;
use crate::error::LockError;
use crate::fencing::{Fence, FenceBasis, FencingToken, bucket_of};
use crate::group::Group;
use crate::key::Key;
use crate::node::Op;
use crate::observe::Hold;
use crate::protocol::attempt::{Attempt, Outcome};
use crate::protocol::fence::{Step, after_grants, after_reads};
use crate::protocol::quorum::{Counter, Verdict, majority};
use crate::protocol::tenure::{Tenure, Terms};
use crate::queue::Turn;
use crate::round::Round;
use crate::service::Service;
use crate::tenancy::Tenancy;
use crate::token::Token;

/// An attempt that is not decided yet, or not kept. Dropping it releases the key wherever it may
/// have been set, whether the caller gave up or was dropped itself (H17).
pub(crate) struct Pending<'r> {
    service: &'r Arc<Service>,
    group: &'r Arc<Group>,
    full_key: &'r Key,
    token: Token,
    attempt: Attempt,
    /// What the nodes were asked to raise the counter of the key to.
    proposal: u64,
    round: Arc<Round>,
    settled: bool,
    /// What closing waits for: until the lock is kept or its release is posted.
    _admitted: RwLockReadGuard<'r, ()>,
}

/// What a lock that was won has to show for it.
#[derive(Clone, Copy)]
pub(crate) struct Won {
    valid_until: Moment,
    fence: Option<Fence>,
}

impl<'r> Pending<'r> {
    pub(crate) fn post(
        service: &'r Arc<Service>,
        group: &'r Arc<Group>,
        full_key: &'r Key,
        token: Token,
        ttl: Duration,
    ) -> Result<Self, LockError> {
        let admitted = service.attempts.try_read().map_err(|_| LockError::closed())?;
        let clock = &service.config.clock;
        let attempt = Attempt { started: clock.now(), ttl, drift: service.config.drift().of(ttl) };
        let proposal = group.highest().propose(full_key, clock.unix_micros());
        let round = group.post(Op::Acquire { ttl, proposal }, full_key, &token);
        let (settled, _admitted) = (false, admitted);
        Ok(Self { service, group, full_key, token, attempt, proposal, round, settled, _admitted })
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.attempt.ttl
    }

    /// Until when the lock would be valid, or why it is not ours.
    pub(crate) async fn decided(&mut self) -> Result<Won, LockError> {
        let verdict = self.round.verdict().await;
        let mut outcome = self.attempt.judge(verdict, self.service.now());
        let mut fence = None;
        if matches!(outcome, Outcome::Won { .. }) && self.service.is_guarded() {
            fence = Some(self.fence().await?);
            // Its votes may have taken time, too.
            outcome = self.attempt.judge(verdict, self.service.now());
        }
        match outcome {
            Outcome::Won { valid_until } => Ok(Won { valid_until, fence }),
            Outcome::Contended => Err(self.find_holder().await),
            Outcome::Unavailable => Err(self.group.unavailable(&self.round)),
            Outcome::Expired => Err(LockError::expired(self.group.report(&self.round))),
        }
    }

    /// The fencing token of the lock that a majority has just granted. Mostly they agree on one
    /// already.
    async fn fence(&self) -> Result<Fence, LockError> {
        let nodes = self.group.nodes().len();
        // Whose grants are counted: a majority that knows its counters, if there is one.
        let (known, unknown): (Vec<_>, Vec<_>) =
            self.round.counters().into_iter().partition(|(_, counter)| counter.known);
        let counted = match known.len() >= majority(nodes) {
            true => known,
            false => [known, unknown].concat(),
        };
        let (granted, grants): (Vec<usize>, Vec<Counter>) = counted.into_iter().unzip();
        let mut asked = Arc::clone(&self.round);
        let mut step = after_grants(nodes, &grants);
        if step == Step::Read {
            let count = Op::Count { bucket: bucket_of(self.full_key) };
            asked = self.group.post(count, self.full_key, &self.token);
            asked.verdict().await;
            let reads: Vec<Counter> =
                asked.counters().into_iter().map(|(_, counter)| counter).collect();
            step = after_reads(nodes, &grants, &reads, self.proposal);
        }
        let (token, basis) = match step {
            Step::Done(token) => (token, FenceBasis::Majority),
            Step::Confirm { token, basis } => {
                let confirmed = self.group.confirm(token, &granted, self.full_key, &self.token);
                if confirmed.verdict().await != Verdict::Granted {
                    return Err(self.group.unavailable(&confirmed));
                }
                (token, basis)
            }
            Step::Read | Step::Stuck => return Err(self.group.unavailable(&asked)),
        };
        self.group.highest().observe(self.full_key, token);
        Ok(Fence { token: FencingToken::new(token), basis })
    }

    /// Whether a majority is known to be down.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.round.inspect(|ballot| ballot.refused_by_majority())
    }

    /// Cleans up, and learns from the same answers who has the key.
    async fn find_holder(&mut self) -> LockError {
        let cleanup = self.group.reclaim(self.full_key, &self.token, &self.round);
        self.settled = true;
        cleanup.verdict().await;
        let mut nodes = self.group.report(&self.round);
        for (node, cleaned) in nodes.iter_mut().zip(self.group.report(&cleanup)) {
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
        self.settled = true;
        let tenure = Tenure::new(terms, self.attempt.started, won.valid_until);
        let tenancy = Arc::new(Tenancy {
            id: self.service.next_id(),
            key,
            full_key: self.full_key.clone(),
            token: self.token.clone(),
            fence: won.fence,
            group: Arc::clone(self.group),
            acquired: Arc::clone(&self.round),
            clock: Arc::clone(&self.service.config.clock),
            drift: self.service.config.drift(),
            tenure: Mutex::new(tenure),
            turn: Mutex::default(),
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

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.group.release(self.full_key, &self.token, &self.round);
        }
    }
}

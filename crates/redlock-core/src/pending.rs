//! An attempt on the way: it ends as a tenancy, or it cleans up.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::RwLockReadGuard;

use crate::clock::Moment;
use crate::error::LockError;
use crate::group::Group;
use crate::key::Key;
use crate::latch::Latch;
use crate::node::Op;
use crate::protocol::attempt::{Attempt, Outcome};
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
    round: Arc<Round>,
    settled: bool,
    /// What closing waits for: until the lock is kept or its release is posted.
    _admitted: RwLockReadGuard<'r, ()>,
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
        let attempt =
            Attempt { started: service.now(), ttl, drift: service.config.drift().of(ttl) };
        let round = group.post(Op::Acquire { ttl }, full_key, &token);
        let (settled, _admitted) = (false, admitted);
        Ok(Self { service, group, full_key, token, attempt, round, settled, _admitted })
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.attempt.ttl
    }

    /// Until when the lock would be valid, or why it is not ours.
    pub(crate) async fn decided(&mut self) -> Result<Moment, LockError> {
        let verdict = self.round.verdict().await;
        match self.attempt.judge(verdict, self.service.now()) {
            Outcome::Won { valid_until } => Ok(valid_until),
            Outcome::Contended => Err(self.find_holder().await),
            Outcome::Unavailable => Err(self.group.unavailable(&self.round)),
            Outcome::Expired => Err(LockError::expired(self.group.report(&self.round))),
        }
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
        valid_until: Moment,
    ) -> Arc<Tenancy> {
        self.settled = true;
        let tenure = Tenure::new(terms, self.attempt.started, valid_until);
        let tenancy = Arc::new(Tenancy {
            id: self.service.next_id(),
            key,
            full_key: self.full_key.clone(),
            token: self.token.clone(),
            group: Arc::clone(self.group),
            acquired: Arc::clone(&self.round),
            clock: Arc::clone(&self.service.config.clock),
            drift: self.service.config.drift(),
            tenure: Mutex::new(tenure),
            turn: Mutex::default(),
            lost: Latch::default(),
            timer: Mutex::default(),
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

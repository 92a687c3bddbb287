//! An attempt that was posted to the nodes: it is kept as a lock, or it cleans up.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use crate::config::{Config, Safety};
use crate::error::LockError;
use crate::group::Group;
use crate::key::Key;
use crate::node::Op;
use crate::protocol::attempt::Attempt;
use crate::round::Round;
use crate::token::Token;

/// What somebody wants who stands in line.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) ttl: Duration,
    pub(crate) label: Arc<str>,
    /// Read by every attempt, written by who closes: it waits for them, and keeps new ones out.
    pub(crate) attempts: Arc<RwLock<()>>,
}

/// What is locked, where, and by which rules.
#[derive(Clone, Copy)]
pub(crate) struct Site<'s> {
    pub(crate) group: &'s Arc<Group>,
    /// The key as the servers know it.
    pub(crate) full_key: &'s Key,
    pub(crate) config: &'s Config,
}

/// An attempt on the way. Dropping it releases the key wherever it may have been set, whether who
/// wanted it gave up or was dropped (H17).
#[derive(Debug)]
pub(crate) struct Posted {
    pub(crate) group: Arc<Group>,
    pub(crate) full_key: Key,
    pub(crate) token: Token,
    pub(crate) attempt: Attempt,
    /// What the nodes were asked to raise the counter of the key to.
    pub(crate) proposal: u64,
    pub(crate) round: Arc<Round>,
    settled: bool,
    /// What closing waits for: until the lock is kept or its release is posted.
    _admitted: OwnedRwLockReadGuard<()>,
}

impl Posted {
    pub(crate) fn post(site: Site<'_>, wish: &Wish) -> Result<Self, LockError> {
        let post = |op, token: &Token| (site.group.post(op, site.full_key, token), ());
        Self::post_by(site, wish, post).map(|(posted, ())| posted)
    }

    /// Posts the release of the lock that `acquired` had won under `token`, and in one piece with
    /// it the attempt of the next: no node lets anybody else in between. Says what becomes of the
    /// release, too.
    pub(crate) fn post_in_place_of(
        token: &Token,
        acquired: &Round,
        site: Site<'_>,
        wish: &Wish,
    ) -> Result<(Self, Arc<Round>), LockError> {
        Self::post_by(site, wish, |op, next| {
            site.group.succeed(site.full_key, (token, acquired), (op, next))
        })
    }

    fn post_by<T>(
        site: Site<'_>,
        wish: &Wish,
        post: impl FnOnce(Op, &Token) -> (Arc<Round>, T),
    ) -> Result<(Self, T), LockError> {
        let Site { group, full_key, config } = site;
        let token = Token::generate(&wish.label).map_err(LockError::no_randomness)?;
        let admitted = Arc::clone(&wish.attempts).try_read_owned();
        let _admitted = admitted.map_err(|_| LockError::closed())?;
        let drift = config.drift().of(wish.ttl);
        let attempt = Attempt { started: config.clock.now(), ttl: wish.ttl, drift };
        let proposal = match config.safety {
            Safety::Guarded => group.highest().propose(full_key, config.clock.unix_micros()),
            // Nobody counts.
            Safety::Plain => 0,
        };
        let (round, more) = post(Op::Acquire { ttl: wish.ttl, proposal }, &token);
        let posted = Self {
            group: Arc::clone(group),
            full_key: full_key.clone(),
            token,
            attempt,
            proposal,
            round,
            settled: false,
            _admitted,
        };
        Ok((posted, more))
    }

    /// Cleans up; the answers say who has the key.
    pub(crate) fn reclaim(&mut self) -> Arc<Round> {
        self.settled = true;
        self.group.reclaim(&self.full_key, &self.token, &self.round)
    }

    /// Somebody owns it from now on: dropping it does nothing any more.
    pub(crate) fn settle(&mut self) {
        self.settled = true;
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        if !self.settled {
            self.group.release(&self.full_key, &self.token, &self.round);
        }
    }
}

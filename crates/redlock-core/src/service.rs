//! The lock service: what all handles, requests and guards of one [`Redlock`](crate::Redlock)
//! share.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::RwLock;

use crate::clock::Moment;
use crate::config::{CheckedGroup, Config, Safety};
use crate::deference::Crowds;
use crate::error::{LockError, NodeReport};
use crate::group::Group;
use crate::keeper::Keeper;
use crate::key::Key;
use crate::latch::Latch;
use crate::node::{Identities, MemoryNode, Node, Op, RedisNode};
use crate::protocol::quorum::Verdict;
use crate::queue::Queue;
use crate::ring::Ring;
use crate::round::Round;
use crate::tenancy::Tenancy;
use crate::token::Token;

pub(crate) struct Service {
    pub(crate) config: Arc<Config>,
    pub(crate) queue: Arc<Queue<Tenancy>>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) groups: Box<[Arc<Group>]>,
    /// Raised by `close`, for those who wait in line or between attempts.
    pub(crate) closing: Latch,
    /// Read by every attempt, written by who closes: it waits for them, and keeps new ones out.
    pub(crate) attempts: Arc<RwLock<()>>,
    /// Of those who wait in other processes.
    pub(crate) crowds: Crowds,
    ring: Ring,
}

impl Service {
    pub(crate) fn new(config: Config) -> Self {
        let identities = Arc::new(Identities::default());
        let nodes = |group: &CheckedGroup| -> Vec<Arc<dyn Node>> {
            let redis = |server| -> Arc<dyn Node> {
                Arc::new(RedisNode::new(server, &config, &identities))
            };
            match config.memory {
                true => vec![Arc::new(MemoryNode::new(&config))],
                false => group.servers().iter().map(redis).collect(),
            }
        };
        let groups = config.groups.iter().map(nodes).collect();
        Self::over(groups, config)
    }

    /// The service over these nodes, by group.
    pub(crate) fn over(groups: Vec<Vec<Arc<dyn Node>>>, config: Config) -> Self {
        let back_within = config.reconnection_interval.cap;
        let group = |nodes| Arc::new(Group::new(nodes, back_within));
        let groups = groups.into_iter().map(group).collect();
        let names: Vec<&str> = config.groups.iter().map(CheckedGroup::name).collect();
        Self {
            ring: Ring::new(config.ring, &names),
            queue: Arc::new(Queue::new(config.max_waiters)),
            keeper: Arc::new(Keeper::new(Arc::clone(&config.clock))),
            closing: Latch::default(),
            attempts: Arc::default(),
            groups,
            crowds: Crowds::default(),
            config: Arc::new(config),
        }
    }

    pub(crate) fn now(&self) -> Moment {
        self.config.clock.now()
    }

    /// Whether commands are taken and will be sent: by a task, for which a runtime is needed.
    pub(crate) fn check_usable(&self) -> Result<(), LockError> {
        if Handle::try_current().is_err() {
            return Err(LockError::no_runtime());
        }
        self.check_open()
    }

    pub(crate) fn check_open(&self) -> Result<(), LockError> {
        if self.closing.is_raised() { Err(LockError::closed()) } else { Ok(()) }
    }

    /// The key as the servers know it.
    pub(crate) fn full_key(&self, key: &Key) -> Key {
        key.with_prefix(&self.config.key_prefix)
    }

    /// The group that owns a key, given without prefix: other clients of the ring know no prefix.
    pub(crate) fn group_of(&self, key: &Key) -> &Arc<Group> {
        &self.groups[self.ring.group_of(key.as_bytes())]
    }

    pub(crate) fn post(&self, op: Op, key: &Key, token: &Token) -> Arc<Round> {
        self.group_of(key).post(op, &self.full_key(key), token)
    }

    pub(crate) fn is_guarded(&self) -> bool {
        self.config.safety == Safety::Guarded
    }

    /// Asks the nodes of a group something that changes nothing about a key.
    pub(crate) async fn ask(
        &self,
        op: Op,
        group: &Group,
        full_key: &Key,
    ) -> Result<Arc<Round>, LockError> {
        let token = Token::generate(&self.config.label).map_err(LockError::no_randomness)?;
        let round = group.post(op, full_key, &token);
        match round.verdict().await {
            Verdict::Granted | Verdict::Denied => Ok(round),
            Verdict::Unavailable => Err(self.unavailable(group, &round)),
        }
    }

    /// The error of a round in which no majority answered: the servers are not at fault if this
    /// was closed meanwhile.
    pub(crate) fn unavailable(&self, group: &Group, round: &Round) -> LockError {
        match self.check_open() {
            Ok(()) => group.unavailable(round),
            Err(closed) => closed,
        }
    }

    /// The same of every node: all of them have to answer.
    pub(crate) async fn ask_each(
        &self,
        op: Op,
        group: &Group,
        full_key: &Key,
    ) -> Result<Vec<NodeReport>, LockError> {
        let token = Token::generate(&self.config.label).map_err(LockError::no_randomness)?;
        let nodes = group.ask_each(op, full_key, &token).await;
        match nodes.iter().all(|node| node.answer.is_vote()) {
            true => Ok(nodes),
            false => {
                self.check_open()?;
                Err(LockError::unavailable(nodes, self.config.reconnection_interval.cap))
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.keeper.close();
    }
}

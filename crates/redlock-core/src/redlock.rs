//! The handle: everything a user asks for starts here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::error::{Holding, LockError, NodeReport};
use crate::guard::{Guard, Released};
use crate::key::{IntoKey, Key};
use crate::lease::Lease;
use crate::node::Op;
use crate::protocol::quorum::Majority;
use crate::protocol::tenure::LostReason;
use crate::request::{Renew, Request};
use crate::service::Service;
use crate::token::Token;

/// How long [`Redlock::connect`] gives the servers to answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// A lock service over one or more groups of independent servers.
///
/// Cheap to clone; clones share connections, waiting lines and renewals. When the last clone and
/// the last guard are gone, its tasks send the releases of dropped guards and end. Where the process
/// ends as well, [`close`](Self::close) makes sure of that.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use redlock_core::Redlock;
///
/// let redlock = Redlock::in_memory();
/// // let redlock = Redlock::new(Config::servers(["redis://a", "redis://b", "redis://c"]).build()?);
/// let guard = redlock.lock("order:42").await?;
/// println!("order 42 is ours for {:?}", guard.remaining());
/// guard.release().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Redlock {
    pub(crate) service: Arc<Service>,
}

/// What was left when a [`Redlock`] was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Closed {
    /// Commands, releases above all, that no server confirmed within the grace. Their keys expire
    /// with their time to live.
    pub unreleased: usize,
}

/// What became of servers that were to be put to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Provisioned {
    /// All of them were new, and vote now.
    New,
    /// Some were in use already; nothing was done. In [`Safety::Plain`](crate::Safety::Plain)
    /// servers need not be put to use.
    InUse,
}

/// Who holds a key, as far as the servers say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// Whether a majority of the nodes has the key.
    pub held: bool,
    /// The label of the holder, if it uses this library.
    pub holder: Option<Arc<str>>,
    /// When a majority will be free, if nobody extends or releases the key. `None` if that is not
    /// known, or never: another program may set a key that does not expire.
    pub free_in: Option<Duration>,
    /// What each node of the group answered.
    pub nodes: Vec<NodeReport>,
}

impl Redlock {
    /// A lock service that connects on first use. Needs no runtime to be constructed.
    ///
    /// Its first locks wait up to 1 second for their connections. To begin with connections, and to
    /// know that the servers are there, use [`connect`](Self::connect).
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { service: Arc::new(Service::new(config)) }
    }

    /// A lock service over one group of nodes.
    #[cfg(feature = "test-util")]
    pub(crate) fn over(nodes: Vec<Arc<dyn crate::node::Node>>, config: Config) -> Self {
        Self { service: Arc::new(Service::over(vec![nodes], config)) }
    }

    /// A lock service that is known to be there: a majority of every group has answered. One that
    /// may come up later is made by [`new`](Self::new).
    ///
    /// If a majority is quarantined, as servers are that were never used, this waits for the end
    /// of that: up to one [`max_ttl`](crate::ConfigBuilder::max_ttl).
    ///
    /// ```no_run
    /// # async fn start() -> Result<(), Box<dyn std::error::Error>> {
    /// use redlock_core::{Config, Redlock};
    ///
    /// let redlock = Redlock::connect(Config::from_env()?).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if that did not happen within two seconds
    /// besides a quarantine, with what each server of the first such group had to say.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connections.
    pub async fn connect(config: Config) -> Result<Self, LockError> {
        let redlock = Self::new(config);
        let now = Instant::now();
        let (deadline, quarantine) =
            (now + CONNECT_PATIENCE, now + redlock.config().quarantine() + CONNECT_PATIENCE);
        loop {
            let Err(error) = redlock.ready().await else { return Ok(redlock) };
            let deadline = if error.is_quarantined() { quarantine } else { deadline };
            if !error.is_unavailable() || Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A lock service within this process, for demos and tests: the same API and semantics, no
    /// servers. Its leases follow tokio's time, which tests can pause.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::new(Config::in_memory())
    }

    /// Locks `key`, waiting by the configured retry policy. See [`Request`] for what can be set
    /// and for errors and cancel safety, and [`Guard`] for how the lock ends: at the end of `main`
    /// await [`release`](Guard::release) or [`close`](Self::close), as a dropped guard has only a
    /// moment there.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// let guard = redlock.lock("order:42").await?;
    /// assert!(redlock.inspect("order:42").await?.held);
    /// guard.release().await;
    /// assert!(!redlock.inspect("order:42").await?.held);
    /// # Ok(()) }
    /// ```
    pub fn lock(&self, key: impl IntoKey) -> Request {
        Request::new(Arc::clone(&self.service), key.into_key())
    }

    /// Locks `key` or fails after one round: no waiting, no retries. See [`Request`] for errors and
    /// cancel safety.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// let guard = redlock.try_lock("order:42").await?;
    /// assert!(redlock.try_lock("order:42").await.unwrap_err().is_contended());
    /// guard.release().await;
    /// # Ok(()) }
    /// ```
    pub fn try_lock(&self, key: impl IntoKey) -> Request {
        self.lock(key).wait(Duration::ZERO)
    }

    /// The same as [`lock`](Self::lock), named for when more is to be set on the [`Request`].
    pub fn request(&self, key: impl IntoKey) -> Request {
        self.lock(key)
    }

    /// Runs `work` under the lock, renewing it for as long as that takes, and releases it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// let total = redlock.with_lock("order:42", |_lease| async { 19 + 99 }).await?;
    /// assert_eq!(total, 118);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Request`]; and [`Lost`](crate::ErrorKind::Lost) if the lock was lost while
    /// `work` ran, which was dropped then. Failing to release is no error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `work` and releases the lock in the background.
    pub async fn with_lock<F, T>(
        &self,
        key: impl IntoKey,
        work: impl FnOnce(Lease) -> F,
    ) -> Result<T, LockError>
    where
        F: Future<Output = T>,
    {
        let guard = self.lock(key).renew(Renew::Yes).await?;
        let output = {
            let work = work(guard.lease().clone());
            tokio::select! {
                biased;
                reason = guard.lost() => return Err(LockError::lost(reason)),
                output = work => output,
            }
        };
        guard.release().await;
        Ok(output)
    }

    /// Locks all of `keys` or none. They are taken in order of their bytes, each once, so that
    /// two callers with the same keys in another order can't wait for each other. Each has the
    /// configured TTL and is not renewed; without keys there are no guards.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// let accounts = redlock.lock_all(["account:7", "account:3"]).await?;
    /// assert_eq!(accounts[0].key().as_bytes(), b"account:3");
    /// for account in accounts {
    ///     account.release().await;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Request`] for the first key that could not be locked.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future releases what was locked so far in the background.
    pub async fn lock_all<K: IntoKey>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Guard>, LockError> {
        let keys = keys.into_iter().map(IntoKey::into_key).collect::<Result<Vec<Key>, _>>();
        let mut keys = keys.map_err(LockError::invalid)?;
        keys.sort_unstable();
        keys.dedup();
        let mut guards: Vec<Guard> = Vec::with_capacity(keys.len());
        for key in keys {
            match self.lock(key).await {
                Ok(guard) => guards.push(guard),
                Err(error) => {
                    release_all(guards).await;
                    return Err(error);
                }
            }
        }
        // Waiting for the later ones may have used up the first.
        match guards.iter().find_map(|guard| guard.lost_reason()) {
            None => Ok(guards),
            Some(reason) => {
                release_all(guards).await;
                Err(LockError::lost(reason))
            }
        }
    }

    /// Releases a lock by its token: one that another process handed over.
    ///
    /// # Errors
    ///
    /// [`Invalid`](crate::ErrorKind::Invalid) for a bad key, [`Closed`](crate::ErrorKind::Closed). A
    /// lock that is no longer there is [`Released::AlreadyExpired`], not an error.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the release is sent in any case.
    pub async fn unlock(&self, key: impl IntoKey, token: &Token) -> Result<Released, LockError> {
        self.service.check_usable()?;
        let key = key.into_key().map_err(LockError::invalid)?;
        let round = self.service.post(Op::Release, &key, token);
        Ok(Released::by(round.ours().await))
    }

    /// Extends a lock by its token, to `ttl` from now, and returns for how long it is valid then.
    ///
    /// # Errors
    ///
    /// [`Lost`](crate::ErrorKind::Lost) if a majority says that the key does not hold the token;
    /// [`Expired`](crate::ErrorKind::Expired) if the answers took longer than `ttl` allows;
    /// [`Unavailable`](crate::ErrorKind::Unavailable), [`Invalid`](crate::ErrorKind::Invalid) and
    /// [`Closed`](crate::ErrorKind::Closed) as for [`Request`].
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the servers may or may not extend the key.
    pub async fn extend(
        &self,
        key: impl IntoKey,
        token: &Token,
        ttl: Duration,
    ) -> Result<Duration, LockError> {
        self.service.check_usable()?;
        let key = key.into_key().map_err(LockError::invalid)?;
        let ttl = self.config().usable_ttl(ttl).map_err(LockError::invalid)?;
        let sent = self.service.now();
        let round = self.service.post(Op::Extend { ttl }, &key, token);
        let ours = round.ours().await;
        let group = self.service.group_of(&key);
        let end = sent + ttl.saturating_sub(self.config().drift().of(ttl));
        let validity = end.since(self.service.now());
        match ours {
            Majority::Yes if validity.is_zero() => Err(LockError::expired(group.report(&round))),
            Majority::Yes => Ok(validity),
            Majority::No => {
                Err(LockError::lost(LostReason::TakenOver).with_nodes(group.report(&round)))
            }
            Majority::Open => Err(self.service.unavailable(group, &round)),
        }
    }

    /// Asks the servers who holds `key`, and writes nothing to them. The answer may be old by the
    /// time it is read: never decide by it what only a lock may decide.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// let guard = redlock.lock("order:42").label("web-1").await?;
    /// let inspection = redlock.inspect("order:42").await?;
    /// assert!(inspection.held);
    /// assert_eq!(inspection.holder.as_deref(), Some("web-1"));
    /// guard.release().await;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) if no majority gives the same answer, because a
    /// silent node may have the key that one of two others has;
    /// [`Invalid`](crate::ErrorKind::Invalid) for a bad key, [`Closed`](crate::ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn inspect(&self, key: impl IntoKey) -> Result<Inspection, LockError> {
        self.service.check_usable()?;
        let key = key.into_key().map_err(LockError::invalid)?;
        let group = self.service.group_of(&key);
        let full_key = self.service.full_key(&key);
        let round = self.service.ask(Op::Inspect, group, &full_key).await?;
        let held = match round.held().await {
            Majority::Yes => true,
            Majority::No => false,
            Majority::Open => return Err(group.unavailable(&round)),
        };
        let nodes = group.report(&round);
        let holding = Holding::of(&nodes);
        Ok(Inspection { held, holder: holding.label, free_in: holding.free_in, nodes })
    }

    /// Puts servers to use that were just created: they vote at once. Without it a server that
    /// was never used counts as one that may have forgotten locks, and is quarantined for one
    /// [`max_ttl`](crate::ConfigBuilder::max_ttl).
    ///
    /// Nothing is done if any server of a group is in use already: one that lost its data must
    /// not be taken for a new one. So it may be called whenever servers are set up, but only
    /// there, never by services when they start.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// use redlock_core::Provisioned;
    ///
    /// match redlock.provision().await? {
    ///     Provisioned::New => println!("locks can be taken"),
    ///     _ => println!("the servers are in use"),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Unavailable`](crate::ErrorKind::Unavailable) unless all servers answer;
    /// [`Closed`](crate::ErrorKind::Closed).
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, some servers may be in use and others not. Those are then
    /// quarantined when they are first used.
    pub async fn provision(&self) -> Result<Provisioned, LockError> {
        self.service.check_usable()?;
        if !self.service.is_guarded() {
            return Ok(Provisioned::InUse);
        }
        let key = Key::internal(&self.config().key_prefix, "ready");
        for dry in [true, false] {
            for group in &self.service.groups {
                let nodes = self.service.ask_each(Op::Provision { dry }, group, &key).await?;
                if nodes.iter().any(|node| node.answer.is_held()) {
                    return Ok(Provisioned::InUse);
                }
            }
        }
        Ok(Provisioned::New)
    }

    /// Refuses new locks, releases all that are held, and waits up to `grace` until the servers
    /// have confirmed everything that was sent; [`Duration::MAX`] is no bound. All clones are closed
    /// as well. A second call waits for what is left.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// # let redlock = redlock_core::Redlock::in_memory();
    /// let closed = redlock.close(std::time::Duration::from_secs(5)).await;
    /// assert_eq!(closed.unreleased, 0);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// Outside of a runtime of tokio, as its timers do.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops the waiting only.
    pub async fn close(&self, grace: Duration) -> Closed {
        let service = &self.service;
        // A grace without an end has no deadline.
        let deadline = Instant::now().checked_add(grace);
        service.closing.raise();
        service.keeper.release_all();
        let _no_more = by(deadline, service.attempts.write()).await;
        service.keeper.release_all();
        let mut unreleased = 0;
        for node in service.groups.iter().flat_map(|group| group.nodes()) {
            if by(deadline, node.settled()).await.is_none() {
                unreleased += node.unsettled();
            }
            node.shut_down();
        }
        service.keeper.close();
        Closed { unreleased }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.service.config
    }
}

/// What `future` gives before the deadline, if there is one.
async fn by<F: Future>(deadline: Option<Instant>, future: F) -> Option<F::Output> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

async fn release_all(guards: Vec<Guard>) {
    for guard in guards.into_iter().rev() {
        guard.release().await;
    }
}

impl From<Config> for Redlock {
    fn from(config: Config) -> Self {
        Self::new(config)
    }
}

impl fmt::Debug for Redlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redlock").field("config", &self.service.config).finish_non_exhaustive()
    }
}

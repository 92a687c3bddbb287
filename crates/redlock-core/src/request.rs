//! One acquisition: a place in line, attempts, retries, and an end to it.

use std::fmt;
use std::future::{Future, IntoFuture, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::clock::Moment;
use crate::config::{ConfigError, WakeUp, check_label};
use crate::deference::Deference;
use crate::error::{LockError, NodeReport};
use crate::guard::Guard;
use crate::key::{InvalidKey, Key};
use crate::latch::Latch;
use crate::lease::Lease;
use crate::node::CONNECT_DEADLINE;
use crate::observe::watched;
use crate::pending::{Pending, Won};
use crate::posted::{Posted, Site, Wish};
use crate::protocol::tenure::Terms;
use crate::queue::{Entered, Entry, Turn};
use crate::service::Service;
use crate::tenancy::Tenancy;

/// Whether a lease is renewed while its guard lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Renew {
    /// The lock ends with its time to live, or when it is extended no more. The default.
    #[default]
    No,
    /// The lock is renewed every third of its time to live until it is released or lost, or
    /// until [`Request::max_hold`].
    Yes,
}

/// A request for a lock: set what differs from the configuration, then `.await` it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), redlock_core::LockError> {
/// use std::time::Duration;
/// use redlock_core::{Redlock, Renew};
///
/// let redlock = Redlock::in_memory();
/// let guard = redlock
///     .request("report:2026-11")
///     .ttl(Duration::from_secs(5))
///     .wait(Duration::from_secs(2))
///     .renew(Renew::Yes)
///     .max_hold(Duration::from_secs(60))
///     .label("reporter")
///     .await?;
/// assert_eq!(guard.token().label(), "reporter");
/// guard.release().await;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// [`Contended`](crate::ErrorKind::Contended) if somebody else has the key for as long as the
/// request waits; [`Unavailable`](crate::ErrorKind::Unavailable) if no majority of the servers
/// answers; [`Expired`](crate::ErrorKind::Expired) if a majority answered too late;
/// [`Invalid`](crate::ErrorKind::Invalid) for a key, duration or label that makes no sense;
/// [`Closed`](crate::ErrorKind::Closed) after [`Redlock::close`](crate::Redlock::close).
///
/// # Cancel safety
///
/// The future may be dropped at any time: it leaves the line, and what it may have set on a
/// server is released in the background.
#[must_use = "a request does nothing until it is awaited"]
pub struct Request {
    service: Arc<Service>,
    key: Result<Key, InvalidKey>,
    ttl: Duration,
    wait: Option<Duration>,
    renew: Renew,
    max_hold: Option<Duration>,
    label: Option<String>,
}

impl Request {
    pub(crate) fn new(service: Arc<Service>, key: Result<Key, InvalidKey>) -> Self {
        let ttl = service.config.ttl;
        Self { service, key, ttl, wait: None, renew: Renew::No, max_hold: None, label: None }
    }

    /// For how long the servers keep the key if nobody extends or releases it, in whole
    /// milliseconds: longer than the drift of the clocks plus two node deadlines, at most
    /// [`max_ttl`](crate::ConfigBuilder::max_ttl).
    ///
    /// The default is the configured TTL, 10 seconds unless set.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// For how long to wait while somebody else has the key, or while no majority answers.
    /// Zero: one round, no waiting in line.
    ///
    /// The default is the retry policy: `max_retry` rounds after the first, with pauses that grow
    /// from the base to the cap of `retry_interval`. A round that is made because a server told that
    /// the key is free ([`WakeUp::Push`]) is none of those, for as long as they may take.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Whether the lease is renewed while the guard lives. The default is [`Renew::No`].
    pub fn renew(mut self, renew: Renew) -> Self {
        self.renew = renew;
        self
    }

    /// For how long the lock may be held at most, renewals and extensions included: at least 1 ms.
    ///
    /// The default is no bound.
    pub fn max_hold(mut self, max_hold: Duration) -> Self {
        self.max_hold = Some(max_hold);
        self
    }

    /// Who asks, for others to see while the lock is held: 1 to 64 visible ASCII characters
    /// without `:`.
    ///
    /// The default is the configured label, host name and process id unless set.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Checks the key, the time to live and the label without locking anything: for settings that are
    /// read when a service starts.
    ///
    /// ```
    /// use std::time::Duration;
    /// use redlock_core::Redlock;
    ///
    /// let redlock = Redlock::in_memory();
    /// let error = redlock.lock("report").ttl(Duration::from_secs(30)).check().unwrap_err();
    /// assert!(error.to_string().contains("max_ttl"), "{error}");
    /// assert!(redlock.lock("report").ttl(Duration::from_secs(5)).check().is_ok());
    /// ```
    ///
    /// # Errors
    ///
    /// [`Invalid`](crate::ErrorKind::Invalid), as awaiting the request would return it.
    pub fn check(&self) -> Result<(), LockError> {
        self.key.clone().map_err(LockError::invalid)?;
        self.service.config.usable_ttl(self.ttl).map_err(LockError::invalid)?;
        self.usable_label()?;
        Ok(())
    }
}

impl IntoFuture for Request {
    type Output = Result<Guard, LockError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let name = |guard: &Guard| (guard.lease().0.hold.id, guard.fencing_token());
        Box::pin(watched(async move { self.acquire().await }, name))
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("key", &self.key)
            .field("ttl", &self.ttl)
            .field("wait", &self.wait)
            .field("renew", &self.renew)
            .field("max_hold", &self.max_hold)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

impl Request {
    async fn acquire(&self) -> Result<Guard, LockError> {
        let service = &self.service;
        let key = self.key.clone().map_err(LockError::invalid)?;
        let ttl = service.config.usable_ttl(self.ttl).map_err(LockError::invalid)?;
        self.check_max_hold()?;
        let wish =
            Wish { ttl, label: self.usable_label()?, attempts: Arc::clone(&service.attempts) };
        service.check_usable()?;
        let began = service.now();
        let mut turn = self.stand_in_line(&key, &wish).await?;
        let (full_key, group) = (service.full_key(&key), service.group_of(&key));
        let site = Site { group, full_key: &full_key, config: &service.config };
        let (mut retries, mut is_told) = (0, false);
        let mut contends_since = None;
        let deference = service.crowds.around(&full_key);
        loop {
            let posted = match turn.take_posted() {
                Some(posted) => posted,
                None => {
                    let chance = turn.chance_for_others().filter(|_| !service.config.memory);
                    if let Some(chance) = chance {
                        or_closed(&service.closing, sleep(chance)).await?;
                    }
                    Posted::post(site, &wish)?
                }
            };
            let mut attempt = Pending::new(service, posted);
            let decided = attempt.decided().await;
            service.check_open()?;
            if is_told {
                deference.asked(decided.is_ok());
            }
            let error = match decided {
                Ok(won) => return Ok(self.keep(key, turn, attempt, won)),
                Err(error) => error,
            };
            drop(attempt);
            turn.failed(error.is_unavailable().then(|| error.nodes()));
            let now = service.now();
            let Some(pause) = self.pause(&error, retries, now.since(began)) else {
                return Err(error);
            };
            let contends_since = *contends_since.get_or_insert(now);
            is_told = self.wait_for_the_key(site, &error, pause, &deference).await?;
            // Whoever is told asks for a reason: that is not one of the tries of the policy, for as
            // long as those may take.
            if !is_told || service.now().since(contends_since) >= self.patience() {
                retries = retries.saturating_add(1);
            }
        }
    }

    /// Waits for `pause`, or until the key is free on a server that had it: `true`.
    async fn wait_for_the_key(
        &self,
        Site { group, full_key, .. }: Site<'_>,
        error: &LockError,
        pause: Duration,
        deference: &Deference<'_>,
    ) -> Result<bool, LockError> {
        let config = &self.service.config;
        let is_watched = config.wake_up == WakeUp::Push && error.is_contended();
        let reports = if is_watched { error.nodes() } else { &[] };
        // One server is enough to be told, and each of them costs a question whenever the key passes
        // from hand to hand.
        let nodes = group.nodes().iter().zip(reports);
        let having: Vec<_> = nodes.filter(|(_, report)| report.answer.is_held()).collect();
        let freed = async {
            match having.get(fastrand::usize(..having.len().max(1))) {
                Some((node, _)) => node.freed(full_key, deference).await,
                None => pending().await,
            }
        };
        Ok(or_closed(&self.service.closing, timeout(pause, freed)).await?.is_ok())
    }

    fn check_max_hold(&self) -> Result<(), LockError> {
        match self.max_hold {
            Some(max_hold) if max_hold < Duration::from_millis(1) => {
                let fix = "nothing can be done in that time: set at least 1ms, or leave it out";
                let error = ConfigError::new("max_hold", format!("{max_hold:?}"), fix);
                Err(LockError::invalid(error))
            }
            _ => Ok(()),
        }
    }

    fn usable_label(&self) -> Result<Arc<str>, LockError> {
        match self.label.as_deref() {
            None => Ok(Arc::clone(&self.service.config.label)),
            Some(label) => {
                check_label(label).map_err(LockError::invalid)?;
                Ok(label.into())
            }
        }
    }

    /// For how long the place in line is kept.
    fn patience(&self) -> Duration {
        let config = &self.service.config;
        match self.wait {
            // Only until it is decided whether the one in front gets the lock, which may have to
            // connect first.
            Some(Duration::ZERO) => CONNECT_DEADLINE + 2 * config.node_deadline,
            Some(wait) => wait,
            None => config.retry_interval.longest(config.max_retry),
        }
    }

    async fn stand_in_line(&self, key: &Key, wish: &Wish) -> Result<Turn<Tenancy>, LockError> {
        let queue = &self.service.queue;
        let brief = self.wait == Some(Duration::ZERO);
        let entry = match queue.enter(key, wish, brief) {
            Entered::AtOnce(entry) => Some(entry),
            Entered::Place(place) => {
                let standing = timeout(self.patience(), place);
                or_closed(&self.service.closing, standing).await?.ok()
            }
        };
        let held = match entry {
            Some(Entry::Turn(turn)) => return Ok(turn),
            Some(Entry::Full(held)) => {
                let holder = held.map(|holder| holder.token.label().into());
                return Err(LockError::line_full(self.service.config.max_waiters, holder));
            }
            Some(Entry::Unanswered(nodes)) => return Err(self.unavailable(key, nodes)),
            Some(Entry::Held(holder)) => Some(holder),
            None => match queue.unanswered(key) {
                Some(nodes) => return Err(self.unavailable(key, nodes)),
                None => queue.held(key),
            },
        };
        let holder = held.as_ref().map(|held| held.token.label().into());
        Err(LockError::held(holder, held.map(|held| held.remaining())))
    }

    fn unavailable(&self, key: &Key, nodes: Vec<NodeReport>) -> LockError {
        LockError::unavailable(nodes, self.service.group_of(key).back_within())
    }

    /// For how long to pause before the next round; `None`: give up.
    fn pause(&self, error: &LockError, retries: u32, elapsed: Duration) -> Option<Duration> {
        let config = &self.service.config;
        let left = match self.wait {
            Some(wait) => wait.checked_sub(elapsed).filter(|left| !left.is_zero())?,
            None if retries >= config.max_retry => return None,
            None => Duration::MAX,
        };
        let mut pause = config.retry_interval.delay(retries);
        if error.is_contended()
            && let Some(free_in) = error.retry_after().filter(|free_in| !free_in.is_zero())
        {
            pause = pause.min(free_in + Duration::from_millis(1));
        }
        Some(pause.min(left))
    }

    fn keep(&self, key: Key, turn: Turn<Tenancy>, attempt: Pending<'_>, won: Won) -> Guard {
        let service = &self.service;
        // A little earlier than a third each, or leases taken at once are renewed at once.
        let renew_after = (self.renew == Renew::Yes).then(|| (1.0 - fastrand::f64() / 8.0) / 3.0);
        let hold_until = self.max_hold.map_or(Moment::NEVER, |max_hold| service.now() + max_hold);
        let terms = Terms { ttl: attempt.ttl(), renew_after, hold_until };
        let tenancy = attempt.keep(key, turn, terms, won);
        Guard::new(Lease(tenancy), Arc::clone(service))
    }
}

/// Waits for `future`, or until the service is closed. On the heap: most locks are had at once, and
/// need no room for this.
fn or_closed<'f, F: Future + Send + 'f>(
    closing: &'f Latch,
    future: F,
) -> Pin<Box<dyn Future<Output = Result<F::Output, LockError>> + Send + 'f>>
where
    F::Output: Send,
{
    Box::pin(async {
        let output = tokio::select! {
            biased;
            output = future => Some(output),
            () = closing.raised() => None,
        };
        output.filter(|_| !closing.is_raised()).ok_or_else(LockError::closed)
    })
}

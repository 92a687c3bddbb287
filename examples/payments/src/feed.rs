//! The events of the page: each request, and the locks that are held.
//!
//! A request never waits for a reader, and its cost does not grow with the number of readers.

mod channel;
mod reader;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redlock_core::Lease;
use serde::Serialize;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use self::channel::Publisher;
pub(crate) use self::reader::Reader;
use crate::idempotency::IdempotencyKey;
use crate::name::Tenant;
use crate::store::NewPayment;

/// What happens in this process.
#[derive(Clone)]
pub(crate) struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    publishers: Mutex<HashMap<Tenant, Weak<Publisher>>>,
    readers: Arc<Semaphore>,
    holders: Mutex<BTreeMap<u64, Holder>>,
    locks_changed: watch::Sender<()>,
    numbers: AtomicU64,
    closed: watch::Sender<bool>,
}

/// A request that came, or was answered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Request {
    /// The same when it comes and when it is answered.
    pub(crate) number: u64,
    #[serde(skip)]
    pub(crate) tenant: Tenant,
    pub(crate) key: String,
    #[serde(flatten)]
    pub(crate) answer: Option<Answered>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) outcome: &'static str,
    /// In how many seconds it may be sent again.
    pub(crate) retry_after: Option<u64>,
    pub(crate) took_ms: u64,
}

/// The request that holds a lock.
struct Holder {
    tenant: Tenant,
    key: String,
    payment: NewPayment,
    lease: Lease,
    since: Instant,
}

/// The locks of a tenant, and how many others have.
#[derive(Debug, Serialize)]
struct Locks {
    locks: Vec<Lock>,
    of_others: usize,
}

#[derive(Debug, Serialize)]
struct Lock {
    number: u64,
    key: String,
    account: String,
    amount_cents: i64,
    held_ms: u64,
    /// Until it would run out. It is renewed before.
    remaining_ms: u64,
    fence: Option<u64>,
}

impl Feed {
    /// A feed with at most this number of readers.
    pub(crate) fn new(max_readers: usize) -> Self {
        let shared = Shared {
            publishers: Mutex::default(),
            readers: Arc::new(Semaphore::new(max_readers.min(Semaphore::MAX_PERMITS))),
            holders: Mutex::default(),
            locks_changed: watch::Sender::new(()),
            numbers: AtomicU64::new(1),
            closed: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A new reader of the events of a tenant; `None` if there are too many.
    pub(crate) fn subscribe(&self, tenant: Tenant) -> Option<Reader> {
        let permit = Arc::clone(&self.shared.readers).try_acquire_owned().ok()?;
        let publisher = {
            let mut publishers = self.publishers();
            let running = publishers.get(&tenant).and_then(Weak::upgrade);
            running.unwrap_or_else(|| {
                let started = Arc::new(Publisher::start(self.clone(), tenant.clone()));
                publishers.insert(tenant, Arc::downgrade(&started));
                started
            })
        };
        Some(Reader::new(publisher, self.shared.closed.subscribe(), permit))
    }

    /// Ends all streams, and those that begin later.
    pub(crate) fn close(&self) {
        self.shared.closed.send_replace(true);
    }

    pub(crate) fn number(&self) -> u64 {
        self.shared.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the readers of the tenant about a request.
    pub(crate) fn request(&self, request: Request) {
        // The guard is gone before the publisher, which takes it again if it is dropped here.
        let publisher = self.publishers().get(&request.tenant).and_then(Weak::upgrade);
        if let Some(publisher) = publisher {
            publisher.request(request);
        }
    }

    /// Shows who holds a lock until the return value is dropped.
    pub(crate) fn holds(&self, key: &IdempotencyKey, payment: &NewPayment, lease: Lease) -> Held {
        let number = self.number();
        let holder = Holder {
            tenant: key.tenant.clone(),
            key: key.key.clone(),
            payment: payment.clone(),
            lease,
            since: Instant::now(),
        };
        self.holders().insert(number, holder);
        self.shared.locks_changed.send_replace(());
        Held { feed: self.clone(), number }
    }

    /// The locks as a tenant may see them.
    fn locks(&self, tenant: &Tenant) -> Locks {
        let holders = self.holders();
        let mine = holders.iter().filter(|(_, holder)| holder.tenant == *tenant);
        let locks: Vec<Lock> = mine.map(|(number, holder)| holder.show(*number)).collect();
        let of_others = holders.len() - locks.len();
        Locks { locks, of_others }
    }

    fn is_locked(&self) -> bool {
        !self.holders().is_empty()
    }

    fn locks_changed(&self) -> watch::Receiver<()> {
        self.shared.locks_changed.subscribe()
    }

    /// Removes a publisher that has no readers.
    fn forget(&self, tenant: &Tenant) {
        let mut publishers = self.publishers();
        // A new one may have taken its place.
        if publishers.get(tenant).is_some_and(|publisher| publisher.strong_count() == 0) {
            publishers.remove(tenant);
        }
    }

    fn publishers(&self) -> MutexGuard<'_, HashMap<Tenant, Weak<Publisher>>> {
        self.shared.publishers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holders(&self) -> MutexGuard<'_, BTreeMap<u64, Holder>> {
        self.shared.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder {
    fn show(&self, number: u64) -> Lock {
        Lock {
            number,
            key: self.key.clone(),
            account: self.payment.account.to_string(),
            amount_cents: self.payment.amount_cents,
            held_ms: millis(self.since.elapsed()),
            remaining_ms: millis(self.lease.remaining()),
            fence: self.lease.fencing_token().map(|token| token.get()),
        }
    }
}

/// A lock that is shown as held.
#[derive(Debug)]
#[must_use = "the lock is shown for as long as this lives"]
pub(crate) struct Held {
    feed: Feed,
    number: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.feed.holders().remove(&self.number);
        self.feed.shared.locks_changed.send_replace(());
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("held", &self.holders().len()).finish_non_exhaustive()
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

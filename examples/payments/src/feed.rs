//! What the page is told while it happens: each request, and who holds which lock.
//!
//! Nobody waits for a reader: what a slow one has missed is dropped, and it is told how much.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redlock_core::Lease;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::idempotency::IdempotencyKey;
use crate::name::Tenant;
use crate::store::NewPayment;

/// As many as happen while a reader's connection stalls for a moment.
const KEPT: usize = 256;

/// What happens in this process.
#[derive(Clone)]
pub(crate) struct Feed {
    shared: Arc<Shared>,
}

struct Shared {
    news: broadcast::Sender<News>,
    holders: Mutex<BTreeMap<u64, Holder>>,
    numbers: AtomicU64,
    closed: AtomicBool,
}

/// One piece of news.
#[derive(Clone, Debug)]
pub(crate) enum News {
    Request(Arc<Request>),
    /// Somebody got a lock or gave it back.
    Locks,
    Closed,
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

/// Who holds a lock.
struct Holder {
    tenant: Tenant,
    key: String,
    payment: NewPayment,
    lease: Lease,
    since: Instant,
}

/// The locks of a tenant, and how many others have.
#[derive(Debug, Serialize)]
pub(crate) struct Locks {
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
    pub(crate) fn new() -> Self {
        let shared = Shared {
            news: broadcast::channel(KEPT).0,
            holders: Mutex::default(),
            numbers: AtomicU64::new(1),
            closed: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<News> {
        self.shared.news.subscribe()
    }

    /// Ends all streams, and those that begin later.
    pub(crate) fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
        self.tell(News::Closed);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }

    pub(crate) fn number(&self) -> u64 {
        self.shared.numbers.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn request(&self, request: Request) {
        self.tell(News::Request(Arc::new(request)));
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
        self.tell(News::Locks);
        Held { feed: self.clone(), number }
    }

    /// The locks as a tenant may see them.
    pub(crate) fn locks(&self, tenant: &Tenant) -> Locks {
        let holders = self.holders();
        let mine = holders.iter().filter(|(_, holder)| holder.tenant == *tenant);
        let locks: Vec<Lock> = mine.map(|(number, holder)| holder.show(*number)).collect();
        let of_others = holders.len() - locks.len();
        Locks { locks, of_others }
    }

    pub(crate) fn is_locked(&self) -> bool {
        !self.holders().is_empty()
    }

    /// That nobody listens is no error.
    fn tell(&self, news: News) {
        self.shared.news.send(news).map(drop).unwrap_or_default();
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
        self.feed.tell(News::Locks);
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

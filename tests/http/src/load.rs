//! Clients that ask for charges until they have them, whatever happens in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::client::{self, Charge, Kind};
use crate::report::Tally;
use crate::trouble::Trouble;

/// Within what time a lock must be gone once its request is over. It lasts longer than that by
/// itself.
const GONE: Duration = Duration::from_secs(1);

/// Within what time every client has its charge, however often it has to ask.
const SETTLED: Duration = Duration::from_secs(60);

/// What clients and those who cause trouble share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) port: AtomicU16,
    pub(crate) trouble: Trouble,
    pub(crate) tally: Tally,
    /// All charges that were asked for.
    pub(crate) asked: Mutex<Vec<String>>,
    /// Whether the locks of requests that are over are looked for: not while the service is down.
    pub(crate) look: AtomicBool,
    pub(crate) keys: u64,
    numbers: AtomicU64,
}

impl World {
    pub(crate) fn new(port: u16, trouble: Trouble, keys: u64) -> Self {
        Self {
            port: port.into(),
            trouble,
            tally: Tally::default(),
            asked: Mutex::default(),
            look: true.into(),
            keys,
            numbers: AtomicU64::new(0),
        }
    }

    /// Has clients send so many requests.
    pub(crate) async fn load(self: &Arc<Self>, requests: u64, clients: usize) {
        let left = AtomicU64::new(requests);
        let take = |count: u64| {
            let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left > 0).then(|| left.saturating_sub(count))
            });
            taken.is_ok()
        };
        join_all((0..clients).map(|_| async {
            loop {
                // Every fourth is sent twice at the same time: a fifth of all are duplicates.
                let twice = fastrand::u8(..4) == 0;
                if !take(1 + u64::from(twice)) {
                    return;
                }
                self.ask(twice).await;
            }
        }))
        .await;
    }

    async fn ask(&self, twice: bool) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let kind = kind();
        // Nobody else locks this account: whose lock is left behind is known.
        let is_watched = kind != Kind::Plain && fastrand::u8(..4) == 0;
        let account = match is_watched {
            true => format!("watched-{number}"),
            false => format!("{}", fastrand::u64(..self.keys)),
        };
        let charge = Charge { name: format!("charge-{number}"), account };
        self.asked.lock().push(charge.name.clone());
        self.tally.with(|report| {
            report.requests += 1 + u64::from(twice);
            report.duplicates += u64::from(twice);
        });
        if twice {
            tokio::join!(self.insist(&charge, kind), self.insist(&charge, Kind::Plain));
        } else if is_watched {
            self.send(&charge, kind).await;
            self.look_for_the_lock(&charge, kind).await;
            self.insist(&charge, Kind::Plain).await;
            self.look_for_the_lock(&charge, Kind::Plain).await;
        } else {
            self.insist(&charge, kind).await;
        }
    }

    /// Asks until it has the charge; only the first time something goes wrong on purpose.
    async fn insist(&self, charge: &Charge, kind: Kind) {
        let deadline = Instant::now() + SETTLED;
        let mut kind = kind;
        while !matches!(self.send(charge, kind).await, Some(200 | 201)) {
            if Instant::now() >= deadline {
                self.tally.violation(format!("{} had no answer within {SETTLED:?}", charge.name));
                return;
            }
            kind = Kind::Plain;
            sleep(Duration::from_millis(fastrand::u64(5..50))).await;
        }
    }

    async fn send(&self, charge: &Charge, kind: Kind) -> Option<u16> {
        let answer = client::send(self.port.load(Ordering::Relaxed), charge, kind).await;
        let (name, status) = match answer {
            Ok(Some(status)) => (status.to_string(), Some(status)),
            Ok(None) => ("left in the middle".to_owned(), None),
            Err(error) => (format!("{:?}", error.kind()), None),
        };
        self.tally.with(|report| {
            *report.kinds.entry(kind.name()).or_default() += 1;
            *report.answers.entry(name).or_default() += 1;
        });
        status
    }

    /// Once no handler runs for the account, its lock is gone in time. What can't be seen because
    /// a lock server or the service is down is looked for later.
    async fn look_for_the_lock(&self, charge: &Charge, kind: Kind) {
        let key = format!("account:{}", charge.account);
        let mut since = Instant::now();
        while self.look.load(Ordering::Relaxed) {
            let port = self.port.load(Ordering::Relaxed);
            let running = client::running(port, &charge.account).await.unwrap_or(1);
            let holders = self.trouble.holders(&key).await;
            match (running, holders) {
                (0, Some(0)) => {
                    self.tally.with(|report| report.looked_for += 1);
                    return;
                }
                (0, Some(held)) if since.elapsed() > GONE => {
                    let name = kind.name();
                    let left = format!("{held} servers still have the lock of a {name} request");
                    self.tally.violation(left);
                    return;
                }
                (0, Some(_)) => {}
                _ => since = Instant::now(),
            }
            sleep(Duration::from_millis(2)).await;
        }
    }
}

fn kind() -> Kind {
    match fastrand::u16(..1_000) {
        0..40 => Kind::Abort,
        40..50 => Kind::PanicBefore,
        50..60 => Kind::PanicAfter,
        60..63 => Kind::Long,
        63..73 => Kind::SlowBody,
        73..83 => Kind::SlowAbort,
        83..108 => Kind::Http2,
        108..133 => Kind::Http2Reset,
        _ => Kind::Plain,
    }
}

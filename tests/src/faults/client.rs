//! One client: locks, believes, and writes down what it believes.

use std::io::Read;
use std::ops::AddAssign;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use redlock_core::{ErrorKind, FenceBasis, Guard, LockError, LostReason, Redlock, Released, Renew};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Switch, subject};
use crate::{Event, Fence, History, Stamp};

/// The label of a lock that nobody will release.
pub(super) const ABANDONED: &str = "abandoned";

/// What a client writes on its standard output when a server has answered it.
pub(super) const READY: &str = "ready";

/// One task of so many wants hot keys only.
const HOT_SHARE: u64 = 4;

/// How often a holder looks whether it still has its lock.
const LOOK: Duration = Duration::from_millis(10);

/// What a client is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Job {
    /// Who it is: no other client ever has this name.
    pub(super) name: String,
    pub(super) urls: Vec<String>,
    pub(super) guard: Switch,
    /// The number of the configuration.
    pub(super) epoch: u32,
    pub(super) ttl: Duration,
    pub(super) hold: Duration,
    pub(super) keys: usize,
    pub(super) hot: usize,
    /// Who lock at the same time, so that commands of several keys share a batch.
    pub(super) tasks: u64,
    /// How many seconds its wall clock is ahead of the true one.
    pub(super) clock_ahead: f64,
    pub(super) max_clock_skew: Option<Duration>,
    /// Whether some locks are left to expire.
    pub(super) abandon: bool,
    pub(super) seed: u64,
    pub(super) history: PathBuf,
}

/// What became of the attempts of clients to lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// The lock was had.
    pub acquired: u64,
    /// Others had it.
    pub contended: u64,
    /// No majority of the servers answered.
    pub unavailable: u64,
    /// A majority answered too late.
    pub expired: u64,
    /// The acquisition was dropped before it had ended.
    pub cancelled: u64,
    /// A lock was lost before its time was over.
    pub lost: u64,
    /// A majority confirmed the release.
    pub released: u64,
    /// No majority did in time.
    pub unconfirmed: u64,
    /// The lock was left to expire.
    pub abandoned: u64,
    /// What a server had not confirmed when the client had to end.
    pub unreleased: u64,
}

pub(super) async fn lock(job: Job) {
    // Also while it is stopped, a client must not outlive whoever started it.
    set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal");
    let stop = watch::Sender::new(false);
    let told = stop.clone();
    std::thread::spawn(move || {
        let _end = std::io::stdin().read_to_end(&mut Vec::new());
        told.send_replace(true);
    });
    let redlock = subject::client(&job);
    let mut stopped = stop.subscribe();
    tokio::select! {
        () = subject::answers(&redlock) => {}
        // Its configuration may be out of date already: no server answers that.
        _ = stopped.wait_for(|stop| *stop) => {}
    }
    println!("{READY}");

    let job = Arc::new(job);
    let history = Arc::new(History::to_file(&job.history).expect("a history"));
    let tasks: Vec<_> = (0..job.tasks)
        .map(|number| {
            let holder = Holder {
                redlock: redlock.clone(),
                name: format!("{}/{number}", job.name),
                job: Arc::clone(&job),
                history: Arc::clone(&history),
                keys: if number % HOT_SHARE == 0 { job.hot } else { job.keys },
                random: Rng::with_seed(job.seed.wrapping_mul(job.tasks).wrapping_add(number)),
                tally: Tally::default(),
            };
            tokio::spawn(holder.run(stop.subscribe()))
        })
        .collect();
    let mut tally = Tally::default();
    for task in tasks {
        tally += task.await.expect("a holder");
    }
    let closed = redlock.close(Duration::from_secs(10)).await;
    tally.unreleased = u64::try_from(closed.unreleased).expect("a small number");
    println!("{}", serde_json::to_string(&tally).expect("JSON"));
}

struct Holder {
    redlock: Redlock,
    name: String,
    job: Arc<Job>,
    history: Arc<History>,
    /// It wants the first so many.
    keys: usize,
    random: Rng,
    tally: Tally,
}

impl Holder {
    async fn run(mut self, mut stop: watch::Receiver<bool>) -> Tally {
        while !*stop.borrow_and_update() {
            if let Err(error) = self.take_a_turn(&mut stop).await {
                match error.kind() {
                    ErrorKind::Contended => self.tally.contended += 1,
                    ErrorKind::Unavailable => self.tally.unavailable += 1,
                    ErrorKind::Expired => self.tally.expired += 1,
                    other => panic!("{other:?}: {error}"),
                }
            }
        }
        self.tally
    }

    async fn take_a_turn(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), LockError> {
        let key = key(self.random.usize(..self.keys));
        let abandon = self.job.abandon && self.chance(0.05);
        let renew = if !abandon && self.chance(0.3) { Renew::Yes } else { Renew::No };
        let mut request = self.redlock.lock(&key).wait(3 * self.job.ttl).renew(renew);
        if abandon {
            request = request.label(ABANDONED);
        }
        let impatient = self.chance(0.15);
        let patience = if impatient { self.share_of(self.job.hold) } else { Duration::MAX };

        let requested = Stamp::now();
        let acquired = tokio::select! {
            acquired = timeout(patience, request) => acquired.ok(),
            _ = stop.wait_for(|stop| *stop) => None,
        };
        let Some(guard) = acquired else {
            self.tally.cancelled += 1;
            return Ok(());
        };
        let guard = guard?;
        let mut belief = self.believe(&key, &guard, requested);
        self.tally.acquired += 1;
        if abandon {
            let _nobody_gets_it = guard.hand_over();
            self.tally.abandoned += 1;
            return Ok(());
        }
        let longest = if renew == Renew::Yes { 3 * self.job.hold } else { self.job.hold };
        let until = Instant::now() + self.share_of(longest);
        if renew == Renew::No && self.chance(0.2) {
            // Refused or not: the belief is what counts.
            let _validity = guard.extend(self.job.ttl).await;
        }
        let outstay = self.job.abandon && self.chance(0.05);
        let lost = self.hold(&guard, &mut belief, (!outstay).then_some(until), stop).await;
        match lost {
            Some(_) => self.tally.lost += 1,
            None if self.random.bool() => match guard.release().await {
                Released::Indeterminate => self.tally.unconfirmed += 1,
                _ => self.tally.released += 1,
            },
            None => drop(guard),
        }
        Ok(())
    }

    fn believe(&self, key: &str, guard: &Guard, requested: Stamp) -> Belief {
        let at = Stamp::now();
        let until = Stamp::of(guard.valid_until());
        let fence = guard.fencing_token().map(|token| Fence {
            requested,
            token: token.get(),
            by_clock: guard.fence_basis() == Some(FenceBasis::Clock),
        });
        let belief = Belief { key: key.to_owned(), until, seen_valid: at };
        let (key, client) = (key.to_owned(), self.name.clone());
        self.history.record(Event::Acquired { key, client, at, until, fence });
        belief
    }

    /// Holds the lock until it is time, or the load stops, or the lock is lost; writes down when
    /// it ended. Without a time it is held for as long as it is valid.
    async fn hold(
        &self,
        guard: &Guard,
        belief: &mut Belief,
        until: Option<Instant>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<LostReason> {
        loop {
            let next_look = Instant::now() + LOOK;
            let is_last = until.is_some_and(|until| until <= next_look);
            let wake = if is_last { until.unwrap_or(next_look) } else { next_look };
            let stopped = tokio::select! {
                () = sleep_until(wake) => false,
                _ = guard.lost() => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            let at = Stamp::now();
            if guard.remaining().is_zero() {
                let reason = guard.lost_reason();
                let told = match reason {
                    // It may end sooner than was noted, if a clock was set forward meanwhile.
                    Some(LostReason::Expired) => at,
                    // Told by the servers, and a little later by us.
                    _ => belief.seen_valid,
                };
                self.released(belief, told);
                return reason;
            }
            belief.seen_valid = at;
            if stopped || is_last {
                self.released(belief, at);
                return None;
            }
            let valid_until = Stamp::of(guard.valid_until());
            if valid_until > belief.until + Duration::from_millis(1) {
                belief.until = valid_until;
                let (key, client) = (belief.key.clone(), self.name.clone());
                self.history.record(Event::Extended { key, client, at, until: valid_until });
            }
        }
    }

    fn released(&self, belief: &Belief, at: Stamp) {
        let (key, client) = (belief.key.clone(), self.name.clone());
        self.history.record(Event::Released { key, client, at });
    }

    fn chance(&mut self, of: f64) -> bool {
        self.random.f64() < of
    }

    fn share_of(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(self.random.f64())
    }
}

/// What a holder has written down so far.
struct Belief {
    key: String,
    until: Stamp,
    /// When it last looked and the lock was still valid.
    seen_valid: Stamp,
}

pub(super) fn key(number: usize) -> String {
    format!("key-{number}")
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.acquired += other.acquired;
        self.contended += other.contended;
        self.unavailable += other.unavailable;
        self.expired += other.expired;
        self.cancelled += other.cancelled;
        self.lost += other.lost;
        self.released += other.released;
        self.unconfirmed += other.unconfirmed;
        self.abandoned += other.abandoned;
        self.unreleased += other.unreleased;
    }
}

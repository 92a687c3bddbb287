//! A client of a run: it locks, works, extends, and sometimes just goes away.

use std::time::Duration;

use fastrand::Rng;
use redlock_core::{Guard, Redlock, Renew};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::clock::SkewedClock;
use super::{KEYS, LATEST, MAX_TTL, Mistake, TTL, World};

pub(super) struct Client {
    number: usize,
    world: World,
    rng: Rng,
    clock: SkewedClock,
    redlock: Redlock,
}

impl Client {
    pub(super) fn new(number: usize, world: World, mut rng: Rng) -> Self {
        let clock = SkewedClock::random(&mut rng);
        let redlock = world.connect(clock.clone(), |builder| builder.label(format!("c{number}")));
        Self { number, world, rng, clock, redlock }
    }

    pub(super) fn redlock(&self) -> Redlock {
        self.redlock.clone()
    }

    /// Locks again and again, until it is told to stop.
    pub(super) async fn work(mut self, stopping: watch::Receiver<bool>) {
        while !*stopping.borrow() {
            let key = KEYS[self.rng.usize(..KEYS.len())];
            let ttl = if self.rng.bool() { TTL } else { MAX_TTL };
            if let Some(guard) = self.lock(key, ttl).await {
                self.hold(key, ttl, guard).await;
            }
            let pause = self.millis(0, 100);
            sleep(pause).await;
        }
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.u64(from..=to))
    }

    fn note(&self, what: impl std::fmt::Display) {
        self.world.trace.note(format_args!("c{} {what}", self.number));
    }

    /// Now and then what is sent next is held up on its way to every server.
    fn maybe_late(&mut self, what: &str) {
        if self.rng.u8(..12) == 0 {
            for node in self.world.cluster.nodes() {
                let late = Duration::from_millis(self.rng.u64(60..=LATEST.as_millis() as u64));
                node.deliver_late(late);
            }
            self.world.trace.fault(format_args!("c{} {what} late", self.number));
        }
    }

    async fn lock(&mut self, key: &str, ttl: Duration) -> Option<Guard> {
        let renew = if self.rng.u8(..4) == 0 { Renew::Yes } else { Renew::No };
        let wait = [0, 300, 2_000, 4_000][self.rng.usize(..4)];
        let request = self.redlock.lock(key).ttl(ttl).renew(renew);
        let request = request.wait(Duration::from_millis(wait));
        let patience = match self.rng.u8(..6) {
            0 => self.millis(0, 120),
            _ => Duration::from_secs(60),
        };
        if matches!(self.world.mistake, Some(Mistake::ValidFromTheEnd | Mistake::LateMajority)) {
            self.clock.freeze();
        }
        self.maybe_late("locks");
        let asked = Instant::now();
        let locked = timeout(patience, request).await;
        self.clock.thaw(self.world.mistake == Some(Mistake::LateMajority));
        match locked {
            Err(_) => {
                self.note(format_args!("gives up on {key}"));
                None
            }
            Ok(Err(error)) => {
                self.note(format_args!("has no {key}: {:?}", error.kind()));
                None
            }
            Ok(Ok(guard)) => {
                self.world.tokens.note(key, asked, &guard);
                let token = guard.fencing_token().map(|token| token.get());
                let basis = guard.fence_basis();
                self.note(format_args!("has {key} for {ttl:?}: {token:?} by {basis:?}"));
                if guard.remaining().is_zero() {
                    let late = format!("c{} was given {key} when it was over", self.number);
                    self.world.trace.violation(late);
                }
                Some(guard)
            }
        }
    }

    async fn hold(&mut self, key: &str, ttl: Duration, guard: Guard) {
        let hold = self.world.checker.enter(key, &guard);
        for _ in 0..self.rng.usize(1..=2) {
            let ttl = u64::try_from(ttl.as_millis()).unwrap();
            // The last is who was stopped and finds out too late.
            let most = [5, 20, 100, ttl / 2, ttl, 2 * ttl][self.rng.usize(..6)];
            let work = self.millis(0, most);
            sleep(work).await;
            if self.rng.bool() {
                self.extend(key, &guard).await;
            }
        }
        self.note(format_args!("leaves {key}, {:?}", guard.state()));
        drop(hold);
        self.maybe_late("releases");
        match self.rng.bool() {
            true => drop(guard),
            false => {
                let released = guard.release().await;
                self.note(format_args!("released {key}: {released:?}"));
            }
        }
    }

    async fn extend(&mut self, key: &str, guard: &Guard) {
        let ttl = if self.rng.bool() { TTL } else { MAX_TTL };
        self.maybe_late("extends");
        let extended = guard.extend(ttl).await;
        self.note(format_args!("extends {key} to {ttl:?}: {:?}", extended.is_ok()));
        if extended.is_err()
            && self.world.mistake == Some(Mistake::FailedExtendReleases)
            && !guard.is_lost()
        {
            let _released = self.redlock.unlock(key, guard.token()).await;
        }
    }
}

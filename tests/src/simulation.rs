//! Whole runs of several clients against simulated servers that fail, each decided by one number.
//!
//! The library under test is what ships, down to the mailboxes of its lanes; what is simulated are
//! the servers, the network and the clocks ([`redlock_core::testing`]). Time is tokio's, paused: a
//! run of half a minute takes some milliseconds, and the same seed is the same run.

mod client;
mod clock;
mod faults;
mod mistake;
mod tokens;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use redlock_core::testing::{Checker, Cluster, Violation};
use redlock_core::{ConfigBuilder, Redlock};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use client::Client;
use clock::SkewedClock;
use faults::{Mood, Nemesis};
pub use mistake::Mistake;
use tokens::Tokens;
use trace::Trace;

/// What most locks ask for.
const TTL: Duration = Duration::from_secs(1);

/// The longest that a lock may ask for.
const MAX_TTL: Duration = Duration::from_secs(5);

/// How long a command may be held up at most. With the longest delay and the longest pause on top
/// that is less than the time for which it is kept void.
const LATEST: Duration = Duration::from_secs(3);

/// For how long things go wrong.
const TROUBLE: Duration = Duration::from_secs(30);

/// Within what time all that clients owe must be settled, once nothing goes wrong any more.
const GRACE: Duration = Duration::from_secs(5);

/// Clocks of clients and servers run too fast or too slow by as much at most.
const RATE_PPM: i64 = 10_000;

const KEYS: [&str; 2] = ["order", "report"];

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Simulation {
    /// What decides everything.
    pub seed: u64,
    /// How many servers there are.
    pub nodes: usize,
    /// What the clients do wrong.
    pub mistake: Option<Mistake>,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What must not happen and did.
    pub violations: Vec<String>,
    /// How many locks were held.
    pub holds: usize,
    /// How many things went wrong on purpose.
    pub faults: usize,
    /// All that happened, and when; equal for equal runs.
    pub trace: u64,
    /// The same in words.
    pub lines: Vec<String>,
}

/// What clients and faults have in common.
#[derive(Clone, Debug)]
struct World {
    cluster: Cluster,
    checker: Checker,
    tokens: Arc<Tokens>,
    trace: Arc<Trace>,
    mistake: Option<Mistake>,
}

impl Simulation {
    /// How many servers the run with this seed has, unless that is said: mostly three.
    #[must_use]
    pub const fn nodes_of(seed: u64) -> usize {
        [3, 3, 3, 5, 7][(seed % 5) as usize]
    }

    /// Whether the clocks of servers are set while it runs. They lose no data then: how long they
    /// do not vote is measured on these clocks.
    const fn sets_clocks(&self) -> bool {
        self.seed % 8 == 6
    }

    /// Runs it, in a runtime of its own.
    #[must_use]
    pub fn run(&self) -> Outcome {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        // The library's jitter.
        fastrand::seed(self.seed);
        runtime.block_on(self.play())
    }

    async fn play(&self) -> Outcome {
        let mut rng = Rng::with_seed(self.seed);
        let cluster = Cluster::new(self.nodes);
        cluster.mutate(self.mistake.and_then(Mistake::mutant));
        // Where connections can't be killed, late commands have to be void.
        let forbids_kill = rng.bool();
        for node in cluster.nodes() {
            node.set_clock_rate(clock::rate(&mut rng));
            if forbids_kill {
                node.forbid_kill();
            }
        }
        let (checker, trace) = (Checker::new(), Arc::new(Trace::default()));
        let tokens = Arc::default();
        let world = World { cluster, checker, tokens, trace, mistake: self.mistake };
        let (stop, stopping) = watch::channel(false);
        let clients: Vec<Client> = (0..rng.usize(2..=5))
            .map(|number| Client::new(number, world.clone(), rng.fork()))
            .collect();
        let redlocks: Vec<Redlock> = clients.iter().map(Client::redlock).collect();
        let at_work: Vec<_> =
            clients.into_iter().map(|one| tokio::spawn(one.work(stopping.clone()))).collect();
        // Whether a majority may lose its data at once: then there may be no lock for a while, but
        // never two. Tokens begin anew, also by a lock that nobody got to see.
        let merciless = rng.u8(..4) == 0;
        let mood = match (self.sets_clocks(), merciless) {
            (true, _) => Mood::SetsClocks,
            (false, true) => Mood::Merciless,
            (false, false) => Mood::Merciful,
        };
        Nemesis::new(&world, mood, rng.fork()).rage(TROUBLE).await;
        world.cluster.heal();
        stop.send_replace(true);
        for client in at_work {
            client.await.unwrap();
        }
        world.expect_an_end(&redlocks, mood).await;
        world.expect_a_lock(&mut rng).await;
        let (trace, lines, mut violations, faults) = world.trace.end();
        let mut found = world.checker.violations();
        found.retain(|one| match mood {
            Mood::Merciful => true,
            Mood::Merciless => !matches!(one, Violation::Token { .. }),
            // Keys expire when they like, so that several may have a lock at a time.
            Mood::SetsClocks => false,
        });
        if mood == Mood::SetsClocks {
            violations.extend(world.tokens.violations());
        }
        violations.extend(found.iter().map(ToString::to_string));
        Outcome { violations, holds: world.checker.holds(), faults, trace, lines }
    }
}

impl World {
    /// Another client with the settings of all.
    fn connect(
        &self,
        clock: SkewedClock,
        set: impl FnOnce(ConfigBuilder) -> ConfigBuilder,
    ) -> Redlock {
        let drift = match self.mistake {
            Some(Mistake::HalfDrift) => f64::from(RATE_PPM as i32) / 1e6,
            _ => 2.0 * f64::from(RATE_PPM as i32) / 1e6,
        };
        let builder = |builder: ConfigBuilder| {
            set(builder.ttl(TTL).max_ttl(MAX_TTL).drift_factor(drift).clock(clock))
        };
        self.cluster.redlock_with(builder).unwrap()
    }

    /// Nobody holds a lock: once all that is owed is settled, no server may have a key.
    async fn expect_an_end(&self, redlocks: &[Redlock], mood: Mood) {
        for redlock in redlocks {
            let unreleased = redlock.close(GRACE).await.unreleased;
            if unreleased > 0 {
                self.trace.violation(format!("{unreleased} commands were never settled"));
            }
        }
        let deadline = Instant::now() + GRACE;
        while self.cluster.nodes().any(|node| node.on_the_way() > 0) {
            if Instant::now() >= deadline {
                self.trace.violation("something is still on its way".to_owned());
                break;
            }
            sleep(Duration::from_millis(1)).await;
        }
        if mood == Mood::SetsClocks {
            // What makes a late command void expires when it likes, too.
            return;
        }
        for (number, node) in self.cluster.nodes().enumerate() {
            for (key, token) in node.holders() {
                let label = token.label();
                self.trace.violation(format!("node {number} still has {key:?} for {label}"));
            }
        }
    }

    /// Nothing goes wrong any more: every key can be locked in time.
    async fn expect_a_lock(&self, rng: &mut Rng) {
        let redlock = self.connect(SkewedClock::random(rng), |builder| builder.label("last"));
        let enough = TTL + MAX_TTL + GRACE;
        for key in KEYS {
            match redlock.lock(key).wait(enough).await {
                Ok(guard) => {
                    drop(self.checker.enter(key, &guard));
                    guard.release().await;
                }
                Err(error) => self.trace.violation(format!("no lock after {enough:?}: {error}")),
            }
        }
    }
}

//! What a server and its double are told.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use redlock_core::testing::twin::{Asked, Op};
use redlock_core::{Config, Key, Safety, Token};

/// The key of a server's record.
pub(super) const RECORD: &str = "{redlock}:node";

/// After it nothing of what was short is left, nor of a short quarantine.
const LONG_ENOUGH: Duration = Duration::from_millis(35);

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(3_600);

const KEYS: usize = 6;
const TOKENS: usize = 10;

/// Somebody with a configuration of their own.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) config: Config,
}

impl Client {
    /// Those who agree with each other, those who do not, and those of a later epoch.
    pub(super) fn all() -> Vec<Self> {
        let guarded = |epoch, max_ttl, durable| {
            let builder = Config::memory().ttl(SHORT).max_ttl(max_ttl).epoch(epoch);
            Self { config: builder.durable(durable).build().unwrap() }
        };
        let plain = Config::memory().ttl(SHORT).safety(Safety::Plain).build().unwrap();
        vec![
            guarded(0, SHORT, false),
            guarded(0, SHORT, false),
            guarded(0, SHORT, true),
            guarded(0, LONG, false),
            guarded(1, SHORT, false),
            guarded(1, SHORT, true),
            guarded(2, 2 * SHORT, false),
            Self { config: plain },
        ]
    }
}

#[derive(Debug)]
pub(super) enum Step {
    Batch {
        client: usize,
        batch: Vec<Asked>,
    },
    /// Lets what is short expire.
    Wait(Duration),
    Flush,
    /// The server finds the data of another.
    ForeignRun,
    /// Without its data.
    Restart,
}

/// Makes up what comes next.
#[derive(Debug)]
pub(super) struct Plan {
    rng: Rng,
    keys: Vec<Key>,
    tokens: Vec<Token>,
    /// Who asks mostly.
    favourite: usize,
    /// Whose tokens are void for a short time only.
    brief: Vec<bool>,
    /// Something expires soon: nobody may look before it has.
    waiting: bool,
    /// Of the numbers for counters.
    largest: u64,
}

impl Plan {
    pub(super) fn new(rng: Rng, clients: &[Client]) -> Self {
        let keys = (0..KEYS).map(|key| Key::new(format!("key {key}")).unwrap()).collect();
        let token = |token| match token {
            0 => "foreign".parse().unwrap(),
            _ => format!("c{token}:{token:032x}").parse().unwrap(),
        };
        let brief = |client: &Client| {
            client.config.safety() == Safety::Guarded && client.config.max_ttl() < LONG
        };
        Self {
            rng,
            keys,
            tokens: (0..TOKENS).map(token).collect(),
            favourite: 0,
            brief: clients.iter().map(brief).collect(),
            waiting: false,
            largest: 0,
        }
    }

    pub(super) fn next(&mut self) -> Step {
        if std::mem::take(&mut self.waiting) {
            return Step::Wait(LONG_ENOUGH);
        }
        match self.rng.u16(..2_000) {
            0 => Step::Restart,
            1..=8 => Step::Flush,
            9..=14 => Step::ForeignRun,
            15..=50 => {
                self.favourite = self.rng.usize(..self.brief.len());
                Step::Wait(LONG_ENOUGH)
            }
            _ => self.batch(),
        }
    }

    fn batch(&mut self) -> Step {
        let client = match self.rng.u8(..50) {
            0 => self.rng.usize(..self.brief.len()),
            _ => self.favourite,
        };
        let size = [1, 2, 8, 40][self.rng.usize(..4)];
        let mut batch = Vec::with_capacity(2 * size);
        for _ in 0..size {
            match self.rng.u8(..12) {
                0 => batch.extend(self.succession()),
                1 => batch.extend(self.one_after_another()),
                _ => batch.push(self.asked()),
            }
        }
        // What expires soon comes last: all that was asked before has its answer by then.
        let brief = self.brief[client];
        let expires_soon = |asked: &Asked| match asked.op {
            Op::Acquire { ttl, .. } | Op::Extend { ttl } => ttl < Duration::from_secs(1),
            Op::Void => brief,
            _ => false,
        };
        if brief && self.rng.u8(..8) > 0 {
            batch.retain(|asked| asked.op != Op::Void);
        }
        batch.sort_by_key(expires_soon);
        self.waiting = batch.iter().any(expires_soon);
        Step::Batch { client, batch }
    }

    fn asked(&mut self) -> Asked {
        let key = self.keys[self.rng.usize(..KEYS)].clone();
        let token = self.tokens[self.rng.usize(..TOKENS)].clone();
        Asked { op: self.op(), key, token }
    }

    /// What is asked of a server when a lock is handed over.
    fn succession(&mut self) -> [Asked; 2] {
        let release = Asked { op: Op::Release, ..self.asked() };
        let acquire = Op::Acquire { ttl: self.ttl(), proposal: self.number() };
        let acquire = Asked { op: acquire, key: release.key.clone(), ..self.asked() };
        [release, acquire]
    }

    /// Two locks of one key while the client's clock stands still.
    fn one_after_another(&mut self) -> [Asked; 3] {
        self.largest += 1;
        let acquire = Op::Acquire { ttl: LONG, proposal: self.largest };
        let acquire = Asked { op: acquire, ..self.asked() };
        let release = Asked { op: Op::Release, ..acquire.clone() };
        [acquire.clone(), release, acquire]
    }

    fn op(&mut self) -> Op {
        let bucket = [0, 1, 2, 197, 842, 543][self.rng.usize(..6)];
        match self.rng.u16(..1_000) {
            0..=299 => Op::Acquire { ttl: self.ttl(), proposal: self.number() },
            300..=419 => Op::Extend { ttl: self.ttl() },
            420..=519 => Op::Confirm { fence: self.number() },
            520..=579 => Op::Count { bucket },
            580..=639 => {
                let since = [0, 1, 1_764_000_000_000][self.rng.usize(..3)];
                Op::Learn { bucket, value: self.number(), since }
            }
            640..=779 => Op::Release,
            780..=859 => Op::Reclaim,
            860..=889 => Op::Void,
            890..=989 => Op::Inspect,
            _ => Op::Provision { dry: self.rng.bool() },
        }
    }

    /// From milliseconds, rarely, to an hour.
    fn ttl(&mut self) -> Duration {
        match self.rng.u16(..1_500) {
            0 => Duration::from_millis(self.rng.u64(15..=20)),
            _ => Duration::from_secs(self.rng.u64(600..=3_600)),
        }
    }

    /// A token, or what is proposed as one: small, or about what the clock says.
    fn number(&mut self) -> u64 {
        let number = match self.rng.bool() {
            true => self.rng.u64(..1_000),
            false => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
                now.saturating_add_signed(self.rng.i64(-90_000_000..=30_000_000))
            }
        };
        self.largest = self.largest.max(number);
        number
    }
}

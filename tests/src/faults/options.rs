//! What a run is told.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use humantime::Duration as HumanDuration;
use serde::{Deserialize, Serialize, Serializer};

use super::Kind;

/// Processes lock on real servers while faults are injected; exits with 1 if two of them held a
/// key at the same time, a fencing token was not greater than an earlier one, or a key was left
/// behind.
#[derive(Clone, Debug, Parser, Serialize)]
#[command(name = "faults")]
pub struct Options {
    /// For how long faults are injected.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// Servers.
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Processes that want the locks.
    #[arg(long, default_value_t = 8)]
    pub clients: usize,
    /// Keys that they want.
    #[arg(long, default_value_t = 3)]
    pub keys: usize,
    /// How many of the keys are hot: every fourth task wants no other ones. As many as there are
    /// keys unless set, all of them wanted by all.
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hot: Option<usize>,
    /// Locks that one process has or wants at a time.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    pub tasks: u64,
    /// The time to live of a lock. With minutes instead of milliseconds, orphans do not expire
    /// before they are found; nobody is killed or leaves a lock behind then.
    #[arg(long, default_value = "600ms")]
    #[serde(serialize_with = "as_text")]
    pub ttl: HumanDuration,
    /// For how long a lock is held at most without being renewed; half of the TTL unless set.
    #[arg(long)]
    #[serde(skip)]
    pub hold: Option<HumanDuration>,
    /// Whether servers that lost their data are kept from voting.
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub guard: Switch,
    /// The faults, separated by commas; all of them but `clock` unless set.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Kind>,
    /// A fault begins this often on average.
    #[arg(long, default_value = "400ms")]
    #[serde(serialize_with = "as_text")]
    pub every: HumanDuration,
    /// For how long after a server lost its data no other one does; not at all unless set.
    #[arg(long)]
    #[serde(skip)]
    pub spacing: Option<HumanDuration>,
    /// How far the wall clocks of the clients are wrong at most, in either direction. Where a
    /// majority of the servers forgot the tokens, later ones are then greater by chance only, and
    /// not judged.
    #[arg(long, default_value = "10s")]
    #[serde(serialize_with = "as_text")]
    pub skew: HumanDuration,
    /// By how much the clocks of servers may be wrong without a vote being refused; nobody looks
    /// unless set. The clocks of the clients are right then.
    #[arg(long)]
    #[serde(skip)]
    pub max_clock_skew: Option<HumanDuration>,
    /// Judges tokens by what the locks say and not by what the servers knew: they may begin anew
    /// only where a lock of the same key says that a clock ordered it. Whoever would have said so
    /// may have been killed, so a run that ends well without this may fail with it.
    #[arg(long)]
    pub strict_tokens: bool,
    /// Keeps the history, the faults, and which server did not know which counters, in this folder.
    #[arg(long)]
    #[serde(skip)]
    pub keep: Option<PathBuf>,
    /// Keeps what the servers execute as well. That is much, and slows them down.
    #[arg(long, requires = "keep")]
    #[serde(skip)]
    pub monitor: bool,
    /// Makes the same plan of faults again. What becomes of it depends on the machine.
    #[arg(long, default_value_t = fastrand::u64(..1 << 53))]
    pub seed: u64,
    /// Turns the judgement on exclusion round: succeeds if at least so many overlaps were found.
    #[arg(long)]
    pub expect_overlaps: Option<usize>,
    /// Prints JSON instead of text.
    #[arg(long)]
    #[serde(skip)]
    pub json: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// With a longer TTL nobody waits for a lock to expire.
const PATIENCE: Duration = Duration::from_secs(5);

impl Options {
    /// What a run is told by default, on a seed of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::parse_from(["faults"])
    }

    /// The kinds of faults to choose from.
    #[must_use]
    pub fn kinds(&self) -> Vec<Kind> {
        let promised = Kind::value_variants().iter().copied().filter(|kind| kind.is_promised());
        let mut chosen = if self.only.is_empty() { promised.collect() } else { self.only.clone() };
        chosen.retain(|kind| self.locks_may_be_left() || !kind.takes_a_short_ttl());
        chosen
    }

    pub(super) fn hold(&self) -> Duration {
        self.hold.map_or(*self.ttl / 2, Into::into)
    }

    pub(super) fn spacing(&self) -> Duration {
        self.spacing.map_or(Duration::ZERO, Into::into)
    }

    /// Whether locks may be left to expire: not if everybody would wait for that.
    pub(super) fn locks_may_be_left(&self) -> bool {
        *self.ttl <= PATIENCE
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

fn as_text<S: Serializer>(duration: &HumanDuration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(duration)
}

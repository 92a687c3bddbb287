//! The outcome, as JSON or as text, and what in it must not be.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use super::{Kind, Options, Orphan, Tally};
use crate::{Acquisition, Disorder, TokenVerdict, Verdict};

/// How many of a kind are shown in full.
const SHOWN: usize = 5;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// What it was told.
    pub options: Options,
    /// How long it took.
    pub seconds: f64,
    /// How many faults there were.
    pub faults: BTreeMap<Kind, u64>,
    /// Faults that had no effect.
    pub faults_in_vain: u64,
    /// Holds and overlaps.
    pub exclusion: Verdict,
    /// Fencing tokens.
    pub tokens: TokenVerdict,
    /// Tokens that are smaller than an earlier one, judged by what the locks say.
    pub strict_regressions: Vec<Disorder>,
    /// Tokens that are owed to a clock, they say, although a majority knew its counter.
    pub unfounded: Vec<Acquisition>,
    /// What became of the attempts to lock.
    pub tally: Tally,
    /// Clients that did not end as they should.
    pub clients_failed: usize,
    /// Keys that were left behind.
    pub orphans: Vec<Orphan>,
}

impl Report {
    /// What is not as it must be.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut none_of = |count: usize, what: &str| {
            if count > 0 {
                problems.push(format!("{count} {what}"));
            }
        };
        let overlaps = self.exclusion.overlaps.len();
        if self.options.expect_overlaps.is_none() {
            none_of(overlaps, "holds that began while another one of the same key was on");
        }
        none_of(self.tokens.duplicates.len(), "fencing tokens that were given before");
        none_of(self.tokens.regressions.len(), "fencing tokens smaller than an earlier one");
        none_of(self.unfounded.len(), "fencing tokens by clock where a majority knew the last one");
        if self.options.strict_tokens {
            let what = "fencing tokens smaller than an earlier one, and no lock says why";
            none_of(self.strict_regressions.len(), what);
        }
        none_of(self.orphans.len(), "keys left behind");
        let unreleased = usize::try_from(self.tally.unreleased).unwrap_or(usize::MAX);
        none_of(unreleased, "commands that no server had confirmed when their client ended");
        none_of(self.clients_failed, "clients that failed");
        if self.exclusion.holds == 0 {
            problems.push("no lock was held: there is nothing to judge".to_owned());
        }
        if let Some(expected) = self.options.expect_overlaps
            && overlaps < expected
        {
            problems.push(format!("{overlaps} overlaps, where {expected} were expected at least"));
        }
        problems
    }

    /// How many faults there were of all kinds.
    #[must_use]
    pub fn fault_count(&self) -> u64 {
        self.faults.values().sum()
    }

    /// All of it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let overlaps = self.exclusion.overlaps.iter().take(SHOWN);
        let shown = |disorders: &[Disorder]| json!(disorders[..disorders.len().min(SHOWN)]);
        json!({
            "options": self.options,
            "seconds": self.seconds,
            "faults": self.faults,
            "fault_count": self.fault_count(),
            "faults_in_vain": self.faults_in_vain,
            "holds": self.exclusion.holds,
            "violations": self.exclusion.overlaps.len(),
            "first_violations": overlaps.map(|overlap| format!("{overlap:?}")).collect::<Vec<_>>(),
            "tokens": self.tokens.checked,
            "tokens_by_clock": self.tokens.by_clock,
            "token_regressions": self.tokens.regressions.len(),
            "token_regressions_strict": self.strict_regressions.len(),
            "tokens_by_clock_unfounded": self.unfounded.len(),
            "token_duplicates": self.tokens.duplicates.len(),
            "first_token_regressions": shown(&self.tokens.regressions),
            "first_token_regressions_strict": shown(&self.strict_regressions),
            "first_tokens_by_clock_unfounded": json!(self.unfounded[..self.unfounded.len().min(SHOWN)]),
            "first_token_duplicates": shown(&self.tokens.duplicates),
            "orphans": self.orphans.len(),
            "first_orphans": self.orphans[..self.orphans.len().min(SHOWN)],
            "clients": self.tally,
            "clients_failed": self.clients_failed,
            "problems": self.problems(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { nodes, clients, ttl, seed, .. } = &self.options;
        writeln!(f, "{nodes} servers, {clients} clients, TTL {ttl}, seed {seed}")?;
        write!(f, "{} faults in {:.0} s:", self.fault_count(), self.seconds)?;
        for (kind, count) in &self.faults {
            write!(f, " {count} {kind:?}")?;
        }
        writeln!(f, "; {} in vain", self.faults_in_vain)?;
        let (exclusion, tokens) = (&self.exclusion, &self.tokens);
        writeln!(f, "{} holds, {} overlaps", exclusion.holds, exclusion.overlaps.len())?;
        let (back, twice) = (tokens.regressions.len(), tokens.duplicates.len());
        let (all, by_clock) = (tokens.checked, tokens.by_clock);
        writeln!(f, "{all} tokens, {by_clock} by clock, {back} went back, {twice} given twice")?;
        writeln!(f, "{} orphans", self.orphans.len())?;
        write!(f, "{:?}", self.tally)
    }
}

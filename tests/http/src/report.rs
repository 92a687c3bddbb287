//! What a run counted, and what must not have happened.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde_json::{Value, json};

#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) requests: u64,
    pub(crate) duplicates: u64,
    pub(crate) charges: u64,
    pub(crate) made_twice: u64,
    pub(crate) never_made: u64,
    /// Locks of requests that ended, which were looked for on the servers.
    pub(crate) looked_for: u64,
    pub(crate) seconds: f64,
    pub(crate) graceful: BTreeMap<&'static str, u64>,
    pub(crate) killed: BTreeMap<&'static str, u64>,
    pub(crate) faults: BTreeMap<&'static str, u64>,
    pub(crate) kinds: BTreeMap<&'static str, u64>,
    pub(crate) answers: BTreeMap<String, u64>,
    pub(crate) violations: Vec<String>,
}

/// What many count at once.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Report>);

impl Tally {
    pub(crate) fn with<T>(&self, count: impl FnOnce(&mut Report) -> T) -> T {
        count(&mut self.0.lock())
    }

    pub(crate) fn violation(&self, what: String) {
        self.with(|report| report.violations.push(what));
    }

    pub(crate) fn take(&self) -> Report {
        std::mem::take(&mut self.0.lock())
    }
}

impl Report {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "requests": self.requests,
            "duplicates": self.duplicates,
            "charges": self.charges,
            "made_twice": self.made_twice,
            "never_made": self.never_made,
            "locks_looked_for": self.looked_for,
            "kinds": self.kinds,
            "answers": self.answers,
            "faults_of_lock_servers": self.faults,
            "sigterm": self.graceful,
            "sigkill": self.killed,
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "violations": self.violations,
        })
    }

    /// Why the run failed.
    pub(crate) fn problems(&self, expect_doubles: Option<u64>) -> Vec<String> {
        if let Some(least) = expect_doubles {
            let found = self.made_twice;
            return match found >= least {
                true => Vec::new(),
                false => {
                    vec![format!("{found} charges were made twice, at least {least} expected")]
                }
            };
        }
        let mut problems = self.violations.clone();
        if self.made_twice > 0 {
            problems.push(format!("{} charges were made twice", self.made_twice));
        }
        if self.never_made > 0 {
            problems.push(format!("{} charges were never made", self.never_made));
        }
        problems
    }
}

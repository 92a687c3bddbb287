//! What happened in a run.

use std::hash::{DefaultHasher, Hash, Hasher};

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Trace {
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    violations: Vec<String>,
    faults: usize,
}

impl Default for Trace {
    fn default() -> Self {
        Self { began: Instant::now(), state: Mutex::default() }
    }
}

impl Trace {
    pub(super) fn note(&self, what: impl std::fmt::Display) {
        let line = format!("{:>10} µs  {what}", self.began.elapsed().as_micros());
        self.state.lock().lines.push(line);
    }

    pub(super) fn fault(&self, what: impl std::fmt::Display) {
        self.state.lock().faults += 1;
        self.note(what);
    }

    pub(super) fn violation(&self, what: String) {
        self.note(format_args!("VIOLATION {what}"));
        self.state.lock().violations.push(what);
    }

    /// The hash of all lines, the lines, the violations, and how many faults there were.
    pub(super) fn end(&self) -> (u64, Vec<String>, Vec<String>, usize) {
        let state = std::mem::take(&mut *self.state.lock());
        let mut hasher = DefaultHasher::new();
        state.lines.hash(&mut hasher);
        (hasher.finish(), state.lines, state.violations, state.faults)
    }
}

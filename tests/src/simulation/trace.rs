//! What happened in a run.

use parking_lot::Mutex;
use tokio::time::Instant;
use twox_hash::XxHash3_64;

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
        let hash = XxHash3_64::oneshot(state.lines.join("\n").as_bytes());
        (hash, state.lines, state.violations, state.faults)
    }
}

//! What is told of locks to whoever watches: events by `tracing`, and figures by `metrics`, if
//! that feature is on. A lock goes by a number: neither its key nor its token is told.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tracing::field::{Empty, display};
use tracing::instrument::Instrumented;
use tracing::{Instrument, Span};

use crate::error::{ErrorKind, LockError};
use crate::fencing::FencingToken;
use crate::protocol::tenure::LostReason;
use crate::token::Token;

/// Counts one under a label. All values are written out: a key that is known when this is compiled
/// costs no allocation.
#[cfg(feature = "metrics")]
macro_rules! count {
    ($name:literal, $label:literal => $value:expr, $($known:literal)+) => {
        match $value {
            $($known => metrics::counter!($name, $label => $known).increment(1),)+
            _ => {}
        }
    };
}

#[cfg(not(feature = "metrics"))]
macro_rules! count {
    ($name:literal, $label:literal => $value:expr, $($known:literal)+) => {
        let _: &'static str = $value;
    };
}

pin_project! {
    /// An acquisition on the way. It is no `async` block: that would copy the acquisition, and keep
    /// room for each copy.
    pub(crate) struct Watched<F, L> {
        #[pin]
        acquiring: Instrumented<F>,
        acquisition: Acquisition,
        name: fn(&L) -> Name,
    }
}

/// What a lock that was won goes by, and its fencing token.
pub(crate) type Name = (u64, Option<FencingToken>);

/// Tells what becomes of an acquisition.
pub(crate) fn watched<F, L>(acquiring: F, name: fn(&L) -> Name) -> Watched<F, L>
where
    F: Future<Output = Result<L, LockError>>,
{
    let span = tracing::debug_span!("acquire", lock = Empty, outcome = Empty);
    let acquiring = acquiring.instrument(span.clone());
    let acquisition = Acquisition { since: Instant::now(), span, over: false };
    Watched { acquiring, acquisition, name }
}

impl<F, L> Future for Watched<F, L>
where
    F: Future<Output = Result<L, LockError>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let acquired = ready!(this.acquiring.poll(cx));
        match &acquired {
            Ok(lock) => this.acquisition.won((this.name)(lock)),
            Err(error) => this.acquisition.failed(error),
        }
        Poll::Ready(acquired)
    }
}

/// Dropped before it has ended, it was cancelled.
struct Acquisition {
    since: Instant,
    span: Span,
    over: bool,
}

impl Acquisition {
    fn won(&mut self, (lock, fencing_token): Name) {
        self.span.record("lock", lock);
        self.end("acquired");
        let fencing_token = fencing_token.map(display);
        let Self { span, since, .. } = self;
        span.in_scope(|| {
            tracing::debug!(lock, fencing_token, waited_ms = millis(since), "lock acquired");
        });
    }

    fn failed(&mut self, error: &LockError) {
        let outcome = match error.kind() {
            ErrorKind::Contended => "contended",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Expired | ErrorKind::Lost => "expired",
            ErrorKind::Invalid => "invalid",
            ErrorKind::Closed => "closed",
        };
        self.end(outcome);
        let Self { span, since, .. } = self;
        span.in_scope(|| {
            tracing::debug!(outcome, waited_ms = millis(since), %error, "lock not acquired");
        });
    }

    fn end(&mut self, outcome: &'static str) {
        self.over = true;
        self.span.record("outcome", outcome);
        acquired(outcome, self.since);
    }
}

impl Drop for Acquisition {
    fn drop(&mut self) {
        if !self.over {
            acquired("cancelled", self.since);
            let Self { span, since, .. } = self;
            span.in_scope(|| {
                tracing::debug!(waited_ms = millis(since), "lock not waited for any longer");
            });
        }
    }
}

fn acquired(outcome: &'static str, since: Instant) {
    count!("redlock_acquire_total", "outcome" => outcome,
        "acquired" "contended" "unavailable" "expired" "invalid" "closed" "cancelled");
    #[cfg(feature = "metrics")]
    metrics::histogram!("redlock_acquire_duration_seconds").record(since.elapsed());
    #[cfg(not(feature = "metrics"))]
    let _ = since;
}

/// A lock that is held, from when it was won until it is released, handed over or lost.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Its number in this process: what it goes by in events, and in the keeper's schedule.
    pub(crate) id: u64,
    since: Instant,
    over: AtomicBool,
}

impl Hold {
    pub(crate) fn begin() -> Self {
        static IDS: AtomicU64 = AtomicU64::new(1);
        #[cfg(feature = "metrics")]
        metrics::gauge!("redlock_held").increment(1);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        Self { id, since: Instant::now(), over: AtomicBool::new(false) }
    }

    pub(crate) fn released(&self) {
        if self.end() {
            tracing::debug!(lock = self.id, held_ms = millis(&self.since), "lock released");
        }
    }

    pub(crate) fn handed_over(&self) {
        if self.end() {
            tracing::debug!(lock = self.id, held_ms = millis(&self.since), "lock handed over");
        }
    }

    pub(crate) fn lost(&self, token: &Token, reason: LostReason) {
        self.end();
        let why = match reason {
            LostReason::Expired => "expired",
            LostReason::TakenOver => "taken_over",
            LostReason::MaxHold => "max_hold",
            LostReason::Closed => "closed",
        };
        count!("redlock_lost_total", "reason" => why, "expired" "taken_over" "max_hold" "closed");
        match reason {
            // This process has closed: that is no news to it.
            LostReason::Closed => tracing::debug!(lock = self.id, ?token, %reason, "lock lost"),
            _ => tracing::warn!(lock = self.id, ?token, %reason, "lock lost"),
        }
    }

    pub(crate) fn extended(&self, extended: &Result<Duration, LockError>) {
        let outcome = match extended {
            Ok(valid) => {
                tracing::debug!(lock = self.id, valid_ms = whole_millis(*valid), "lock extended");
                "extended"
            }
            Err(error) => {
                tracing::debug!(lock = self.id, %error, "lock not extended");
                if error.kind() == ErrorKind::Lost { "lost" } else { "unavailable" }
            }
        };
        count!("redlock_extend_total", "outcome" => outcome, "extended" "unavailable" "lost");
    }

    /// `true` the first time.
    fn end(&self) -> bool {
        if self.over.swap(true, Ordering::Relaxed) {
            return false;
        }
        #[cfg(feature = "metrics")]
        {
            metrics::gauge!("redlock_held").decrement(1);
            metrics::histogram!("redlock_hold_duration_seconds").record(self.since.elapsed());
        }
        true
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.end();
    }
}

/// A release that was sent. Nobody waits for the answer, unless told otherwise.
pub(crate) struct Release(&'static str);

impl Release {
    pub(crate) fn sent() -> Self {
        Self("background")
    }

    pub(crate) fn answered(mut self, outcome: &'static str) {
        self.0 = outcome;
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        count!("redlock_release_total", "outcome" => self.0,
            "released" "already_expired" "indeterminate" "background");
    }
}

/// A server could not be reached, or fell silent, or may not vote.
pub(crate) fn node_error(node: &str, kind: &'static str) {
    #[cfg(feature = "metrics")]
    metrics::counter!("redlock_node_errors_total", "node" => node.to_owned(), "kind" => kind)
        .increment(1);
    #[cfg(not(feature = "metrics"))]
    let _ = (node, kind);
}

/// Milliseconds since `since`. An event that is not enabled does not read the clock.
fn millis(since: &Instant) -> u64 {
    whole_millis(since.elapsed())
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

//! Outages in the log: one event when an outage begins and one when it ends, not one per request.

#[cfg(feature = "tracing")]
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::rejection::{Rejection, RejectionKind};

/// An outage ends with the first success after no request was refused for so long. One group of
/// several servers may be down, or a server may come and go: that is one outage.
const QUIET: Duration = Duration::from_secs(5);

/// Whether what a layer depends on is there, as far as the outcomes of its requests tell. Clones
/// share it.
#[derive(Clone, Default)]
pub(crate) struct Outage(Arc<State>);

#[derive(Default)]
struct State {
    /// For the successes of all requests while there is no outage.
    is_on: AtomicBool,
    refused: Mutex<Option<Refused>>,
}

struct Refused {
    kind: RejectionKind,
    first: Instant,
    last: Instant,
    requests: u64,
}

impl Outage {
    /// A request was refused because of an outage. Returns whether that begins with this request.
    fn refused(&self, kind: RejectionKind) -> bool {
        let now = Instant::now();
        let mut refused = self.0.refused.lock();
        let begins = refused.is_none();
        let refused = refused.get_or_insert(Refused { kind, first: now, last: now, requests: 0 });
        refused.last = now;
        refused.requests += 1;
        self.0.is_on.store(true, Ordering::Relaxed);
        begins
    }

    /// A request got what it needs. Logs the end of an outage if this is the end of one.
    pub(crate) fn succeeded(&self) {
        if !self.0.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut refused = self.0.refused.lock();
        if refused.as_ref().is_none_or(|refused| refused.last.elapsed() < QUIET) {
            return;
        }
        self.0.is_on.store(false, Ordering::Relaxed);
        let ended = refused.take();
        drop(refused);
        if let Some(ended) = ended {
            ended.log();
        }
    }
}

impl Refused {
    #[cfg(feature = "tracing")]
    fn log(&self) {
        let lasted = self.last - self.first;
        tracing::info!(kind = ?self.kind, refused = self.requests, ?lasted, "the outage is over");
    }

    #[cfg(not(feature = "tracing"))]
    fn log(&self) {
        let _unheard = (self.kind, self.last - self.first, self.requests);
    }
}

impl Rejection {
    /// Logs the rejection at the level of its kind.
    ///
    /// | rejection | level |
    /// |---|---|
    /// | 500: a mistake in the service | ERROR |
    /// | the first one of an outage, a lost lock, another 5xx | WARN |
    /// | the others of an outage, the service is closing, 4xx | DEBUG |
    pub(crate) fn logged(self, outage: &Outage) -> Self {
        let is_outage = self.kind().is_outage();
        let begins = is_outage && outage.refused(self.kind());
        match self.status() {
            StatusCode::INTERNAL_SERVER_ERROR => self.log_error(),
            _ if begins => self.log_outage(),
            status if status.is_server_error() && !is_outage && !self.is_closing() => {
                self.log_warning();
            }
            _ => self.log_detail(),
        }
        self
    }

    fn is_closing(&self) -> bool {
        self.kind() == RejectionKind::Closing
    }
}

#[cfg(feature = "tracing")]
impl Rejection {
    fn cause(&self) -> Option<tracing::field::DisplayValue<&(dyn Error + 'static)>> {
        self.source().map(tracing::field::display)
    }

    fn log_error(&self) {
        tracing::error!(kind = ?self.kind(), error = self.cause(), "{self}");
    }

    fn log_outage(&self) {
        let text = "an outage begins: requests are refused until it is over";
        tracing::warn!(kind = ?self.kind(), error = self.cause(), "{text}");
    }

    fn log_warning(&self) {
        tracing::warn!(kind = ?self.kind(), error = self.cause(), "{self}");
    }

    fn log_detail(&self) {
        tracing::debug!(kind = ?self.kind(), error = self.cause(), "{self}");
    }
}

#[cfg(not(feature = "tracing"))]
impl Rejection {
    fn log_error(&self) {}
    fn log_outage(&self) {}
    fn log_warning(&self) {}
    fn log_detail(&self) {}
}

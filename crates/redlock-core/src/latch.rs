//! A flag that is raised once and can be waited for.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Latch {
    raised: AtomicBool,
    waiting: Notify,
}

impl Latch {
    /// Raises the flag and wakes everybody who waits; `false` if it was raised already.
    pub(crate) fn raise(&self) -> bool {
        let first = !self.raised.swap(true, Ordering::AcqRel);
        if first {
            self.waiting.notify_waiters();
        }
        first
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    pub(crate) async fn raised(&self) {
        // The permission to be woken is taken before the flag is read, or a raise in between
        // would be missed.
        let woken = self.waiting.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if !self.is_raised() {
            woken.await;
        }
    }
}

//! The payment provider, simulated: slow, and charging each reference once.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Moves the money. Like real providers it takes a reference with each charge and ignores one
/// that it has seen: that is what makes a charge safe to repeat when its answer got lost.
#[derive(Clone, Debug)]
pub struct Provider {
    delay: Duration,
    charged: Arc<Mutex<HashSet<String>>>,
}

impl Provider {
    /// A provider that takes `delay` for each charge.
    #[must_use]
    pub fn new(delay: Duration) -> Self {
        Self { delay, charged: Arc::default() }
    }

    /// How many payments were charged.
    #[must_use]
    pub fn charges(&self) -> usize {
        self.charged().len()
    }

    /// Charges the payment unless that was done before.
    pub(crate) async fn charge(&self, payment_id: &str) {
        tokio::time::sleep(self.delay).await;
        self.charged().insert(payment_id.into());
    }

    fn charged(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Finishes payments that were cut off, without a request of the client.
//!
//! A process that died between the charge and the record has left a payment in progress. A repeated
//! request finishes the payment. Without one, this module does, under the same lock as a request.

use std::time::Duration;

use redlock_core::{Lease, Redlock};

use crate::fence::Fence;
use crate::payments::charge;
use crate::problem::Problem;
use crate::provider::Provider;
use crate::store::{Store, Unfinished};

/// Looks for payments that were cut off at once and then every `interval`, for as long as the
/// future is polled.
///
/// # Cancel safety
///
/// May be dropped at any time; what is under way is taken up again by the next one.
pub async fn recover(store: Store, provider: Provider, redlock: Redlock, interval: Duration) {
    loop {
        match store.unfinished().await {
            Err(error) => tracing::warn!(%error, "what was cut off can't be read"),
            Ok(unfinished) => {
                for payment in unfinished {
                    take_up(&store, &provider, &redlock, &payment).await;
                }
            }
        }
        tokio::time::sleep(interval).await;
    }
}

async fn take_up(store: &Store, provider: &Provider, redlock: &Redlock, unfinished: &Unfinished) {
    let id = &unfinished.payment_id;
    // No waiting: a key that is locked belongs to a request that is at it.
    let guard =
        match redlock.try_lock(unfinished.key.of_payment()).renew(redlock_core::Renew::Yes).await {
            Ok(guard) => guard,
            Err(error) if error.is_contended() => return,
            Err(error) => return tracing::warn!(%error, "no lock to finish what was cut off"),
        };
    let finished = tokio::select! {
        biased;
        reason = guard.lost() => return tracing::warn!(%reason, payment = id, "lost its lock"),
        finished = finish(store, provider, unfinished, guard.lease()) => finished,
    };
    match finished {
        Ok(true) => tracing::info!(payment = id, "finished what was cut off"),
        Ok(false) => {}
        Err(problem) => tracing::warn!(?problem, payment = id, "still not finished"),
    }
    guard.release().await;
}

async fn finish(
    store: &Store,
    provider: &Provider,
    unfinished: &Unfinished,
    lease: &Lease,
) -> Result<bool, Problem> {
    let fence = Fence::of(lease.fencing_token())?;
    if !store.take_up(unfinished, fence).await? {
        return Ok(false);
    }
    let Unfinished { payment_id, payment, .. } = unfinished;
    charge(store, provider, payment_id, payment, None, fence).await?;
    Ok(true)
}

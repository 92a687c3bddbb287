//! Waiting for a state instead of sleeping and hoping.

use std::fmt::Display;
use std::time::Duration;

use redlock_core::{NodeAnswer, Redlock};
use tokio::time::{Instant, sleep, timeout_at};

/// The pause between two looks. Short, so that a test is as fast as what it waits for.
const INTERVAL: Duration = Duration::from_millis(5);

/// Asks `probe` again and again until it says yes, and returns what it found.
///
/// A probe says "not yet" with `false`, `None` or an `Err`; the last `Err` is part of the panic's
/// text. A probe that hangs is given up when the deadline passes.
///
/// # Panics
///
/// When `deadline` has passed, naming `what` was waited for.
///
/// # Examples
///
/// ```
/// # use std::time::Duration;
/// # use std::sync::atomic::{AtomicUsize, Ordering};
/// # use redlock_tests::eventually;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let looks = AtomicUsize::new(0);
/// eventually(Duration::from_secs(1), "the third look", async || {
///     looks.fetch_add(1, Ordering::Relaxed) == 2
/// })
/// .await;
/// # });
/// ```
pub async fn eventually<P: Answer>(
    deadline: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> P,
) -> P::Found {
    let give_up = Instant::now() + deadline;
    let mut last = None;
    loop {
        match timeout_at(give_up, probe()).await.map(P::answer) {
            Ok(Ok(found)) => return found,
            Ok(Err(reason)) => last = reason.or(last),
            Err(_) => {}
        }
        if Instant::now() >= give_up {
            let last = last.map(|reason| format!("; at last: {reason}")).unwrap_or_default();
            panic!("waited {deadline:?} in vain for {what}{last}");
        }
        sleep(INTERVAL).await;
    }
}

/// Waits until every node of the key's group answers, so that none is missing later for no other
/// reason than that it was not connected yet.
pub async fn all_vote(redlock: &Redlock) {
    eventually(Duration::from_secs(20), "every node to vote", async || {
        let nodes = redlock.inspect("nobody locks this").await;
        let nodes = nodes.map_err(|error| error.to_string())?.nodes;
        let silent = nodes.into_iter().find(|node| node.answer != NodeAnswer::NotHeld);
        silent.map_or(Ok(()), |node| Err(node.to_string()))
    })
    .await;
}

/// What a probe of [`eventually`] may return.
pub trait Answer {
    /// What the wait is for.
    type Found;

    /// The find, or the reason why there is none yet.
    #[doc(hidden)]
    fn answer(self) -> Result<Self::Found, Option<String>>;
}

impl Answer for bool {
    type Found = ();

    fn answer(self) -> Result<(), Option<String>> {
        if self { Ok(()) } else { Err(None) }
    }
}

impl<T> Answer for Option<T> {
    type Found = T;

    fn answer(self) -> Result<T, Option<String>> {
        self.ok_or(None)
    }
}

impl<T, E: Display> Answer for Result<T, E> {
    type Found = T;

    fn answer(self) -> Result<T, Option<String>> {
        self.map_err(|reason| Some(reason.to_string()))
    }
}

//! Panics in background work, as errors with their message.
//!
//! A task that panics ends without a word: its callers would wait for their deadline and report a
//! timeout.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt;

/// Runs `work`. The error names it as `what`, with the message of the panic.
pub(crate) async fn caught<T>(what: &str, work: impl Future<Output = T>) -> Result<T, Arc<str>> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|panic| told(what, &*panic))
}

/// The same for work that does not wait.
pub(crate) fn caught_now<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, Arc<str>> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| told(what, &*panic))
}

fn told(what: &str, panic: &(dyn Any + Send)) -> Arc<str> {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("{what} panicked: {}", text.unwrap_or("no message")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_with_its_message() {
        assert_eq!(caught("it", async { 7 }).await, Ok(7));
        let number = 3;
        let panicked = caught("the task", async { panic!("number {number}") }).await;
        assert_eq!(panicked, Err::<(), _>("the task panicked: number 3".into()));
        let panicked = caught_now("the task", || std::panic::panic_any(number));
        assert_eq!(panicked, Err::<(), _>("the task panicked: no message".into()));
    }
}

//! Handlers that run on when their client is gone.

use std::fmt;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// The handlers that run in tasks of their own, by [`Disconnect::Detach`], for a graceful
/// shutdown to wait for.
///
/// ```no_run
/// # async fn serve(app: axum::Router, layer: tower_redlock::RedlockLayer, redlock: redlock_core::Redlock,
/// #     listener: tokio::net::TcpListener) -> std::io::Result<()> {
/// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// axum::serve(listener, app).with_graceful_shutdown(stop).await?;
/// layer.detached().finished().await;
/// redlock.close(std::time::Duration::from_secs(5)).await;
/// # Ok(()) }
/// ```
///
/// A handler whose lock is lost ends too, unless the layer says
/// [`Lost::Continue`](crate::Lost::Continue): closing the [`Redlock`](redlock_core::Redlock) ends
/// them all.
///
/// [`Disconnect::Detach`]: crate::Disconnect::Detach
#[derive(Clone, Default)]
pub struct Detached(TaskTracker);

impl Detached {
    /// How many run now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none runs now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits until none runs any more: stop the server first, so that no request comes in.
    ///
    /// Put a timeout around it if handlers may hang.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any time; the handlers run on.
    pub async fn finished(&self) {
        self.0.close();
        self.0.wait().await;
    }

    pub(crate) fn spawn<F>(&self, handling: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        #[cfg(feature = "tracing")]
        let handling = tracing::Instrument::in_current_span(handling);
        self.0.spawn(handling)
    }
}

impl fmt::Debug for Detached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Detached").field("len", &self.len()).finish()
    }
}

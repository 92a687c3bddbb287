//! Handlers that run on when their client is gone.

use std::fmt;

use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

/// The handlers that run in tasks of their own, by [`Disconnect::Detach`], for a graceful
/// shutdown to wait for.
///
/// ```
/// # use std::time::Duration;
/// # use axum::{Router, routing::post};
/// # use redlock_core::Redlock;
/// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// # use tokio::net::{TcpListener, TcpStream};
/// # use tower_redlock::{Disconnect, RedlockLayer, key};
/// # async fn pay() { tokio::time::sleep(Duration::from_millis(20)).await }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0").await?;
/// # let address = listener.local_addr()?;
/// # let client = async move {
/// #     let mut stream = TcpStream::connect(address).await?;
/// #     stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await?;
/// #     let mut answer = String::new();
/// #     stream.read_to_string(&mut answer).await?;
/// #     Ok::<_, std::io::Error>(answer)
/// # };
/// # let client = tokio::spawn(client);
/// let redlock = Redlock::in_memory();
/// let layer = RedlockLayer::new(redlock.clone(), key::path()).on_disconnect(Disconnect::Detach);
/// let app: Router = Router::new().route("/", post(pay)).layer(layer.clone());
///
/// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// # let (stop, ctrl_c) = (async { client.await }, stop);
/// # drop(ctrl_c);
/// # let (answered, answer) = tokio::sync::oneshot::channel();
/// # let stop = async { answered.send(stop.await).unwrap_or_default() };
/// axum::serve(listener, app).with_graceful_shutdown(stop).await?;
/// layer.detached().finished().await;
/// redlock.close(Duration::from_secs(5)).await;
/// # assert!(answer.await???.starts_with("HTTP/1.1 200"));
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

//! A lock service that fails when a test wants it to, without servers, sockets or waiting.
//!
//! A [`Cluster`] is a set of simulated servers. Locks are taken on it as on real ones: by the same
//! quorum, deadlines, retries, quarantine and releases that are owed. Its nodes can be paused,
//! slowed down, cut off, restarted without their data, and made to lose what is sent. A [`Checker`]
//! knows when two held the same lock.
//!
//! Everything follows tokio's time. Where a test pauses it, hours pass in milliseconds, and a
//! single-threaded test is the same every time it is run.
//!
//! # What does my code do when the lock service fails?
//!
//! ```
//! use std::time::Duration;
//! use redlock_core::{ErrorKind, LostReason, testing::Cluster};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = Cluster::new(3);
//! let redlock = cluster.redlock();
//!
//! // One server of three may fail.
//! cluster.node(0).pause();
//! let guard = redlock.lock("order:42").await?;
//!
//! // The lock service goes away while the lock is held: it is lost in time.
//! cluster.node(1).pause();
//! let error = redlock.try_lock("order:7").await.unwrap_err();
//! assert_eq!(error.kind(), ErrorKind::Unavailable);
//! assert_eq!(guard.lost().await, LostReason::Expired);
//! drop(guard);
//!
//! // It is back.
//! cluster.heal();
//! redlock.lock("order:42").wait(Duration::from_secs(5)).await?.release().await;
//! # Ok(()) }
//! ```
//!
//! # Can two of my workers hold the same lock?
//!
//! ```
//! use std::time::Duration;
//! use redlock_core::{Redlock, testing::{Checker, Cluster}};
//!
//! async fn work(redlock: Redlock, checker: Checker) {
//!     for _ in 0..20 {
//!         if let Ok(guard) = redlock.lock("report").await {
//!             let hold = checker.enter("report", &guard);
//!             tokio::time::sleep(Duration::from_millis(30)).await;
//!             drop(hold);
//!             guard.release().await;
//!         }
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (cluster, checker) = (Cluster::new(3), Checker::new());
//! let workers: Vec<_> = (0..3)
//!     .map(|_| tokio::spawn(work(cluster.redlock(), checker.clone())))
//!     .collect();
//!
//! tokio::time::sleep(Duration::from_millis(500)).await;
//! cluster.node(2).restart_empty();
//! cluster.node(1).delay(Duration::from_millis(20));
//! for worker in workers {
//!     worker.await?;
//! }
//! assert!(checker.holds() > 0);
//! checker.assert_exclusive();
//! # Ok(()) }
//! ```
//!
//! A handler under `tower_redlock` is tested in the same way, see its documentation.

mod checker;
mod cluster;

pub use self::checker::{Checker, Hold, Violation};
pub use self::cluster::{Cluster, Node};
#[doc(hidden)]
pub use crate::node::simulated::{LaneMistake, Mutant};
#[doc(hidden)]
pub use crate::node::twin;

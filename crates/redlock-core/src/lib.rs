//! Redlock over independent Redis or Valkey servers.
//!
//! ```no_run
//! use redlock_core::{Config, Redlock};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::servers(["redis://a", "redis://b", "redis://c"]).build()?;
//! let redlock = Redlock::new(config);
//!
//! let guard = redlock.lock("order:42").await?;
//! // nobody else has order 42 for the next guard.remaining()
//! guard.release().await;
//! # Ok(()) }
//! ```
//!
//! A lock is held while a majority of the servers keeps its token under the key. This crate holds
//! it, knows exactly until when, and tells in time when it is gone.
//!
//! - [`Redlock`] is the handle: [`lock`](Redlock::lock), [`try_lock`](Redlock::try_lock),
//!   [`with_lock`](Redlock::with_lock), [`lock_all`](Redlock::lock_all),
//!   [`inspect`](Redlock::inspect), [`close`](Redlock::close).
//! - [`Request`] is one acquisition: time to live, waiting, renewal.
//! - [`Guard`] owns a lock, [`Lease`] is a view of it.
//! - [`fencing`] is how a store refuses whoever has lost a lock and does not know it yet.
//! - [`Config`] names the servers, [`RingScheme`] spreads keys over groups of them.
//! - [`LockError`] tells "locked by somebody else" from "the lock service is not there".
//!
//! # Testing without servers
//!
//! A library takes a [`Redlock`], and its tests give it one without servers:
//! [`Redlock::in_memory`] has the same semantics within one process.
//!
//! ```
//! use redlock_core::{Config, ErrorKind, LockError, Redlock};
//!
//! pub struct Reports {
//!     redlock: Redlock,
//! }
//!
//! impl Reports {
//!     pub fn new(redlock: impl Into<Redlock>) -> Self {
//!         Self { redlock: redlock.into() }
//!     }
//!
//!     pub async fn write(&self, month: &str) -> Result<(), LockError> {
//!         let _guard = self.redlock.try_lock(format!("report:{month}")).await?;
//!         // write it
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let redlock = Redlock::in_memory();
//! let reports = Reports::new(redlock.clone());
//! reports.write("2026-11").await?;
//!
//! // locked by somebody else
//! let held = redlock.lock("report:2026-11").await?;
//! assert_eq!(reports.write("2026-11").await.unwrap_err().kind(), ErrorKind::Contended);
//! held.release().await;
//! reports.write("2026-11").await?;
//!
//! // no lock service: nothing listens on port 1
//! let reports = Reports::new(Config::servers(["redis://127.0.0.1:1"]).build()?);
//! assert_eq!(reports.write("2026-11").await.unwrap_err().kind(), ErrorKind::Unavailable);
//! # Ok(()) }
//! ```
//!
//! Leases in memory follow tokio's time, which a test can pause and advance. For lock services that
//! fail, slowly or in part, see the module `testing` of the feature `test-util`.
//!
//! # What it promises
//!
//! While a lease says that it is valid, nobody else holds the key, provided that fewer than a
//! majority of the servers lose their data at once, that clocks run at rates within the configured
//! drift of each other, and that this process looks at its lease before it acts: one that is paused
//! finds out too late. No lock service can remove the last condition; that is what a
//! [`FencingToken`] is for, if [what is written to](fencing) checks it.
//!
//! A server that lost its data, or was never used, does not vote until the locks that it may have
//! forgotten have run out ([`Safety::Guarded`]): [`Redlock::provision`] puts new servers to use,
//! [`Redlock::connect`] waits for them. [SAFETY.md] says what can go wrong, what happens then, and
//! which test shows it.
//!
//! [SAFETY.md]: https://github.com/redlock-rs/redlock/blob/main/SAFETY.md
//!
//! # Events
//!
//! By `tracing`, with targets under `redlock_core`:
//!
//! | level | event | |
//! |---|---|---|
//! | WARN | `node does not vote` | a server is down, silent or unfit: `node`, `cause` |
//! | INFO | `node votes again` | it is back: `node` |
//! | WARN | `lock lost` | a lease ended before its release: `token` without its secret half, `reason` |
//! | WARN | `server check failed` | a server votes although a check speaks against it: `node`, `check`, `objection` |
//! | WARN | `a lost connection could not be closed` | the user may not `CLIENT KILL`: what was in flight stays for its TTL |
//! | WARN | `the Ketama ring spreads keys unevenly` | once, when a ring of many groups is made |
//! | DEBUG | `lock acquired`, `lock not acquired` | `waited_ms`, and the `outcome` or the `fencing_token` |
//! | DEBUG | `lock extended`, `lock not extended` | a renewal, or an extension by hand: `valid_ms`, or the `error` |
//! | DEBUG | `lock released`, `lock handed over` | `held_ms` |
//!
//! An acquisition is a span `acquire`, of level DEBUG. The events of a lock have its number in this
//! process as `lock`: with that, its story can be told from a log. Keys are in none of them.
//!
//! # Metrics
//!
//! With the feature `metrics`, by the crate of that name: install a recorder, such as
//! `metrics-exporter-prometheus`, with buckets for the names that end with `_seconds`. There is a
//! [dashboard] for Grafana.
//!
//! | name | kind | labels |
//! |---|---|---|
//! | `redlock_acquire_total` | counter | `outcome`: `acquired`, `contended`, `unavailable`, `expired`, `invalid`, `closed`, `cancelled` |
//! | `redlock_acquire_duration_seconds` | histogram | from the request to its outcome, waiting included |
//! | `redlock_held` | gauge | locks that this process holds |
//! | `redlock_hold_duration_seconds` | histogram | from the acquisition to the release, the hand-over or the loss |
//! | `redlock_extend_total` | counter | `outcome`: `extended`, `unavailable`, `lost` |
//! | `redlock_release_total` | counter | `outcome`: as [`Released`] says, or `background` if nobody waited for it |
//! | `redlock_lost_total` | counter | `reason`: `expired`, `taken_over`, `max_hold`, `closed` |
//! | `redlock_node_errors_total` | counter | `node`: its address; `kind`: `down`, `silent`, `cut`: once for each connection or try that failed |
//!
//! No label has a key, a token or a password in it. Without a recorder a figure costs a look at an
//! atomic; without the feature nothing.
//!
//! [dashboard]: https://github.com/redlock-rs/redlock/blob/main/docs/grafana/redlock.json
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `metrics` | | [figures](#metrics) of acquisitions, extensions, releases and servers |
//! | `serde` | | [`Config`] can be deserialized, durations written as `"10s"` |
//! | `test-util` | | `testing`: simulated servers that fail when a test wants it, and a checker |
//! | `tls` | yes | `rediss://` servers, by rustls. Uses the crypto provider that the application installed, else `ring`. Installs none. |
//! | `tls-no-provider` | | the same without `ring`: the application has to install a crypto provider |
//!
//! `ring` next to another provider in one build makes `rustls::ClientConfig::builder()` panic in code
//! that neither names nor installs a provider. An application with code like that installs one when
//! it starts, or uses `tls-no-provider` instead of `tls`.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod clock;
mod config;
mod deference;
mod error;
pub mod fencing;
/// Nothing of it is meant to last.
#[cfg(feature = "test-util")]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod guard;
mod health;
mod keeper;
mod key;
mod latch;
mod lease;
mod mending;
mod node;
mod observe;
mod panic;
mod pending;
mod posted;
mod queue;
mod redlock;
mod request;
mod ring;
mod round;
mod service;
mod tenancy;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod testing;
mod token;

/// For model checkers and simulators. Nothing of it is meant to last.
#[cfg(feature = "test-util")]
#[doc(hidden)]
pub mod protocol;
#[cfg(not(feature = "test-util"))]
mod protocol;

/// The examples of the README are compiled as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use self::clock::{Clock, Moment, SystemClock, TokioClock};
pub use self::config::{
    CheckPolicy, Config, ConfigBuilder, ConfigError, Group, Safety, Server, ServerCheck, WakeUp,
};
pub use self::error::{ErrorKind, LockError, NodeAnswer, NodeReport};
#[doc(inline)]
pub use self::fencing::{FenceBasis, FencingToken};
pub use self::guard::{Guard, Released};
pub use self::health::GroupHealth;
pub use self::key::{IntoKey, InvalidKey, Key};
pub use self::lease::Lease;
pub use self::protocol::tenure::{LeaseState, LostReason};
pub use self::redlock::{Closed, Inspection, Provisioned, Redlock};
pub use self::request::{Renew, Request};
pub use self::ring::RingScheme;
pub use self::token::{InvalidToken, Token};

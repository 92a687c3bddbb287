//! Holds a Redlock for as long as a request is being handled.
//!
//! ```
//! use axum::{Router, routing::post};
//! use redlock_core::Redlock;
//! use tower_redlock::{RedlockLayer, key};
//!
//! # use axum::body::Body;
//! # use http::{Request, StatusCode};
//! # use tower::ServiceExt;
//! # async fn pay() {}
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Redlock::new(Config::servers(["redis://a", "redis://b", "redis://c"]).build()?)
//! let redlock = Redlock::in_memory();
//! let app: Router = Router::new()
//!     .route("/payments", post(pay))
//!     .layer(RedlockLayer::new(redlock, key::header("idempotency-key")));
//! # let request = Request::post("/payments").header("idempotency-key", "1").body(Body::empty())?;
//! # assert_eq!(app.oneshot(request).await?.status(), StatusCode::OK);
//! # Ok(()) }
//! ```
//!
//! - [`RedlockLayer`] derives a key from each request, locks it, and releases it before the
//!   response is yielded. It works with everything that speaks [`tower_service::Service`] and
//!   [`http`]: axum, tonic, hyper.
//! - [`Locked<R>`](Locked) is an axum extractor whose argument is locked while the handler runs.
//! - [`LockScope`] locks more, from within a handler.
//! - [`ReadBodyLayer`] reads the body of a request before anything is locked, bounded in size and time:
//!   a slow client does not keep the lock.
//! - [`FenceLayer`] is for the other side: a service that is called under a lock refuses requests
//!   that come when the lock has passed on. See [`fencing`].
//! - [`IdempotencyLayer`](idempotency::IdempotencyLayer) carries a request with an
//!   `Idempotency-Key` out once, and answers it again when it is repeated. See [`idempotency`].
//!
//! # Answers
//!
//! Bodies are RFC 9457 problems, `application/problem+json`, without keys, tokens and the
//! addresses of servers. [`RedlockLayer::on_rejection`] changes them.
//!
//! | what happened | status | `type` |
//! |---|---|---|
//! | [another request holds the lock](#locked) | 423 and `Retry-After` | `…#locked` |
//! | [the lock service is not there](#lock-unavailable) | 503 and `Retry-After` | `…#lock-unavailable` |
//! | [the lock service does not vote yet](#lock-quarantined) | 503 and `Retry-After` | `…#lock-quarantined` |
//! | [the service is closing](#closing) | 503 and `Retry-After` | `…#closing` |
//! | [the lock was lost while the handler ran](#lock-lost) | 503 and `Retry-After` | `…#lock-lost` |
//! | [the request has no usable key](#bad-lock-key) | 400, or what the key function says | `…#bad-lock-key` |
//! | [`Locked<_>` without a layer](#missing-lock-layer) | 500 | `…#missing-lock-layer` |
//! | [the layer asks for nonsense](#lock-misconfigured) | 500 | `…#lock-misconfigured` |
//! | [the fencing token is smaller than one that came before](#stale-token) | 412 | `…#stale-token` |
//! | [there is no fencing token, or none that can be read](#bad-fencing-token) | 428, 400 | `…#bad-fencing-token` |
//! | [the store of fencing tokens is not there](#fences-unavailable) | 503 and `Retry-After` | `…#fences-unavailable` |
//! | [there is no idempotency key, or none that can be one](#bad-idempotency-key) | 400 | `…#bad-idempotency-key` |
//! | [the idempotency key was used for another request](#idempotency-key-reused) | 422 | `…#idempotency-key-reused` |
//! | [the body of the request is too large or too slow, or broke off](#bad-body) | 413, 408, 400 | `…#bad-body` |
//! | [the store of answers is not there](#records-unavailable) | 503 and `Retry-After` | `…#records-unavailable` |
//! | [the answer was not kept](#answer-not-kept) | 410 | `…#answer-not-kept` |
//!
//! ```
//! use http::{Request, StatusCode, header::RETRY_AFTER};
//! use redlock_core::Redlock;
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_redlock::{RedlockLayer, key};
//! # use std::convert::Infallible;
//! # use http::Response;
//! # async fn handle(_: Request<String>) -> Result<Response<String>, Infallible> {
//! #     unreachable!("it is locked")
//! # }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let redlock = Redlock::in_memory();
//! let service = ServiceBuilder::new()
//!     .layer(RedlockLayer::new(redlock.clone(), key::path()))
//!     .service_fn(handle);
//!
//! let held = redlock.lock("path:/orders/42").await?;
//! let response = service.oneshot(Request::post("/orders/42").body(String::new())?).await?;
//! assert_eq!(response.status(), StatusCode::LOCKED);
//! assert!(response.headers().contains_key(RETRY_AFTER));
//! held.release().await;
//! # Ok(()) }
//! ```
//!
//! ## locked
//! Another request or process holds the lock. `Retry-After` is the rest of its time to live in seconds,
//! rounded up; `retry_after_ms` in the body is more exact. The holder may release the lock sooner, or
//! renew it.
//!
//! ## lock-unavailable
//! No majority of the lock servers answered in time. Nothing was done.
//!
//! ## lock-quarantined
//! The lock servers answer, and do not vote until all locks that they may have forgotten have expired:
//! a server was restarted without its data, for example. `Retry-After` says when. Nothing was done.
//!
//! ## closing
//! The instance of the service that was asked is shutting down. Nothing was done by this request, unless
//! its handler was stopped with it.
//!
//! ## lock-lost
//! The handler was stopped because its lock was lost. It may have done part of its work.
//!
//! ## bad-lock-key
//! The request does not say what is to be locked: a header is missing, for example.
//!
//! ## missing-lock-layer
//! A handler takes [`Locked`], and its router has no [`RedlockLayer`].
//!
//! ## lock-misconfigured
//! The lock can't be asked for as the layer does, for example with a time to live of zero.
//!
//! ## stale-token
//! Another client has acquired the lock of this request since. Nothing was done. The sender has lost
//! the lock, and should begin anew.
//!
//! ## bad-fencing-token
//! The request must be sent under a lock, with its token in the header `Fencing-Token`.
//!
//! ## fences-unavailable
//! Whether the fencing token is stale could not be found out. Nothing was done.
//!
//! ## bad-idempotency-key
//! The request must have an `Idempotency-Key` of 1 to 255 visible ASCII characters.
//!
//! ## idempotency-key-reused
//! The same `Idempotency-Key` came with another query or body before, and that request was handled.
//! Nothing was done for this one. A client that means to repeat a request has to send the same
//! query and body; with another key the work would be done twice.
//!
//! ## bad-body
//! The body is larger than the service takes, took too long, or the client stopped in its middle.
//! Nothing was done.
//!
//! ## records-unavailable
//! Whether the request was carried out before could not be found out. Nothing was done.
//!
//! ## answer-not-kept
//! The request was handled before. The answer was too large to be kept, or the handler ended
//! without one; the status is in the `detail`.
//!
//! # Testing
//!
//! What does a handler answer while the lock service fails? With the feature `test-util` of
//! `redlock-core`, an ordinary test can tell, without servers and without waiting:
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::{Router, body::Body, routing::post};
//! use http::{Request, StatusCode};
//! use redlock_core::testing::Cluster;
//! use tower::ServiceExt;
//! use tower_redlock::{RedlockLayer, key};
//!
//! async fn pay() -> &'static str {
//!     tokio::time::sleep(Duration::from_secs(60)).await;
//!     "charged"
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // #[tokio::test(start_paused = true)]
//! let cluster = Cluster::new(3);
//! let layer = RedlockLayer::new(cluster.redlock(), key::header("idempotency-key"));
//! let app = Router::new().route("/payments", post(pay)).layer(layer);
//! let request = || Request::post("/payments").header("idempotency-key", "1").body(Body::empty());
//!
//! // One server of three may stand still: the lock is renewed for as long as the handler runs.
//! cluster.node(0).pause();
//! assert_eq!(app.clone().oneshot(request()?).await?.status(), StatusCode::OK);
//!
//! // A second one stands still while the handler runs: it is stopped when the lock is lost.
//! let answer = tokio::spawn(app.clone().oneshot(request()?));
//! tokio::time::sleep(Duration::from_secs(5)).await;
//! cluster.node(1).pause();
//! assert_eq!(answer.await??.status(), StatusCode::SERVICE_UNAVAILABLE);
//!
//! // They go on, and so does the service.
//! cluster.heal();
//! tokio::time::sleep(Duration::from_secs(1)).await;
//! assert_eq!(app.oneshot(request()?).await?.status(), StatusCode::OK);
//! # Ok(()) }
//! ```
//!
//! # Where in a stack
//!
//! Authentication goes over the layer: whoever is not let in locks nothing. A timeout under the
//! layer is part of the handler: its response waits for the release, as any other. One over the
//! layer also counts the waiting for the lock; when it strikes, the lock is released in the
//! background. A limit of concurrency goes under the layer, where it counts requests that are handled
//! and none that waits for its lock. Catching panics works on both sides, and tracing goes over all of
//! them.
//!
//! ```
//! use std::time::Duration;
//!
//! use axum::{Router, body::Body, routing::post};
//! use http::{Request, StatusCode};
//! use redlock_core::Redlock;
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_http::timeout::TimeoutLayer;
//! use tower_http::trace::TraceLayer;
//! use tower_redlock::{RedlockLayer, key};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let stack = ServiceBuilder::new()
//!     .layer(TraceLayer::new_for_http())
//!     .layer(RedlockLayer::new(Redlock::in_memory(), key::path()))
//!     .layer(TimeoutLayer::with_status_code(
//!         StatusCode::GATEWAY_TIMEOUT,
//!         Duration::from_secs(20),
//!     ));
//! let app: Router = Router::new().route("/", post(std::future::pending::<()>)).layer(stack);
//!
//! let response = app.oneshot(Request::post("/").body(Body::empty())?).await?;
//! assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
//! # Ok(()) }
//! ```
//!
//! # Logs
//!
//! With the feature `tracing`, each rejection is an event:
//!
//! | level | rejections |
//! |---|---|
//! | ERROR | a 500: a mistake in the service, such as `missing-lock-layer`; a `ttl` that can't work, when it is set |
//! | WARN | the first of an outage; a lock that was lost; another 5xx of a key function |
//! | INFO | the end of an outage, with how many requests were refused and how long it lasted |
//! | DEBUG | the later ones of an outage; all while the service is closing; 423 and other 4xx |
//!
//! An outage is of one layer and its clones. It ends with the first lock that is acquired when no request
//! was refused for five seconds.
//!
//! # What a lock does not do
//!
//! It keeps two requests from running at once; it does not make a request idempotent, and one
//! that is stopped half-way leaves its half behind. [Record](idempotency) what was done, best in the
//! same transaction as doing it. A process that is paused for longer than its lease finds out too
//! late: check [`Lease::remaining`](redlock_core::Lease::remaining) before what can't be undone, and
//! let what you write to check the [fencing token](redlock_core::fencing).
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `axum` | yes | [`Locked`], [`LockResource`], [`Rejection`] as a response, whole paths in nested routers |
//! | `metrics` | no | that of `redlock-core` |
//! | `postgres` | no | [`idempotency::SqlRecords`] in PostgreSQL, with TLS by rustls with ring, which trusts the system's authorities |
//! | `sqlite` | no | [`idempotency::SqlRecords`] in SQLite |
//! | `sql` | no | [`idempotency::SqlRecords`] alone; the application enables drivers and TLS of `sqlx` 0.9 itself |
//! | `tracing` | yes | events for requests that got no lock; detached handlers keep their span |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

#[cfg(feature = "axum")]
mod axum;
mod body;
mod detached;
pub mod fencing;
mod future;
#[cfg(all(doctest, feature = "axum"))]
mod guides;
pub mod idempotency;
pub mod key;
mod layer;
mod outage;
mod path;
mod read_body;
mod rejection;
mod scope;
mod service;
mod settings;

/// The examples of the README are compiled as tests.
#[cfg(all(doctest, feature = "axum"))]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(feature = "axum")]
pub use self::axum::{LockResource, Locked, LockedRejection};
pub use self::body::{LockLost, ResponseBody};
pub use self::detached::Detached;
pub use self::fencing::{FenceLayer, FenceService, FenceStore, MemoryFences};
pub use self::future::ResponseFuture;
pub use self::key::{IntoResourceKey, KeyRejection};
pub use self::layer::RedlockLayer;
pub use self::read_body::{ReadBodyLayer, ReadBodyService, WholeBody};
pub use self::rejection::{Rejection, RejectionKind};
pub use self::scope::LockScope;
pub use self::service::RedlockService;
pub use self::settings::{Disconnect, Hold, Lost};
pub use redlock_core;

//! Requests that are carried out once, however often they are sent: the `Idempotency-Key`.
//!
//! ```
//! use axum::{Router, body::Body, routing::post};
//! use http::{Request, StatusCode};
//! use redlock_core::Redlock;
//! use tower::ServiceExt;
//! use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # async fn pay() -> StatusCode { StatusCode::CREATED }
//! // Redlock::new(Config::servers(["redis://a", "redis://b", "redis://c"]).build()?)
//! let once = IdempotencyLayer::new(Redlock::in_memory(), MemoryRecords::new());
//! let app: Router = Router::new().route("/payments", post(pay).layer(once));
//!
//! let request = || {
//!     let request = Request::post("/payments").header("authorization", "Bearer alice's token");
//!     request.header("idempotency-key", "order-1").body(Body::empty())
//! };
//! let first = app.clone().oneshot(request()?).await?;
//! let again = app.oneshot(request()?).await?;
//! assert_eq!((first.status(), again.status()), (StatusCode::CREATED, StatusCode::CREATED));
//! assert_eq!(again.headers()["idempotent-replayed"], "true");
//! # Ok(()) }
//! ```
//!
//! The first request with a key takes the lock of that key, is carried out, and what was answered
//! is recorded. Others that come meanwhile are told so; later ones get the same answer, with
//! `Idempotent-Replayed: true`, without a lock. The handler runs on when its client is gone
//! ([`Disconnect::Detach`](crate::Disconnect::Detach)), under a lock that is renewed.
//!
//! # The draft and this layer
//!
//! [draft-ietf-httpapi-idempotency-key-header] leaves some of it to the service. Each row is a test
//! in `tests/idempotency/`.
//!
//! [draft-ietf-httpapi-idempotency-key-header]: https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/
//!
//! | | the draft | this layer |
//! |---|---|---|
//! | 1 | the key is a string in quotes | with quotes or without, the same key; at most 255 characters |
//! | 2 | no key where one is needed: 400 | 400; [`optional`](IdempotencyLayer::optional): carried out each time |
//! | 3 | a key that is none | 400 |
//! | 4 | the first request is in progress: 409 | 423 and `Retry-After`; [`in_progress`](IdempotencyLayer::in_progress) makes it 409; or it [waits](IdempotencyLayer::lock) for the answer |
//! | 5 | the key was used with another payload: 422 | 422, by a [`Fingerprint`] of method, path, query, body, and [headers](IdempotencyLayer::fingerprint_headers), or [as the service compares](IdempotencyLayer::fingerprint) |
//! | 6 | a repeated request gets the first answer, a success or an error | both, with `Idempotent-Replayed: true`, whatever the status; [`record_if`](IdempotencyLayer::record_if) changes it |
//! | 7 | the expiry of keys is published | 24 hours or [as set](IdempotencyLayer::keep_for); each answer that is recorded has `Idempotency-Expires-In`, in seconds |
//! | 8 | an expired key is a new one | it is carried out again |
//! | 9 | keys of several clients don't meet | the caller (a [tenant](IdempotencyLayer::tenant), or the `Authorization` header), the method and the path belong to the key |
//! | 10 | for methods that are not idempotent | `POST` and `PATCH`, or [as set](IdempotencyLayer::methods) |
//!
//! And where the draft is silent:
//!
//! | | what happens | the answer |
//! |---|---|---|
//! | 11 | the body of the request is too large, breaks off, or does not arrive [in time](IdempotencyLayer::max_request_wait) | 413, 400 or 408; nothing was locked |
//! | 12 | the answer is too large to be kept, or a stream that does not [end soon](IdempotencyLayer::max_response_wait) | it is sent; when repeated, 410 with the status that it had, and nothing is done again |
//! | 13 | the store can't be asked | 503, and nothing was done |
//! | 14 | the handler ran, and the store can't record it | its answer without `Idempotency-Expires-In`, and a warning in the log; when repeated, it is handled again |
//! | 15 | the lock service is not there | 503; what was carried out before is answered |
//! | 16 | the lock is lost meanwhile | 503 `lock-lost`, not recorded; a record that somebody else saved since is never replaced |
//! | 17 | the client goes away | the handler ends and is recorded: the client gets the answer when it asks again |
//! | 18 | the handler or its body panics, or the service fails without an answer | as without the layer; when repeated, 410, as part of the work may be done |
//! | 19 | a [`Locked<_>`](crate::Locked), a [`LockScope`](crate::LockScope) or a layer below gets no lock | 423 or 503, not recorded: a handler takes its locks before it does anything |
//! | 20 | a timeout below the layer ends the handler | its answer is recorded, as part of the work may be done |
//! | 21 | a timeout above the layer ends the request | as 17: the handler runs on and is recorded |
//!
//! # What it does not do
//!
//! The work of the handler and the record are not one transaction. A process that dies between
//! them, or a store that fails (14), leaves work that nobody knows of, and the next request with
//! that key does it again. Where that matters:
//!
//! - Pass the [`RecordId`] on to whoever does the work, as an idempotency key of its own: a
//!   provider of payments, or a unique column of your table. Done again, it is then the same.
//! - Or keep the record yourself, in the transaction that does the work, and use a
//!   [`RedlockLayer`](crate::RedlockLayer) alone.
//!
//! # Whose answer it is
//!
//! A recorded answer belongs to its caller. Requests with the same `Authorization` header have the
//! same caller, unless the service names a [`tenant`](IdempotencyLayer::tenant). A service with
//! sessions in cookies, with short-lived tokens or with passwords has to name one: the docs of that
//! setting say why. [`shared_between_callers`](IdempotencyLayer::shared_between_callers) turns the
//! check off. The layer goes below authentication.
//!
//! [`CREDENTIAL_HEADERS`] of an answer are sent once, and are never recorded.

mod body;
mod caller;
mod key;
mod layer;
mod memory;
mod multipart;
mod record;
mod service;
mod settings;
#[cfg(feature = "sql")]
mod sql;

use http::HeaderName;

pub use self::body::BufferedBody;
pub use self::key::{Fingerprint, HEADER, RecordId, key};
pub use self::layer::IdempotencyLayer;
pub use self::memory::MemoryRecords;
pub use self::record::{Record, RecordStore, Saved};
pub use self::service::{IdempotencyService, Recording};
pub use self::settings::CREDENTIAL_HEADERS;
#[cfg(feature = "sql")]
pub use self::sql::SqlRecords;

/// The header of an answer that was given before: `Idempotent-Replayed: true`.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The header that says for how many seconds a request is answered again, if it is repeated.
pub const EXPIRES_IN: HeaderName = HeaderName::from_static("idempotency-expires-in");

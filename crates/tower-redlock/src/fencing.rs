//! Fencing tokens over HTTP: sent along with a request, and checked by the service that gets it.
//!
//! A request that was sent under a lock may arrive when somebody else has the lock. With the
//! [`FencingToken`] in its [`HEADER`] the other side can tell.
//!
//! ```
//! use axum::{Router, extract::Path, routing::post};
//! use axum::http::{Request, StatusCode};
//! use tower_redlock::{LockResource, Locked, fencing};
//! # use axum::body::Body;
//! # use serde::Deserialize;
//! # use tower::ServiceExt;
//! # use tower_redlock::RedlockLayer;
//! # use tower_redlock::redlock_core::{Key, Redlock};
//! # #[derive(Deserialize)] struct AccountId(String);
//! # impl LockResource for AccountId {
//! #     fn lock_key(&self) -> Key { Key::hashed(format!("account:{}", self.0)) }
//! # }
//!
//! async fn withdraw(account: Locked<Path<AccountId>>) -> Result<(), StatusCode> {
//!     let token = account.fencing_token().ok_or(StatusCode::INTERNAL_SERVER_ERROR)?;
//!     let request = Request::post("http://bank/accounts/7/withdrawals")
//!         .header(fencing::HEADER, token.to_string());
//!     // send it
//! #   assert!(request.body(()).is_ok());
//!     Ok(())
//! }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let app: Router = Router::new()
//! #     .route("/accounts/{id}/withdrawals", post(withdraw))
//! #     .layer(RedlockLayer::scope_only(Redlock::in_memory()));
//! # let request = Request::post("/accounts/7/withdrawals").body(Body::empty())?;
//! # assert_eq!(app.oneshot(request).await?.status(), StatusCode::OK);
//! # Ok(()) }
//! ```
//!
//! The service that is called puts a [`FenceLayer`] in front of what must not be late:
//!
//! ```
//! use axum::{Extension, Router, body::Body, routing::post};
//! use http::{Request, StatusCode};
//! use tower::ServiceExt;
//! use tower_redlock::redlock_core::FencingToken;
//! use tower_redlock::{FenceLayer, MemoryFences, fencing, key};
//!
//! async fn withdraw(Extension(token): Extension<FencingToken>) {
//!     // UPDATE accounts SET …, fence = $token WHERE id = $id AND fence <= $token
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let app: Router = Router::new()
//!     .route("/accounts/{id}/withdrawals", post(withdraw))
//!     .layer(FenceLayer::new(MemoryFences::new(), key::path()));
//! let request = |token: u64| {
//!     let request = Request::post("/accounts/7/withdrawals").header(fencing::HEADER, token);
//!     request.body(Body::empty())
//! };
//! assert_eq!(app.clone().oneshot(request(43)?).await?.status(), StatusCode::OK);
//! let late = app.oneshot(request(42)?).await?;
//! assert_eq!(late.status(), StatusCode::PRECONDITION_FAILED);
//! # Ok(()) }
//! ```
//!
//! The layer checks a request when it comes in, and lets no earlier one in afterwards. It can't
//! call back a handler that it let in before and that is paused in its middle. Where that matters,
//! the store that the handler writes to has to check as well, in the same transaction: see
//! [`redlock_core::fencing`]. A handler of this kind needs no layer. It reads the [`token`] from the
//! headers and returns [`Rejection::stale_token`].
//!
//! Let in only services that you trust, by whatever authenticates them: whoever can send a token
//! can shut others out with a large one.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;
use redlock_core::{FencingToken, Key};

use crate::rejection::Rejection;

mod layer;

pub use self::layer::{FenceFuture, FenceLayer, FenceService};

/// The header that carries a fencing token, in decimal digits: `Fencing-Token: 1764000000000000`.
pub const HEADER: HeaderName = HeaderName::from_static("fencing-token");

/// Tokens are below this, so that they survive JSON. A larger one would shut everybody out.
const END: u64 = 1 << 53;

/// The fencing token of a request.
///
/// ```
/// use http::{HeaderMap, StatusCode};
/// use tower_redlock::fencing;
///
/// let mut headers = HeaderMap::new();
/// let missing = fencing::token(&headers).unwrap_err();
/// assert_eq!(missing.status(), StatusCode::PRECONDITION_REQUIRED);
///
/// headers.insert(fencing::HEADER, "42".parse().unwrap());
/// assert_eq!(fencing::token(&headers).unwrap().get(), 42);
/// ```
///
/// # Errors
///
/// A [`Rejection`] with 428 if there is none, and with 400 if there are several, or what is there
/// is no number below 2^53.
pub fn token(headers: &HeaderMap) -> Result<FencingToken, Rejection> {
    let mut values = headers.get_all(HEADER).iter();
    let token = match (values.next(), values.next()) {
        (None, _) => {
            let detail = "send the fencing token of your lock in `Fencing-Token`";
            return Err(Rejection::bad_token(StatusCode::PRECONDITION_REQUIRED, detail));
        }
        (Some(value), None) => number(value),
        (Some(_), Some(_)) => None,
    };
    token.map(FencingToken::new).ok_or_else(|| {
        let detail = "`Fencing-Token` must be sent once, and be a number below 2^53";
        Rejection::bad_token(StatusCode::BAD_REQUEST, detail)
    })
}

fn number(value: &HeaderValue) -> Option<u64> {
    let digits = value.to_str().ok()?;
    // `parse` would take a sign.
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?;
    number.filter(|number| *number < END)
}

/// Remembers the largest fencing token of each resource.
///
/// ```
/// use std::error::Error;
///
/// use tower_redlock::FenceStore;
/// use tower_redlock::redlock_core::{FencingToken, Key};
/// # struct Database;
/// # impl Database {
/// #     async fn execute(&self, _: &str, _: (&[u8], u64)) -> Result<u64, std::io::Error> { Ok(1) }
/// # }
///
/// struct Fences(Database);
///
/// impl FenceStore for Fences {
///     async fn observe(
///         &self,
///         resource: &Key,
///         token: FencingToken,
///     ) -> Result<bool, Box<dyn Error + Send + Sync>> {
///         let observe = "INSERT INTO fences (resource, token) VALUES ($1, $2)
///                        ON CONFLICT (resource) DO UPDATE SET token = excluded.token
///                        WHERE fences.token <= excluded.token";
///         let rows = self.0.execute(observe, (resource.as_bytes(), token.get())).await?;
///         Ok(rows == 1)
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't remember the tokens of a `FenceLayer`",
    label = "not a `FenceStore`",
    note = "implement `FenceStore`, or use `MemoryFences`"
)]
pub trait FenceStore: Send + Sync + 'static {
    /// Whether no larger token was observed for the resource; this one is remembered then. It
    /// must look and remember in one step: two requests may come at once.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from knowing; the request is answered with 503.
    ///
    /// # Cancel safety
    ///
    /// The future is dropped when the client goes away: the token may or may not be remembered.
    fn observe(
        &self,
        resource: &Key,
        token: FencingToken,
    ) -> impl Future<Output = Result<bool, Box<dyn std::error::Error + Send + Sync>>> + Send;
}

impl<T: FenceStore> FenceStore for Arc<T> {
    async fn observe(
        &self,
        resource: &Key,
        token: FencingToken,
    ) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
        T::observe(self, resource, token).await
    }
}

/// The largest tokens in the memory of this process: for tests, and for services of one process
/// whose data does not outlive it either.
///
/// It remembers 65,536 resources. When there are more it forgets those with the smallest tokens,
/// and from then on refuses smaller ones for every resource that it does not know.
#[derive(Debug, Default)]
pub struct MemoryFences(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    largest: HashMap<Key, FencingToken>,
    forgotten: Option<FencingToken>,
}

impl MemoryFences {
    const CAPACITY: usize = 65_536;

    /// Knows no resource yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl FenceStore for MemoryFences {
    async fn observe(
        &self,
        resource: &Key,
        token: FencingToken,
    ) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.lock().observe(resource, token))
    }
}

impl Seen {
    fn observe(&mut self, resource: &Key, token: FencingToken) -> bool {
        let known = self.largest.get(resource).copied();
        if known.or(self.forgotten).is_some_and(|largest| token < largest) {
            return false;
        }
        if known.is_none() && self.largest.len() >= MemoryFences::CAPACITY {
            self.forget_half();
        }
        self.largest.insert(resource.clone(), token);
        true
    }

    fn forget_half(&mut self) {
        let mut tokens: Vec<FencingToken> = self.largest.values().copied().collect();
        let middle = tokens.len() / 2;
        let (_, median, _) = tokens.select_nth_unstable(middle);
        self.largest.retain(|_, token| *token > *median);
        self.forgotten = self.forgotten.max(Some(*median));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        Key::new(format!("{number}")).unwrap()
    }

    #[test]
    fn a_token_is_one_header_of_digits() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap());
            }
            token(&headers).map(FencingToken::get).map_err(|rejection| rejection.status().as_u16())
        };
        assert_eq!(of(&["0"]), Ok(0));
        assert_eq!(of(&["1764000000000000"]), Ok(1_764_000_000_000_000));
        assert_eq!(of(&["9007199254740991"]), Ok(END - 1));
        assert_eq!(of(&[]), Err(428));
        let too_large = ["9007199254740992", "18446744073709551615", "99999999999999999999"];
        for value in too_large.into_iter().chain(["", "+1", "-1", "1.0", "1e3", "0x1", "1, 2", "ä"])
        {
            assert_eq!(of(&[value]), Err(400), "{value}");
        }
        assert_eq!(of(&["1", "1"]), Err(400));
    }

    #[test]
    fn what_was_forgotten_lets_no_smaller_token_in() {
        let mut seen = Seen::default();
        let capacity = MemoryFences::CAPACITY;
        let mut observe =
            |resource, token| seen.observe(&key(resource), FencingToken::new(token as u64));
        for number in 0..capacity {
            assert!(observe(number, 10 + number));
        }
        assert!(observe(capacity, 10 + capacity), "one too many");
        assert!(!observe(0, 9), "forgotten, and refused all the same");
        assert!(!observe(capacity - 1, 9 + capacity - 1), "remembered");
        assert!(observe(0, 10 + capacity), "a new lock");
        assert!(seen.largest.len() <= capacity / 2 + 2, "{}", seen.largest.len());
    }
}

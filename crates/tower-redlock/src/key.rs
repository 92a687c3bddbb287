//! What a request locks: key functions, and what they may return.

use std::fmt;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, StatusCode};
use redlock_core::Key;

pub use crate::path::normalized as normalized_path;

/// A key function as a layer keeps it.
pub(crate) type KeyFn = Arc<dyn Fn(&Parts) -> Result<Option<Key>, KeyRejection> + Send + Sync>;

/// What a key function may return.
///
/// | type | meaning |
/// |---|---|
/// | `String`, `&'static str` | the key; long or unusual input is replaced by its hash, as [`Key::hashed`] does |
/// | [`Key`] | the key as it is |
/// | `Option<_>` | `None`: this request locks nothing |
/// | `Result<_, E>` where `E: Into<KeyRejection>` | `Err`: the request is answered with the rejection |
///
/// An empty string is refused with 400: it would make all requests wait for each other.
#[diagnostic::on_unimplemented(
    message = "a key function can't return `{Self}`",
    note = "return `String`, `&'static str`, `Key`, or one of them in an `Option` or `Result`",
    note = "an error must be `Into<KeyRejection>`: `StatusCode`, `&'static str`, `String`, or a pair of status and text"
)]
pub trait IntoResourceKey {
    /// The key to lock, or none.
    ///
    /// # Errors
    ///
    /// [`KeyRejection`] if the request has no usable key.
    fn into_resource_key(self) -> Result<Option<Key>, KeyRejection>;
}

/// Why a request has no usable key, and the status that says so: 400 unless another is given.
///
/// ```
/// use http::StatusCode;
/// use tower_redlock::KeyRejection;
///
/// let missing = KeyRejection::from("send an Idempotency-Key");
/// assert_eq!(missing.status(), StatusCode::BAD_REQUEST);
///
/// let nobody = KeyRejection::from((StatusCode::UNAUTHORIZED, "sign in first"));
/// assert_eq!(nobody.status(), StatusCode::UNAUTHORIZED);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRejection {
    status: StatusCode,
    detail: String,
}

impl KeyRejection {
    /// A rejection with the status and the text that the client is to see.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The text for the client.
    #[must_use]
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl fmt::Display for KeyRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl std::error::Error for KeyRejection {}

impl From<&'static str> for KeyRejection {
    fn from(detail: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }
}

impl From<String> for KeyRejection {
    fn from(detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }
}

impl From<StatusCode> for KeyRejection {
    fn from(status: StatusCode) -> Self {
        Self::new(status, "the request names no resource that could be locked")
    }
}

impl<D: Into<String>> From<(StatusCode, D)> for KeyRejection {
    fn from((status, detail): (StatusCode, D)) -> Self {
        Self::new(status, detail)
    }
}

fn from_bytes(bytes: &[u8]) -> Result<Option<Key>, KeyRejection> {
    if bytes.is_empty() {
        return Err("the key of the resource to lock is empty".into());
    }
    Ok(Some(Key::hashed(bytes)))
}

impl IntoResourceKey for String {
    fn into_resource_key(self) -> Result<Option<Key>, KeyRejection> {
        from_bytes(self.as_bytes())
    }
}

impl IntoResourceKey for &'static str {
    fn into_resource_key(self) -> Result<Option<Key>, KeyRejection> {
        from_bytes(self.as_bytes())
    }
}

impl IntoResourceKey for Key {
    fn into_resource_key(self) -> Result<Option<Key>, KeyRejection> {
        Ok(Some(self))
    }
}

impl<T: IntoResourceKey> IntoResourceKey for Option<T> {
    fn into_resource_key(self) -> Result<Option<Key>, KeyRejection> {
        self.map_or(Ok(None), T::into_resource_key)
    }
}

impl<T: IntoResourceKey, E: Into<KeyRejection>> IntoResourceKey for Result<T, E> {
    fn into_resource_key(self) -> Result<Option<Key>, KeyRejection> {
        self.map_err(Into::into)?.into_resource_key()
    }
}

/// The value of a header, such as `idempotency-key`; 400 if it is missing or sent twice, and 500
/// if no header can have that name.
///
/// Two clients may send the same value: scope it by who they are, for example with
/// [`prefixed`] or a key function of your own that knows the tenant.
///
/// ```
/// use redlock_core::Redlock;
/// use tower_redlock::{RedlockLayer, key};
///
/// RedlockLayer::new(Redlock::in_memory(), key::header("idempotency-key"));
/// ```
pub fn header(name: &'static str) -> impl Fn(&Parts) -> Result<Key, KeyRejection> + Clone {
    let valid = HeaderName::from_bytes(name.as_bytes()).ok();
    move |parts| {
        let Some(valid) = &valid else {
            let detail = format!("`{name}`, which the lock layer looks for, is no header name");
            return Err((StatusCode::INTERNAL_SERVER_ERROR, detail).into());
        };
        let mut values = parts.headers.get_all(valid).iter();
        match (values.next(), values.next()) {
            (Some(value), None) if !value.is_empty() => Ok(Key::hashed(value)),
            (Some(_), None) => Err(format!("the header `{name}` is empty").into()),
            (Some(_), Some(_)) => {
                Err(format!("the header `{name}` was sent more than once").into())
            }
            (None, _) => Err(format!("the header `{name}` is missing").into()),
        }
    }
}

/// The [path](normalized_path) of the request, without the query: one key for all spellings of it.
pub fn path() -> impl Fn(&Parts) -> Key + Clone {
    |parts| Key::hashed(&*normalized_path(parts))
}

/// The method and the [path](normalized_path) of the request, such as `POST:/payments`.
pub fn method_and_path() -> impl Fn(&Parts) -> Key + Clone {
    |parts| Key::hashed(format!("{}:{}", parts.method, normalized_path(parts)))
}

/// What another key function yields, after a prefix and `:`.
///
/// ```
/// use redlock_core::Redlock;
/// use tower_redlock::{RedlockLayer, key};
///
/// let per_payment = key::prefixed("payments", key::header("idempotency-key"));
/// RedlockLayer::new(Redlock::in_memory(), per_payment);
/// ```
pub fn prefixed<F, T>(
    prefix: &'static str,
    key_fn: F,
) -> impl Fn(&Parts) -> Result<Option<Key>, KeyRejection> + Clone
where
    F: Fn(&Parts) -> T + Clone,
    T: IntoResourceKey,
{
    move |parts| {
        let key = key_fn(parts).into_resource_key()?;
        Ok(key.map(|key| Key::hashed([prefix.as_bytes(), b":", key.as_bytes()].concat())))
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn whatever_names_a_key_is_one() {
        assert_eq!("a".into_resource_key(), Ok(Some(key("a"))));
        assert_eq!(String::from("a").into_resource_key(), Ok(Some(key("a"))));
        assert_eq!(key("a").into_resource_key(), Ok(Some(key("a"))));
        assert_eq!(Some("a").into_resource_key(), Ok(Some(key("a"))));
        assert_eq!(None::<String>.into_resource_key(), Ok(None));
        assert_eq!(Ok::<_, String>(Some("a")).into_resource_key(), Ok(Some(key("a"))));
    }

    #[test]
    fn a_failure_keeps_its_status() {
        let refused = Err::<String, _>((StatusCode::UNAUTHORIZED, "sign in"));
        let expected = KeyRejection::new(StatusCode::UNAUTHORIZED, "sign in");
        assert_eq!(refused.into_resource_key(), Err(expected));
        assert_eq!("".into_resource_key().unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn long_input_is_hashed() {
        let key = "x".repeat(10_000).into_resource_key().unwrap().unwrap();
        assert!(key.as_bytes().len() < 100);
    }

    #[test]
    fn a_header_must_be_there_once() {
        let of = header("idempotency-key");
        let request = Request::builder().header("Idempotency-Key", "k1");
        assert_eq!(of(&parts(request)), Ok(key("k1")));
        for (request, said) in [
            (Request::builder(), "`idempotency-key` is missing"),
            (Request::builder().header("idempotency-key", ""), "`idempotency-key` is empty"),
            (
                Request::builder().header("idempotency-key", "a").header("idempotency-key", "b"),
                "more than once",
            ),
        ] {
            let rejection = of(&parts(request)).unwrap_err();
            assert_eq!(rejection.status(), StatusCode::BAD_REQUEST);
            assert!(rejection.detail().contains(said), "{rejection}");
        }
    }

    #[test]
    fn a_name_that_no_header_can_have_is_a_fault_of_the_layer() {
        let rejection = header("idempotency key")(&parts(Request::builder())).unwrap_err();
        assert_eq!(rejection.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(rejection.detail().contains("`idempotency key`"), "{rejection}");
    }

    #[test]
    fn a_path_does_not_include_the_query() {
        let request = || parts(Request::builder().method("PUT").uri("/orders/7?dry=1"));
        assert_eq!(path()(&request()), key("/orders/7"));
        assert_eq!(method_and_path()(&request()), key("PUT:/orders/7"));
        assert_eq!(prefixed("eu", path())(&request()), Ok(Some(key("eu:/orders/7"))));
    }
}

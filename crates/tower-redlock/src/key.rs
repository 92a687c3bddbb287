//! Key functions, which derive the key to lock from a request, and their return types.

use std::fmt;
use std::sync::Arc;

use http::request::Parts;
use http::{HeaderName, Method, StatusCode};
use redlock_core::Key;

pub use crate::path::normalized as normalized_path;

/// A key function as a layer keeps it.
pub(crate) type KeyFn = Arc<dyn Fn(&Parts) -> Result<Option<Key>, KeyRejection> + Send + Sync>;

/// Whether a layer derives a key for this method. By default it does for all but `OPTIONS`: a CORS
/// preflight carries neither the headers of its request nor its work.
pub(crate) fn is_selected(methods: Option<&[Method]>, method: &Method) -> bool {
    methods.map_or(method != Method::OPTIONS, |methods| methods.contains(method))
}

/// The return types of a key function.
///
/// | type | meaning |
/// |---|---|
/// | `String`, `&'static str` | the key; long or unusual input is replaced by its hash, as [`Key::hashed`] does |
/// | [`Key`] | the key as it is |
/// | `Option<_>` | `None`: this request locks nothing |
/// | `Result<_, E>` where `E: Into<KeyRejection>` | `Err`: the layer responds with the rejection |
///
/// The layer refuses an empty string with 400, because all requests with it would share one lock.
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

/// The value of a header after `header:`, the name and `:`, such as `header:idempotency-key:42`. The
/// answer is 400 if the header is missing or sent twice.
///
/// The answer is 500 if no header can have that name. With the feature `tracing`, this function then
/// logs an error, so that the mistake shows when the service starts.
///
/// The value can't name a lock of another kind: a client that sends `account:7` does not lock the
/// account 7. Two clients may send the same value: use a key function of your own that knows the
/// tenant.
///
/// ```
/// use http::Request;
/// use tower_redlock::key;
///
/// let (parts, ()) = Request::post("/").header("idempotency-key", "42").body(())?.into_parts();
/// let key = key::header("idempotency-key")(&parts)?;
/// assert_eq!(key.as_bytes(), b"header:idempotency-key:42");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn header(name: &'static str) -> impl Fn(&Parts) -> Result<Key, KeyRejection> + Clone {
    let valid = HeaderName::from_bytes(name.as_bytes()).ok();
    #[cfg(feature = "tracing")]
    if valid.is_none() {
        tracing::error!(
            header = name,
            "no header can have this name, so the layer answers each request with 500: \
             use letters, digits and `-`"
        );
    }
    move |parts| {
        let Some(valid) = &valid else {
            let detail = format!("`{name}`, which the lock layer looks for, is no header name");
            return Err((StatusCode::INTERNAL_SERVER_ERROR, detail).into());
        };
        let mut values = parts.headers.get_all(valid).iter();
        match (values.next(), values.next()) {
            (Some(value), None) if !value.is_empty() => {
                let name = valid.as_str().as_bytes();
                Ok(Key::hashed([b"header:", name, b":", value.as_bytes()].concat()))
            }
            (Some(_), None) => Err(format!("the header `{name}` is empty").into()),
            (Some(_), Some(_)) => {
                Err(format!("the header `{name}` was sent more than once").into())
            }
            (None, _) => Err(format!("the header `{name}` is missing").into()),
        }
    }
}

/// The [path](normalized_path) of the request after `path:`, such as `path:/orders/42`: without the
/// query, and one key for all spellings of a path.
///
/// ```
/// use http::Request;
/// use tower_redlock::key;
///
/// for spelling in ["/orders/42?page=2", "/orders/4%32"] {
///     let (parts, ()) = Request::get(spelling).body(())?.into_parts();
///     assert_eq!(key::path()(&parts).as_bytes(), b"path:/orders/42");
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn path() -> impl Fn(&Parts) -> Key + Clone {
    |parts| Key::hashed(format!("path:{}", normalized_path(parts)))
}

/// The method and the [path](normalized_path) of the request after `method:`, such as
/// `method:POST:/payments`.
///
/// ```
/// use http::Request;
/// use tower_redlock::key;
///
/// let (parts, ()) = Request::post("/payments").body(())?.into_parts();
/// assert_eq!(key::method_and_path()(&parts).as_bytes(), b"method:POST:/payments");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn method_and_path() -> impl Fn(&Parts) -> Key + Clone {
    |parts| Key::hashed(format!("method:{}:{}", parts.method, normalized_path(parts)))
}

/// The key of another key function, after a prefix and `:`.
///
/// ```
/// use http::Request;
/// use tower_redlock::key;
///
/// let per_payment = key::prefixed("payments", key::header("idempotency-key"));
/// let (parts, ()) = Request::post("/").header("idempotency-key", "42").body(())?.into_parts();
/// let key = per_payment(&parts)?.unwrap();
/// assert_eq!(key.as_bytes(), b"payments:header:idempotency-key:42");
/// # Ok::<(), Box<dyn std::error::Error>>(())
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
        assert_eq!(of(&parts(request)), Ok(key("header:idempotency-key:k1")));
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
        assert_eq!(path()(&request()), key("path:/orders/7"));
        assert_eq!(method_and_path()(&request()), key("method:PUT:/orders/7"));
        assert_eq!(prefixed("eu", path())(&request()), Ok(Some(key("eu:path:/orders/7"))));
    }

    #[test]
    fn a_request_can_not_choose_a_key_of_another_kind() {
        let request = Request::builder().method("path").uri("/7").header("account", "7");
        let parts = parts(request);
        let keys = [header("account")(&parts).unwrap(), path()(&parts), method_and_path()(&parts)];
        let kinds = ["header:", "path:/", "method:"];
        for (key, kind) in keys.iter().zip(kinds) {
            assert!(key.as_bytes().starts_with(kind.as_bytes()), "{key:?}");
        }
    }
}

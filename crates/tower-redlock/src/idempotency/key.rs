//! What makes two requests the same one: the key, whose it is, and what was asked for.

use std::fmt;

use http::HeaderName;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use redlock_core::Key;
use sha2::{Digest, Sha256};

use super::caller::Caller;
use super::multipart;
use crate::key::{KeyRejection, normalized_path};

/// The header that carries the key of a request: `Idempotency-Key: "8e03978e-40d5-43dd-bc93-6894a57f9324"`.
pub const HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// The longest key that is taken.
const MAX_LEN: usize = 255;

/// Names a request: a hash of the caller, the method, the path and the `Idempotency-Key`. The key
/// can't be read from it. A caller is a [tenant](super::IdempotencyLayer::tenant), or all
/// requests with the same credentials.
///
/// It is among the extensions of a request, for a handler to pass on to whoever does the work: a
/// provider that gets the same key again does it once.
///
/// ```
/// use axum::Extension;
/// use tower_redlock::idempotency::RecordId;
///
/// async fn pay(Extension(id): Extension<RecordId>) {
///     let request = http::Request::post("https://provider.example/charges")
///         .header("idempotency-key", id.to_string());
///     // send it: a payment that was cut off is taken up again, and not made twice
/// #   assert!(request.body(()).is_ok());
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId {
    hash: [u8; 32],
    /// Never shown: it is the same for all requests of a caller.
    caller: u64,
}

impl RecordId {
    pub(super) fn new(parts: &Parts, caller: Caller, key: &str) -> Self {
        let method = parts.method.as_str().as_bytes();
        let path = normalized_path(parts);
        let hash = hash([b"record", caller.as_bytes(), method, path.as_bytes(), key.as_bytes()]);
        Self { hash, caller: caller.group() }
    }

    /// The same for all records of a caller, and for few others.
    pub(super) fn caller(&self) -> u64 {
        self.caller
    }

    /// What is locked while a request with this id runs.
    pub(super) fn lock_key(&self) -> Key {
        Key::hashed(format!("idempotency:{self}"))
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hash.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({:02x}{:02x}…)", self.hash[0], self.hash[1])
    }
}

/// What was asked for: a hash of the method, the path, the query, some headers and the body.
/// The boundary of a multipart body does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    pub(super) fn of(parts: &Parts, headers: &[HeaderName], body: &[u8]) -> Self {
        let query = parts.uri.query().unwrap_or_default().as_bytes();
        match multipart::parts(&parts.headers, body) {
            Some(pieces) => Self::with(parts, headers, b"multipart", query, &hash(pieces)),
            None => Self::with(parts, headers, b"request", query, body),
        }
    }

    /// Of a payload that the service has made from the query and the body.
    pub(super) fn given(parts: &Parts, headers: &[HeaderName], payload: &[u8]) -> Self {
        Self::with(parts, headers, b"given", b"", payload)
    }

    fn with(
        parts: &Parts,
        headers: &[HeaderName],
        kind: &[u8],
        query: &[u8],
        payload: &[u8],
    ) -> Self {
        let path = normalized_path(parts);
        let asked = [kind, parts.method.as_str().as_bytes(), path.as_bytes(), query, payload];
        let headers = headers.iter().flat_map(|name| {
            let values = parts.headers.get_all(name).iter().map(|value| match value.as_bytes() {
                // The boundary is a parameter of the type.
                value if kind == b"multipart" && *name == CONTENT_TYPE => {
                    value.split(|byte| *byte == b';').next().unwrap_or_default()
                }
                value => value,
            });
            std::iter::once(name.as_str().as_bytes()).chain(values)
        });
        Self(hash(asked.into_iter().chain(headers)))
    }

    /// A fingerprint that was kept.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to be kept.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Each part with its length: what one ends with is never the beginning of the next.
pub(super) fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// The `Idempotency-Key` of a request, without quotes; `None` if it has none. For services that
/// keep their records themselves: [`IdempotencyLayer`](super::IdempotencyLayer) does the rest.
///
/// ```
/// use tower_redlock::idempotency;
///
/// let request = http::Request::post("/payments").header("idempotency-key", "\"order-1\"");
/// let (parts, ()) = request.body(())?.into_parts();
/// assert_eq!(idempotency::key(&parts)?.as_deref(), Some("order-1"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`KeyRejection`], 400, if there are several, or if it is no string as the draft has it and no
/// 1 to 255 visible ASCII characters either.
pub fn key(parts: &Parts) -> Result<Option<String>, KeyRejection> {
    let mut values = parts.headers.get_all(HEADER).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.to_str().ok().and_then(unquoted),
        (Some(_), Some(_)) => {
            return Err("the header `Idempotency-Key` was sent more than once".into());
        }
    };
    match value {
        Some(key) if (1..=MAX_LEN).contains(&key.len()) => Ok(Some(key)),
        _ => {
            let detail = format!(
                "`Idempotency-Key` must be 1 to {MAX_LEN} visible ASCII characters, in quotes or not"
            );
            Err(detail.into())
        }
    }
}

/// A string of RFC 9651, as the draft has it; or the bare key, as most clients send it.
fn unquoted(value: &str) -> Option<String> {
    let Some(rest) = value.strip_prefix('"') else {
        let bare = value.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\,".contains(&byte));
        return bare.then(|| value.to_owned());
    };
    let mut key = String::with_capacity(rest.len());
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return chars.next().is_none().then_some(key),
            '\\' => key.push(chars.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            plain if plain.is_ascii_graphic() || plain == ' ' => key.push(plain),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Request};

    use super::super::caller::Callers;
    use super::*;

    fn parts(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn of(values: &[&str]) -> Result<Option<String>, u16> {
        let request = values.iter().fold(Request::post("/"), |request, value| {
            request.header(HEADER, HeaderValue::from_bytes(value.as_bytes()).unwrap())
        });
        key(&parts(request)).map_err(|rejection| rejection.status().as_u16())
    }

    #[test]
    fn a_key_may_be_quoted_or_not() {
        assert_eq!(of(&[]), Ok(None));
        for (value, expected) in
            [("k-1", "k-1"), ("\"k-1\"", "k-1"), ("\"a b\"", "a b"), (r#""a\"b\\c""#, r#"a"b\c"#)]
        {
            assert_eq!(of(&[value]), Ok(Some(expected.into())), "{value}");
        }
    }

    #[test]
    fn what_is_no_key_is_400() {
        let long = "k".repeat(256);
        let bad =
            ["", "\"\"", "\"", "\"a", "a\"", "\"a\"b", "\"a\";p=1", "a, b", "a b", "ä", r#""\n""#];
        for value in bad.into_iter().chain([&*long]) {
            assert_eq!(of(&[value]), Err(400), "{value}");
        }
        assert_eq!(of(&["a", "a"]), Err(400));
        assert_eq!(of(&[&"k".repeat(255)]), Ok(Some("k".repeat(255))));
    }

    #[test]
    fn an_id_is_of_one_caller_method_path_and_key() {
        let id = |method: &str, path: &str, caller: &str, key: &str| {
            let request = Request::builder().method(method).uri(path);
            let parts = parts(request.header(http::header::AUTHORIZATION, caller));
            RecordId::new(&parts, Callers::Credentials.caller(&parts).unwrap(), key)
        };
        let one = id("POST", "/a", "t", "k");
        assert_eq!(one, id("POST", "/a?page=2", "t", "k"), "the query is what is asked for");
        assert_eq!(one, id("POST", "/%61", "t", "k"), "another spelling of the path");
        for other in [
            id("PATCH", "/a", "t", "k"),
            id("POST", "/b", "t", "k"),
            id("POST", "/a", "u", "k"),
            id("POST", "/a", "", "k"),
            id("POST", "/a", "t", "l"),
            id("POST", "/at", "", "k"),
            id("POST", "/a", "tk", ""),
        ] {
            assert_ne!(one.hash, other.hash);
        }
        assert_eq!(one.to_string().len(), 64);
        assert!(format!("{one:?}").len() < 24);
        assert_eq!(one.caller(), id("PATCH", "/b", "t", "l").caller());
        assert_ne!(one.caller(), id("POST", "/a", "u", "k").caller());
    }

    #[test]
    fn a_fingerprint_is_of_everything_that_was_asked_for() {
        let of = |uri: &str, language: &str, body: &[u8]| {
            let request =
                Request::post(uri).header("content-language", language).header("date", body);
            Fingerprint::of(&parts(request), &[http::header::CONTENT_LANGUAGE], body)
        };
        let one = of("/a?b=1", "de", b"body");
        assert_eq!(one, of("/a?b=1", "de", b"body"));
        assert_eq!(one, of("/%61?b=1", "de", b"body"), "another spelling of the path");
        for other in [
            of("/a?b=2", "de", b"body"),
            of("/a", "de", b"body"),
            of("/a?b=1", "en", b"body"),
            of("/a?b=1", "de", b"bodY"),
            of("/a?b=1b", "de", b"ody"),
        ] {
            assert_ne!(one, other);
        }
    }
}

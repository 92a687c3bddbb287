//! The path of a request, in one spelling.

use std::borrow::Cow;

use http::request::Parts;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

/// Bytes that stay encoded. RFC 3986 allows all others in a segment as they are.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')')
    .remove(b'*')
    .remove(b'+')
    .remove(b',')
    .remove(b';')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// The path of a request, without the query, in one spelling for all that mean the same. Under
/// axum the whole path, in nested routers too.
///
/// A client may write `/orders/42` as `/orders/4%32`, and a router decodes both to the id `42`. A
/// key function that uses `parts.uri.path()` would lock two resources.
///
/// ```
/// use tower_redlock::key;
///
/// let of = |path| {
///     let (parts, ()) = http::Request::post(path).body(()).unwrap().into_parts();
///     key::normalized_path(&parts).into_owned()
/// };
/// assert_eq!(of("/orders/42?page=2"), "/orders/42");
/// assert_eq!(of("/orders/4%32"), "/orders/42");
/// assert_eq!(of("/orders/eu%3a42"), "/orders/eu:42");
/// assert_eq!(of("/caf%c3%a9"), "/caf%C3%A9");
/// assert_eq!(of("/orders%2f42"), "/orders%2F42");
/// ```
///
/// - A character that a segment may contain is not encoded: letters, digits and
///   ``-._~!$&'()*+,;=:@``. All other bytes are `%` and two upper-case digits, also those of an
///   encoding that is not UTF-8.
/// - `%2F` differs from `/`: it does not separate segments. A route with a wildcard such as
///   `/{*path}` decodes both to the same parameter, so lock that with a key function of your own.
/// - `.`, `..`, repeated slashes and a slash at the end stay, because a router keeps them apart. `042`
///   and `42` are two paths.
///
/// Under axum the path is that of `OriginalUri`, which the outermost router sets once. A layer that
/// rewrites the URI inside that router does not change the key: two paths that it makes one keep two
/// keys. Rewrite the URI around the outermost router, or lock `parts.uri.path()` with a key function of
/// your own.
#[must_use]
pub fn normalized(parts: &Parts) -> Cow<'_, str> {
    let path = raw(parts);
    if path.bytes().all(|byte| byte == b'/' || !needs_encoding(byte)) {
        return Cow::Borrowed(path);
    }
    let mut normalized = String::with_capacity(path.len());
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            normalized.push('/');
        }
        let decoded: Cow<'_, [u8]> = percent_decode_str(segment).into();
        normalized.extend(percent_encode(&decoded, ENCODED));
    }
    Cow::Owned(normalized)
}

fn needs_encoding(byte: u8) -> bool {
    // `%` is among them: a path with an encoding is never taken as it is.
    percent_encode(&[byte], ENCODED).next().is_none_or(|encoded| encoded.len() > 1)
}

#[cfg(feature = "axum")]
fn raw(parts: &Parts) -> &str {
    // A nested router strips its prefix: /eu/orders and /us/orders would share a lock.
    let original = parts.extensions.get::<axum::extract::OriginalUri>();
    original.map_or_else(|| parts.uri.path(), |uri| uri.0.path())
}

#[cfg(not(feature = "axum"))]
fn raw(parts: &Parts) -> &str {
    parts.uri.path()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn of(uri: impl AsRef<[u8]>) -> String {
        let uri = http::Uri::try_from(uri.as_ref()).unwrap();
        let (parts, ()) = Request::builder().uri(uri).body(()).unwrap().into_parts();
        normalized(&parts).into_owned()
    }

    #[test]
    fn a_path_without_encodings_stays_as_it_is() {
        for plain in ["/", "/orders/42", "/a//b/", "/a/../b/.", "/-._~!$&'()*+,;=:@", "*"] {
            assert_eq!(of(plain), plain);
        }
        assert_eq!(of("http://host"), "/");
        assert_eq!(of("/orders?a=%41"), "/orders");
    }

    #[test]
    fn an_encoding_that_is_not_needed_is_decoded_and_the_rest_has_upper_case() {
        for (path, expected) in [
            ("/orders/4%32", "/orders/42"),
            ("/%6f%72ders", "/orders"),
            ("/a%3Ab%40c", "/a:b@c"),
            ("/a%2fb", "/a%2Fb"),
            ("/%2e%2E/a", "/../a"),
            ("/%c3%a4", "/%C3%A4"),
            ("/a%20b%22%7b%00", "/a%20b%22%7B%00"),
            ("/a\"b{c}", "/a%22b%7Bc%7D"),
        ] {
            assert_eq!(of(path), expected, "{path}");
        }
        assert_eq!(of("/ä".as_bytes()), "/%C3%A4", "as HTTP allows it");
    }

    #[test]
    fn a_percent_sign_is_decoded_once() {
        assert_eq!(of("/a%2541"), "/a%2541", "an `a` and the text `%41`");
        assert_ne!(of("/a%2541"), of("/aA"));
    }

    #[test]
    fn an_encoding_that_is_broken_or_no_utf_8_has_a_spelling_of_its_own() {
        for (path, expected) in [
            ("/100%", "/100%25"),
            ("/%4", "/%254"),
            ("/%zz", "/%25zz"),
            ("/%ff%FE", "/%FF%FE"),
            ("/%%34%31", "/%2541"),
        ] {
            assert_eq!(of(path), expected, "{path}");
            assert_eq!(of(expected), expected, "normalized twice");
        }
    }
}

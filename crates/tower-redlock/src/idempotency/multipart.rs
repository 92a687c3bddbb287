//! The parts of a multipart body, whose boundary is another one each time a client builds it.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use memchr::memmem::Finder;

/// The pieces between the boundaries, if the body is a multipart body.
pub(super) fn parts<'b>(headers: &HeaderMap, body: &'b [u8]) -> Option<Vec<&'b [u8]>> {
    let boundary = boundary(headers.get(CONTENT_TYPE)?.to_str().ok()?)?;
    let first = format!("--{boundary}");
    let delimiter = format!("\r\n{first}");
    // The first boundary has no line in front of it, unless there is a preamble.
    let (begin, mut rest) = match body.strip_prefix(first.as_bytes()) {
        Some(rest) => (Some(&b""[..]), rest),
        None => (None, body),
    };
    let finder = Finder::new(&delimiter);
    let mut parts: Vec<_> = begin.into_iter().collect();
    while let Some(end) = finder.find(rest) {
        let (part, next) = rest.split_at(end);
        parts.push(part);
        rest = next.get(delimiter.len()..).unwrap_or_default();
    }
    parts.push(rest);
    (parts.len() > 1).then_some(parts)
}

/// RFC 2046: 1 to 70 characters, none of which needs an escape or is a semicolon.
fn boundary(content_type: &str) -> Option<&str> {
    let mut parameters = content_type.split(';').map(str::trim);
    let essence = parameters.next()?;
    if !essence.get(..10)?.eq_ignore_ascii_case("multipart/") {
        return None;
    }
    let boundary = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.eq_ignore_ascii_case("boundary").then(|| value.trim_matches('"'))
    })?;
    (1..=70).contains(&boundary.len()).then_some(boundary)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn split<'b>(content_type: &'static str, body: &'b str) -> Option<Vec<&'b [u8]>> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        parts(&headers, body.as_bytes())
    }

    #[test]
    fn the_boundary_may_be_quoted_and_comes_anywhere_among_the_parameters() {
        for (content_type, expected) in [
            ("multipart/form-data; boundary=a", Some("a")),
            ("Multipart/Mixed;charset=utf-8;BOUNDARY=\"a b:c\"", Some("a b:c")),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("application/json; boundary=a", None),
            ("multipar", None),
        ] {
            assert_eq!(boundary(content_type), expected, "{content_type}");
        }
        let long = format!("multipart/form-data; boundary={}", "a".repeat(71));
        assert_eq!(boundary(&long), None);
    }

    #[test]
    fn a_body_is_split_at_boundaries_that_begin_a_line() {
        let pieces = |body| split("multipart/form-data; boundary=b", body);
        let expected: Vec<&[u8]> = vec![b"", b"\r\n\r\n1--b", b"\r\n\r\n2", b"--\r\n"];
        assert_eq!(pieces("--b\r\n\r\n1--b\r\n--b\r\n\r\n2\r\n--b--\r\n"), Some(expected));
        assert_eq!(pieces("preamble\r\n--b--"), Some(vec![&b"preamble"[..], b"--"]));
        assert_eq!(pieces("no boundary at all"), None);
        assert_eq!(pieces(""), None);
        assert_eq!(split("text/plain", "--b\r\n--b--"), None);
    }
}

//! The Redis protocol: requests are written into a buffer, replies are read where they lie.
//!
//! Nothing is allocated for an argument or a reply. A reply is first scanned until it is complete,
//! which bounds it and remembers how far it got, and then read as [`Frame`]s that borrow from the
//! buffer.

use std::fmt;

/// The longest reply. A value that another program keeps under a key may be long.
pub(super) const MAX_REPLY: usize = 16 << 20;

/// The longest line of a reply: a header, a status or an error.
const MAX_LINE: usize = 64 << 10;

/// Requests that were written and not sent so far.
#[derive(Debug, Default)]
pub(super) struct Requests {
    bytes: Vec<u8>,
    sent: usize,
}

impl Requests {
    /// Begins a request of so many arguments, its name among them.
    pub(super) fn command(&mut self, arguments: usize) -> Arguments<'_> {
        self.header(b'*', arguments);
        Arguments { requests: self, left: arguments }
    }

    pub(super) fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Notes that so many bytes were sent.
    pub(super) fn advance(&mut self, sent: usize) {
        self.sent += sent;
        if self.sent >= self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        }
    }

    fn header(&mut self, kind: u8, number: usize) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.bytes.extend_from_slice(b"\r\n");
    }
}

/// The arguments of a request that is being written.
#[must_use = "a request without its arguments is no request"]
pub(super) struct Arguments<'r> {
    requests: &'r mut Requests,
    left: usize,
}

impl Arguments<'_> {
    pub(super) fn arg(&mut self, argument: impl AsRef<[u8]>) -> &mut Self {
        let argument = argument.as_ref();
        debug_assert!(self.left > 0, "more arguments than were announced");
        self.left = self.left.saturating_sub(1);
        self.requests.header(b'$', argument.len());
        self.requests.bytes.extend_from_slice(argument);
        self.requests.bytes.extend_from_slice(b"\r\n");
        self
    }

    pub(super) fn number(&mut self, number: impl itoa::Integer) -> &mut Self {
        self.arg(itoa::Buffer::new().format(number))
    }
}

impl Drop for Arguments<'_> {
    fn drop(&mut self) {
        debug_assert!(self.left == 0, "fewer arguments than were announced");
    }
}

/// Bytes that are no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    NotTheProtocol,
    TooLong,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTheProtocol => f.write_str("its answer is not the Redis protocol"),
            Self::TooLong => write!(f, "its answer is longer than {} MiB", MAX_REPLY >> 20),
        }
    }
}

/// How far the search for the end of a reply has got.
#[derive(Debug)]
pub(super) struct Scan {
    at: usize,
    /// Frames that are still to come.
    missing: usize,
}

impl Default for Scan {
    fn default() -> Self {
        Self { at: 0, missing: 1 }
    }
}

impl Scan {
    /// The length of the reply that `bytes` begin with, once all of it is there. More of the same
    /// bytes continue where the last call stopped.
    pub(super) fn end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        while self.missing > 0 {
            let Some(header) = Header::read(bytes.get(self.at..).unwrap_or_default())? else {
                return if bytes.len() > MAX_REPLY { Err(Malformed::TooLong) } else { Ok(None) };
            };
            let end = self.at.saturating_add(header.len).saturating_add(header.body());
            let more = header.elements();
            if end > MAX_REPLY || more.saturating_add(self.missing) > MAX_REPLY {
                return Err(Malformed::TooLong);
            }
            if end > bytes.len() {
                return Ok(None);
            }
            if header.body() > 0 && bytes.get(end - 2..end) != Some(b"\r\n") {
                return Err(Malformed::NotTheProtocol);
            }
            self.at = end;
            self.missing = self.missing - 1 + more;
        }
        Ok(Some(self.at))
    }
}

/// The first line of a frame.
struct Header<'b> {
    kind: u8,
    text: &'b [u8],
    /// The length of the line, with its end.
    len: usize,
    number: i64,
}

impl<'b> Header<'b> {
    /// `None`: the line is not complete.
    fn read(bytes: &'b [u8]) -> Result<Option<Self>, Malformed> {
        let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
        if !b"+-:$*_#,(!=%~>".contains(&kind) {
            return Err(Malformed::NotTheProtocol);
        }
        let Some(end) = rest.iter().take(MAX_LINE).position(|byte| *byte == b'\r') else {
            return if rest.len() < MAX_LINE { Ok(None) } else { Err(Malformed::TooLong) };
        };
        match rest.get(end + 1) {
            None => return Ok(None),
            Some(b'\n') => {}
            Some(_) => return Err(Malformed::NotTheProtocol),
        }
        let text = &rest[..end];
        let number = match kind {
            b':' | b'$' | b'*' | b'!' | b'=' | b'%' | b'~' | b'>' => {
                number(text).ok_or(Malformed::NotTheProtocol)?
            }
            _ => 0,
        };
        if number < -1 && kind != b':' {
            return Err(Malformed::NotTheProtocol);
        }
        Ok(Some(Self { kind, text, len: end + 3, number }))
    }

    /// The length of what follows the line and is no frame, with its end.
    fn body(&self) -> usize {
        match (self.kind, usize::try_from(self.number)) {
            (b'$' | b'!' | b'=', Ok(len)) => len.saturating_add(2),
            _ => 0,
        }
    }

    /// How many frames follow that belong to this one.
    fn elements(&self) -> usize {
        match (self.kind, usize::try_from(self.number)) {
            (b'*' | b'~' | b'>', Ok(count)) => count,
            (b'%', Ok(pairs)) => pairs.saturating_mul(2),
            _ => 0,
        }
    }
}

fn number(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', digits) => (true, digits),
        (b'+', digits) => (false, digits),
        _ => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    let add = |sum: i64, digit: &u8| {
        let digit = i64::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        let sum = sum.checked_mul(10)?;
        if negative { sum.checked_sub(digit) } else { sum.checked_add(digit) }
    };
    digits.iter().try_fold(0, add)
}

/// A reply, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame<'b> {
    Simple(&'b [u8]),
    Error(&'b [u8]),
    Integer(i64),
    Bulk(&'b [u8]),
    Nil,
    /// An array or a set.
    Array(Elements<'b>),
    Map(Elements<'b>),
    /// Not an answer: the server sent it on its own account.
    Push(Elements<'b>),
    /// A kind of frame that no command of this library is answered with.
    Other,
}

impl<'b> Frame<'b> {
    /// Takes the first frame off bytes in which [`Scan`] has found its end.
    pub(super) fn take(bytes: &mut &'b [u8]) -> Self {
        let Ok(Some(header)) = Header::read(bytes) else {
            *bytes = &[];
            return Self::Other;
        };
        let rest = bytes.get(header.len..).unwrap_or_default();
        let body = rest.get(..header.body().saturating_sub(2)).unwrap_or_default();
        let after = rest.get(header.body()..).unwrap_or_default();
        let elements = Elements { count: header.elements(), bytes: after };
        *bytes = after;
        let aggregate = |frame: Self, bytes: &mut &'b [u8]| {
            elements.skip_all(bytes);
            frame
        };
        match header.kind {
            b'$' | b'*' | b'=' if header.number < 0 => Self::Nil,
            b'+' => Self::Simple(header.text),
            b'-' => Self::Error(header.text),
            b'!' => Self::Error(body),
            b':' => Self::Integer(header.number),
            b'$' => Self::Bulk(body),
            // A verbatim text begins with its format, such as `txt:`.
            b'=' => Self::Bulk(body.get(4..).unwrap_or_default()),
            b'_' => Self::Nil,
            b'*' | b'~' => aggregate(Self::Array(elements), bytes),
            b'%' => aggregate(Self::Map(elements), bytes),
            b'>' => aggregate(Self::Push(elements), bytes),
            _ => Self::Other,
        }
    }

    /// The name of the kind, for an error.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Simple(_) => "simple string",
            Self::Error(_) => "error",
            Self::Integer(_) => "integer",
            Self::Bulk(_) => "bulk string",
            Self::Nil => "nil",
            Self::Array(_) => "array",
            Self::Map(_) => "map",
            Self::Push(_) => "push",
            Self::Other => "of an unknown type",
        }
    }
}

/// The frames of an array, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Elements<'b> {
    count: usize,
    bytes: &'b [u8],
}

impl<'b> Elements<'b> {
    fn skip_all(self, bytes: &mut &'b [u8]) {
        let mut scan = Scan { at: 0, missing: self.count };
        let end = scan.end(self.bytes).ok().flatten().unwrap_or(self.bytes.len());
        *bytes = self.bytes.get(end..).unwrap_or_default();
    }

    /// All frames, if there are so many.
    pub(super) fn exactly<const N: usize>(mut self) -> Option<[Frame<'b>; N]> {
        if self.count != N {
            return None;
        }
        let mut frames = [Frame::Nil; N];
        for frame in &mut frames {
            *frame = self.next()?;
        }
        Some(frames)
    }
}

impl<'b> Iterator for Elements<'b> {
    type Item = Frame<'b>;

    fn next(&mut self) -> Option<Frame<'b>> {
        self.count = self.count.checked_sub(1)?;
        Some(Frame::take(&mut self.bytes))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Elements<'_> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(resp: &[u8]) -> Frame<'_> {
        assert_eq!(Scan::default().end(resp), Ok(Some(resp.len())), "{resp:?}");
        Frame::take(&mut &*resp)
    }

    fn refusal(resp: &[u8]) -> Option<Malformed> {
        Scan::default().end(resp).err()
    }

    #[test]
    fn each_kind_of_reply_is_read() {
        assert_eq!(frame(b"+OK\r\n"), Frame::Simple(b"OK"));
        assert_eq!(frame(b"-ERR no\r\n"), Frame::Error(b"ERR no"));
        assert_eq!(frame(b"!6\r\nERR no\r\n"), Frame::Error(b"ERR no"));
        assert_eq!(frame(b":-7\r\n"), Frame::Integer(-7));
        assert_eq!(frame(b":-9223372036854775808\r\n"), Frame::Integer(i64::MIN));
        assert_eq!(frame(b"$4\r\na\r\nb\r\n"), Frame::Bulk(b"a\r\nb"));
        assert_eq!(frame(b"$0\r\n\r\n"), Frame::Bulk(b""));
        assert_eq!(frame(b"=6\r\ntxt:hi\r\n"), Frame::Bulk(b"hi"));
        for nil in [&b"$-1\r\n"[..], b"*-1\r\n", b"_\r\n"] {
            assert_eq!(frame(nil), Frame::Nil);
        }
        for other in [&b"#t\r\n"[..], b",1.5\r\n", b"(12345678901234567890\r\n"] {
            assert_eq!(frame(other), Frame::Other);
        }
    }

    #[test]
    fn nested_arrays_are_read_in_order() {
        let Frame::Array(elements) = frame(b"*3\r\n*2\r\n$1\r\na\r\n:1\r\n%1\r\n+k\r\n_\r\n:2\r\n")
        else {
            panic!("no array")
        };
        let [Frame::Array(first), Frame::Map(second), last] = elements.exactly().unwrap() else {
            panic!("{elements:?}")
        };
        assert_eq!(first.exactly(), Some([Frame::Bulk(b"a"), Frame::Integer(1)]));
        assert_eq!(second.exactly(), Some([Frame::Simple(b"k"), Frame::Nil]));
        assert_eq!(last, Frame::Integer(2));
        assert_eq!(elements.exactly::<2>(), None);
    }

    #[test]
    fn hostile_replies_are_refused() {
        for strange in [
            &b"HTTP/1.1 400\r\n"[..],
            b"$x\r\n",
            b"$-2\r\n",
            b":\r\n",
            b":1 2\r\n",
            b":99999999999999999999\r\n",
            b"+OK\rX",
            b"$2\r\nabcd",
            b"|1\r\n",
            b"$?\r\n",
        ] {
            assert_eq!(refusal(strange), Some(Malformed::NotTheProtocol), "{strange:?}");
        }
        for long in [&b"$99999999\r\n"[..], b"*99999999\r\n", b"%9223372036854775807\r\n"] {
            assert_eq!(refusal(long), Some(Malformed::TooLong), "{long:?}");
        }
        assert_eq!(refusal(&[b'+'; MAX_LINE + 2]), Some(Malformed::TooLong));
        assert_eq!(refusal(&b"*1\r\n".repeat(MAX_REPLY / 4 + 1)), Some(Malformed::TooLong));
    }

    #[test]
    fn a_scan_goes_on_where_it_stopped() {
        let resp = b"*2\r\n$3\r\nabc\r\n*1\r\n:12\r\n+next\r\n";
        let whole = resp.len() - 7;
        let mut scan = Scan::default();
        for len in 0..whole {
            assert_eq!(scan.end(&resp[..len]), Ok(None));
        }
        assert_eq!(scan.end(resp), Ok(Some(whole)));
    }

    #[test]
    fn requests_are_arrays_of_bulk_strings() {
        let mut requests = Requests::default();
        requests.command(2).arg("GET").arg(b"k");
        requests.command(2).arg("PX").number(1_000_u64);
        assert_eq!(
            requests.unsent(),
            b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*2\r\n$2\r\nPX\r\n$4\r\n1000\r\n"
        );
        requests.advance(4);
        assert!(requests.unsent().starts_with(b"$3\r\nGET"));
        requests.advance(requests.unsent().len());
        assert!(requests.unsent().is_empty());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_scan_or_the_frames_panic(bytes: Vec<u8>, cut in 0_usize..64) {
            let mut scan = Scan::default();
            let _first = scan.end(&bytes[..cut.min(bytes.len())]);
            let whole = Scan::default().end(&bytes);
            if let Ok(Some(end)) = whole {
                let mut rest = &bytes[..end];
                let frame = Frame::take(&mut rest);
                prop_assert!(rest.is_empty(), "{frame:?}");
            }
            let _garbage = Frame::take(&mut &*bytes);
        }
    }
}

//! What is locked: a short string of bytes.

use std::fmt;
use std::sync::Arc;

use base16ct::lower::encode_string;
use sha2::{Digest, Sha256};

/// The name of what is locked. Cheap to clone.
///
/// Keys are bytes, compared exactly: `order:42` and `Order:42` are two locks.
///
/// ```
/// use redlock_core::Key;
///
/// let key = Key::new("order:42")?;
/// assert_eq!(key.as_bytes(), b"order:42");
/// assert!(Key::new("").is_err());
/// # Ok::<(), redlock_core::InvalidKey>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// The longest key, in bytes, without the configured prefix.
    pub const MAX_LEN: usize = 512;

    /// What every name contains that the library itself uses on a server, and no key:
    /// `{redlock}`. So no lock can have such a name, with any prefix.
    pub const RESERVED: &str = "{redlock}";

    /// The longest input that [`hashed`](Self::hashed) takes as it is.
    const PLAIN_LEN: usize = 128;

    /// What a hash begins with, so that a reader of the servers' keys sees that it is one.
    const HASH_MARK: &str = "sha256:";

    /// What `Debug` shows of a key.
    const SHOWN_LEN: usize = 32;

    /// A key of exactly these bytes.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] if there are none, or more than [`MAX_LEN`](Self::MAX_LEN), or if they
    /// contain [`RESERVED`](Self::RESERVED).
    pub fn new(bytes: impl AsRef<[u8]>) -> Result<Self, InvalidKey> {
        let bytes = bytes.as_ref();
        match bytes.len() {
            0 => Err(InvalidKey(Fault::Empty)),
            1..=Self::MAX_LEN if is_reserved(bytes) => Err(InvalidKey(Fault::Reserved)),
            1..=Self::MAX_LEN => Ok(Self(bytes.into())),
            len => Err(InvalidKey(Fault::TooLong { len })),
        }
    }

    /// A key for input that nobody has checked, such as a header of a request.
    ///
    /// Input of 1 to 128 visible ASCII characters is taken as it is. Everything else becomes
    /// `sha256:` and the SHA-256 of the input in hexadecimal. So does input that contains
    /// [`RESERVED`](Self::RESERVED), and input that begins with `sha256:` itself: nobody can name
    /// the lock of another input by its hash.
    ///
    /// ```
    /// use redlock_core::Key;
    ///
    /// assert_eq!(Key::hashed("order:42").as_bytes(), b"order:42");
    /// assert!(Key::hashed("x".repeat(4096)).as_bytes().starts_with(b"sha256:"));
    /// ```
    #[must_use]
    pub fn hashed(bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        let is_plain = (1..=Self::PLAIN_LEN).contains(&bytes.len())
            && bytes.iter().all(u8::is_ascii_graphic)
            && !bytes.starts_with(Self::HASH_MARK.as_bytes())
            && !is_reserved(bytes);
        if is_plain {
            return Self(bytes.into());
        }
        let digits = encode_string(&Sha256::digest(bytes));
        Self([Self::HASH_MARK, &digits].concat().into_bytes().into())
    }

    /// The bytes, without the configured prefix.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name of something that the library itself keeps on a server. No lock has it, whatever
    /// the prefix of that lock is.
    pub(crate) fn internal(prefix: &[u8], name: &str) -> Self {
        Self([prefix, Self::RESERVED.as_bytes(), b":", name.as_bytes()].concat().into())
    }

    /// The key as the servers know it.
    pub(crate) fn with_prefix(&self, prefix: &[u8]) -> Self {
        if prefix.is_empty() { self.clone() } else { Self([prefix, &self.0].concat().into()) }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..Self::SHOWN_LEN) {
            Some(start) if self.0.len() > Self::SHOWN_LEN => {
                write!(f, "Key(\"{}\"… {} bytes)", start.escape_ascii(), self.0.len())
            }
            _ => write!(f, "Key(\"{}\")", self.0.escape_ascii()),
        }
    }
}

fn is_reserved(bytes: &[u8]) -> bool {
    let reserved = Key::RESERVED.as_bytes();
    bytes.windows(reserved.len()).any(|window| window == reserved)
}

/// Whether some key behind `prefix` contains [`Key::RESERVED`]: as the prefix contains it, or ends
/// in its beginning.
pub(crate) fn may_become_reserved(prefix: &[u8]) -> bool {
    let reserved = Key::RESERVED.as_bytes();
    is_reserved(prefix) || (1..reserved.len()).any(|len| prefix.ends_with(&reserved[..len]))
}

/// A key that is empty, too long or reserved for the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidKey(Fault);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    Empty,
    TooLong { len: usize },
    Reserved,
}

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (max, reserved) = (Key::MAX_LEN, Key::RESERVED);
        match self.0 {
            Fault::Empty => write!(f, "the key is empty: a key has 1 to {max} bytes"),
            Fault::TooLong { len } => write!(
                f,
                "the key has {len} bytes: a key has 1 to {max} bytes; \
                 Key::hashed shortens any input"
            ),
            Fault::Reserved => write!(
                f,
                "the key contains {reserved}, which is reserved for the library: leave it out; \
                 Key::hashed takes any input"
            ),
        }
    }
}

impl std::error::Error for InvalidKey {}

impl From<&Self> for Key {
    fn from(key: &Self) -> Self {
        key.clone()
    }
}

/// What can be locked: strings, bytes, and [`Key`]s.
///
/// It is sealed: convert your own types to a [`Key`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a key",
    label = "not a key",
    note = "lock a string, bytes or a `Key`: `format!(\"order:{{id}}\")`, for example"
)]
pub trait IntoKey: sealed::Sealed {
    /// The key.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] if it is empty, longer than [`Key::MAX_LEN`], or contains
    /// [`Key::RESERVED`].
    fn into_key(self) -> Result<Key, InvalidKey>;
}

mod sealed {
    #[expect(unnameable_types, reason = "nobody else can implement what nobody can name")]
    pub trait Sealed {}
}

impl sealed::Sealed for Key {}

impl IntoKey for Key {
    fn into_key(self) -> Result<Key, InvalidKey> {
        Ok(self)
    }
}

impl sealed::Sealed for &Key {}

impl IntoKey for &Key {
    fn into_key(self) -> Result<Key, InvalidKey> {
        Ok(self.clone())
    }
}

macro_rules! keys_from {
    ($($(@$n:ident)? $type:ty),+ $(,)?) => {$(
        impl $(<const $n: usize>)? TryFrom<$type> for Key {
            type Error = InvalidKey;

            fn try_from(bytes: $type) -> Result<Self, InvalidKey> {
                Self::new(bytes)
            }
        }

        impl $(<const $n: usize>)? sealed::Sealed for $type {}

        impl $(<const $n: usize>)? IntoKey for $type {
            fn into_key(self) -> Result<Key, InvalidKey> {
                Key::new(self)
            }
        }
    )+};
}

keys_from!(&str, String, &String, &[u8], Vec<u8>, @N [u8; N], @N &[u8; N]);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_has_one_to_512_bytes() {
        assert!(Key::new([7]).is_ok());
        assert!(Key::new([7; Key::MAX_LEN]).is_ok());
        let empty = Key::new("").unwrap_err().to_string();
        assert!(empty.contains("empty") && empty.contains("1 to 512"), "{empty}");
        let long = Key::new([7; 513]).unwrap_err().to_string();
        assert!(long.contains("513") && long.contains("1 to 512"), "{long}");
        assert!(long.contains("Key::hashed"), "{long}");
    }

    #[test]
    fn every_way_to_a_key_gives_the_same_key() {
        let key = Key::new("abc").unwrap();
        let string = String::from("abc");
        let ways = [
            "abc".into_key(),
            (&string).into_key(),
            string.clone().into_key(),
            b"abc"[..].into_key(),
            b"abc".to_vec().into_key(),
            b"abc".into_key(),
            [b'a', b'b', b'c'].into_key(),
            key.clone().into_key(),
            (&key).into_key(),
            Key::try_from("abc"),
            Key::try_from(&string),
            Key::try_from(string.clone()),
            Key::try_from(&b"abc"[..]),
            Key::try_from(b"abc".to_vec()),
            Ok(Key::from(&key)),
        ];
        assert_eq!(ways.into_iter().collect::<Result<HashSet<_>, _>>().unwrap().len(), 1);
    }

    #[test]
    fn a_prefix_goes_in_front_and_does_not_count() {
        let key = Key::new([b'k'; Key::MAX_LEN]).unwrap();
        assert_eq!(key.with_prefix(b""), key);
        let long = key.with_prefix(b"app:");
        assert!(long.as_bytes().starts_with(b"app:kk"));
        assert_eq!(long.as_bytes().len(), Key::MAX_LEN + 4);
    }

    #[test]
    fn debug_escapes_and_shortens() {
        assert_eq!(format!("{:?}", Key::new("a\n\"b").unwrap()), r#"Key("a\n\"b")"#);
        let exact = Key::new([b'x'; 32]).unwrap();
        assert_eq!(format!("{exact:?}"), format!("Key(\"{}\")", "x".repeat(32)));
        let long = Key::new([b'x'; 33]).unwrap();
        assert_eq!(format!("{long:?}"), format!("Key(\"{}\"… 33 bytes)", "x".repeat(32)));
    }

    #[test]
    fn hashing_is_frozen() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Key::hashed("").as_bytes(), empty.as_bytes());
    }

    #[test]
    fn visible_ascii_up_to_128_bytes_is_not_hashed() {
        let plain = "~".repeat(128);
        assert_eq!(Key::hashed(&plain).as_bytes(), plain.as_bytes());
        for input in ["~".repeat(129), "a b".into(), "ä".into(), "a\u{7f}".into(), "".into()] {
            assert!(Key::hashed(&input).as_bytes().starts_with(b"sha256:"), "{input}");
        }
    }

    #[test]
    fn the_lock_of_a_hashed_input_cannot_be_named_by_its_hash() {
        let victim = Key::hashed("a secret with spaces");
        assert_ne!(Key::hashed(victim.as_bytes()), victim);
    }

    #[test]
    fn a_reserved_key_is_refused_with_the_fix_and_hashed_on_request() {
        for name in ["{redlock}", "{redlock}:node", "app:{redlock}:preflight", "a{redlock}"] {
            let refused = Key::new(name).unwrap_err().to_string();
            assert!(refused.contains("{redlock}") && refused.contains("Key::hashed"), "{refused}");
            assert!(Key::hashed(name).as_bytes().starts_with(b"sha256:"), "{name}");
        }
        for name in ["redlock:node", "{redlock", "redlock}", "{red{lock}}", "{Redlock}"] {
            assert_eq!(Key::new(name).unwrap(), Key::hashed(name));
        }
    }

    /// Strings that are often the reserved one, or a piece of it.
    fn pieces() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            (0..=Key::RESERVED.len()).prop_map(|len| Key::RESERVED[..len].to_owned()),
            (0..=Key::RESERVED.len()).prop_map(|from| Key::RESERVED[from..].to_owned()),
            "(app)?:?(node|void:|preflight|ready)?",
            "[ -~]{0,3}",
        ];
        let pieces = proptest::collection::vec(piece, 0..4).prop_map(|all| all.concat().into());
        prop_oneof![pieces, any::<Vec<u8>>()]
    }

    proptest! {
        #[test]
        fn no_lock_has_a_name_of_the_library_with_any_prefix(
            prefix in pieces(),
            key in pieces(),
            other_prefix in pieces(),
            rest in pieces(),
        ) {
            prop_assume!(!may_become_reserved(&prefix));
            let name = Key::internal(&other_prefix, &String::from_utf8_lossy(&rest));
            prop_assert!(is_reserved(name.as_bytes()));
            let whole = [&prefix[..], &key].concat();
            let keys = [Key::new(&key).ok(), Some(Key::hashed(&key)), Key::new(whole).ok()];
            for key in keys.into_iter().flatten() {
                let full = key.with_prefix(&prefix);
                prop_assert!(!is_reserved(full.as_bytes()), "{:?}", full);
                prop_assert_ne!(&full, &name);
            }
        }

        #[test]
        fn a_prefix_is_refused_only_if_some_key_makes_it_reserved(prefix in pieces()) {
            let reserved = Key::RESERVED.as_bytes();
            let completed = (0..reserved.len())
                .any(|from| is_reserved(&[&prefix[..], &reserved[from + 1..]].concat()));
            prop_assert_eq!(may_become_reserved(&prefix), completed);
        }

        #[test]
        fn hashed_keys_are_usable_and_different(a: Vec<u8>, b: Vec<u8>) {
            let (key, other) = (Key::hashed(&a), Key::hashed(&b));
            prop_assert_eq!(key == other, a == b);
            prop_assert!((1..=Key::PLAIN_LEN).contains(&key.as_bytes().len()));
            prop_assert!(key.as_bytes().iter().all(u8::is_ascii_graphic));
        }
    }
}

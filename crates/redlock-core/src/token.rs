//! What a server keeps under a locked key: who may release it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base16ct::lower;
use smallvec::SmallVec;

/// The longest label, in bytes.
pub(crate) const MAX_LABEL_LEN: usize = 64;

/// The proof that a lock is ours, and the value of the key on the servers. Cheap to clone.
///
/// It is a label that says who holds the lock, a colon, and 128 random bits in hexadecimal that
/// are new for every attempt. Whoever knows the token can extend and release the lock; that is
/// how a lock is handed over to another process, and why `Debug` hides the random half.
///
/// ```
/// use redlock_core::Token;
///
/// let token: Token = "web-1/4711:00112233445566778899aabbccddeeff".parse()?;
/// assert_eq!(token.label(), "web-1/4711");
/// assert_eq!(format!("{token:?}"), "Token(\"web-1/4711:…\")");
/// # Ok::<(), redlock_core::InvalidToken>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(Arc<str>);

impl Token {
    const MAX_LEN: usize = 128;

    /// A token that nobody has ever had. The label must have been checked.
    pub(crate) fn generate(label: &str) -> Result<Self, getrandom::Error> {
        // Never in advance: a copy of this process, by fork or from a snapshot of the machine, would
        // have the same tokens.
        let mut random = [0; 16];
        getrandom::fill(&mut random)?;
        let mut digits = [0; 32];
        let digits = lower::encode_str(&random, &mut digits).unwrap_or_default();
        let mut token = SmallVec::<[u8; MAX_LABEL_LEN + 33]>::new();
        for part in [label, ":", digits] {
            token.extend_from_slice(part.as_bytes());
        }
        // The parts are texts, and so are they together: the only allocation is the token itself.
        Ok(Self((&*String::from_utf8_lossy(&token)).into()))
    }

    /// The whole token, as the servers keep it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Who holds the lock; empty in a token that is not of this library.
    #[must_use]
    pub fn label(&self) -> &str {
        label_of(self.0.as_bytes()).unwrap_or_default()
    }
}

/// The label in what a server keeps under a key, if that was written by this library. Anything
/// else may be a secret of another program and must not be shown.
pub(crate) fn label_of(raw: &[u8]) -> Option<&str> {
    let (label, random) = std::str::from_utf8(raw).ok()?.rsplit_once(':')?;
    let is_random = random.len() == 32
        && random.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    (is_random && is_label(label)).then_some(label)
}

/// Whether `label` has 1 to [`MAX_LABEL_LEN`] visible ASCII characters and no colon.
pub(crate) fn is_label(label: &str) -> bool {
    (1..=MAX_LABEL_LEN).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

/// A token that was handed over as text, also one of another library: 1 to 128 visible ASCII
/// characters.
impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(token: &str) -> Result<Self, InvalidToken> {
        let is_visible = token.bytes().all(|byte| byte.is_ascii_graphic());
        if is_visible && (1..=Self::MAX_LEN).contains(&token.len()) {
            Ok(Self(token.into()))
        } else {
            Err(InvalidToken { len: token.len() })
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.label() {
            "" => f.write_str("Token(…)"),
            label => write!(f, "Token(\"{label}:…\")"),
        }
    }
}

/// A text that cannot be a token. It is not shown: it may be most of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidToken {
    len: usize,
}

impl fmt::Display for InvalidToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the token of {} bytes is not one: a token has 1 to {} visible ASCII characters; \
             pass on what Token::as_str gave",
            self.len,
            Token::MAX_LEN
        )
    }
}

impl std::error::Error for InvalidToken {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_a_label_and_128_random_bits() {
        let token = Token::generate("web-1/4711").unwrap();
        let (label, random) = token.as_str().split_once(':').unwrap();
        assert_eq!(label, "web-1/4711");
        assert_eq!(random.len(), 32);
        assert!(random.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
        assert_ne!(token, Token::generate("web-1/4711").unwrap());
    }

    #[test]
    fn a_token_survives_being_handed_over_as_text() {
        let token = Token::generate(&"l".repeat(MAX_LABEL_LEN)).unwrap();
        let copy: Token = token.to_string().parse().unwrap();
        assert_eq!(copy, token);
        assert_eq!(copy.label().len(), MAX_LABEL_LEN);
    }

    #[test]
    fn debug_hides_the_random_half() {
        let token = Token::generate("web").unwrap();
        assert_eq!(format!("{token:?}"), "Token(\"web:…\")");
        let foreign = Token::from_str("5ecre7").unwrap();
        assert_eq!(format!("{foreign:?}"), "Token(…)");
        assert_eq!(foreign.label(), "");
    }

    #[test]
    fn what_cannot_be_a_token_is_refused_without_showing_it() {
        for text in ["", "a b", "secret\n", "sécret", &"s".repeat(129)] {
            let error = Token::from_str(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{} bytes", text.len())), "{error}");
            assert!(error.contains("1 to 128"), "{error}");
            assert!(!error.contains("secret") && !error.contains("sss"), "{error}");
        }
        assert!(Token::from_str(&"s".repeat(128)).is_ok());
    }

    #[test]
    fn only_values_that_look_like_ours_have_a_label() {
        let random = "00112233445566778899aabbccddeeff";
        assert_eq!(label_of(format!("web:{random}").as_bytes()), Some("web"));
        for foreign in [
            random.to_owned(),
            format!(":{random}"),
            format!("a:b:{random}"),
            format!("a b:{random}"),
            format!("wéb:{random}"),
            format!("web:{}", random.to_uppercase()),
            format!("web:{random}0"),
            format!("{}:{random}", "l".repeat(65)),
            String::from("web:secret"),
            String::new(),
        ] {
            assert_eq!(label_of(foreign.as_bytes()), None, "{foreign}");
        }
        assert_eq!(label_of(b"web:\xff"), None);
    }

    proptest! {
        #[test]
        fn the_label_comes_back_from_the_servers(label in "[!-9;-~]{1,64}") {
            let token = Token::generate(&label).unwrap();
            prop_assert_eq!(label_of(token.as_str().as_bytes()), Some(&*label));
            prop_assert!(Token::from_str(token.as_str()).is_ok());
        }
    }
}

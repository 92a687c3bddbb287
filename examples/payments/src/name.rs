//! The names that clients choose: accounts, payments and tenants.
//!
//! A name is checked once, when it is read from a path, a body, a query or a header. Everything behind
//! that can rely on it: PostgreSQL, for one, stores no NUL.

use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

/// The longest name that is accepted, in bytes.
const MAX_LEN: usize = 64;

/// The number of characters of a refused name that its error repeats.
const SHOWN: usize = 80;

/// The error for a text that is not a plain name.
#[derive(Debug, thiserror::Error)]
#[error("{what} has 1 to 64 ASCII letters, digits, `.`, `_` or `-`; this one is {shown}")]
pub(crate) struct BadName {
    what: &'static str,
    shown: String,
}

fn check(what: &'static str, name: &str) -> Result<(), BadName> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    if (1..=MAX_LEN).contains(&name.len()) && name.as_bytes().iter().all(plain) {
        return Ok(());
    }
    // `Debug` escapes control characters.
    let shown: String = name.chars().take(SHOWN).collect();
    Err(BadName { what, shown: format!("{shown:?}") })
}

macro_rules! names {
    ($($(#[$docs:meta])* $name:ident: $what:literal;)*) => {$(
        $(#[$docs])*
        #[derive(Clone, Debug, Deserialize, PartialEq, Eq, Hash, Serialize, sqlx::Type)]
        #[serde(try_from = "String")]
        #[sqlx(transparent)]
        pub(crate) struct $name(String);

        impl TryFrom<String> for $name {
            type Error = BadName;

            fn try_from(name: String) -> Result<Self, BadName> {
                check($what, &name).map(|()| Self(name))
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self)
            }
        }
    )*};
}

names! {
    /// The id of an account.
    AccountId: "the id of an account";
    /// The id of a payment.
    PaymentId: "the id of a payment";
    /// The name of a tenant.
    Tenant: "the name of a tenant";
}

/// The tenant of a request that names none.
impl Default for Tenant {
    fn default() -> Self {
        Self("public".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_is_accepted_up_to_its_longest() {
        for name in ["a", "Account_7.of-64", &"a".repeat(MAX_LEN)] {
            assert_eq!(&*Tenant::try_from(name.to_owned()).unwrap(), name);
        }
    }

    #[test]
    fn an_error_shows_a_bounded_part_of_the_name_without_control_characters() {
        for name in ["", "a b", "a\0", "a:b", "ä", &"a".repeat(MAX_LEN + 1), &"\0".repeat(10_000)]
        {
            let error = Tenant::try_from(name.to_owned()).unwrap_err().to_string();
            assert!(error.starts_with("the name of a tenant has 1 to 64"), "{error}");
            assert!(error.len() < 500 && !error.contains(char::is_control), "{error}");
        }
    }
}

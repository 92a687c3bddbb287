//! What is wrong with a setting.

use std::fmt;

/// A setting that cannot be used. It names the field, the value, and what to do about it; never a
/// password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    field: String,
    value: String,
    fix: String,
}

impl ConfigError {
    /// The setting, such as `ttl` or `cluster[1].servers[0]`.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }

    pub(crate) fn new(
        field: impl Into<String>,
        value: impl fmt::Display,
        fix: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), value: value.to_string(), fix: fix.into() }
    }

    /// The same, said of another field.
    pub(crate) fn of(self, field: impl Into<String>) -> Self {
        Self { field: field.into(), ..self }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {}: {}", self.field, self.value, self.fix)
    }
}

impl std::error::Error for ConfigError {}

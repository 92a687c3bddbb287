//! The settings, from the environment.

use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use redlock_core::{Config, ConfigError, Redlock};
use sqlx::sqlite::SqliteConnectOptions;

/// What the service is told by its environment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// `PAYMENTS_ADDR`, 127.0.0.1:3000 unless set; port 0 takes a free one.
    pub address: SocketAddr,
    /// `DATABASE_URL`, sqlite://payments.db unless set.
    pub database: SqliteConnectOptions,
    /// `REDLOCK_SERVERS`; `None` if it is not set: locks are kept in memory.
    pub servers: Option<Config>,
    /// `PAYMENTS_PROVIDER_DELAY`, 50ms unless set.
    pub provider_delay: Duration,
    /// `PAYMENTS_GRACE`, 30s unless set: how long what has begun may take to finish when the
    /// service is asked to stop.
    pub grace: Duration,
}

/// A setting that can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// What is set can't be read.
    #[error("{variable} is `{value}`: {reason}. Set it to something like `{example}`")]
    Unreadable {
        /// The variable.
        variable: &'static str,
        /// What it is set to, without a password.
        value: String,
        /// What is wrong with that.
        reason: String,
        /// What would be right.
        example: &'static str,
    },
    /// `REDLOCK_SERVERS` can't be used.
    #[error(transparent)]
    Servers(#[from] ConfigError),
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    ///
    /// [`SettingsError`] names the variable, its value and what would be right.
    pub fn from_env() -> Result<Self, SettingsError> {
        let servers = env::var_os("REDLOCK_SERVERS").filter(|servers| !servers.is_empty());
        Ok(Self {
            address: read("PAYMENTS_ADDR", "127.0.0.1:3000", |value| {
                value.parse().map_err(|error: std::net::AddrParseError| error.to_string())
            })?,
            database: read("DATABASE_URL", "sqlite://payments.db", |value| {
                if !value.starts_with("sqlite:") {
                    return Err("payments are kept in SQLite".into());
                }
                if has_user(value) {
                    return Err("SQLite knows no users, only a file".into());
                }
                value.parse().map_err(|error: sqlx::Error| error.to_string())
            })?,
            servers: servers.map(|_| Config::from_env()).transpose()?,
            provider_delay: read("PAYMENTS_PROVIDER_DELAY", "50ms", duration)?,
            grace: read("PAYMENTS_GRACE", "30s", duration)?,
        })
    }

    /// The locks, on the servers if there are any.
    #[must_use]
    pub fn redlock(&self) -> Redlock {
        self.servers.clone().map_or_else(Redlock::in_memory, Redlock::new)
    }
}

/// Reads a variable, or its default, which is a good example too.
fn read<T>(
    variable: &'static str,
    default: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<T, SettingsError> {
    let value = match env::var(variable) {
        Ok(value) if !value.is_empty() => value,
        Ok(_) | Err(env::VarError::NotPresent) => default.to_owned(),
        Err(env::VarError::NotUnicode(value)) => value.to_string_lossy().into_owned(),
    };
    parse(&value).map_err(|reason| SettingsError::Unreadable {
        variable,
        value: without_password(&value),
        reason,
        example: default,
    })
}

fn duration(value: &str) -> Result<Duration, String> {
    humantime::parse_duration(value).map_err(|error| error.to_string())
}

fn has_user(url: &str) -> bool {
    let authority = url.split_once("://").and_then(|(_, rest)| rest.split('/').next());
    authority.is_some_and(|authority| authority.contains('@'))
}

/// Databases other than ours have a password in their URL, and an error is written to a log.
fn without_password(value: &str) -> String {
    let value = match (value.split_once("://"), value.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => value.to_owned(),
    };
    match value.split_once('?') {
        Some((url, _)) => format!("{url}?…"),
        None => value,
    }
}

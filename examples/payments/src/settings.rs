//! The settings, from the environment.

use std::env;
use std::net::SocketAddr;
use std::time::Duration;

use redlock_core::{Config, ConfigError, Redlock};

use crate::hosts::Hosts;
use crate::store::{DatabaseUrl, UrlError, without_password};

/// What the service is told by its environment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// `PAYMENTS_ADDR`, 127.0.0.1:3000 unless set; port 0 takes a free one.
    pub address: SocketAddr,
    /// `PAYMENTS_HOSTS`, the hosts under which the service answers besides this machine and the address
    /// of `PAYMENTS_ADDR`: a comma-separated list without ports; `*` allows all.
    pub hosts: Hosts,
    /// `DATABASE_URL`, sqlite://payments.db unless set; `postgres://` for several machines.
    pub database: DatabaseUrl,
    /// `REDLOCK_SERVERS`; `None` if it is not set: locks are kept in memory.
    pub servers: Option<Config>,
    /// `PAYMENTS_PROVIDER`, the URL of the payment provider; `None` if it is not set: one is
    /// simulated.
    pub provider: Option<String>,
    /// `PAYMENTS_PROVIDER_DELAY`, 50ms unless set: how long the simulated one takes.
    pub provider_delay: Duration,
    /// `PAYMENTS_PROVIDER_TIMEOUT`, 30s unless set: when an answer is no longer waited for.
    pub provider_timeout: Duration,
    /// `PAYMENTS_READERS`, 250 unless set: the number of clients that may listen to the events.
    pub readers: usize,
    /// `PAYMENTS_RECOVERY`, 5s unless set: how often to look for payments that were cut off.
    pub recovery: Duration,
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
        let address: SocketAddr = read("PAYMENTS_ADDR", "127.0.0.1:3000", |value| {
            value.parse().map_err(|error: std::net::AddrParseError| error.to_string())
        })?;
        Ok(Self {
            address,
            hosts: optional("PAYMENTS_HOSTS", "pay.example", |more| {
                Hosts::of(address.ip()).and(more)
            })?
            .unwrap_or_else(|| Hosts::of(address.ip())),
            database: read("DATABASE_URL", "sqlite://payments.db", |value| {
                value.parse().map_err(|error: UrlError| error.to_string())
            })?,
            servers: servers.map(|_| Config::from_env()).transpose()?,
            provider: optional("PAYMENTS_PROVIDER", "http://127.0.0.1:4000", url)?,
            provider_delay: read("PAYMENTS_PROVIDER_DELAY", "50ms", duration)?,
            provider_timeout: read("PAYMENTS_PROVIDER_TIMEOUT", "30s", duration)?,
            readers: read("PAYMENTS_READERS", "250", |value| {
                value.parse().map_err(|error: std::num::ParseIntError| error.to_string())
            })?,
            recovery: read("PAYMENTS_RECOVERY", "5s", duration)?,
            grace: read("PAYMENTS_GRACE", "30s", duration)?,
        })
    }

    /// The locks, on the servers if there are any.
    #[must_use]
    pub fn redlock(&self) -> Redlock {
        self.servers.clone().map_or_else(Redlock::in_memory, Redlock::new)
    }
}

/// Reads a variable that has no default.
fn optional<T>(
    variable: &'static str,
    example: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, SettingsError> {
    let is_set = env::var_os(variable).is_some_and(|value| !value.is_empty());
    is_set.then(|| read(variable, example, parse)).transpose()
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

fn url(value: &str) -> Result<String, String> {
    let url: reqwest::Url = value.parse().map_err(|error| format!("{error}"))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(value.into()),
        _ => Err("it is no URL of a server".into()),
    }
}

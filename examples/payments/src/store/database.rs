//! Where the payments are kept: `DATABASE_URL`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sqlx::any::{AnyPoolOptions, install_default_drivers};
use sqlx::migrate::MigrateError;
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyPool, Executor};

/// How long a request waits for a connection: longer than a transaction takes under load, shorter
/// than its client waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Two processes that open a new database at once may both want to create its tables.
const TRIES: u32 = 5;

/// The address of a database. It may hold a password: only the part without is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl {
    url: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Sqlite,
    Postgres,
}

/// Why a text is no address of a database.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// It begins with none of the schemes that are known.
    #[error("payments are kept in SQLite (`sqlite:`) or PostgreSQL (`postgres:`)")]
    Scheme,
    /// What PostgreSQL would take for a user.
    #[error("SQLite knows no users, only a file")]
    SqliteUser,
    /// The rest can't be read.
    #[error("{0}")]
    Unreadable(String),
}

impl FromStr for DatabaseUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        let unreadable = |error: sqlx::Error| UrlError::Unreadable(error.to_string());
        let kind = match url.split_once(':') {
            Some(("sqlite", _)) if has_user(url) => return Err(UrlError::SqliteUser),
            Some(("sqlite", _)) => {
                SqliteConnectOptions::from_str(url).map_err(unreadable)?;
                Kind::Sqlite
            }
            Some(("postgres" | "postgresql", _)) => {
                PgConnectOptions::from_str(url).map_err(unreadable)?;
                Kind::Postgres
            }
            _ => return Err(UrlError::Scheme),
        };
        Ok(Self { url: url.into(), kind })
    }
}

impl DatabaseUrl {
    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite => "SQLite",
            Kind::Postgres => "PostgreSQL",
        }
    }

    pub(super) async fn open(&self) -> Result<AnyPool, sqlx::Error> {
        install_default_drivers();
        let (url, connections, setup) = match self.kind {
            Kind::Sqlite => (
                // Unless the address says how, the file is created if it is missing.
                match self.url.split_once('?') {
                    None => format!("{}?mode=rwc", self.url),
                    Some((_, query)) if query.contains("mode=") => self.url.clone(),
                    Some(_) => format!("{}&mode=rwc", self.url),
                },
                // Readers do not wait for writers, writers wait for each other, and SQLite does not
                // let them in by turns: the fewer there are, the sooner each gets its own.
                4,
                "PRAGMA busy_timeout = 10000; PRAGMA journal_mode = WAL;
                 PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON",
            ),
            Kind::Postgres => (self.url.clone(), 8, "SET statement_timeout = '10s'"),
        };
        let pool = AnyPoolOptions::new()
            .max_connections(connections)
            .acquire_timeout(PATIENCE)
            .after_connect(move |connection, _| {
                Box::pin(async move { connection.execute(setup).await.map(|_| ()) })
            })
            .connect(&url)
            .await?;
        migrate(&pool).await?;
        Ok(pool)
    }
}

/// PostgreSQL lets one process migrate at a time. In SQLite one of them wins, and whoever was
/// refused finds the tables there.
async fn migrate(pool: &AnyPool) -> Result<(), sqlx::Error> {
    let mut tries = 1;
    loop {
        match sqlx::migrate!().run(pool).await {
            Err(MigrateError::Execute(_) | MigrateError::ExecuteMigration(..)) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            migrated => return Ok(migrated?),
        }
    }
}

fn has_user(url: &str) -> bool {
    let authority = url.split_once("://").and_then(|(_, rest)| rest.split('/').next());
    authority.is_some_and(|authority| authority.contains('@'))
}

/// An address without what may be secret in it.
pub(crate) fn without_password(value: &str) -> String {
    let value = match (value.split_once("://"), value.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        _ => value.to_owned(),
    };
    match value.split_once('?') {
        Some((url, _)) => format!("{url}?…"),
        None => value,
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(&self.url))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

//! Records in SQLite or PostgreSQL.

use std::borrow::Cow;
use std::error::Error;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use redlock_core::FencingToken;
use sqlx::any::{AnyPoolOptions, AnyRow};
use sqlx::{AnyPool, Connection, Row};

use super::key::{Fingerprint, RecordId};
use super::record::{Record, RecordStore, Saved, unix_seconds};

type BoxError = Box<dyn Error + Send + Sync>;

const FIND: &str = "SELECT fingerprint, status, headers, body, trailers, kept, expires_at \
    FROM idempotency_records WHERE id = $1 AND expires_at > $2";

const SAVE: &str = "INSERT INTO idempotency_records \
    (id, fingerprint, status, headers, body, trailers, kept, token, expires_at) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
    ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, \
    status = excluded.status, headers = excluded.headers, body = excluded.body, \
    trailers = excluded.trailers, kept = excluded.kept, token = excluded.token, \
    expires_at = excluded.expires_at \
    WHERE idempotency_records.expires_at <= $10 OR idempotency_records.token < excluded.token";

/// Ends with the transaction. The number is the name of the lock: the ASCII bytes of `redlock`.
const ONE_AT_A_TIME: &str = "SET LOCAL lock_timeout = '10s'; \
    DO $$ BEGIN PERFORM pg_advisory_xact_lock(32199629335389035); END $$";

const DELETE_EXPIRED: &str = "DELETE FROM idempotency_records WHERE expires_at <= $1";

/// Records in a table `idempotency_records` of SQLite (feature `sqlite`) or PostgreSQL (feature
/// `postgres`).
///
/// The table is what [`SQLITE`](Self::SQLITE) and [`POSTGRES`](Self::POSTGRES) say: put that into
/// your migrations, or let [`create_table`](Self::create_table) do it.
///
/// ```no_run
/// # async fn records() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use tower_redlock::idempotency::SqlRecords;
///
/// let records = SqlRecords::connect("postgres://payments@localhost/payments").await?;
/// records.create_table().await?;
/// // now and then: records that have expired are not found, but they are there
/// records.delete_expired().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct SqlRecords {
    pool: AnyPool,
}

impl SqlRecords {
    /// The table for SQLite.
    pub const SQLITE: &str = include_str!("../../migrations/sqlite.sql");

    /// The table for PostgreSQL.
    pub const POSTGRES: &str = include_str!("../../migrations/postgres.sql");

    /// Records in the database of this pool.
    ///
    /// Each connection of a pool to SQLite in memory has a database of its own: for tests, use
    /// [`connect`](Self::connect), or a pool of one connection that is never closed.
    #[must_use]
    pub fn new(pool: AnyPool) -> Self {
        Self { pool }
    }

    /// Records in the database with this URL, by up to ten connections.
    ///
    /// | URL | database |
    /// |---|---|
    /// | `postgres://user@host/database` | PostgreSQL |
    /// | `sqlite://records.db` | a file, relative to the working directory; created if it is missing |
    /// | `sqlite:///var/lib/app/records.db?mode=rw` | a file that has to be there |
    /// | `sqlite::memory:` | in the memory of the process, by one connection; gone with the last clone |
    ///
    /// # Errors
    ///
    /// What the database says, or that there is no driver: the feature `sqlite` or `postgres` is
    /// missing.
    ///
    /// # Cancel safety
    ///
    /// The future may be dropped at any time.
    pub async fn connect(url: &str) -> Result<Self, BoxError> {
        sqlx::any::install_default_drivers();
        let options = AnyPoolOptions::new();
        let pool = if is_sqlite_in_memory(url) {
            // Each connection has a database of its own, which ends with the connection.
            let one = options.max_connections(1).min_connections(1);
            one.idle_timeout(None).max_lifetime(None).connect("sqlite::memory:").await
        } else {
            options.connect(&created_if_missing(url)).await
        };
        Ok(Self::new(pool?))
    }

    /// Creates the table if it is missing. Any number of instances may do so at once.
    ///
    /// # Errors
    ///
    /// What the database says; that another instance has been creating the table for more than ten
    /// seconds; or that the pool has several connections to SQLite in memory.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the table may or may not be created.
    pub async fn create_table(&self) -> Result<(), BoxError> {
        let url = &self.pool.connect_options().database_url;
        if is_sqlite_in_memory(url.as_str()) && self.pool.options().get_max_connections() > 1 {
            return Err("each connection of the pool has a SQLite database in memory of its own: \
                        use `SqlRecords::connect`, or set `max_connections` to 1"
                .into());
        }
        let mut connection = self.pool.acquire().await?;
        if connection.backend_name() == "SQLite" {
            sqlx::raw_sql(Self::SQLITE).execute(&mut *connection).await?;
            return Ok(());
        }
        // PostgreSQL fails if two sessions create one table, `IF NOT EXISTS` or not.
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(ONE_AT_A_TIME).execute(&mut *transaction).await?;
        sqlx::raw_sql(Self::POSTGRES).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Deletes the records that have expired, and says how many.
    ///
    /// # Errors
    ///
    /// What the database says.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped they may or may not be deleted.
    pub async fn delete_expired(&self) -> Result<u64, BoxError> {
        let delete = sqlx::query(DELETE_EXPIRED).bind(now()?);
        Ok(delete.execute(&self.pool).await?.rows_affected())
    }
}

impl RecordStore for SqlRecords {
    async fn find(&self, id: &RecordId) -> Result<Option<Record>, BoxError> {
        let find = sqlx::query(FIND).bind(id.to_string()).bind(now()?);
        find.fetch_optional(&self.pool).await?.map(|row| record(&row)).transpose()
    }

    async fn save(
        &self,
        id: &RecordId,
        record: Record,
        token: Option<FencingToken>,
    ) -> Result<Saved, BoxError> {
        let save = sqlx::query(SAVE)
            .bind(id.to_string())
            .bind(record.fingerprint.as_bytes().to_vec())
            .bind(i64::from(record.status.as_u16()))
            .bind(lines(&record.headers))
            .bind(record.body.as_deref().unwrap_or_default().to_vec())
            .bind(lines(&record.trailers))
            .bind(i64::from(record.body.is_some()))
            .bind(token.map_or(Ok(0), |token| i64::try_from(token.get()))?)
            // Kept for ever, where the column has no room for the moment.
            .bind(i64::try_from(record.expires_at).unwrap_or(i64::MAX))
            .bind(now()?);
        match save.execute(&self.pool).await?.rows_affected() {
            0 => Ok(Saved::Superseded),
            _ => Ok(Saved::Saved),
        }
    }
}

fn is_sqlite_in_memory(url: &str) -> bool {
    url.strip_prefix("sqlite:").is_some_and(|database| {
        let (path, parameters) = database.split_once('?').unwrap_or((database, ""));
        path.trim_start_matches('/') == ":memory:"
            || parameters.split('&').any(|parameter| parameter == "mode=memory")
    })
}

/// By default SQLite opens files that are there, and no others.
fn created_if_missing(url: &str) -> Cow<'_, str> {
    match url.split_once('?') {
        _ if !url.starts_with("sqlite:") => url.into(),
        None => format!("{url}?mode=rwc").into(),
        Some((_, parameters)) if parameters.split('&').any(|it| it.starts_with("mode=")) => {
            url.into()
        }
        Some(_) => format!("{url}&mode=rwc").into(),
    }
}

fn now() -> Result<i64, BoxError> {
    Ok(i64::try_from(unix_seconds(Duration::ZERO))?)
}

fn record(row: &AnyRow) -> Result<Record, BoxError> {
    let fingerprint = row.try_get::<Vec<u8>, _>("fingerprint")?;
    let fingerprint: [u8; 32] = fingerprint.try_into().map_err(|_| "a fingerprint has 32 bytes")?;
    let status = u16::try_from(row.try_get::<i64, _>("status")?)?;
    let body = row.try_get::<Vec<u8>, _>("body")?;
    let kept = row.try_get::<i64, _>("kept")? == 1;
    let trailers = headers(&row.try_get::<Vec<u8>, _>("trailers")?)?;
    let record = Record::new(
        Fingerprint::from_bytes(fingerprint),
        StatusCode::from_u16(status)?,
        headers(&row.try_get::<Vec<u8>, _>("headers")?)?,
        kept.then(|| body.into()),
        u64::try_from(row.try_get::<i64, _>("expires_at")?)?,
    );
    Ok(record.with_trailers(trailers))
}

/// As HTTP/1.1 writes them: no value has a line break in it.
fn lines(headers: &HeaderMap) -> Vec<u8> {
    let line = |(name, value): (&HeaderName, &HeaderValue)| {
        [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat()
    };
    headers.iter().flat_map(line).collect()
}

fn headers(lines: &[u8]) -> Result<HeaderMap, BoxError> {
    let mut headers = HeaderMap::new();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r\n").ok_or("a header does not end")?;
        let colon = line.iter().position(|byte| *byte == b':').ok_or("a header has no value")?;
        let (name, value) = line.split_at(colon);
        let value = value.strip_prefix(b": ").ok_or("a header has no value")?;
        headers.append(HeaderName::from_bytes(name)?, HeaderValue::from_bytes(value)?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_created_if_the_url_does_not_say_otherwise() {
        for (url, expected) in [
            ("sqlite://records.db", "sqlite://records.db?mode=rwc"),
            ("sqlite:records.db?cache=private", "sqlite:records.db?cache=private&mode=rwc"),
            ("sqlite:///records.db?mode=rw", "sqlite:///records.db?mode=rw"),
            (
                "sqlite:///records.db?cache=private&mode=ro",
                "sqlite:///records.db?cache=private&mode=ro",
            ),
            ("postgres://user@host/database", "postgres://user@host/database"),
        ] {
            assert_eq!(created_if_missing(url), expected);
            assert!(!is_sqlite_in_memory(url), "{url}");
        }
        for url in ["sqlite::memory:", "sqlite://:memory:", "sqlite://?cache=private&mode=memory"] {
            assert!(is_sqlite_in_memory(url), "{url}");
        }
    }

    #[test]
    fn headers_are_kept_byte_by_byte() {
        let mut kept = HeaderMap::new();
        kept.append("location", HeaderValue::from_static("/payments/7: 8"));
        kept.append("x-name", HeaderValue::from_bytes("Zoë".as_bytes()).unwrap());
        kept.append("x-name", HeaderValue::from_static(""));
        assert_eq!(headers(&lines(&kept)).unwrap(), kept);
        assert!(headers(&lines(&HeaderMap::new())).unwrap().is_empty());
        for broken in ["a: b", "a\r\n", "a:b\r\n", ": b\r\n"] {
            assert!(headers(broken.as_bytes()).is_err(), "{broken}");
        }
    }
}

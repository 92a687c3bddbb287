//! Records in SQLite or PostgreSQL.

use std::error::Error;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use redlock_core::FencingToken;
use sqlx::any::AnyRow;
use sqlx::{AnyPool, Row};

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
    #[must_use]
    pub fn new(pool: AnyPool) -> Self {
        Self { pool }
    }

    /// Records in the database with this URL, such as `sqlite://records.db` or
    /// `postgres://user@host/database`, by up to ten connections.
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
        Ok(Self::new(AnyPool::connect(url).await?))
    }

    /// Creates the table if it is not there.
    ///
    /// # Errors
    ///
    /// What the database says.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped the table may or may not be created.
    pub async fn create_table(&self) -> Result<(), BoxError> {
        let mut connection = self.pool.acquire().await?;
        let table = match connection.backend_name() {
            "SQLite" => Self::SQLITE,
            _ => Self::POSTGRES,
        };
        sqlx::raw_sql(table).execute(&mut *connection).await?;
        Ok(())
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
            .bind(i64::try_from(record.expires_at)?)
            .bind(now()?);
        match save.execute(&self.pool).await?.rows_affected() {
            0 => Ok(Saved::Superseded),
            _ => Ok(Saved::Saved),
        }
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

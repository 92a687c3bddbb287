//! The charges, in SQLite. Nothing in it keeps a charge from being made twice: that is what the
//! lock and its token are for, and what the run counts.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{SqlitePool, query, query_as, query_scalar};

#[derive(Clone, Debug)]
pub(crate) struct Ledger(SqlitePool);

const TABLES: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS fences (account TEXT PRIMARY KEY, fence INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS charges (id INTEGER PRIMARY KEY, charge TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS charges_by_name ON charges (charge)",
];

impl Ledger {
    pub(crate) async fn open(file: &Path) -> sqlx::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // The machine does not lose its power here.
            .synchronous(SqliteSynchronous::Off)
            .busy_timeout(Duration::from_secs(30));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        for table in TABLES {
            query(table).execute(&pool).await?;
        }
        Ok(Self(pool))
    }

    /// Shuts earlier holders of the account's lock out, before anything is read under it. `false`:
    /// a later one was here.
    pub(crate) async fn take_up(&self, account: &str, fence: i64) -> sqlx::Result<bool> {
        let taken_up = query(
            "INSERT INTO fences (account, fence) VALUES (?1, ?2) ON CONFLICT (account)
             DO UPDATE SET fence = excluded.fence WHERE fences.fence <= excluded.fence",
        );
        let taken_up = taken_up.bind(account).bind(fence).execute(&self.0).await?;
        Ok(taken_up.rows_affected() == 1)
    }

    pub(crate) async fn is_charged(&self, charge: &str) -> sqlx::Result<bool> {
        let found = query_scalar("SELECT EXISTS (SELECT 1 FROM charges WHERE charge = ?)");
        found.bind(charge).fetch_one(&self.0).await
    }

    /// Writes a charge, unless a later holder of the account's lock was here.
    pub(crate) async fn charge(
        &self,
        charge: &str,
        account: &str,
        fence: Option<i64>,
    ) -> sqlx::Result<bool> {
        let mut transaction = self.0.begin_with("BEGIN IMMEDIATE").await?;
        if let Some(fence) = fence {
            let mine = query("UPDATE fences SET fence = ?2 WHERE account = ?1 AND fence <= ?2");
            let mine = mine.bind(account).bind(fence).execute(&mut *transaction).await?;
            if mine.rows_affected() != 1 {
                return Ok(false);
            }
        }
        query("INSERT INTO charges (charge) VALUES (?)")
            .bind(charge)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// How often each charge was made.
    pub(crate) async fn counts(&self) -> sqlx::Result<Vec<(String, i64)>> {
        query_as("SELECT charge, COUNT(*) FROM charges GROUP BY charge").fetch_all(&self.0).await
    }

    pub(crate) async fn close(&self) {
        self.0.close().await;
    }
}

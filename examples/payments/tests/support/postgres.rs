//! New databases in one PostgreSQL server, which ends with the test process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use redlock_tests::{Postgres, eventually};
use sqlx::{AnyConnection, Connection, Executor};

use super::SOON;

/// The URL of a new database.
pub async fn new_database() -> String {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(Postgres::start);
    sqlx::any::install_default_drivers();
    let mut admin = eventually(SOON, "PostgreSQL takes connections", async || {
        AnyConnection::connect(&server.url("postgres")).await
    })
    .await;
    let name = format!("payments_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    admin.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    server.url(&name)
}

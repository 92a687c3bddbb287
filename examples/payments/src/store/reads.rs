//! What can be read without a transaction.

use sqlx::{Any, Executor, query, query_as, query_scalar};

use super::{Account, Entry, NewPayment, Payment, Store, Unfinished};
use crate::idempotency::IdempotencyKey;
use crate::name::{AccountId, Tenant};

/// As many as a page shows.
const NEWEST: i64 = 20;

/// As many as are taken up in one go.
const AT_ONCE: i64 = 100;

impl Store {
    pub(crate) async fn ready(&self) -> Result<(), sqlx::Error> {
        query("SELECT 1").execute(&self.pool).await.map(|_| ())
    }

    pub(crate) async fn account(&self, id: &str) -> Result<Option<Account>, sqlx::Error> {
        account(&self.pool, id).await
    }

    pub(crate) async fn accounts(&self) -> Result<Vec<String>, sqlx::Error> {
        query_scalar("SELECT id FROM accounts ORDER BY id").fetch_all(&self.pool).await
    }

    /// The newest entries of an account.
    pub(crate) async fn ledger(&self, account: &str) -> Result<Vec<Entry>, sqlx::Error> {
        type Row = (String, i64, Option<String>);
        let rows: Vec<Row> = query_as(
            "SELECT id, amount_cents, payment FROM ledger
             WHERE account = $1 ORDER BY id DESC LIMIT $2",
        )
        .bind(account)
        .bind(NEWEST)
        .fetch_all(&self.pool)
        .await?;
        let entry = |(entry, amount_cents, payment_id)| Entry { entry, amount_cents, payment_id };
        Ok(rows.into_iter().map(entry).collect())
    }

    pub(crate) async fn payment(&self, id: &str) -> Result<Option<Payment>, sqlx::Error> {
        type Row = (String, i64, Option<i64>);
        let found: Option<Row> =
            query_as("SELECT account, amount_cents, status FROM payments WHERE id = $1")
                .bind(id)
                .fetch_optional(&self.pool)
                .await?;
        Ok(found.map(|(account, amount_cents, status)| Payment {
            payment_id: id.into(),
            account,
            amount_cents,
            status: match status {
                None => "in_progress",
                Some(200..300) => "charged",
                Some(_) => "refused",
            },
        }))
    }

    /// The oldest payments that were begun and not finished.
    pub(crate) async fn unfinished(&self) -> Result<Vec<Unfinished>, sqlx::Error> {
        type Row = (String, Tenant, String, AccountId, i64);
        let rows: Vec<Row> = query_as(
            "SELECT id, tenant, idempotency_key, account, amount_cents FROM payments
             WHERE status IS NULL ORDER BY id LIMIT $1",
        )
        .bind(AT_ONCE)
        .fetch_all(&self.pool)
        .await?;
        let unfinished = |(payment_id, tenant, key, account, amount_cents)| Unfinished {
            payment_id,
            key: IdempotencyKey { tenant, key },
            payment: NewPayment { account, amount_cents },
        };
        Ok(rows.into_iter().map(unfinished).collect())
    }
}

pub(super) async fn account(
    database: impl Executor<'_, Database = Any>,
    id: &str,
) -> Result<Option<Account>, sqlx::Error> {
    let found: Option<(i64, i64)> = query_as(
        "SELECT balance_cents,
                (SELECT count(*) FROM ledger WHERE account = accounts.id AND payment IS NOT NULL)
         FROM accounts WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(database)
    .await?;
    Ok(found.map(|(balance_cents, charges)| Account { account: id.into(), balance_cents, charges }))
}

//! The payments, accounts and ledger, in SQLite. What is written here decides; the lock only
//! keeps requests from getting in each other's way.

use std::time::Duration;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
};
use sqlx::{Sqlite, SqliteConnection, query, query_as, query_scalar};
use uuid::Uuid;

use crate::fence::{Fence, WriteError};
use crate::idempotency::IdempotencyKey;

/// Takes the write lock at once: a transaction that reads first could not be sure to get it later.
const WRITE: &str = "BEGIN IMMEDIATE";

/// A database of payments.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
}

/// What a client asks for. The same key with another payment is a mistake of theirs.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPayment {
    pub(crate) account: String,
    pub(crate) amount_cents: i64,
}

/// A payment as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Payment {
    pub(crate) payment_id: String,
    pub(crate) account: String,
    pub(crate) amount_cents: i64,
    pub(crate) status: &'static str,
}

/// An account as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Account {
    pub(crate) account: String,
    pub(crate) balance_cents: i64,
    /// How many payments were charged.
    pub(crate) charges: i64,
}

/// An answer that was given, or is about to be.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
}

/// How things stand with a payment that is asked for.
#[derive(Debug)]
pub(crate) enum Begun {
    /// Go on: it is new, or was cut off before it was finished.
    InProgress {
        payment_id: String,
    },
    Finished(Answer),
    /// There is not enough money for it, and that was noted.
    Refused,
    /// The key belongs to another payment.
    OtherPayment,
    NoAccount,
}

impl Store {
    /// Opens the database, creates it if it is missing, and brings its tables up to date.
    ///
    /// # Errors
    ///
    /// Whatever the database says.
    ///
    /// # Cancel safety
    ///
    /// A migration that is cut off is rolled back.
    pub async fn open(options: SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let options = options
            .create_if_missing(true)
            .foreign_keys(true)
            .journal_mode(SqliteJournalMode::Wal)
            .busy_timeout(Duration::from_secs(5));
        let pool = SqlitePoolOptions::new().max_connections(4).connect_with(options).await?;
        sqlx::migrate!().run(&pool).await?;
        Ok(Self { pool })
    }

    /// Finishes what is being written, and closes the database.
    ///
    /// # Cancel safety
    ///
    /// What was committed stays, whether or not this ends.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    pub(crate) async fn ready(&self) -> Result<(), sqlx::Error> {
        query("SELECT 1").execute(&self.pool).await.map(|_| ())
    }

    /// Notes a payment, and with it puts its money aside, before anything is done about it. If
    /// there is too little money, `refusal` is noted as the answer.
    pub(crate) async fn begin(
        &self,
        IdempotencyKey { tenant, key }: &IdempotencyKey,
        payment: &NewPayment,
        refusal: &Answer,
        fence: Fence,
    ) -> Result<Begun, WriteError> {
        type Row = (String, String, i64, Option<u16>, Option<String>);
        let mut transaction = self.pool.begin_with(WRITE).await?;
        let found: Option<Row> = query_as(
            "SELECT id, account, amount_cents, status, response FROM payments
             WHERE tenant = ? AND idempotency_key = ?",
        )
        .bind(tenant)
        .bind(key)
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some((payment_id, account, amount_cents, status, response)) = found {
            if *payment != (NewPayment { account, amount_cents }) {
                return Ok(Begun::OtherPayment);
            }
            let status = status.and_then(|status| StatusCode::from_u16(status).ok());
            if let Some((status, body)) = status.zip(response) {
                return Ok(Begun::Finished(Answer { status, body }));
            }
            // Whoever began it can't finish it from here on.
            let taken_up = query("UPDATE payments SET fence = ?2 WHERE id = ?1 AND fence <= ?2");
            fenced(taken_up.bind(&payment_id).bind(fence), &mut transaction).await?;
            transaction.commit().await?;
            return Ok(Begun::InProgress { payment_id });
        }
        let Some(available) = available(&mut transaction, &payment.account).await? else {
            return Ok(Begun::NoAccount);
        };
        let refused = (available < payment.amount_cents).then_some(refusal);
        let payment_id = format!("pay_{}", Uuid::now_v7().simple());
        query(
            "INSERT INTO payments
             (id, tenant, idempotency_key, account, amount_cents, status, response, fence)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&payment_id)
        .bind(tenant)
        .bind(key)
        .bind(&payment.account)
        .bind(payment.amount_cents)
        .bind(refused.map(|answer| answer.status.as_u16()))
        .bind(refused.map(|answer| &answer.body))
        .bind(fence)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(if refused.is_some() { Begun::Refused } else { Begun::InProgress { payment_id } })
    }

    /// Books a payment and keeps its answer, both or neither. Nothing happens if that was done
    /// by somebody who was faster, as can be when a lock was lost: their answer is the same.
    pub(crate) async fn finish(
        &self,
        payment_id: &str,
        NewPayment { account, amount_cents }: &NewPayment,
        answer: &Answer,
        fence: Fence,
    ) -> Result<(), WriteError> {
        let mut transaction = self.pool.begin_with(WRITE).await?;
        let finished = query_scalar("SELECT status IS NOT NULL FROM payments WHERE id = ?");
        if finished.bind(payment_id).fetch_one(&mut *transaction).await? {
            return Ok(());
        }
        let finish = query(
            "UPDATE payments SET status = ?2, response = ?3, fence = ?4
             WHERE id = ?1 AND fence <= ?4",
        );
        let finish = finish.bind(payment_id).bind(answer.status.as_u16()).bind(&answer.body);
        fenced(finish.bind(fence), &mut transaction).await?;
        book(&mut transaction, account, *amount_cents, Some(payment_id)).await?;
        Ok(transaction.commit().await?)
    }

    /// Books a withdrawal. `false`: the balance is too low.
    pub(crate) async fn withdraw(
        &self,
        id: &str,
        amount_cents: i64,
        fence: Fence,
    ) -> Result<bool, WriteError> {
        let mut transaction = self.pool.begin_with(WRITE).await?;
        let mine = query("UPDATE accounts SET fence = ?2 WHERE id = ?1 AND fence <= ?2");
        fenced(mine.bind(id).bind(fence), &mut transaction).await?;
        if available(&mut transaction, id).await?.is_none_or(|available| available < amount_cents) {
            return Ok(false);
        }
        book(&mut transaction, id, amount_cents, None).await?;
        transaction.commit().await?;
        Ok(true)
    }

    pub(crate) async fn account(&self, id: &str) -> Result<Option<Account>, sqlx::Error> {
        account(&mut *self.pool.acquire().await?, id).await
    }

    pub(crate) async fn payment(&self, id: &str) -> Result<Option<Payment>, sqlx::Error> {
        type Row = (String, i64, Option<u16>);
        let found: Option<Row> =
            query_as("SELECT account, amount_cents, status FROM payments WHERE id = ?")
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
}

async fn account(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<Account>, sqlx::Error> {
    let balance: Option<i64> = query_scalar("SELECT balance_cents FROM accounts WHERE id = ?")
        .bind(id)
        .fetch_optional(&mut *connection)
        .await?;
    let Some(balance_cents) = balance else { return Ok(None) };
    let charges =
        query_scalar("SELECT count(*) FROM ledger WHERE account = ? AND payment IS NOT NULL")
            .bind(id)
            .fetch_one(connection)
            .await?;
    Ok(Some(Account { account: id.into(), balance_cents, charges }))
}

/// Writes to a row that is there, if no later lock has: an equal token is of the same lock.
async fn fenced(
    write: Query<'_, Sqlite, SqliteArguments>,
    connection: &mut SqliteConnection,
) -> Result<(), WriteError> {
    match write.execute(connection).await?.rows_affected() {
        0 => Err(WriteError::Stale),
        _ => Ok(()),
    }
}

/// What can be spent: the balance without what payments in progress have put aside.
async fn available(
    connection: &mut SqliteConnection,
    account: &str,
) -> Result<Option<i64>, sqlx::Error> {
    query_scalar(
        "SELECT balance_cents - (SELECT coalesce(sum(amount_cents), 0) FROM payments
                                 WHERE account = accounts.id AND status IS NULL)
         FROM accounts WHERE id = ?",
    )
    .bind(account)
    .fetch_optional(connection)
    .await
}

async fn book(
    connection: &mut SqliteConnection,
    account: &str,
    amount_cents: i64,
    payment_id: Option<&str>,
) -> Result<(), sqlx::Error> {
    query("UPDATE accounts SET balance_cents = balance_cents - ? WHERE id = ?")
        .bind(amount_cents)
        .bind(account)
        .execute(&mut *connection)
        .await?;
    query("INSERT INTO ledger (account, amount_cents, payment) VALUES (?, ?, ?)")
        .bind(account)
        .bind(-amount_cents)
        .bind(payment_id)
        .execute(connection)
        .await?;
    Ok(())
}

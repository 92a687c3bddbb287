//! The payments, accounts and ledger, in SQLite or PostgreSQL. What is written here decides; the
//! lock only keeps requests from getting in each other's way.
//!
//! Both databases are told the same. Every transaction begins by writing to the row of its
//! account: in PostgreSQL that locks the row, in SQLite the database, and whatever is read
//! afterwards stays true until the end of the transaction.

mod database;
mod reads;
mod records;
mod withdrawals;

use axum::http::StatusCode;
use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AnyPool, query, query_as, query_scalar};
use uuid::Uuid;

pub(crate) use self::database::without_password;
pub use self::database::{DatabaseUrl, UrlError};
pub(crate) use self::records::{Account, Begun, Entry, NewPayment, Payment, Unfinished};
pub(crate) use self::withdrawals::{NewWithdrawal, Withdrawn};
use crate::answer::Answer;
use crate::fence::{Fence, WriteError};
use crate::idempotency::IdempotencyKey;
use crate::name::AccountId;

/// A database of payments.
#[derive(Clone, Debug)]
pub struct Store {
    pool: AnyPool,
    name: &'static str,
}

impl Store {
    /// Opens the database and brings its tables up to date. SQLite's file is created if it is
    /// missing; a database of PostgreSQL has to be there.
    ///
    /// # Errors
    ///
    /// Whatever the database says.
    ///
    /// # Cancel safety
    ///
    /// A migration that is cut off is rolled back.
    pub async fn open(url: &DatabaseUrl) -> Result<Self, sqlx::Error> {
        Ok(Self { pool: url.open().await?, name: url.name() })
    }

    /// `SQLite` or `PostgreSQL`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Finishes what is being written, and closes the database.
    ///
    /// # Cancel safety
    ///
    /// What was committed stays, whether or not this ends.
    pub async fn close(&self) {
        self.pool.close().await;
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
        type Row = (String, AccountId, i64, Option<i64>, Option<String>);
        let mut transaction = self.pool.begin().await?;
        let is_there = hold(&mut transaction, &payment.account).await?;
        let found: Option<Row> = query_as(
            "SELECT id, account, amount_cents, status, response FROM payments
             WHERE tenant = $1 AND idempotency_key = $2",
        )
        .bind(&**tenant)
        .bind(key)
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some((payment_id, account, amount_cents, status, response)) = found {
            if *payment != (NewPayment { account, amount_cents }) {
                return Ok(Begun::OtherPayment);
            }
            if let Some((status, body)) = status.and_then(status_code).zip(response) {
                return Ok(Begun::Finished(Answer { status, body }));
            }
            // The request that began the payment can't finish it from here on.
            let taken_up = query("UPDATE payments SET fence = $2 WHERE id = $1 AND fence <= $2");
            fenced(taken_up.bind(&payment_id).bind(fence), &mut transaction).await?;
            transaction.commit().await?;
            return Ok(Begun::InProgress { payment_id });
        }
        if !is_there {
            return Ok(Begun::NoAccount);
        }
        let available = available(&mut transaction, &payment.account).await?;
        let refused = (available < payment.amount_cents).then_some(refusal);
        let payment_id = format!("pay_{}", Uuid::now_v7().simple());
        let noted = query(
            "INSERT INTO payments
             (id, tenant, idempotency_key, account, amount_cents, status, response, fence)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
             ON CONFLICT (tenant, idempotency_key) DO NOTHING",
        )
        .bind(&payment_id)
        .bind(&**tenant)
        .bind(key)
        .bind(&*payment.account)
        .bind(payment.amount_cents)
        .bind(refused.map(|answer| i64::from(answer.status.as_u16())))
        .bind(refused.map(|answer| answer.body.as_str()))
        .bind(fence);
        // A conflict: while we looked, the key was used for another account, by one whose lock
        // knows nothing of ours.
        fenced(noted, &mut transaction).await?;
        transaction.commit().await?;
        Ok(if refused.is_some() { Begun::Refused } else { Begun::InProgress { payment_id } })
    }

    /// Takes up a payment that was cut off. `false`: it has been finished since.
    pub(crate) async fn take_up(
        &self,
        Unfinished { payment_id, payment, .. }: &Unfinished,
        fence: Fence,
    ) -> Result<bool, WriteError> {
        let mut transaction = self.pool.begin().await?;
        hold(&mut transaction, &payment.account).await?;
        if is_finished(&mut transaction, payment_id).await? {
            return Ok(false);
        }
        let taken_up = query("UPDATE payments SET fence = $2 WHERE id = $1 AND fence <= $2");
        fenced(taken_up.bind(payment_id).bind(fence), &mut transaction).await?;
        transaction.commit().await?;
        Ok(true)
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
        let mut transaction = self.pool.begin().await?;
        hold(&mut transaction, account).await?;
        if is_finished(&mut transaction, payment_id).await? {
            return Ok(());
        }
        let finish = query(
            "UPDATE payments SET status = $2, response = $3, fence = $4
             WHERE id = $1 AND fence <= $4",
        )
        .bind(payment_id)
        .bind(i64::from(answer.status.as_u16()))
        .bind(&answer.body)
        .bind(fence);
        fenced(finish, &mut transaction).await?;
        book(&mut transaction, account, *amount_cents, Some(payment_id)).await?;
        Ok(transaction.commit().await?)
    }
}

/// Begins to write: nobody else writes about this account until the transaction ends. `false`:
/// there is no such account.
async fn hold(connection: &mut AnyConnection, account: &str) -> Result<bool, sqlx::Error> {
    let held = query("UPDATE accounts SET fence = fence WHERE id = $1");
    Ok(held.bind(account).execute(connection).await?.rows_affected() > 0)
}

/// Writes to a row that is there, if no later lock has: an equal token is of the same lock.
async fn fenced(
    write: Query<'_, Any, AnyArguments>,
    connection: &mut AnyConnection,
) -> Result<(), WriteError> {
    match write.execute(connection).await?.rows_affected() {
        0 => Err(WriteError::Stale),
        _ => Ok(()),
    }
}

async fn is_finished(
    connection: &mut AnyConnection,
    payment_id: &str,
) -> Result<bool, sqlx::Error> {
    let status: Option<i64> = query_scalar("SELECT status FROM payments WHERE id = $1")
        .bind(payment_id)
        .fetch_one(connection)
        .await?;
    Ok(status.is_some())
}

/// What can be spent: the balance without what payments in progress have put aside.
async fn available(connection: &mut AnyConnection, account: &str) -> Result<i64, sqlx::Error> {
    query_scalar(
        "SELECT CAST(balance_cents - (SELECT coalesce(sum(amount_cents), 0) FROM payments
                                      WHERE account = accounts.id AND status IS NULL) AS BIGINT)
         FROM accounts WHERE id = $1",
    )
    .bind(account)
    .fetch_one(connection)
    .await
}

async fn book(
    connection: &mut AnyConnection,
    account: &str,
    amount_cents: i64,
    payment_id: Option<&str>,
) -> Result<(), sqlx::Error> {
    query("UPDATE accounts SET balance_cents = balance_cents - $2 WHERE id = $1")
        .bind(account)
        .bind(amount_cents)
        .execute(&mut *connection)
        .await?;
    query("INSERT INTO ledger (id, account, amount_cents, payment) VALUES ($1, $2, $3, $4)")
        .bind(Uuid::now_v7().to_string())
        .bind(account)
        .bind(-amount_cents)
        .bind(payment_id)
        .execute(connection)
        .await?;
    Ok(())
}

fn status_code(status: i64) -> Option<StatusCode> {
    u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok())
}

//! Withdrawals, and the answers to those that have an idempotency key.

use axum::http::StatusCode;
use serde_json::json;
use sqlx::{AnyConnection, query, query_as};

use super::reads::account;
use super::{Store, available, book, fenced, hold, status_code};
use crate::answer::Answer;
use crate::fence::{Fence, WriteError};
use crate::idempotency::IdempotencyKey;
use crate::name::AccountId;

/// A withdrawal that a client requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewWithdrawal {
    pub(crate) account: AccountId,
    pub(crate) amount_cents: i64,
}

/// The result of a withdrawal.
#[derive(Debug)]
pub(crate) enum Withdrawn {
    /// It was booked, or refused for want of money.
    Answered(Answer),
    /// It was answered before.
    Replayed(Answer),
    /// The key belongs to another withdrawal.
    OtherWithdrawal,
    NoAccount,
}

impl Store {
    /// Books a withdrawal, and with a key stores its answer in the same transaction. If there is too
    /// little money, `refusal` is the answer.
    pub(crate) async fn withdraw(
        &self,
        key: Option<&IdempotencyKey>,
        withdrawal: &NewWithdrawal,
        refusal: &Answer,
        fence: Fence,
    ) -> Result<Withdrawn, WriteError> {
        let NewWithdrawal { account: id, amount_cents } = withdrawal;
        let mut transaction = self.pool.begin().await?;
        let is_there = hold(&mut transaction, id).await?;
        if let Some(key) = key
            && let Some(found) = find(&mut transaction, key, withdrawal).await?
        {
            return Ok(found);
        }
        if !is_there {
            return Ok(Withdrawn::NoAccount);
        }
        let mine = query("UPDATE accounts SET fence = $2 WHERE id = $1 AND fence <= $2");
        fenced(mine.bind(&**id).bind(fence), &mut transaction).await?;
        let answer = if available(&mut transaction, id).await? < *amount_cents {
            refusal.clone()
        } else {
            book(&mut transaction, id, *amount_cents, None).await?;
            let after = account(&mut *transaction, id).await?.ok_or(sqlx::Error::RowNotFound)?;
            Answer { status: StatusCode::OK, body: json!(after).to_string() }
        };
        if let Some(IdempotencyKey { tenant, key }) = key {
            let stored = query(
                "INSERT INTO withdrawals
                 (tenant, idempotency_key, account, amount_cents, status, response)
                 VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (tenant, idempotency_key) DO NOTHING",
            )
            .bind(&**tenant)
            .bind(key)
            .bind(&**id)
            .bind(amount_cents)
            .bind(i64::from(answer.status.as_u16()))
            .bind(&answer.body);
            // A conflict: meanwhile the key was used for another account.
            fenced(stored, &mut transaction).await?;
        }
        transaction.commit().await?;
        Ok(Withdrawn::Answered(answer))
    }
}

/// Returns the answer that a key has, if it has one.
async fn find(
    connection: &mut AnyConnection,
    IdempotencyKey { tenant, key }: &IdempotencyKey,
    withdrawal: &NewWithdrawal,
) -> Result<Option<Withdrawn>, sqlx::Error> {
    type Row = (AccountId, i64, i64, String);
    let found: Option<Row> = query_as(
        "SELECT account, amount_cents, status, response FROM withdrawals
         WHERE tenant = $1 AND idempotency_key = $2",
    )
    .bind(&**tenant)
    .bind(key)
    .fetch_optional(connection)
    .await?;
    Ok(found.map(|(account, amount_cents, status, body)| match status_code(status) {
        Some(status) if *withdrawal == (NewWithdrawal { account, amount_cents }) => {
            Withdrawn::Replayed(Answer { status, body })
        }
        _ => Withdrawn::OtherWithdrawal,
    }))
}

//! `GET /accounts/{id}` and `POST /accounts/{id}/withdrawals`.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use redlock_core::Key;
use serde::Deserialize;
use tower_redlock::{LockResource, Locked};

use crate::fence::Fence;
use crate::problem::{Problem, check_amount, parse};
use crate::store::{Account, Entry, Store};

#[derive(Debug, Deserialize)]
pub(crate) struct AccountId(String);

impl LockResource for AccountId {
    fn lock_key(&self) -> Key {
        Key::hashed(format!("account:{}", self.0))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Withdrawal {
    amount_cents: i64,
}

pub(crate) async fn show(
    State(store): State<Store>,
    Path(AccountId(id)): Path<AccountId>,
) -> Result<Json<Account>, Problem> {
    let account = store.account(&id).await?;
    account.map(Json).ok_or_else(|| Problem::not_found("account", &id))
}

/// The newest entries of the ledger.
pub(crate) async fn ledger(
    State(store): State<Store>,
    Path(AccountId(id)): Path<AccountId>,
) -> Result<Json<Vec<Entry>>, Problem> {
    if store.account(&id).await?.is_none() {
        return Err(Problem::not_found("account", &id));
    }
    Ok(Json(store.ledger(&id).await?))
}

/// Takes money out of an account, one request at a time: the argument is locked until the answer
/// is ready.
pub(crate) async fn withdraw(
    State(store): State<Store>,
    account: Locked<Path<AccountId>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Account>, Problem> {
    let Withdrawal { amount_cents } = parse(body)?;
    check_amount(amount_cents)?;
    let fence = Fence::of(account.fencing_token())?;
    let AccountId(id) = &account.0;
    let Some(before) = store.account(id).await? else {
        return Err(Problem::not_found("account", id));
    };
    // A payment may come in between, it does not lock the account: the store has the last word.
    if before.balance_cents < amount_cents || !store.withdraw(id, amount_cents, fence).await? {
        return Err(Problem::insufficient_funds(id));
    }
    let after = store.account(id).await?;
    after.map(Json).ok_or_else(|| Problem::not_found("account", id))
}

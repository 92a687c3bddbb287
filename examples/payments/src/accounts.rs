//! `GET /accounts/{id}` and `POST /accounts/{id}/withdrawals`.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use redlock_core::Key;
use serde::Deserialize;
use tower_redlock::{LockResource, Locked};

use crate::answer::Answer;
use crate::body::Object;
use crate::fence::Fence;
use crate::idempotency::IdempotencyKey;
use crate::name::AccountId;
use crate::problem::{Problem, check_amount};
use crate::store::{Account, Entry, NewWithdrawal, Store, Withdrawn};

impl LockResource for AccountId {
    fn lock_key(&self) -> Key {
        Key::hashed(format!("account:{self}"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Withdrawal {
    amount_cents: i64,
}

pub(crate) async fn show(
    State(store): State<Store>,
    Path(id): Path<AccountId>,
) -> Result<Json<Account>, Problem> {
    let account = store.account(&id).await?;
    account.map(Json).ok_or_else(|| Problem::not_found("account", &id))
}

/// The newest entries of the ledger.
pub(crate) async fn ledger(
    State(store): State<Store>,
    Path(id): Path<AccountId>,
) -> Result<Json<Vec<Entry>>, Problem> {
    if store.account(&id).await?.is_none() {
        return Err(Problem::not_found("account", &id));
    }
    Ok(Json(store.ledger(&id).await?))
}

/// Takes money out of an account, one request at a time: the argument is locked until the answer
/// is ready. A request with an idempotency key is booked once, however often it is sent.
pub(crate) async fn withdraw(
    State(store): State<Store>,
    account: Locked<Path<AccountId>>,
    key: Option<IdempotencyKey>,
    Object(Withdrawal { amount_cents }): Object<Withdrawal>,
) -> Result<Response, Problem> {
    check_amount(amount_cents)?;
    let fence = Fence::of(account.fencing_token())?;
    let account = &**account;
    let refused = Problem::insufficient_funds(account);
    let withdrawal = NewWithdrawal { account: account.clone(), amount_cents };
    match store.withdraw(key.as_ref(), &withdrawal, &Answer::from(&refused), fence).await? {
        Withdrawn::Answered(answer) => Ok(answer.into_response()),
        Withdrawn::Replayed(answer) => Ok(answer.replay()),
        Withdrawn::OtherWithdrawal => {
            let detail = "this Idempotency-Key was used for another withdrawal";
            Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail))
        }
        Withdrawn::NoAccount => Err(Problem::not_found("account", account)),
    }
}

//! `POST /payments` and `GET /payments/{id}`.

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tower_redlock::LockScope;

use crate::answer::Answer;
use crate::body::Object;
use crate::feed::Feed;
use crate::fence::Fence;
use crate::idempotency::IdempotencyKey;
use crate::name::PaymentId;
use crate::problem::{Problem, check_amount};
use crate::provider::{Provider, ProviderDelay};
use crate::store::{Begun, NewPayment, Payment, Store};

/// Charges an account once per idempotency key. Runs under the lock of that key, so whatever it
/// finds in progress was cut off: nobody else is at it.
pub(crate) async fn pay(
    State(store): State<Store>,
    State(provider): State<Provider>,
    State(feed): State<Feed>,
    key: IdempotencyKey,
    scope: LockScope,
    ProviderDelay(delay): ProviderDelay,
    Object(payment): Object<NewPayment>,
) -> Result<Response, Problem> {
    check_amount(payment.amount_cents)?;
    let lease = scope.lease();
    let fence = Fence::of(lease.as_ref().and_then(|lease| lease.fencing_token()))?;
    let _shown = lease.map(|lease| feed.holds(&key, &payment, lease));

    let refused = Problem::insufficient_funds(&payment.account);
    let payment_id = match store.begin(&key, &payment, &Answer::from(&refused), fence).await? {
        Begun::InProgress { payment_id } => payment_id,
        Begun::Finished(answer) => return Ok(answer.replay()),
        Begun::Refused => return Err(refused),
        Begun::OtherPayment => {
            let detail = "this Idempotency-Key was used for another payment";
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail));
        }
        Begun::NoAccount => return Err(Problem::not_found("account", &payment.account)),
    };
    let charged = charge(&store, &provider, &payment_id, &payment, delay, fence).await?;
    Ok(charged.into_response())
}

/// Charges a payment that is noted and keeps the answer: the same however often it is done, and
/// whoever does it. The caller has the lock of its key.
pub(crate) async fn charge(
    store: &Store,
    provider: &Provider,
    payment_id: &str,
    payment: &NewPayment,
    delay: Option<Duration>,
    fence: Fence,
) -> Result<Answer, Problem> {
    // A process that dies here has charged and not recorded it. A repeated charge does nothing, because
    // the provider has the id of the payment.
    provider.charge(payment_id, payment, delay).await?;
    let charged = json!({
        "payment_id": payment_id,
        "account": payment.account,
        "amount_cents": payment.amount_cents,
        "status": "charged",
    });
    let charged = Answer { status: StatusCode::CREATED, body: charged.to_string() };
    store.finish(payment_id, payment, &charged, fence).await?;
    Ok(charged)
}

pub(crate) async fn show(
    State(store): State<Store>,
    Path(id): Path<PaymentId>,
) -> Result<Json<Payment>, Problem> {
    let payment = store.payment(&id).await?;
    payment.map(Json).ok_or_else(|| Problem::not_found("payment", &id))
}

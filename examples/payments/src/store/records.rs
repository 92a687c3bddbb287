//! What the store keeps, as the rest of the service sees it.

use serde::{Deserialize, Serialize};

use crate::answer::Answer;
use crate::idempotency::IdempotencyKey;
use crate::name::AccountId;

/// What a client asks for. The same key with another payment is a mistake of theirs.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPayment {
    pub(crate) account: AccountId,
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

/// An entry of the ledger as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) entry: String,
    pub(crate) amount_cents: i64,
    /// `None` for a withdrawal.
    pub(crate) payment_id: Option<String>,
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

/// A payment that was begun and not finished: somebody is at it, or was cut off.
#[derive(Debug)]
pub(crate) struct Unfinished {
    pub(crate) payment_id: String,
    pub(crate) key: IdempotencyKey,
    pub(crate) payment: NewPayment,
}

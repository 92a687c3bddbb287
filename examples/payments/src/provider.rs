//! The payment provider, as the service sees it: somewhere else, slow, and not always there.

mod simulation;

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use reqwest::Client;
use reqwest::header::HeaderName;
use serde::Serialize;

pub use self::simulation::{Behaviour, Simulation};
use crate::problem::Problem;
use crate::store::NewPayment;

/// How often the provider is asked before the client is told to come again.
const TRIES: u32 = 3;

/// The pause after the first failure; it doubles, and half of it is by chance.
const PAUSE: Duration = Duration::from_millis(100);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// For demonstrations: makes a simulated provider take this many milliseconds for one charge.
const DELAY: HeaderName = HeaderName::from_static("x-provider-delay");

/// The longest delay that a simulated provider accepts.
const MAX_DELAY: Duration = Duration::from_secs(30);

/// The number of characters of a refused header that its error repeats.
const SHOWN: usize = 80;

/// The delay that a request sets with the header `x-provider-delay`. A provider of real money ignores it.
#[derive(Debug)]
pub(crate) struct ProviderDelay(pub(crate) Option<Duration>);

impl<S: Sync> FromRequestParts<S> for ProviderDelay {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get(DELAY) else { return Ok(Self(None)) };
        let value = value.to_str().unwrap_or_default();
        match value.parse().map(Duration::from_millis) {
            Ok(delay) if delay <= MAX_DELAY => Ok(Self(Some(delay))),
            _ => {
                let most = MAX_DELAY.as_millis();
                let shown: String = value.chars().take(SHOWN).collect();
                let detail = format!(
                    "the header `{DELAY}` is `{shown}`: send a number of milliseconds from 0 to {most}"
                );
                Err(Problem::new(StatusCode::BAD_REQUEST, detail))
            }
        }
    }
}

/// Moves the money. Like real providers it takes a reference with each charge and ignores one
/// that it has seen: that is what makes a charge safe to repeat when its answer got lost.
#[derive(Clone, Debug)]
pub struct Provider {
    charges: String,
    http: Client,
}

/// A charge as the provider is told about it.
#[derive(Debug, Serialize)]
struct Charge<'a> {
    account: &'a str,
    amount_cents: i64,
}

/// Whether the account was charged is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    #[error("the provider can't be reached, or did not answer in time")]
    NoAnswer(#[from] reqwest::Error),
    #[error("the provider answered {0}")]
    Answered(StatusCode),
}

impl Provider {
    /// The provider at `url`, which is given up after `timeout` for each try.
    ///
    /// # Errors
    ///
    /// If there is no TLS or no resolver on this machine.
    pub fn new(url: &str, timeout: Duration) -> Result<Self, reqwest::Error> {
        let http = Client::builder().timeout(timeout).no_proxy().build()?;
        Ok(Self { charges: format!("{}/charges", url.trim_end_matches('/')), http })
    }

    /// Charges the payment unless that was done before. After an error it may or may not be
    /// charged, and the same has to be sent again.
    pub(crate) async fn charge(
        &self,
        payment_id: &str,
        payment: &NewPayment,
        delay: Option<Duration>,
    ) -> Result<(), Unknown> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            let Err(error) = self.try_charge(payment_id, payment, delay).await else {
                return Ok(());
            };
            tracing::warn!(%error, payment_id, "the charge is asked for again");
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause *= 2;
        }
        self.try_charge(payment_id, payment, delay).await
    }

    async fn try_charge(
        &self,
        payment_id: &str,
        NewPayment { account, amount_cents }: &NewPayment,
        delay: Option<Duration>,
    ) -> Result<(), Unknown> {
        let mut request = self.http.post(&self.charges).header(IDEMPOTENCY_KEY, payment_id);
        if let Some(delay) = delay {
            request = request.header(DELAY, delay.as_millis().to_string());
        }
        let charge = Charge { account, amount_cents: *amount_cents };
        match request.json(&charge).send().await?.status() {
            status if status.is_success() => Ok(()),
            status => Err(Unknown::Answered(status)),
        }
    }
}

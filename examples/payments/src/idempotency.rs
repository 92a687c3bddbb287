//! The idempotency key of a payment: who asks for what, however often.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::http::request::Parts;
use redlock_core::Key;
use tower_redlock::{KeyRejection, idempotency};

use crate::name::Tenant;
use crate::problem::Problem;

pub(crate) const TENANT: &str = "x-tenant";

/// The `Idempotency-Key` of a request and the tenant it belongs to: two tenants may well choose
/// the same key.
#[derive(Debug)]
pub(crate) struct IdempotencyKey {
    pub(crate) tenant: Tenant,
    pub(crate) key: String,
}

/// What [`RedlockLayer`](tower_redlock::RedlockLayer) locks for a payment.
pub(crate) fn lock_key(parts: &Parts) -> Result<Key, KeyRejection> {
    Ok(IdempotencyKey::of(parts)?.lock_key(parts.method.as_str(), parts.uri.path()))
}

impl IdempotencyKey {
    pub(crate) fn of(parts: &Parts) -> Result<Self, KeyRejection> {
        Ok(Self { tenant: tenant(parts)?, key: key(parts)? })
    }

    /// What was locked by the request that asked for this payment.
    pub(crate) fn of_payment(&self) -> Key {
        self.lock_key("POST", "/payments")
    }

    fn lock_key(&self, method: &str, path: &str) -> Key {
        Key::hashed(format!("{}:{method}:{path}:{}", self.tenant, self.key))
    }
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(parts).map_err(|rejection| problem(&rejection))
    }
}

/// `None` for a request without a key.
impl<S: Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Problem> {
        let key = idempotency::key(parts).map_err(|rejection| problem(&rejection))?;
        let Some(key) = key else { return Ok(None) };
        let tenant = tenant(parts).map_err(|rejection| problem(&rejection))?;
        Ok(Some(Self { tenant, key }))
    }
}

fn problem(rejection: &KeyRejection) -> Problem {
    Problem::new(rejection.status(), rejection.detail())
}

/// A real service takes the tenant from its authentication; this one believes a header.
fn tenant(parts: &Parts) -> Result<Tenant, KeyRejection> {
    let Some(name) = parts.headers.get(TENANT) else { return Ok(Tenant::default()) };
    let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
    Tenant::try_from(name).map_err(|error| format!("the header `X-Tenant`: {error}").into())
}

fn key(parts: &Parts) -> Result<String, KeyRejection> {
    let missing = "send one `Idempotency-Key` header, with a key of your choice for this payment";
    idempotency::key(parts)?.ok_or_else(|| missing.into())
}

#[cfg(test)]
mod tests {
    use axum::http::{Request, StatusCode};

    use super::*;

    const HEADER: &str = "idempotency-key";

    fn of(headers: &[(&str, &str)]) -> Result<String, KeyRejection> {
        let mut request = Request::post("/payments");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        let IdempotencyKey { tenant, key } = IdempotencyKey::of(&parts)?;
        Ok(format!("{tenant}/{key}"))
    }

    #[test]
    fn a_key_belongs_to_a_tenant() {
        assert_eq!(of(&[(HEADER, "a-1")]).unwrap(), "public/a-1");
        assert_eq!(of(&[(HEADER, "a-1"), (TENANT, "acme")]).unwrap(), "acme/a-1");
    }

    #[test]
    fn a_key_is_needed_and_a_tenant_has_a_plain_name() {
        for headers in [
            &[][..],
            &[(HEADER, "")],
            &[(HEADER, "a"), (HEADER, "b")],
            &[(HEADER, "a"), (TENANT, "a:b")],
        ] {
            assert_eq!(of(headers).unwrap_err().status(), StatusCode::BAD_REQUEST, "{headers:?}");
        }
    }
}

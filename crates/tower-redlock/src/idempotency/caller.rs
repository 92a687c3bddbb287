//! Whose request it is: no caller gets the answer of another.

use http::HeaderValue;
use http::header::AUTHORIZATION;
use http::request::Parts;
use redlock_core::Key;

use super::key::hash;
use crate::key::{KeyFn, KeyRejection};

/// How the layer tells its callers apart.
#[derive(Clone)]
pub(super) enum Callers {
    /// By the tenant that the application names, and by their credentials where it names none.
    Tenants(KeyFn),
    /// By the header `Authorization`.
    Credentials,
    /// Not at all.
    Shared,
}

/// A hash that names a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller([u8; 32]);

impl Callers {
    pub(super) fn caller(&self, parts: &Parts) -> Result<Caller, KeyRejection> {
        Ok(match self {
            Self::Shared => Caller::of(b"shared", [&b""[..]]),
            Self::Credentials => Caller::with_credentials(parts),
            Self::Tenants(tenant) => match tenant(parts)? {
                Some(tenant) => Caller::tenant(&tenant),
                None => Caller::with_credentials(parts),
            },
        })
    }
}

impl Caller {
    fn tenant(tenant: &Key) -> Self {
        Self::of(b"tenant", [tenant.as_bytes()])
    }

    fn with_credentials(parts: &Parts) -> Self {
        let credentials = parts.headers.get_all(AUTHORIZATION).iter().map(HeaderValue::as_bytes);
        Self::of(b"credentials", credentials)
    }

    fn of<'a>(kind: &'a [u8], name: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self(hash(std::iter::once(kind).chain(name)))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Groups the records of a caller in the memory of this process.
    pub(super) fn group(self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;

    use super::*;

    fn caller(callers: &Callers, credentials: &[&str]) -> Caller {
        let request = credentials
            .iter()
            .fold(Request::post("/"), |request, value| request.header(AUTHORIZATION, *value));
        callers.caller(&request.body(()).unwrap().into_parts().0).unwrap()
    }

    fn tenants(tenant: Option<&'static str>) -> Callers {
        Callers::Tenants(Arc::new(move |_| Ok(tenant.map(Key::hashed))))
    }

    #[test]
    fn callers_differ_by_tenant_or_credentials_or_not_at_all() {
        let alice = caller(&Callers::Credentials, &["alice"]);
        assert_eq!(alice, caller(&Callers::Credentials, &["alice"]));
        assert_eq!(alice, caller(&tenants(None), &["alice"]), "no tenant: by credentials");
        let acme = caller(&tenants(Some("acme")), &["alice"]);
        assert_eq!(acme, caller(&tenants(Some("acme")), &["bob"]));
        let shared = caller(&Callers::Shared, &["alice"]);
        assert_eq!(shared, caller(&Callers::Shared, &[]));
        let others = [
            caller(&Callers::Credentials, &["bob"]),
            caller(&Callers::Credentials, &[]),
            caller(&Callers::Credentials, &["alice", ""]),
            caller(&Callers::Credentials, &["acme"]),
            caller(&tenants(Some("alice")), &[]),
            caller(&tenants(Some("bob")), &[]),
            acme,
            shared,
        ];
        for (number, other) in others.iter().enumerate() {
            assert_ne!(alice, *other, "{number}");
            assert!(!others[..number].contains(other), "{number}");
        }
    }
}

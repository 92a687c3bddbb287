//! TLS: which authorities are trusted, and by which cryptography.

use std::fmt;
use std::sync::{Arc, OnceLock};

use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// How connections to a server are encrypted. The certificate of the server is always verified.
pub(crate) struct Tls {
    /// The authorities to trust; `None`: those of the system.
    authorities: Option<RootCertStore>,
    /// Made by the first connection: reading the system's authorities takes milliseconds.
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// Trusts what the system trusts.
    pub(super) const fn by_the_system() -> Self {
        Self { authorities: None, config: OnceLock::new() }
    }

    /// Trusts the certificates of `pem` alone. An error says why they are none.
    pub(super) fn by(pem: &[u8]) -> Result<Self, String> {
        let mut authorities = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| error.to_string())?;
            authorities.add(certificate).map_err(|error| error.to_string())?;
        }
        if authorities.is_empty() {
            return Err("it has no certificate".into());
        }
        Ok(Self { authorities: Some(authorities), config: OnceLock::new() })
    }

    /// The configuration of all connections to the server, which share their sessions.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, String> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let authorities = match &self.authorities {
            Some(authorities) => authorities.clone(),
            None => system_authorities()?,
        };
        // The application's choice of cryptography, if it has made one. Without one, rustls itself
        // would panic where two are compiled in.
        let provider = CryptoProvider::get_default().cloned();
        let provider = provider.unwrap_or_else(|| Arc::new(ring::default_provider()));
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(authorities)
            .with_no_client_auth();
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

fn system_authorities() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut authorities = RootCertStore::empty();
    authorities.add_parsable_certificates(found.certs);
    if authorities.is_empty() {
        let why = found.errors.first().map(ToString::to_string).unwrap_or_default();
        return Err(format!("the system trusts no certificate authority, set tls_ca ({why})"));
    }
    Ok(authorities)
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = self.authorities.as_ref().map(RootCertStore::len);
        f.debug_struct("Tls").field("authorities", &own).finish_non_exhaustive()
    }
}

//! TLS to a server, by rustls.
//!
//! The crypto provider is always given to rustls by name. A lookup by rustls itself panics if the
//! application installed no provider and the build has several of them, or none.

use std::io;
use std::sync::{Arc, OnceLock};

use futures_util::future::select_ok;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::spawn_blocking;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How to reach one server by TLS.
#[derive(Debug)]
pub(crate) struct Tls {
    host: String,
    port: u16,
    name: ServerName<'static>,
    /// `None` for the authorities that the system trusts.
    authorities: Option<Arc<RootCertStore>>,
    /// Made for the first connection, because it reads the files of the system's authorities.
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// Checks host and authorities (in PEM). Opens nothing.
    pub(super) fn new(host: &str, port: u16, authorities: Option<&[u8]>) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| format!("no certificate can name this host ({error})"))?;
        let authorities = authorities.map(parse).transpose()?.map(Arc::new);
        Ok(Self { host: host.to_owned(), port, name, authorities, config: OnceLock::new() })
    }

    #[cfg(test)]
    pub(super) fn trusts_the_system(&self) -> bool {
        self.authorities.is_none()
    }

    /// Opens a connection to the address of the host that completes the handshake first.
    pub(crate) async fn connect(&self) -> io::Result<TlsStream<TcpStream>> {
        let connector = TlsConnector::from(self.config().await?);
        let addresses = lookup_host((&*self.host, self.port)).await?;
        let dial = async |address| {
            let tcp = TcpStream::connect(address).await?;
            tcp.set_nodelay(true)?;
            connector.connect(self.name.clone(), tcp).await
        };
        let tries: Vec<_> = addresses.map(|address| Box::pin(dial(address))).collect();
        if tries.is_empty() {
            return Err(io::Error::other("the host name has no address"));
        }
        Ok(select_ok(tries).await?.0)
    }

    async fn config(&self) -> io::Result<Arc<ClientConfig>> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let authorities = match &self.authorities {
            Some(given) => Arc::clone(given),
            None => Arc::new(spawn_blocking(of_the_system).await??),
        };
        let config = ClientConfig::builder_with_provider(provider()?)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(authorities)
            .with_no_client_auth();
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }
}

/// The provider that the application installed, else `ring`.
fn provider() -> io::Result<Arc<CryptoProvider>> {
    match CryptoProvider::get_default() {
        Some(installed) => Ok(Arc::clone(installed)),
        #[cfg(feature = "tls")]
        None => Ok(Arc::new(rustls::crypto::ring::default_provider())),
        #[cfg(not(feature = "tls"))]
        None => Err(io::Error::other(
            "TLS has no crypto provider: call rustls::crypto::CryptoProvider::install_default when \
             the process starts, or enable the feature tls of redlock-core",
        )),
    }
}

fn parse(pem: &[u8]) -> Result<RootCertStore, String> {
    const FIX: &str = "tls_ca takes certificates in PEM, -----BEGIN CERTIFICATE-----";
    let mut authorities = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("{FIX} ({error})"))?;
        authorities.add(certificate).map_err(|error| format!("{FIX} ({error})"))?;
    }
    if authorities.is_empty() { Err(FIX.into()) } else { Ok(authorities) }
}

fn of_the_system() -> io::Result<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut authorities = RootCertStore::empty();
    authorities.add_parsable_certificates(found.certs);
    if authorities.is_empty() {
        let cause = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        let text = format!(
            "this system trusts no certificate authority{cause}: install ca-certificates, set \
             SSL_CERT_FILE, or give tls_ca"
        );
        return Err(io::Error::other(text));
    }
    Ok(authorities)
}

//! A throw-away certificate authority, and a server certificate signed by it.

use std::io;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// The files a TLS server needs, valid for `localhost` and `127.0.0.1`.
///
/// They live as long as the folder they were made in.
#[derive(Clone, Debug)]
pub struct Certificates {
    ca_pem: String,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Certificates {
    /// Makes a new authority and a certificate in `dir`.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn create_in(dir: &Path) -> io::Result<Self> {
        let (ca_pem, cert_pem, key_pem) = generate().map_err(io::Error::other)?;
        let (ca, cert, key) = (dir.join("ca.pem"), dir.join("server.pem"), dir.join("server.key"));
        std::fs::write(&ca, &ca_pem)?;
        std::fs::write(&cert, cert_pem)?;
        std::fs::write(&key, key_pem)?;
        Ok(Self { ca_pem, ca, cert, key })
    }

    /// The authority's certificate: what a client must trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The file of [`ca_pem`](Self::ca_pem), for `SSL_CERT_FILE`.
    #[must_use]
    pub fn ca_path(&self) -> &Path {
        &self.ca
    }

    /// The server's certificate.
    #[must_use]
    pub fn cert_path(&self) -> &Path {
        &self.cert
    }

    /// The key of the server's certificate.
    #[must_use]
    pub fn key_path(&self) -> &Path {
        &self.key
    }
}

fn generate() -> Result<(String, String, String), rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "redlock tests authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate()?;
    let ca = params.self_signed(&ca_key)?;
    let issuer = Issuer::new(params, ca_key);

    let key = KeyPair::generate()?;
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let cert = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    Ok((ca.pem(), cert.pem(), key.serialize_pem()))
}

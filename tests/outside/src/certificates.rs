//! An authority made on the spot, and the certificate of a server that it signed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Run in an empty folder.
const CREATE: &str = r#"
set -e
key() { openssl ecparam -genkey -name prime256v1 -noout -out "$1"; }
key ca.key
key server.key
printf 'basicConstraints = critical, CA:TRUE\nkeyUsage = keyCertSign\n' >ca.conf
printf 'basicConstraints = CA:FALSE\nsubjectAltName = DNS:localhost, IP:127.0.0.1\n' >server.conf
openssl req -new -key ca.key -subj '/CN=outside authority' -out ca.csr
openssl x509 -req -in ca.csr -signkey ca.key -days 2 -extfile ca.conf -out ca.pem
openssl req -new -key server.key -subj /CN=localhost -out server.csr
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
  -extfile server.conf -out server.pem
"#;

/// The files of a server with TLS on `localhost` and `127.0.0.1`.
#[derive(Debug)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Creates the files in an empty folder. Panics if `openssl` is not installed.
    pub fn create_in(folder: &Path) -> Self {
        let made = Command::new("sh").args(["-c", CREATE]).current_dir(folder).output().unwrap();
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        Self { folder: folder.to_owned() }
    }

    /// The file of the authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The authority's certificate.
    pub fn authority_pem(&self) -> Vec<u8> {
        fs::read(self.authority()).unwrap()
    }

    /// The file of the server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    /// The file of the server's key.
    pub fn key(&self) -> PathBuf {
        self.folder.join("server.key")
    }
}

//! TLS without an installed crypto provider, then with one that the application installed.

use rustls::crypto::{CryptoProvider, ring};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    outside::locks(&outside::by_tls()).await;
    assert!(CryptoProvider::get_default().is_none(), "redlock-core leaves the process alone");

    // A provider that can't do TLS shows that the installed one is used.
    let useless = CryptoProvider { cipher_suites: Vec::new(), ..ring::default_provider() };
    useless.install_default().expect("none is installed");
    outside::fails(&outside::by_tls(), "no usable cipher suites").await;
}

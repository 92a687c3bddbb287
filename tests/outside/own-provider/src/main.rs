//! TLS with a crypto provider of the application, and a clear error before it is installed.

use rustls::crypto::aws_lc_rs;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let redlock = outside::by_tls();
    outside::fails(&redlock, "CryptoProvider::install_default").await;
    aws_lc_rs::default_provider().install_default().expect("none is installed");
    outside::locks(&redlock).await;
}

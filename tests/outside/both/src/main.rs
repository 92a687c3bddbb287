//! TLS to the lock servers and to PostgreSQL, with two crypto providers in the build and none
//! installed, then with an installed one.

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use tower_redlock::idempotency::SqlRecords;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for installed in [false, true] {
        if installed {
            aws_lc_rs::default_provider().install_default().expect("none is installed");
        }
        assert_eq!(CryptoProvider::get_default().is_some(), installed);
        outside::locks(&outside::by_tls()).await;
        // The database refuses connections without TLS.
        for mode in ["require", "verify-full"] {
            let url = std::env::var("DATABASE_URL").expect("DATABASE_URL has a URL");
            let records = SqlRecords::connect(&format!("{url}&sslmode={mode}")).await;
            let records = records.expect("PostgreSQL is reached by TLS");
            records.create_table().await.expect("the table is created");
            assert_eq!(records.delete_expired().await.expect("the table is there"), 0);
        }
    }
}

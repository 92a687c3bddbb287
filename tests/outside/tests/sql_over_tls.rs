//! Records in a PostgreSQL that takes connections with TLS only.

use std::time::{Duration, Instant};

use redlock_outside::postgres::Postgres;
use redlock_outside::{Certificates, block_on};
use tower_redlock::idempotency::SqlRecords;

/// The server may not take connections yet.
async fn records(url: &str) -> SqlRecords {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match SqlRecords::connect(url).await {
            Ok(records) => return records,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn records_are_kept_over_tls() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::create_in(folder.path());
    let postgres = Postgres::start_with_tls(&certificates.certificate(), &certificates.key());
    let required = format!("{}?sslmode=require", postgres.tls_url("postgres"));
    let verified = format!(
        "{}?sslmode=verify-full&sslrootcert={}",
        postgres.tls_url("postgres"),
        certificates.authority().display()
    );
    block_on(async {
        records(&required).await.create_table().await.unwrap();
        assert_eq!(records(&verified).await.delete_expired().await.unwrap(), 0);

        let stranger = format!("{}?sslmode=verify-full", postgres.tls_url("postgres"));
        let error = SqlRecords::connect(&stranger).await.unwrap_err();
        assert!(error.to_string().to_lowercase().contains("certificate"), "{error}");
        let plain = format!("{}?sslmode=disable", postgres.tls_url("postgres"));
        SqlRecords::connect(&plain).await.expect_err("the server takes TLS only");
    });
}

//! The double in memory of a server answers as the server does. As many operations as wanted are
//! compared by `cargo run --release -p redlock-tests --bin differential -- --ops N`.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use redlock_tests::differential::Differential;

#[tokio::test]
async fn a_server_and_its_double_give_the_same_answers() {
    for seed in 0..8 {
        let mut differential = Differential::start(seed).await;
        differential
            .run(4_000)
            .await
            .unwrap_or_else(|difference| panic!("seed {seed}: {difference}"));
    }
}

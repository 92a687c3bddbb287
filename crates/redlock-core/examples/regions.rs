//! One Redis in each of three regions, with TLS, a CA of one's own and an ACL user; and what to
//! log when a region is gone.
//!
//! `LOCKER_PASSWORD=… LOCKER_CA=ca.pem cargo run -p redlock-core --example regions`

use std::env;
use std::error::Error;
use std::fs;
use std::time::Duration;

use redlock_core::{Config, Redlock, Server};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let password = env::var("LOCKER_PASSWORD").map_err(|_| "set LOCKER_PASSWORD")?;
    let ca = fs::read(env::var("LOCKER_CA").map_err(|_| "set LOCKER_CA to a PEM file")?)?;
    let regions = ["eu-west", "us-east", "ap-south"].map(|region| {
        Server::new(format!("redis.{region}.example.com"))
            .port(6380)
            .ssl(true)
            .tls_ca(ca.clone())
            .username("locker")
            .auth(password.as_str())
    });
    let config = Config::servers(regions)
        .ttl(Duration::from_secs(30))
        // Two of three regions have to answer: allow for the way to the farther one.
        .node_deadline(Duration::from_millis(400))
        .key_prefix("billing:")
        .build()?;

    let redlock = Redlock::new(config);
    match redlock.lock("invoice:4711").await {
        Ok(guard) => {
            println!("locked for {:?}", guard.remaining());
            guard.release().await;
        }
        Err(error) => {
            eprintln!("{:?}, try again in {:?}", error.kind(), error.retry_after());
            for region in error.nodes() {
                eprintln!("  {region}");
            }
        }
    }
    redlock.close(Duration::from_secs(2)).await;
    Ok(())
}

//! A job that one machine of ten runs at a time.
//!
//! `cargo run -p redlock-core --example worker`, in several terminals with
//! `REDLOCK_SERVERS=redis://127.0.0.1:7001,redis://127.0.0.1:7002,redis://127.0.0.1:7003` set.
//! Stop one with ctrl-c or kill it: another takes over.

use std::env;
use std::error::Error;
use std::time::Duration;

use redlock_core::{Config, ErrorKind, Lease, Redlock};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let redlock = match env::var_os("REDLOCK_SERVERS") {
        Some(_) => Redlock::connect(Config::from_env()?).await?,
        None => Redlock::in_memory(),
    };
    tokio::select! {
        () = take_turns(&redlock) => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    // The job was dropped where it stood; this waits until its lock is released.
    redlock.close(Duration::from_secs(2)).await;
    Ok(())
}

async fn take_turns(redlock: &Redlock) {
    loop {
        // Renewed while the job runs; the job is dropped if the lock is lost.
        match redlock.with_lock("nightly-report", report).await {
            Ok(pages) => println!("{pages} pages written"),
            Err(error) if error.kind() == ErrorKind::Contended => {
                println!("{} is at it", error.holder().unwrap_or("somebody else"));
            }
            Err(error) => println!("not now: {error}"),
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn report(lease: Lease) -> u32 {
    for page in 1..=5 {
        println!("page {page}, the lock is ours for {:.1?}", lease.remaining());
        sleep(Duration::from_secs(1)).await;
    }
    5
}

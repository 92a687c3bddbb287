//! `leaver FLAVOR HOW URL...`
//!
//! A `main` as users write it, which returns while a lock was just dropped. The tests of
//! `tests/last_chance.rs` look at the servers afterwards.

use std::env;
use std::error::Error;
use std::time::Duration;

use redlock_core::{Config, Guard, Redlock, Safety};

fn main() -> Result<(), Box<dyn Error>> {
    let flavor = env::args().nth(1);
    match flavor.as_deref() {
        Some("multi_thread") => multi_thread(),
        Some("current_thread") => current_thread(),
        _ => after_the_runtime(),
    }
}

#[tokio::main]
async fn multi_thread() -> Result<(), Box<dyn Error>> {
    leave().await
}

#[tokio::main(flavor = "current_thread")]
async fn current_thread() -> Result<(), Box<dyn Error>> {
    leave().await
}

/// The guard outlives the runtime.
fn after_the_runtime() -> Result<(), Box<dyn Error>> {
    let locked = tokio::runtime::Runtime::new()?.block_on(lock())?;
    drop(locked);
    Ok(())
}

async fn leave() -> Result<(), Box<dyn Error>> {
    let (_redlock, guard) = lock().await?;
    match env::args().nth(2).as_deref() {
        Some("release") => {
            guard.release().await;
        }
        // Dropped by the runtime, with the task.
        Some("task") => {
            let (held, is_held) = tokio::sync::oneshot::channel();
            tokio::spawn(async move {
                let _guard = guard;
                let _told = held.send(());
                std::future::pending::<()>().await;
            });
            is_held.await?;
        }
        _ => drop(guard),
    }
    Ok(())
}

async fn lock() -> Result<(Redlock, Guard), Box<dyn Error>> {
    let safety = match env::args().nth(3).as_deref() {
        Some("guarded") => Safety::Guarded,
        _ => Safety::Plain,
    };
    let config = Config::servers(env::args().skip(4))
        .safety(safety)
        .ttl(Duration::from_secs(600))
        .max_ttl(Duration::from_secs(600))
        .node_deadline(Duration::from_secs(20));
    let redlock = Redlock::new(config.build()?);
    redlock.provision().await?;
    let guard = redlock.lock("k").wait(Duration::from_secs(20)).await?;
    if env::args().nth(2).as_deref() == Some("told") {
        println!("locked");
        std::io::stdin().read_line(&mut String::new())?;
    }
    Ok((redlock, guard))
}

//! `cargo run -p payments`: serves payments on 127.0.0.1:3000.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use payments::{App, Provider, Settings, Store, app};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long a payment may take to finish when the service is asked to stop.
const GRACE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let settings = Settings::from_env()?;
    let store = Store::open(settings.database.clone()).await.map_err(|error| {
        let file = settings.database.get_filename().display();
        format!("DATABASE_URL names `{file}`: {error}. Set it to a file that can be written")
    })?;
    let redlock = settings.redlock();
    let (router, detached) = app(App {
        store: store.clone(),
        provider: Provider::new(settings.provider_delay),
        redlock: redlock.clone(),
    });

    let listener = TcpListener::bind(settings.address).await.map_err(|error| {
        format!("PAYMENTS_ADDR is `{}`: {error}. Set it to a free address", settings.address)
    })?;
    println!("payments: http://{}", listener.local_addr()?);
    match &settings.servers {
        Some(_) => {
            println!("locks: on the servers of REDLOCK_SERVERS");
            if let Err(error) = redlock.ready().await {
                println!("locks: not available now, payments are answered with 503: {error}");
            }
        }
        None => println!(
            "locks: in the memory of this process, as REDLOCK_SERVERS is not set; run only one"
        ),
    }

    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        println!("payments: finishing what has begun");
    };
    // Requests first, then payments whose client is gone, then the locks, then the store.
    axum::serve(listener, router).with_graceful_shutdown(stop).await?;
    if tokio::time::timeout(GRACE, detached.finished()).await.is_err() {
        tracing::warn!(left = detached.len(), "payments were cut off; a retry will take them up");
    }
    redlock.close(Duration::from_secs(2)).await;
    store.close().await;
    Ok(())
}

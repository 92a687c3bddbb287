//! `cargo run -p payments`: serves payments on 127.0.0.1:3000.

use std::error::Error;
use std::io;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use payments::{App, Provider, Settings, Store, app};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
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
    let (stop, stopping) = oneshot::channel::<()>();
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(async { stopping.await.unwrap_or_default() });
    let mut server = pin!(server.into_future());
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    println!("payments: finishing what has begun");
    stop.send(()).unwrap_or_default();
    // Requests first, then payments whose client is gone, then the locks, then the store.
    let finished = async {
        server.await?;
        detached.finished().await;
        Ok::<_, io::Error>(())
    };
    match tokio::time::timeout(settings.grace, finished).await {
        Ok(finished) => finished?,
        Err(_) => tracing::warn!(
            payments = detached.len(),
            "what did not finish in time is cut off; a retry will take it up"
        ),
    }
    redlock.close(Duration::from_secs(2)).await;
    store.close().await;
    Ok(())
}

//! `cargo run -p payments`: serves payments on 127.0.0.1:3000.

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use metrics_exporter_prometheus::PrometheusBuilder;
use payments::{
    App, Behaviour, Demo, Locks, Provider, Servers, Settings, Simulation, Store, recover,
};
use redlock_core::{Config, LockError, Redlock};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

/// A payment service that charges once. Its settings are read from the environment.
#[derive(Debug, Parser)]
struct Cli {
    /// Starts so many Redis servers for the locks, which end with the service: 1, 3 or 5
    #[arg(long, value_name = "N", value_parser = odd)]
    with_redis: Option<usize>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves only a simulated payment provider, for services that outlive each other
    Provider(ProviderArgs),
}

#[derive(Args, Clone, Debug)]
struct ProviderArgs {
    /// Where it listens; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:4000")]
    address: SocketAddr,
    /// How long a charge takes, in milliseconds
    #[arg(long, default_value_t = 50)]
    latency_ms: u64,
    /// The share of requests that fail before anybody is charged, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    fail_before: f64,
    /// The share of requests whose answer is lost after the account was charged, 0 to 1
    #[arg(long, default_value_t = 0.0)]
    fail_after: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let ended = match cli.command {
        Some(Command::Provider(args)) => provide(args).await,
        None => serve(cli.with_redis).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn provide(args: ProviderArgs) -> Result<(), Box<dyn Error>> {
    let ProviderArgs { address, latency_ms, fail_before, fail_after } = args;
    let asked_to_stop = asked_to_stop()?;
    let listener = TcpListener::bind(address).await?;
    println!("provider: http://{}", listener.local_addr()?);
    let simulation = Simulation::new(Behaviour { latency_ms, fail_before, fail_after });
    tokio::select! {
        ended = simulation.serve(listener) => Ok(ended?),
        () = asked_to_stop => Ok(()),
    }
}

async fn serve(with_redis: Option<usize>) -> Result<(), Box<dyn Error>> {
    let asked_to_stop = asked_to_stop()?;
    let settings = Settings::from_env()?;
    let metrics = PrometheusBuilder::new().install_recorder()?;
    let store = Store::open(&settings.database).await.map_err(|error| {
        let database = &settings.database;
        format!("DATABASE_URL names `{database}`: {error}. Set it to one that can be written")
    })?;
    let (redlock, locks) = locks(&settings, with_redis).await?;

    // The simulated provider is told about charges over a socket, as any other.
    let (provider_url, simulated) = match settings.provider.clone() {
        Some(url) => (url, None),
        None => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            (format!("http://{}", listener.local_addr()?), Some(listener))
        }
    };
    let latency_ms = u64::try_from(settings.provider_delay.as_millis())?;
    let simulation = Simulation::new(Behaviour { latency_ms, ..Behaviour::default() });
    let simulated = async {
        match simulated {
            Some(listener) => simulation.serve(listener).await,
            None => std::future::pending().await,
        }
    };
    let provider = Provider::new(&provider_url, settings.provider_timeout)?;

    let listener = TcpListener::bind(settings.address).await.map_err(|error| {
        format!("PAYMENTS_ADDR is `{}`: {error}. Set it to a free address", settings.address)
    })?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("payments: {url}");
    match &locks {
        Locks::Own(servers) => println!("locks: on {} Redis servers of its own", servers.len()),
        Locks::Memory => println!(
            "locks: in the memory of this process, as REDLOCK_SERVERS is not set; run only one"
        ),
        _ => println!("locks: on the servers of REDLOCK_SERVERS"),
    }
    if let Err(error) = redlock.ready().await {
        println!("locks: not available now, payments are answered with 503: {error}");
    }
    let app = App::new(store.clone(), provider.clone(), redlock.clone())
        .metrics(metrics.clone())
        .hosts(settings.hosts)
        .max_readers(settings.readers)
        .demo(Demo::new(url, locks));
    let (router, detached) = app.clone().routes();

    let (stop, stopping) = oneshot::channel::<()>();
    let server = axum::serve(listener, router)
        .with_graceful_shutdown(async { stopping.await.unwrap_or_default() });
    let mut server = pin!(server.into_future());
    let mut simulated = pin!(simulated);
    let recovery = recover(store.clone(), provider, redlock.clone(), settings.recovery);
    tokio::select! {
        ended = &mut server => return Ok(ended?),
        ended = &mut simulated => return Ok(ended?),
        () = recovery => {}
        () = upkeep(&metrics) => {}
        () = asked_to_stop => {}
    }
    println!("payments: finishing what has begun");
    stop.send(()).unwrap_or_default();
    app.close_streams();
    // Requests first, then payments whose client is gone, then the locks, then the store.
    let finished = async {
        server.await?;
        detached.finished().await;
        Ok::<_, io::Error>(())
    };
    tokio::select! {
        finished = tokio::time::timeout(settings.grace, finished) => match finished {
            Ok(finished) => finished?,
            Err(_) => tracing::warn!(
                payments = detached.len(),
                "what did not finish in time is cut off; a retry will take it up"
            ),
        },
        ended = &mut simulated => ended?,
    }
    redlock.close(Duration::from_secs(2)).await;
    store.close().await;
    Ok(())
}

/// The locks: on servers of our own, on those that are set, or in memory.
async fn locks(
    settings: &Settings,
    with_redis: Option<usize>,
) -> Result<(Redlock, Locks), Box<dyn Error>> {
    match (with_redis, &settings.servers) {
        (Some(_), Some(_)) => {
            Err("REDLOCK_SERVERS is set, and --with-redis starts others: leave out one".into())
        }
        (Some(count), None) => {
            let servers = Servers::launch(count).await?;
            let redlock = Redlock::new(Config::servers(servers.urls()).build()?);
            provision(&redlock).await?;
            Ok((redlock, Locks::Own(Arc::new(servers))))
        }
        (None, Some(servers)) => Ok((Redlock::new(servers.clone()), Locks::Servers)),
        (None, None) => Ok((Redlock::in_memory(), Locks::Memory)),
    }
}

/// Puts servers to use that are new: nobody can have locked anything on them. All of them have to
/// answer, which may take a while when they have just started.
async fn provision(redlock: &Redlock) -> Result<(), LockError> {
    let give_up = Instant::now() + Duration::from_secs(5);
    while let Err(error) = redlock.provision().await {
        if Instant::now() >= give_up {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// What was recorded is summed up now and then, or it would take more and more memory.
async fn upkeep(metrics: &metrics_exporter_prometheus::PrometheusHandle) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        metrics.run_upkeep();
    }
}

/// Listens for signals from now on, before anybody can reach the service: one that came sooner
/// would end it in the middle of what has begun.
fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn odd(value: &str) -> Result<usize, String> {
    match value.parse() {
        Ok(count @ (1 | 3 | 5)) => Ok(count),
        _ => Err("it must be 1, 3 or 5: a majority decides".into()),
    }
}

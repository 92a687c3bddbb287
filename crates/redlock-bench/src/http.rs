//! A web service that locks a key for each request, over sockets.

use std::fmt;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use redlock_tests::Fleet;
use rslock::LockManager;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tower_redlock::RedlockLayer;

use crate::contender::{Library, Mode, connect};
use crate::goal::{Bound, Goal};
use crate::interleave::interleave;
use crate::load::own_cpu_time;
use crate::scenario::{Result, Scale, Scenario};

const NODES: usize = 3;
const CONNECTIONS: usize = 64;
const TTL: Duration = Duration::from_secs(10);

/// `None` locks nothing.
const SERVICES: [Option<Library>; 4] = [
    None,
    Some(Library::Ours(Mode::Plain)),
    Some(Library::Ours(Mode::Guarded)),
    Some(Library::Rslock),
];
const BARE: usize = 0;
const RSLOCK: usize = 3;

/// How long the handler takes.
const HANDLERS: [Duration; 2] = [Duration::ZERO, Duration::from_millis(1)];

#[derive(Debug, Serialize)]
pub(crate) struct Http {
    rounds: usize,
    connections: usize,
    rows: Vec<Row>,
}

/// One service: medians of all rounds.
#[derive(Debug, Serialize)]
struct Row {
    handler_millis: u128,
    /// `None` locks nothing.
    contender: Option<Library>,
    rate_to_rslock: f64,
    rate_to_bare: f64,
    requests_per_second: f64,
    /// Of the service and its clients, per request.
    cpu_micros: f64,
    p50_micros: f64,
    p99_micros: f64,
}

pub(crate) async fn measure(scale: Scale) -> Result<Http> {
    let fleet = Fleet::start(NODES).await;
    let mut rows = Vec::new();
    for handler in HANDLERS {
        let mut services = Vec::new();
        for library in SERVICES {
            let service = Service::start(library, handler, &fleet.urls()).await?;
            service.load(Duration::from_millis(100)).await?;
            services.push(service);
        }
        let rounds = interleave(SERVICES.len(), scale.rounds, async |turn| {
            services[turn].load(scale.length).await
        });
        let rounds = rounds.await?;
        rows.extend(SERVICES.into_iter().enumerate().map(|(turn, library)| {
            let rate = |figures: &Figures| figures.requests_per_second;
            Row {
                handler_millis: handler.as_millis(),
                contender: library,
                rate_to_rslock: rounds.ratio(turn, RSLOCK, rate),
                rate_to_bare: rounds.ratio(turn, BARE, rate),
                requests_per_second: rounds.median(turn, rate),
                cpu_micros: rounds.median(turn, |figures| figures.cpu_micros),
                p50_micros: rounds.median(turn, |figures| figures.p50_micros),
                p99_micros: rounds.median(turn, |figures| figures.p99_micros),
            }
        }));
    }
    Ok(Http { rounds: scale.rounds, connections: CONNECTIONS, rows })
}

/// A service on a port of its own. It ends with this value.
#[derive(Debug)]
struct Service {
    port: u16,
    _serving: JoinSet<std::io::Result<()>>,
}

/// What was seen in one turn.
#[derive(Debug)]
struct Figures {
    requests_per_second: f64,
    cpu_micros: f64,
    p50_micros: f64,
    p99_micros: f64,
}

impl Service {
    async fn start(library: Option<Library>, handler: Duration, urls: &[String]) -> Result<Self> {
        let handler = get(async move || {
            if !handler.is_zero() {
                sleep(handler).await;
            }
            "hello"
        });
        let router = Router::new().route("/{order}", handler);
        let router = match library {
            Some(Library::Ours(mode)) => {
                let key = |parts: &Parts| parts.uri.path().to_owned();
                router.layer(RedlockLayer::new(connect(urls, mode).await?, key))
            }
            Some(Library::Rslock) => {
                router.layer(from_fn_with_state(LockManager::new(urls.to_vec()), locked))
            }
            None => router,
            Some(_) => return Err("a library without a middleware".into()),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let mut serving = JoinSet::new();
        serving.spawn(axum::serve(listener, router).into_future());
        Ok(Self { port, _serving: serving })
    }

    /// Connections that ask as fast as they are answered, each time for another key.
    async fn load(&self, length: Duration) -> Result<Figures> {
        let mut connections = JoinSet::new();
        let mut clients = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            stream.set_nodelay(true)?;
            let (client, connection) = handshake(TokioIo::new(stream)).await?;
            connections.spawn(connection);
            clients.push(client);
        }
        let (cpu, start) = (own_cpu_time(), Instant::now());
        let end = start + length;
        let mut asking = JoinSet::new();
        for (number, client) in clients.into_iter().enumerate() {
            asking.spawn(ask(client, number, end));
        }
        let mut nanos = Histogram::<u64>::new(3)?;
        while let Some(asked) = asking.join_next().await {
            nanos.add(asked??)?;
        }
        let (elapsed, cpu) = (start.elapsed(), own_cpu_time() - cpu);
        let requests = nanos.len() as f64;
        Ok(Figures {
            requests_per_second: requests / elapsed.as_secs_f64(),
            cpu_micros: cpu.as_secs_f64() * 1e6 / requests,
            p50_micros: nanos.value_at_quantile(0.5) as f64 / 1e3,
            p99_micros: nanos.value_at_quantile(0.99) as f64 / 1e3,
        })
    }
}

/// Nanoseconds of each request.
async fn ask(
    mut client: SendRequest<Empty<Bytes>>,
    number: usize,
    end: Instant,
) -> Result<Histogram<u64>> {
    let mut nanos = Histogram::new(3)?;
    for request in 0_u64.. {
        let start = Instant::now();
        if start >= end {
            break;
        }
        let request = hyper::Request::get(format!("/{number}-{request}")).header("host", "bench");
        let response = client.send_request(request.body(Empty::new())?).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("answered with {}", response.status()).into());
        }
        response.into_body().collect().await?;
        nanos.record(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))?;
        client.ready().await?;
    }
    Ok(nanos)
}

/// The middleware that one would write first.
async fn locked(State(manager): State<LockManager>, request: Request, next: Next) -> Response {
    let Ok(lock) = manager.lock(request.uri().path().as_bytes(), TTL).await else {
        return StatusCode::LOCKED.into_response();
    };
    let response = next.run(request).await;
    manager.unlock(&lock).await;
    response
}

impl Scenario for Http {
    fn goals(&self) -> Vec<Goal> {
        use Bound::AtLeast;
        let mut goals = Vec::new();
        for row in &self.rows {
            let Some(Library::Ours(mode)) = row.contender else { continue };
            let mut goal = |what, wanted, seen| {
                let name = format!("{mode}: rate to {what}, handler of {} ms", row.handler_millis);
                goals.push(Goal::new(name, AtLeast(wanted), seen));
            };
            let (at_once, after_a_millisecond) = match mode {
                Mode::Plain => (2.3, 1.35),
                Mode::Guarded => (1.6, 1.35),
            };
            match row.handler_millis {
                0 => goal("a naive rslock middleware's", at_once, row.rate_to_rslock),
                _ => {
                    goal("a naive rslock middleware's", after_a_millisecond, row.rate_to_rslock);
                    goal("no lock's", 0.6, row.rate_to_bare);
                }
            }
        }
        goals
    }
}

impl fmt::Display for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, connections, rows } = self;
        writeln!(f, "{connections} connections, medians of {rounds} paired rounds")?;
        writeln!(
            f,
            "{:>10} {:>9} {:>9} {:>8} {:>11} {:>8} {:>9} {:>9}",
            "handler", "", "to rslock", "to bare", "requests/s", "CPU µs", "p50 µs", "p99 µs"
        )?;
        for row in rows {
            let contender =
                row.contender.map_or_else(|| "bare".to_owned(), |name| name.to_string());
            writeln!(
                f,
                "{:>7} ms {:>9} {:>8.2}x {:>7.2}x {:>11.0} {:>8.1} {:>9.0} {:>9.0}",
                row.handler_millis,
                contender,
                row.rate_to_rslock,
                row.rate_to_bare,
                row.requests_per_second,
                row.cpu_micros,
                row.p50_micros,
                row.p99_micros,
            )?;
        }
        Ok(())
    }
}

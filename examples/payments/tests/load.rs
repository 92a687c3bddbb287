//! Measures requests per second while many readers listen to `/events`:
//! `cargo test -p payments --test load -- --ignored --nocapture`. `PAYMENTS_READERS` sets the
//! limit of readers, and `PAYMENTS_MEASURED` names another binary to measure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redlock_tests::eventually;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::processes::{Running, service};
use crate::support::{Database, SOON};

const CLIENTS: usize = 16;
const MEASURED_FOR: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Counts {
    listening: AtomicU64,
    refused: AtomicU64,
    bytes: AtomicU64,
}

/// Listens until it is aborted.
async fn listen(address: String, counts: Arc<Counts>) {
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let head = format!("GET /events HTTP/1.1\r\nhost: {address}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 64 * 1024];
    let read = stream.read(&mut buffer).await.unwrap();
    let accepted = buffer[..read].starts_with(b"HTTP/1.1 200");
    let outcome = if accepted { &counts.listening } else { &counts.refused };
    outcome.fetch_add(1, Ordering::Relaxed);
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        counts.bytes.fetch_add(read as u64, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of half a minute"]
async fn requests_per_second_while_many_listen_to_events() {
    println!("| readers | listening | refused | requests/s | KiB/s to readers |");
    println!("|---|---|---|---|---|");
    for readers in [0, 100, 250, 1000] {
        let database = Database::sqlite();
        let mut command = service(&database);
        if let Ok(allowed) = std::env::var("PAYMENTS_READERS") {
            command.env("PAYMENTS_READERS", allowed);
        }
        if let Some(binary) = std::env::var_os("PAYMENTS_MEASURED") {
            let mut other = Command::new(binary);
            let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
            other.env_clear().envs(set).stdout(std::process::Stdio::piped());
            command = other;
        }
        let running = Arc::new(Running::start(&mut command));
        let address = running.url.strip_prefix("http://").unwrap().to_owned();
        let counts = Arc::new(Counts::default());
        let mut tasks = JoinSet::new();
        for _ in 0..readers {
            tasks.spawn(listen(address.clone(), Arc::clone(&counts)));
        }
        let answered = || {
            let [listening, refused] = [&counts.listening, &counts.refused];
            listening.load(Ordering::Relaxed) + refused.load(Ordering::Relaxed) == readers
        };
        eventually(SOON, "all readers are answered", async || answered()).await;

        let requests = Arc::new(AtomicU64::new(0));
        for client in 0..CLIENTS {
            let (running, requests) = (Arc::clone(&running), Arc::clone(&requests));
            tasks.spawn(async move {
                let key = format!("client-{client}");
                loop {
                    assert_eq!(running.pay(&key).await, 201);
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let all_paid = || requests.load(Ordering::Relaxed) >= CLIENTS as u64;
        eventually(SOON * 2, "each client has paid", async || all_paid()).await;
        let count = || (requests.load(Ordering::Relaxed), counts.bytes.load(Ordering::Relaxed));
        let (started, (requests, bytes)) = (Instant::now(), count());
        sleep(MEASURED_FOR).await;
        let (took, (requests_after, bytes_after)) = (started.elapsed().as_secs_f64(), count());
        println!(
            "| {readers} | {} | {} | {:.0} | {:.0} |",
            counts.listening.load(Ordering::Relaxed),
            counts.refused.load(Ordering::Relaxed),
            (requests_after - requests) as f64 / took,
            (bytes_after - bytes) as f64 / 1024.0 / took,
        );
        tasks.shutdown().await;
    }
}

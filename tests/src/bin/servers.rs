//! Starts three Redis servers and a PostgreSQL server, all with TLS, runs the programs that are
//! named, one after the other, and ends the servers: `servers PROGRAM…`.
//!
//! The programs get `REDLOCK_SERVERS` (URLs with TLS), `SSL_CERT_FILE` (the authorities of these),
//! `PLAIN_SERVERS` (the same servers without TLS) and `DATABASE_URL` (which ends with a parameter).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::env::args_os;
use std::process::exit;
use std::time::Duration;

use redlock_tests::{Fleet, Postgres, RedisServer, eventually};
use tokio::net::TcpStream;
use tokio::process::Command;

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::main]
async fn main() {
    let programs: Vec<_> = args_os().skip(1).collect();
    assert!(!programs.is_empty(), "usage: servers PROGRAM…");
    let postgres = Postgres::start_with_tls();
    let fleet = Fleet::start_with(3, RedisServer::options().tls_and_plain()).await;
    let directory = tempfile::tempdir().unwrap();
    let authorities = directory.path().join("authorities.pem");
    let pem: String = fleet.iter().map(RedisServer::ca_pem).collect();
    std::fs::write(&authorities, pem).unwrap();
    let urls = |url: fn(&RedisServer) -> String| fleet.iter().map(url).collect::<Vec<_>>().join(",");
    eventually(PATIENCE, "PostgreSQL", async || {
        TcpStream::connect(("127.0.0.1", postgres.port())).await.map(drop)
    })
    .await;
    for program in programs {
        let status = Command::new(&program)
            .env("REDLOCK_SERVERS", urls(RedisServer::tls_url))
            .env("PLAIN_SERVERS", urls(RedisServer::url))
            .env("SSL_CERT_FILE", &authorities)
            .env("DATABASE_URL", postgres.tls_url("postgres"))
            .kill_on_drop(true)
            .status()
            .await
            .unwrap();
        println!("{}: {status}", program.display());
        if !status.success() {
            drop((fleet, postgres));
            exit(1);
        }
    }
}

//! What the tests of the service stand on: databases of both kinds, a provider, processes.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its share")]

pub mod postgres;
pub mod processes;
pub mod service;

use std::future::pending;
use std::net::Ipv4Addr;
use std::time::Duration;

use payments::{Behaviour, DatabaseUrl, Provider, Simulation, Store};
use redlock_core::{Config, Redlock};
use redlock_tests::{Fleet, eventually};
use sqlx::AnyPool;
use sqlx::any::AnyPoolOptions;
use tempfile::TempDir;
use tokio::net::TcpListener;

pub const SOON: Duration = Duration::from_secs(30);

/// Runs tests that take a [`Database`] on SQLite and on PostgreSQL.
#[macro_export]
macro_rules! on_both {
    ($($(#[$attribute:meta])* $name:ident,)*) => {
        mod sqlite {
            use super::support::Database;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] $(#[$attribute])*
            async fn $name() { super::$name(Database::sqlite()).await })*
        }
        mod postgres {
            use super::support::Database;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] $(#[$attribute])*
            async fn $name() { super::$name(Database::postgres().await).await })*
        }
    };
}

/// An empty database of its own.
pub struct Database {
    pub url: String,
    _directory: Option<TempDir>,
}

impl Database {
    pub fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", directory.path().join("payments.db").display());
        Self { url, _directory: Some(directory) }
    }

    pub async fn postgres() -> Self {
        Self { url: postgres::new_database().await, _directory: None }
    }

    pub async fn store(&self) -> Store {
        let url: DatabaseUrl = self.url.parse().unwrap();
        Store::open(&url).await.unwrap()
    }

    /// The same database, past the service. The service has to have opened it before.
    pub async fn pool(&self) -> AnyPool {
        sqlx::any::install_default_drivers();
        AnyPoolOptions::new().max_connections(2).connect(&self.url).await.unwrap()
    }
}

/// Three servers that vote at once.
pub async fn fleet() -> Fleet {
    let fleet = Fleet::start(3).await;
    let redlock = Redlock::new(Config::servers(fleet.urls()).build().unwrap());
    eventually(SOON, "all servers to be put to use", async || redlock.provision().await).await;
    fleet
}

/// A simulated provider in this process, behind a socket, and the way to it.
pub async fn provider(latency: Duration) -> (Provider, Simulation) {
    let latency_ms = u64::try_from(latency.as_millis()).unwrap();
    let simulation = Simulation::new(Behaviour { latency_ms, ..Behaviour::default() });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = simulation.clone();
    tokio::spawn(async move {
        serving.serve(listener).await.unwrap();
        pending::<()>().await;
    });
    (Provider::new(&url, SOON).unwrap(), simulation)
}

//! The service as people run it: a process, its environment, real requests, real Redis.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use redlock_core::{Config, Provisioned, Redlock};
use redlock_tests::{Fleet, eventually};
use reqwest::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

const SOON: Duration = Duration::from_secs(20);

/// A running service; killed when dropped.
struct Service {
    process: Child,
    url: String,
    client: Client,
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_payments"));
    command
        .env_clear()
        .env("PAYMENTS_ADDR", "127.0.0.1:0")
        .env("DATABASE_URL", format!("sqlite://{}/payments.db", directory.display()))
        .stdout(Stdio::piped());
    command
}

impl Service {
    fn start(command: &mut Command) -> (Self, String) {
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut line = || lines.next().expect("the service says where it is").unwrap();
        let url = line().strip_prefix("payments: ").unwrap().to_owned();
        let locks = line();
        // Read on, or the service would be stopped by a broken pipe.
        std::thread::spawn(move || lines.count());
        (Self { process, url, client: Client::new() }, locks)
    }

    async fn pay(&self, key: &str) -> u16 {
        let body = json!({ "account": "alice", "amount_cents": 1999 });
        let request = self.client.post(format!("{}/payments", self.url)).json(&body);
        request.header("idempotency-key", key).send().await.unwrap().status().as_u16()
    }

    /// Sends the same payment until it is answered with something else than "locked".
    async fn settle(&self, key: &str) -> u16 {
        eventually(SOON, "the payment is settled", async || {
            Some(self.pay(key).await).filter(|status| *status != 423)
        })
        .await
    }

    async fn charges(&self) -> i64 {
        let request = self.client.get(format!("{}/accounts/alice", self.url));
        let account: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(
            account["balance_cents"].as_i64().unwrap(),
            100_000 - 1999 * account["charges"].as_i64().unwrap()
        );
        account["charges"].as_i64().unwrap()
    }

    fn terminate(&self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        eventually(SOON, "the service ends", async || self.process.try_wait().unwrap()).await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.process.kill().unwrap_or_default();
        self.process.wait().map(drop).unwrap_or_default();
    }
}

/// Waits until a payment is noted, which is before its provider is asked.
async fn begun(directory: &Path) {
    let database = SqliteConnectOptions::new().filename(directory.join("payments.db"));
    let pool = SqlitePool::connect_with(database).await.unwrap();
    eventually(SOON, "the charge has begun", async || {
        let noted = sqlx::query_scalar("SELECT count(*) FROM payments").fetch_one(&pool).await;
        noted.is_ok_and(|noted: i64| noted == 1)
    })
    .await;
}

#[tokio::test]
async fn twenty_at_once_are_charged_once() {
    let directory = tempfile::tempdir().unwrap();
    let (mut service, locks) = Service::start(&mut command(directory.path()));
    assert!(locks.contains("memory"), "{locks}");
    let statuses = join_all((0..20).map(|_| service.pay("order-1"))).await;
    assert!(statuses.contains(&201), "{statuses:?}");
    assert!(statuses.iter().all(|status| [201, 423].contains(status)), "{statuses:?}");
    assert_eq!(service.settle("order-1").await, 201);
    assert_eq!(service.charges().await, 1);
    service.terminate();
    assert!(service.ended().await.success());
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_charge_lets_it_finish() {
    let directory = tempfile::tempdir().unwrap();
    let (mut service, _) =
        Service::start(command(directory.path()).env("PAYMENTS_PROVIDER_DELAY", "3s"));
    let (client, url) = (service.client.clone(), service.url.clone());
    let waiting = tokio::spawn(async move {
        let body = json!({ "account": "alice", "amount_cents": 1999 });
        let request = client.post(format!("{url}/payments")).json(&body);
        request.header("idempotency-key", "k").timeout(Duration::from_millis(1500)).send().await
    });
    begun(directory.path()).await;
    // The client gives up, and the service is stopped: the payment belongs to neither.
    assert!(waiting.await.unwrap().unwrap_err().is_timeout());
    service.terminate();
    assert!(service.ended().await.success());

    let (service, _) = Service::start(&mut command(directory.path()));
    assert_eq!(service.charges().await, 1);
    assert_eq!(service.pay("k").await, 201);
    assert_eq!(service.charges().await, 1);
}

#[tokio::test]
async fn a_process_that_dies_in_the_middle_of_a_charge_is_followed_by_one_that_finishes_it() {
    let directory = tempfile::tempdir().unwrap();
    let (mut service, _) =
        Service::start(command(directory.path()).env("PAYMENTS_PROVIDER_DELAY", "1h"));
    let (client, url) = (service.client.clone(), service.url.clone());
    let waiting = tokio::spawn(async move {
        let body = json!({ "account": "alice", "amount_cents": 1999 });
        let request = client.post(format!("{url}/payments")).json(&body);
        request.header("idempotency-key", "k").send().await
    });
    begun(directory.path()).await;
    service.process.kill().unwrap();
    assert!(waiting.await.unwrap().is_err());

    let (service, _) = Service::start(&mut command(directory.path()));
    assert_eq!(service.charges().await, 0);
    assert_eq!(service.pay("k").await, 201);
    assert_eq!(service.charges().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_on_one_fleet_charge_once_and_answer_503_without_a_majority() {
    let fleet = Fleet::start(3).await;
    let config = Config::servers(fleet.urls()).build().unwrap();
    assert_eq!(Redlock::new(config).provision().await.unwrap(), Provisioned::New);
    let directory = tempfile::tempdir().unwrap();
    let mut command = command(directory.path());
    command.env("REDLOCK_SERVERS", fleet.urls().join(","));
    let (one, locks) = Service::start(&mut command);
    assert!(locks.contains("REDLOCK_SERVERS"), "{locks}");
    let (two, _) = Service::start(&mut command);

    let at_once = (0..20).map(|index| if index % 2 == 0 { &one } else { &two }.pay("order-1"));
    let statuses = join_all(at_once).await;
    assert!(statuses.iter().all(|status| [201, 423].contains(status)), "{statuses:?}");
    assert_eq!((one.settle("order-1").await, two.settle("order-1").await), (201, 201));
    assert_eq!(one.charges().await, 1);
    fleet.eventually_empty(SOON).await;

    fleet.kill(0);
    fleet.kill(1);
    eventually(SOON, "no lock, no payment", async || two.pay("order-2").await == 503).await;
    assert_eq!(one.charges().await, 1);
    fleet.restart(0).await;
    fleet.restart(1).await;
    eventually(SOON, "payments are taken again", async || two.pay("order-2").await == 201).await;
    assert_eq!(one.charges().await, 2);
}

#[test]
fn a_bad_setting_is_named_with_its_value_and_the_fix() {
    let directory = tempfile::tempdir().unwrap();
    for (variable, value, fix) in [
        ("PAYMENTS_ADDR", "localhost", "127.0.0.1:3000"),
        ("PAYMENTS_PROVIDER_DELAY", "fast", "50ms"),
        ("PAYMENTS_GRACE", "long", "30s"),
        ("DATABASE_URL", "postgres://db", "sqlite://payments.db"),
        ("DATABASE_URL", "sqlite:///no/such/directory.db", "can be written"),
        ("REDLOCK_SERVERS", "redis://a,redis://b", "name 1 or 3"),
    ] {
        let mut command = command(directory.path());
        let mut process = command.env(variable, value).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        process.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(1));
        assert!(said.contains(variable) && said.contains(fix), "{said}");
        let shown = value.trim_start_matches("sqlite://");
        assert!(variable == "REDLOCK_SERVERS" || said.contains(shown), "{said}");
    }
}

#[test]
fn a_password_in_a_setting_is_not_shown() {
    let directory = tempfile::tempdir().unwrap();
    for (variable, value) in [
        ("DATABASE_URL", "postgres://pay:s3cret@db.example/pay"),
        ("DATABASE_URL", "postgres://pay:s3/cr@s3cret@db.example/pay?password=s3cret"),
        ("DATABASE_URL", "sqlite://pay:s3cret@db.example/pay"),
        ("REDLOCK_SERVERS", "redis://:s3cret@a,redis://:s3cret@b"),
        ("REDLOCK_SERVERS", "redis://:s3cret@a:port"),
    ] {
        let output = command(directory.path()).env(variable, value).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(variable) && !said.contains("s3cret"), "{said}");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_client_that_stalls() {
    let directory = tempfile::tempdir().unwrap();
    let (mut service, _) = Service::start(command(directory.path()).env("PAYMENTS_GRACE", "200ms"));
    let address = service.url.strip_prefix("http://").unwrap();
    let mut stalled = TcpStream::connect(address).unwrap();
    let head = "POST /payments HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\n\
                content-length: 9\r\nexpect: 100-continue\r\n\r\n";
    stalled.write_all(head.as_bytes()).unwrap();
    let mut asked_for_body = [0; 12];
    stalled.read_exact(&mut asked_for_body).unwrap();
    assert_eq!(&asked_for_body, b"HTTP/1.1 100");
    service.terminate();
    assert!(service.ended().await.success());
}

//! The service and the provider as processes.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};

use redlock_tests::eventually;
use reqwest::{Client, Response};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{Database, SOON};

/// A process that says its URL first; killed when dropped.
pub struct Running {
    process: Child,
    pub url: String,
    /// What it said after that.
    pub said: String,
    pub client: Client,
}

/// The service on a free port, with nothing in its environment but this.
pub fn service(database: &Database) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_payments"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env(
            "RUST_LOG",
            std::env::var("RUST_LOG").unwrap_or_else(|_| "error,tower_http=off".into()),
        )
        .env("PAYMENTS_ADDR", "127.0.0.1:0")
        .env("DATABASE_URL", &database.url)
        .stdout(Stdio::piped());
    command
}

/// A provider that outlives the services.
pub fn provider(arguments: &[&str]) -> Running {
    let mut command = Command::new(env!("CARGO_BIN_EXE_payments"));
    command.args(["provider", "--address", "127.0.0.1:0"]).args(arguments);
    Running::start(command.stdout(Stdio::piped()))
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let first = lines.next().expect("the process says where it is").unwrap();
        let (name, url) = first.split_once(": ").unwrap();
        let said = match name {
            "payments" => lines.next().expect("where the locks are").unwrap(),
            _ => String::new(),
        };
        // Read on, or the process would be stopped by a broken pipe.
        std::thread::spawn(move || lines.count());
        Self { process, url: url.to_owned(), said, client: Client::new() }
    }

    pub async fn send(&self, key: &str, account: &str, amount_cents: i64) -> Option<Response> {
        let body = json!({ "account": account, "amount_cents": amount_cents });
        let request = self.client.post(format!("{}/payments", self.url)).json(&body);
        let request = request.header("idempotency-key", key).timeout(SOON);
        request.send().await.ok()
    }

    /// Asks for 19.99 from alice. 0: no answer.
    pub async fn pay(&self, key: &str) -> u16 {
        let answer = self.send(key, "alice", 1999).await;
        answer.map_or(0, |answer| answer.status().as_u16())
    }

    /// Sends the same payment until it is answered with something else than "locked".
    pub async fn settle(&self, key: &str) -> u16 {
        eventually(SOON, "the payment is settled", async || {
            Some(self.pay(key).await).filter(|status| *status != 423)
        })
        .await
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// How often alice was charged 19.99, which her balance has to show.
    pub async fn charges(&self) -> i64 {
        let (_, account) = self.get("/accounts/alice").await;
        let charges = account["charges"].as_i64().unwrap();
        assert_eq!(account["balance_cents"].as_i64().unwrap(), 100_000 - 1999 * charges);
        charges
    }

    pub fn terminate(&self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap_or_default();
        self.process.wait().map(drop).unwrap_or_default();
    }

    pub async fn ended(&mut self) -> ExitStatus {
        eventually(SOON, "the process ends", async || self.process.try_wait().unwrap()).await
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until a payment is noted, which is before its provider is asked.
pub async fn begun(database: &Database) {
    let pool = database.pool().await;
    eventually(SOON, "the charge has begun", async || {
        let noted = sqlx::query_scalar("SELECT count(*) FROM payments").fetch_one(&pool).await;
        noted.is_ok_and(|noted: i64| noted == 1)
    })
    .await;
}

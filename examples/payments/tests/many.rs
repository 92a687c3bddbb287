//! Three processes on one database and three Redis servers, asked by everybody at once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redlock_tests::{Fleet, eventually};
use serde_json::{Value, json};
use tokio::sync::{RwLock, Semaphore};
use tokio::time::sleep;

use crate::support::processes::{Running, provider, service};
use crate::support::{Database, fleet};

on_both! {
    two_hundred_keys_sent_twenty_times_are_charged_once_each,
    the_same_while_processes_and_redis_servers_are_killed,
}

const KEYS: usize = 200;
const DUPLICATES: usize = 20;
const ACCOUNTS: [&str; 3] = ["alice", "bob", "carol"];

/// As many requests are under way at once, three keys with all of their duplicates: two cores can't
/// do more anyway. Those that were told to come again do not count.
const AT_ONCE: usize = 60;

/// A process that is killed leaves its keys locked for ten seconds, and a server that comes back
/// empty is quarantined for ten: with many more there would be nothing but waiting.
const PROCESSES_KILLED: usize = 6;

/// Far longer than it takes.
const PATIENCE: Duration = Duration::from_secs(120);

struct Service {
    processes: Vec<RwLock<Running>>,
    command: tokio::sync::Mutex<std::process::Command>,
    provider: Running,
    fleet: Fleet,
    database: Database,
    at_once: Semaphore,
    next: AtomicUsize,
    sent: AtomicUsize,
}

/// The answer to one of the duplicates.
struct Paid {
    replayed: bool,
    body: Vec<u8>,
}

impl Service {
    async fn start(database: Database, provider_arguments: &[&str]) -> Arc<Self> {
        let fleet = fleet().await;
        let provider = provider(provider_arguments);
        let mut command = service(&database);
        command
            .env("REDLOCK_SERVERS", fleet.urls().join(","))
            .env("PAYMENTS_PROVIDER", &provider.url)
            .env("PAYMENTS_RECOVERY", "500ms");
        let processes = (0..3).map(|_| RwLock::new(Running::start(&mut command))).collect();
        let (next, sent) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let command = tokio::sync::Mutex::new(command);
        let at_once = Semaphore::new(AT_ONCE);
        Arc::new(Self { processes, command, provider, fleet, database, at_once, next, sent })
    }

    /// Sends a payment to one process after the other until it is answered with 201.
    async fn pay(&self, key: &str, account: &str, amount_cents: i64) -> Paid {
        let give_up = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(200);
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed) % self.processes.len();
            self.sent.fetch_add(1, Ordering::Relaxed);
            let answer = {
                let _turn = self.at_once.acquire().await.unwrap();
                let (url, client) = {
                    let process = self.processes[index].read().await;
                    (process.url.clone(), process.client.clone())
                };
                let body = json!({ "account": account, "amount_cents": amount_cents });
                let request = client.post(format!("{url}/payments")).json(&body);
                request.header("idempotency-key", key).timeout(Duration::from_secs(20)).send().await
            };
            match answer {
                Ok(answer) if answer.status() == 201 => {
                    let replayed = answer.headers().contains_key("idempotent-replayed");
                    if let Ok(body) = answer.bytes().await {
                        return Paid { replayed, body: body.to_vec() };
                    }
                }
                // Locked, no majority, taken up by another, the provider failed: all of them say
                // that the same may be sent again.
                Ok(answer) => {
                    let status = answer.status().as_u16();
                    let body = answer.text().await.unwrap_or_default();
                    assert!([409, 423, 502, 503].contains(&status), "{status}: {body}");
                }
                // Killed.
                Err(_) => {}
            }
            assert!(Instant::now() < give_up, "{key} was not paid within {PATIENCE:?}");
            sleep(pause.mul_f64(2.0 * fastrand::f64())).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// All keys, all duplicates. The answers by key.
    async fn storm(self: &Arc<Self>) -> BTreeMap<String, Vec<Paid>> {
        let keys = (0..KEYS).map(|number| {
            let service = Arc::clone(self);
            tokio::spawn(async move {
                let key = format!("key-{number}");
                let (account, amount) = (ACCOUNTS[number % 3], amount(number));
                let duplicates = (0..DUPLICATES).map(|_| service.pay(&key, account, amount));
                let paid = join_all(duplicates).await;
                (key, paid)
            })
        });
        join_all(keys).await.into_iter().map(Result::unwrap).collect()
    }

    /// Kills a process with SIGKILL and starts another on a port of its own.
    async fn replace(&self, index: usize) {
        let mut process = self.processes[index].write().await;
        process.kill();
        let mut command = self.command.lock().await;
        *process = Running::start(&mut command);
    }

    /// One charge per key: at the provider, in the ledger, and in all that was answered.
    async fn check(&self, answers: &BTreeMap<String, Vec<Paid>>) -> Sums {
        assert_eq!(answers.len(), KEYS);
        let mut ids = BTreeSet::new();
        let mut first = 0;
        for (key, paid) in answers {
            assert_eq!(paid.len(), DUPLICATES);
            let bodies: BTreeSet<&Vec<u8>> = paid.iter().map(|paid| &paid.body).collect();
            assert_eq!(bodies.len(), 1, "{key} was answered differently");
            let body: Value = serde_json::from_slice(&paid[0].body).unwrap();
            ids.insert(body["payment_id"].as_str().unwrap().to_owned());
            first += paid.iter().filter(|paid| !paid.replayed).count();
        }
        assert_eq!(ids.len(), KEYS, "each key has a payment of its own");

        let pool = self.database.pool().await;
        let booked: Vec<(String, String, i64)> = sqlx::query_as(
            "SELECT payment, account, amount_cents FROM ledger WHERE payment IS NOT NULL",
        )
        .fetch_all(&pool)
        .await
        .unwrap();
        assert_eq!(booked.len(), KEYS, "one entry per key");
        let booked_ids: BTreeSet<String> = booked.iter().map(|(id, ..)| id.clone()).collect();
        assert!(booked_ids == ids, "other payments are booked than were answered");

        let (_, charged) = self.provider.get("/charges").await;
        let at_provider = charged["charges"].as_object().unwrap();
        let charged_ids: BTreeSet<String> = at_provider.keys().cloned().collect();
        assert!(charged_ids == ids, "{} charges for {KEYS} payments", charged_ids.len());
        for (id, account, amount) in &booked {
            let charge = json!({ "account": account, "amount_cents": -amount });
            assert_eq!(at_provider[id], charge, "the ledger and the provider agree");
        }
        for (number, account) in ACCOUNTS.iter().enumerate() {
            let spent: i64 = (0..KEYS).filter(|key| key % 3 == number).map(amount).sum();
            let balance = "SELECT balance_cents FROM accounts WHERE id = $1";
            let balance: i64 =
                sqlx::query_scalar(balance).bind(account).fetch_one(&pool).await.unwrap();
            assert_eq!(balance, 100_000 - spent, "{account}");
        }
        let unfinished = "SELECT count(*) FROM payments WHERE status IS NULL";
        let unfinished: i64 = sqlx::query_scalar(unfinished).fetch_one(&pool).await.unwrap();
        assert_eq!(unfinished, 0);
        let requests = charged["requests"].as_u64().unwrap();
        Sums { first, requests, sent: self.sent.load(Ordering::Relaxed) }
    }
}

#[derive(Debug)]
#[allow(dead_code, reason = "all of it is printed")]
struct Sums {
    /// Answers that were no replay.
    first: usize,
    /// What the provider was asked for, repetitions included.
    requests: u64,
    /// Requests that were sent to the service.
    sent: usize,
}

/// No two accounts have the same sum.
fn amount(key: usize) -> i64 {
    100 + i64::try_from(key).unwrap()
}

async fn two_hundred_keys_sent_twenty_times_are_charged_once_each(database: Database) {
    let service = Service::start(database, &["--latency-ms", "5"]).await;
    let started = Instant::now();
    let answers = service.storm().await;
    let sums = service.check(&answers).await;
    println!("{:.1?}: {sums:?}", started.elapsed());
    assert_eq!(sums.first, KEYS, "all other answers were replays");
    assert_eq!(sums.requests, KEYS as u64, "the provider was asked once per key");
    service.fleet.eventually_empty(PATIENCE).await;
}

async fn the_same_while_processes_and_redis_servers_are_killed(database: Database) {
    // One answer in ten of the provider is lost, half of them after it has charged.
    let failing = ["--latency-ms", "5", "--fail-before", "0.05", "--fail-after", "0.05"];
    let service = Service::start(database, &failing).await;
    let started = Instant::now();
    let storm = tokio::spawn({
        let service = Arc::clone(&service);
        async move { service.storm().await }
    });
    let mut killed = 0;
    while killed < PROCESSES_KILLED && !storm.is_finished() {
        // Two of the three servers lose everything, one after the other: for as long as the first is
        // quarantined nothing can be locked.
        match killed {
            1 => service.fleet.kill(0),
            2 => service.fleet.restart(0).await,
            3 => service.fleet.kill(1),
            4 => service.fleet.restart(1).await,
            _ => {}
        }
        sleep(Duration::from_millis(500)).await;
        service.replace(killed % 3).await;
        killed += 1;
    }
    let answers = storm.await.unwrap();
    // A payment may be left in progress by a process that was killed after all were answered.
    let pool = service.database.pool().await;
    eventually(PATIENCE, "what was cut off is recovered", async || {
        let unfinished = "SELECT count(*) FROM payments WHERE status IS NULL";
        sqlx::query_scalar(unfinished).fetch_one(&pool).await.is_ok_and(|count: i64| count == 0)
    })
    .await;
    let sums = service.check(&answers).await;
    println!("{:.1?}, {killed} processes killed: {sums:?}", started.elapsed());
    assert_eq!(killed, PROCESSES_KILLED, "all were killed while there was something to do");
}

//! The service as people run it: a process, its environment, real requests, real Redis.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::join_all;
use redlock_tests::eventually;
use serde_json::{Value, json};

use crate::support::processes::{Running, begun, provider, service};
use crate::support::{Database, SOON, fleet};

#[tokio::test]
async fn twenty_at_once_are_charged_once() {
    let database = Database::sqlite();
    let mut running = Running::start(&mut service(&database));
    assert!(running.said.contains("memory"), "{}", running.said);
    let statuses = join_all((0..20).map(|_| running.pay("order-1"))).await;
    assert!(statuses.contains(&201), "{statuses:?}");
    assert!(statuses.iter().all(|status| [201, 423].contains(status)), "{statuses:?}");
    assert_eq!(running.settle("order-1").await, 201);
    assert_eq!(running.charges().await, 1);
    running.terminate();
    assert!(running.ended().await.success());
}

#[tokio::test]
async fn a_stop_in_the_middle_of_a_charge_lets_it_finish() {
    let database = Database::sqlite();
    let mut slow = Running::start(service(&database).env("PAYMENTS_PROVIDER_DELAY", "3s"));
    let (client, url) = (slow.client.clone(), slow.url.clone());
    let waiting = tokio::spawn(async move {
        let body = json!({ "account": "alice", "amount_cents": 1999 });
        let request = client.post(format!("{url}/payments")).json(&body);
        request.header("idempotency-key", "k").timeout(Duration::from_millis(1500)).send().await
    });
    begun(&database).await;
    // The client gives up, and the service is stopped: the payment belongs to neither.
    assert!(waiting.await.unwrap().unwrap_err().is_timeout());
    slow.terminate();
    assert!(slow.ended().await.success());

    let next = Running::start(&mut service(&database));
    assert_eq!(next.charges().await, 1);
    assert_eq!(next.pay("k").await, 201);
    assert_eq!(next.charges().await, 1);
}

/// The provider has charged, and the process dies before the answer reaches it.
#[tokio::test]
async fn what_was_charged_and_not_recorded_is_recovered_and_not_charged_again() {
    let database = Database::sqlite();
    let provider = provider(&["--fail-after", "1"]);
    let mut command = service(&database);
    command.env("PAYMENTS_PROVIDER", &provider.url).env("PAYMENTS_RECOVERY", "100ms");
    let mut first = Running::start(&mut command);
    // The provider charges and says that it failed: the payment stays in progress.
    assert_eq!(first.pay("k").await, 502);
    first.kill();
    let charged = async || provider.get("/charges").await.1["charges"].as_object().unwrap().len();
    assert_eq!((charged().await, asked(&provider).await >= 3), (1, true));

    let mut second = Running::start(&mut command);
    assert_eq!(second.charges().await, 0, "the record does not know yet");
    let healed = json!({ "latency_ms": 0 });
    let behaviour = format!("{}/behaviour", provider.url);
    provider.client.put(behaviour).json(&healed).send().await.unwrap();
    // Nobody asks for it again.
    eventually(SOON, "the charge is recorded", async || second.charges().await == 1).await;
    let before = asked(&provider).await;
    assert_eq!(second.pay("k").await, 201);
    assert_eq!((charged().await, asked(&provider).await), (1, before), "a replay asks nobody");
    assert_eq!(second.charges().await, 1);
    second.terminate();
    assert!(second.ended().await.success());
}

async fn asked(provider: &Running) -> u64 {
    provider.get("/charges").await.1["requests"].as_u64().unwrap()
}

#[tokio::test]
async fn a_process_that_dies_in_the_middle_of_a_charge_is_followed_by_one_that_finishes_it() {
    let database = Database::sqlite();
    let mut slow = Running::start(service(&database).env("PAYMENTS_PROVIDER_DELAY", "1h"));
    let (client, url) = (slow.client.clone(), slow.url.clone());
    let waiting = tokio::spawn(async move {
        let body = json!({ "account": "alice", "amount_cents": 1999 });
        let request = client.post(format!("{url}/payments")).json(&body);
        request.header("idempotency-key", "k").send().await
    });
    begun(&database).await;
    slow.kill();
    assert!(waiting.await.unwrap().is_err());

    let next = Running::start(&mut service(&database));
    assert_eq!(next.settle("k").await, 201);
    assert_eq!(next.charges().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_on_one_fleet_charge_once_and_answer_503_without_a_majority() {
    let fleet = fleet().await;
    let database = Database::sqlite();
    let mut command = service(&database);
    command.env("REDLOCK_SERVERS", fleet.urls().join(","));
    let one = Running::start(&mut command);
    assert!(one.said.contains("REDLOCK_SERVERS"), "{}", one.said);
    let two = Running::start(&mut command);

    let at_once = (0..20).map(|index| if index % 2 == 0 { &one } else { &two }.pay("order-1"));
    let statuses = join_all(at_once).await;
    assert!(statuses.iter().all(|status| [201, 423].contains(status)), "{statuses:?}");
    assert_eq!((one.settle("order-1").await, two.settle("order-1").await), (201, 201));
    assert_eq!(one.charges().await, 1);
    fleet.eventually_empty(SOON).await;
    let three = json!(["votes", "votes", "votes"]);
    eventually(SOON, "all are ready", async || one.get("/ready").await == ready(true, &three))
        .await;

    fleet.kill(0);
    let two_of_three = json!(["unreachable", "votes", "votes"]);
    eventually(SOON, "ready with two", async || {
        one.get("/ready").await == ready(true, &two_of_three)
    })
    .await;
    fleet.kill(1);
    let one_of_three = json!(["unreachable", "unreachable", "votes"]);
    eventually(SOON, "not ready", async || one.get("/ready").await == ready(false, &one_of_three))
        .await;
    eventually(SOON, "no lock, no payment", async || two.pay("order-2").await == 503).await;
    assert_eq!(one.charges().await, 1);
    fleet.restart(0).await;
    fleet.restart(1).await;
    eventually(SOON, "payments are taken again", async || two.pay("order-2").await == 201).await;
    assert_eq!(one.charges().await, 2);
}

fn ready(ready: bool, servers: &Value) -> (u16, Value) {
    let groups = json!([{ "majority": ready, "servers": servers }]);
    let body = json!({ "ready": ready, "database": true, "groups": groups });
    (if ready { 200 } else { 503 }, body)
}

#[tokio::test]
async fn what_was_recorded_is_shown_to_prometheus() {
    let database = Database::sqlite();
    let running = Running::start(&mut service(&database));
    assert_eq!((running.pay("k").await, running.pay("k").await), (201, 201));
    let metrics = running.client.get(format!("{}/metrics", running.url)).send().await.unwrap();
    let text = metrics.text().await.unwrap();
    for line in [
        r#"payments_requests_total{outcome="charged"} 1"#,
        r#"payments_requests_total{outcome="replayed"} 1"#,
        r#"payments_request_duration_seconds_count{outcome="charged"} 1"#,
        r#"redlock_acquire_total{outcome="acquired"} 2"#,
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
}

/// The servers of `--with-redis` end with the service, also when it is killed.
#[tokio::test]
async fn servers_of_its_own_can_be_stopped_and_started_and_end_with_it() {
    let database = Database::sqlite();
    let mut running = Running::start(service(&database).args(["--with-redis", "3"]));
    assert!(running.said.contains("3 Redis servers of its own"), "{}", running.said);
    assert_eq!(running.pay("k").await, 201, "they vote at once");
    let turn = async |index: usize, what: &str| {
        let url = format!("{}/demo/servers/{index}/{what}", running.url);
        running.client.post(url).send().await.unwrap().status().as_u16()
    };
    assert_eq!((turn(0, "stop").await, turn(3, "stop").await), (204, 404));
    assert_eq!(running.pay("two-of-three").await, 201);
    assert_eq!(turn(1, "stop").await, 204);
    eventually(SOON, "no majority", async || running.pay("one").await == 503).await;
    assert_eq!((turn(0, "start").await, turn(1, "start").await), (204, 204));
    eventually(SOON, "they are quarantined", async || {
        let (_, ready) = running.get("/ready").await;
        ready["groups"][0]["servers"] == json!(["quarantined", "quarantined", "votes"])
    })
    .await;
    let servers = children_of(running.id());
    assert_eq!(servers.len(), 3);
    running.kill();
    eventually(SOON, "its servers end", async || {
        servers.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
    })
    .await;
}

/// The processes of its shells: what they are leashed to is killed before they end.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    ids.filter(|id: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        // The parent is the second field after the name in brackets.
        let fields = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1));
        fields.and_then(|id| id.parse().ok()) == Some(parent)
    })
    .collect()
}

#[tokio::test]
async fn a_page_of_somebody_else_may_not_pay() {
    let database = Database::sqlite();
    let running = Running::start(&mut service(&database));
    let request = running.client.post(format!("{}/payments", running.url));
    let request = request.header("idempotency-key", "k").header("sec-fetch-site", "cross-site");
    let body = r#"{"account":"alice","amount_cents":1}"#;
    assert_eq!(request.body(body).send().await.unwrap().status(), 403);
    assert_eq!(running.charges().await, 0);
}

#[test]
fn a_bad_setting_is_named_with_its_value_and_the_fix() {
    let database = Database::sqlite();
    for (variable, value, fix) in [
        ("PAYMENTS_ADDR", "localhost", "127.0.0.1:3000"),
        ("PAYMENTS_PROVIDER_DELAY", "fast", "50ms"),
        ("PAYMENTS_GRACE", "long", "30s"),
        ("PAYMENTS_HOSTS", "https://pay.example", "pay.example"),
        ("PAYMENTS_HOSTS", "pay.example:443", "pay.example"),
        ("DATABASE_URL", "mysql://db", "sqlite://payments.db"),
        ("PAYMENTS_PROVIDER", "nowhere", "http://127.0.0.1:4000"),
        ("DATABASE_URL", "sqlite:///no/such/directory.db", "can be written"),
        ("REDLOCK_SERVERS", "redis://a,redis://b", "name 1 or 3"),
    ] {
        let mut command = service(&database);
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
    let database = Database::sqlite();
    for (variable, value) in [
        ("DATABASE_URL", "postgres://pay:s3cret@db.example/pay"),
        ("DATABASE_URL", "postgres://pay:s3/cr@s3cret@db.example/pay?password=s3cret"),
        ("DATABASE_URL", "sqlite://pay:s3cret@db.example/pay"),
        ("REDLOCK_SERVERS", "redis://:s3cret@a,redis://:s3cret@b"),
        ("REDLOCK_SERVERS", "redis://:s3cret@a:port"),
    ] {
        let output = service(&database).env(variable, value).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(variable) && !said.contains("s3cret"), "{said}");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_client_that_stalls() {
    let database = Database::sqlite();
    let mut running = Running::start(service(&database).env("PAYMENTS_GRACE", "200ms"));
    let address = running.url.strip_prefix("http://").unwrap();
    let mut stalled = TcpStream::connect(address).unwrap();
    let head = "POST /payments HTTP/1.1\r\nhost: localhost\r\nidempotency-key: k\r\n\
                content-length: 9\r\nexpect: 100-continue\r\n\r\n";
    stalled.write_all(head.as_bytes()).unwrap();
    let mut asked_for_body = [0; 12];
    stalled.read_exact(&mut asked_for_body).unwrap();
    assert_eq!(&asked_for_body, b"HTTP/1.1 100");
    running.terminate();
    assert!(running.ended().await.success());
}

//! What waiting for one key costs: `waiters PROCESSES [plain|guarded] [push|poll] [SECONDS]`.
//!
//! 64 clients in so many processes want one key on three servers, once each and for 5 ms; or, if
//! there are seconds, again and again. Prints how long that took over what they spent inside, how
//! long the key lay idle between two of them, the commands that went over the network, and who had
//! it most and least often.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::env::{args, current_exe};
use std::io::stdin;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use parking_lot::Mutex;
use redlock_core::{Config, Redlock, Safety, WakeUp};
use redlock_tests::Fleet;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::sleep;

const CLIENTS: usize = 64;
const INSIDE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match &args[..] {
        ["contend", clients, safety, wake_up, seconds, urls @ ..] => {
            let redlock = redlock(urls, safety, wake_up);
            contend(redlock, clients.parse().unwrap(), seconds.parse().unwrap()).await;
        }
        [processes, rest @ ..] => {
            let safety = rest.first().copied().unwrap_or("guarded");
            let wake_up = rest.get(1).copied().unwrap_or("push");
            let seconds = rest.get(2).copied().unwrap_or("0");
            measure(processes.parse().unwrap(), safety, wake_up, seconds).await;
        }
        [] => panic!("usage: waiters PROCESSES [plain|guarded] [push|poll] [SECONDS]"),
    }
}

fn redlock(urls: &[&str], safety: &str, wake_up: &str) -> Redlock {
    let config = Config::servers(urls.iter().copied())
        .node_deadline(Duration::from_millis(400))
        .safety(if safety == "plain" { Safety::Plain } else { Safety::Guarded })
        .wake_up(if wake_up == "poll" { WakeUp::Poll } else { WakeUp::Push });
    Redlock::new(config.build().unwrap())
}

/// Microseconds on a clock that all processes share.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000
}

/// Waits for a line, then prints for each lock who had it, from when, and until when.
async fn contend(redlock: Redlock, clients: usize, seconds: u64) {
    redlock.provision().await.unwrap();
    redlock.ready().await.unwrap();
    println!("ready");
    stdin().read_line(&mut String::new()).unwrap();
    let end = Instant::now() + Duration::from_secs(seconds);
    let held = Arc::new(Mutex::new(Vec::new()));
    let client = async |client: usize| loop {
        let guard = redlock.lock("order").wait(PATIENCE).await.unwrap();
        let from = now();
        sleep(INSIDE).await;
        let until = now();
        held.lock().push((client, from, until));
        guard.release().await;
        if Instant::now() >= end {
            return;
        }
    };
    join_all((0..clients).map(client)).await;
    for (client, from, until) in held.lock().iter() {
        println!("{client} {from} {until}");
    }
    println!("done");
    assert_eq!(redlock.close(PATIENCE).await.unreleased, 0);
}

async fn measure(processes: usize, safety: &str, wake_up: &str, seconds: &str) {
    let fleet = Fleet::start(3).await;
    let mut children = Vec::new();
    for _ in 0..processes {
        let clients = (CLIENTS / processes).to_string();
        let mut child = Command::new(current_exe().unwrap())
            .args(["contend", &clients, safety, wake_up, seconds])
            .args(fleet.urls())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
        children.push((child, lines));
    }
    let mut monitors = Vec::new();
    for server in fleet.iter() {
        monitors.push(monitor(server.port()).await);
    }
    let began = now();
    for (child, _) in &mut children {
        child.stdin.as_mut().unwrap().write_all(b"go\n").await.unwrap();
    }
    let mut holds = Vec::new();
    for (process, (_, lines)) in children.iter_mut().enumerate() {
        while let Some(line) = lines.next_line().await.unwrap().filter(|line| line != "done") {
            let [client, from, until] =
                line.split(' ').map(|n| n.parse::<u64>().unwrap()).collect::<Vec<_>>()[..]
            else {
                panic!("{line}")
            };
            holds.push((from, until, (process, client)));
        }
    }
    for (child, _) in &mut children {
        assert!(child.wait().await.unwrap().success());
    }
    holds.sort_unstable();
    let mut commands = BTreeMap::<String, u64>::new();
    for (task, counted) in monitors {
        task.abort();
        for (name, count) in counted.lock().iter() {
            *commands.entry(name.clone()).or_default() += count;
        }
    }
    report(began, &holds, &commands);
}

type Counted = Arc<Mutex<BTreeMap<String, u64>>>;

/// Counts what comes over the network; what scripts run is not among it.
async fn monitor(port: u16) -> (JoinHandle<()>, Counted) {
    let mut server = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    server.write_all(b"MONITOR\r\n").await.unwrap();
    let mut ok = String::new();
    server.read_line(&mut ok).await.unwrap();
    assert_eq!(ok, "+OK\r\n");
    let counted = Counted::default();
    let count = Arc::clone(&counted);
    let task = tokio::spawn(async move {
        let mut lines = server.split(b'\n');
        while let Ok(Some(line)) = lines.next_segment().await {
            let line = String::from_utf8_lossy(&line);
            let Some((from, command)) = line.split_once("] \"") else { continue };
            let name = command.split('"').next().unwrap_or_default().to_uppercase();
            if !from.ends_with(" lua") {
                *count.lock().entry(name).or_default() += 1;
            }
        }
    });
    (task, counted)
}

fn report(began: u64, holds: &[(u64, u64, (usize, u64))], commands: &BTreeMap<String, u64>) {
    let millis = |micros: u64| micros as f64 / 1_000.0;
    let inside: u64 = holds.iter().map(|(from, until, _)| until - from).sum();
    let end = holds.last().expect("somebody had it").1;
    let mut idle: Vec<u64> = holds.windows(2).map(|two| two[1].0 - two[0].1).collect();
    idle.sort_unstable();
    let at = |share: usize| millis(idle[(idle.len() * share / 100).min(idle.len() - 1)]);
    let mut each = BTreeMap::<_, u64>::new();
    for (_, _, client) in holds {
        *each.entry(client).or_default() += 1;
    }
    let locks = holds.len();
    println!("{locks} locks of {} clients in {:.1} ms", each.len(), millis(end - began));
    println!("  over the time inside: {:.3}", (end - began) as f64 / inside as f64);
    println!("  idle: p50 {:.2} ms, p90 {:.2} ms, max {:.2} ms", at(50), at(90), at(100));
    let (most, least) = (each.values().max().unwrap(), each.values().min().unwrap());
    println!("  most {most}, least {least} locks of a client");
    let setting_up = ["HELLO", "CLIENT", "INFO", "SCRIPT"];
    let counted = commands.iter().filter(|(name, _)| !setting_up.contains(&name.as_str()));
    let sum: u64 = counted.clone().map(|(_, count)| count).sum();
    let named: Vec<String> = counted.map(|(name, count)| format!("{name} {count}")).collect();
    println!("  commands per lock: {:.2} ({})", sum as f64 / locks as f64, named.join(", "));
}

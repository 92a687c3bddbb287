//! A run from its beginning to its end.

use std::collections::HashMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redlock_core::{Config, Redlock};
use redlock_tests::{Fleet, eventually};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::ledger::Ledger;
use crate::load::World;
use crate::options::{Lock, Options, TTL};
use crate::report::Report;
use crate::trouble::Trouble;

/// Long enough for a busy machine.
const HANG: Duration = Duration::from_secs(30);

/// For how long the load runs before the service is ended or killed.
const UNDER_LOAD: Duration = Duration::from_millis(200);

/// What is needed to start the service, again and again.
struct Service<'r> {
    urls: Vec<String>,
    ledger: &'r Path,
    lock: Lock,
}

impl Service<'_> {
    /// Starts it and waits until it listens, on a free port if that is 0.
    async fn start(&self, port: u16) -> (Child, u16) {
        let lock = if self.lock == Lock::On { "on" } else { "off" };
        let mut service = Command::new(std::env::current_exe().expect("this program has a name"));
        service.args(["serve", "--port", &port.to_string(), "--servers", &self.urls.join(",")]);
        service.arg("--ledger").arg(self.ledger).args(["--lock", lock]);
        // Handlers that panic on purpose say so.
        service.kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut service = service.spawn().expect("the service starts");
        let mut lines = BufReader::new(service.stdout.take().expect("it is piped")).lines();
        let line = timeout(HANG, lines.next_line()).await.expect("the service begins in time");
        let line = line.expect("it can be read").expect("the service says its port");
        (service, line.parse().expect("a port is a number"))
    }
}

pub(crate) async fn run(options: &Options) -> Report {
    let began = Instant::now();
    let fleet = Fleet::start(3).await;
    let urls = fleet.urls();
    let config = Config::servers(urls.iter().map(String::as_str)).ttl(TTL).build();
    let provisioned = Redlock::new(config.expect("the servers are right"));
    eventually(HANG, "new servers", async || provisioned.provision().await).await;
    drop(provisioned);
    let dir = tempfile::tempdir().expect("there is room for a ledger");
    let file = dir.path().join("ledger.db");
    let service = Service { urls, ledger: &file, lock: options.lock };
    let (mut process, port) = service.start(0).await;
    let world = Arc::new(World::new(port, Trouble::new(fleet), options.keys));

    let few = (options.requests() / 20).max(600);
    let most = options.requests().saturating_sub(2 * few);
    tokio::select! {
        () = world.load(most, options.clients) => {}
        () = world.trouble.make(&world.tally) => {}
    }
    world.trouble.end();
    world.trouble.fleet.eventually_empty(HANG).await;

    world.look.store(false, Ordering::Relaxed);
    for is_killed in [false, true] {
        let load = {
            let (world, clients) = (Arc::clone(&world), options.clients);
            tokio::spawn(async move { world.load(few, clients).await })
        };
        sleep(UNDER_LOAD).await;
        match is_killed {
            true => kill(&world, &mut process).await,
            false => terminate(&world, &mut process).await,
        }
        (process, _) = service.start(port).await;
        load.await.expect("clients do not panic");
    }
    world.trouble.fleet.eventually_empty(HANG).await;
    terminate(&world, &mut process).await;
    let mut report = world.tally.take();
    let asked = std::mem::take(&mut *world.asked.lock());
    judge(&mut report, &asked, &file).await;
    report.seconds = began.elapsed().as_secs_f64();
    report
}

/// SIGTERM: the service finishes what has begun and leaves no lock behind.
async fn terminate(world: &World, process: &mut Child) {
    let began = Instant::now();
    signal(process, Signal::TERM);
    match timeout(HANG, process.wait()).await {
        Ok(Ok(status)) if status.success() => {}
        ended => world.tally.violation(format!("after SIGTERM the service ended with {ended:?}")),
    }
    let left = world.trouble.fleet.total_keys().await;
    if left > 0 {
        world.tally.violation(format!("{left} keys are left after a graceful shutdown"));
    }
    world.tally.with(|report| {
        *report.graceful.entry("times").or_default() += 1;
        *report.graceful.entry("keys_left").or_default() += left as u64;
        let slowest = report.graceful.entry("slowest_millis").or_default();
        *slowest = (*slowest).max(began.elapsed().as_millis() as u64);
    });
}

/// SIGKILL: what is locked stays so, and no longer than it may.
async fn kill(world: &World, process: &mut Child) {
    signal(process, Signal::KILL);
    let _killed = process.wait().await;
    let died = Instant::now();
    let left = world.trouble.fleet.total_keys().await;
    let most = TTL + Duration::from_secs(1);
    while world.trouble.fleet.total_keys().await > 0 {
        if died.elapsed() > most {
            world.tally.violation(format!("keys are left {most:?} after the service was killed"));
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    world.tally.with(|report| {
        report.killed.insert("keys_left", left as u64);
        report.killed.insert("gone_after_millis", died.elapsed().as_millis() as u64);
    });
}

fn signal(process: &Child, signal: Signal) {
    let id = process.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(id.expect("the service runs"), signal).expect("it can be told");
}

/// Every charge that was asked for was made once.
async fn judge(report: &mut Report, asked: &[String], file: &Path) {
    let ledger = Ledger::open(file).await.expect("the ledger can be read");
    let counts: HashMap<String, i64> =
        ledger.counts().await.expect("the ledger can be read").into_iter().collect();
    ledger.close().await;
    report.charges = counts.values().sum::<i64>().unsigned_abs();
    for charge in asked {
        match counts.get(charge) {
            Some(1) => {}
            Some(_) => report.made_twice += 1,
            None => report.never_made += 1,
        }
    }
}

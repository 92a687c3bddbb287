//! One of several processes that want the same locks: `contender sound …`.
//!
//! `sound` and `broken` take a directory, seconds, and the URLs of the servers; they write what
//! they hold and when to `history` in the directory, count in a ledger per key, and print how many
//! times they counted. `broken` asks one server at random: the lock that the checker must catch.
//! `fleet` starts three servers, prints their process ids, and waits to be killed. `environment`
//! takes twenty locks on the servers that the environment names, and leaves them. `stopped` takes a
//! lock and waits for a line, in the same thread as everything else, before it looks again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::env::args;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::id;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use redlock_core::{Config, LockError, Redlock, Safety};
use redlock_tests::{Fleet, History, Ledger, Stamp};
use tokio::runtime::{self, Runtime};
use tokio::task::spawn_blocking;

const TASKS: usize = 64;
const KEYS: usize = 8;

#[tokio::main]
async fn main() {
    let args: Vec<String> = args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["fleet"] => hold_a_fleet().await,
        ["environment"] => lock_where_the_environment_says().await,
        ["stopped", urls @ ..] => {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            spawn_blocking(move || alone().block_on(be_stopped(&urls))).await.unwrap();
        }
        ["sound", directory, seconds, urls @ ..] => {
            contend(vec![redlock(urls)], Path::new(directory), seconds.parse().unwrap()).await;
        }
        ["broken", directory, seconds, urls @ ..] => {
            let alone = urls.iter().map(|url| redlock(&[url])).collect();
            contend(alone, Path::new(directory), seconds.parse().unwrap()).await;
        }
        _ => panic!("usage: contender sound|broken DIRECTORY SECONDS URL… | fleet | environment"),
    }
}

async fn hold_a_fleet() {
    let fleet = Fleet::start(3).await;
    for server in fleet.iter() {
        println!("{}", server.pid());
    }
    std::future::pending::<()>().await;
}

async fn lock_where_the_environment_says() {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => return println!("{} / {error}", error.field()),
    };
    let redlock = Redlock::new(config);
    redlock.provision().await.unwrap();
    for order in 0..20 {
        let lock = redlock.lock(format!("order:{order}")).wait(Duration::from_secs(30));
        println!("{:?}", lock.await.unwrap().hand_over());
    }
    redlock.close(Duration::from_secs(30)).await;
    println!("locked");
}

/// A runtime whose one thread is the caller's.
fn alone() -> Runtime {
    runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn be_stopped(urls: &[String]) {
    let urls = urls.iter().map(String::as_str);
    let config = Config::servers(urls).ttl(Duration::from_secs(2));
    let redlock = Redlock::new(config.node_deadline(Duration::from_millis(900)).build().unwrap());
    redlock.provision().await.unwrap();
    let guard = redlock.lock("order").await.unwrap();
    let mut lost = pin!(guard.lost());
    let mut poll = || lost.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(poll().is_pending());
    println!("held, lost: not yet");
    // Blocks the only thread that the lock, its keeper and its timers have.
    std::io::stdin().read_line(&mut String::new()).unwrap();
    match poll() {
        Poll::Ready(reason) => println!("lost: {reason:?}, remaining: {:?}", guard.remaining()),
        Poll::Pending => println!("lost: not yet, remaining: {:?}", guard.remaining()),
    }
}

fn redlock(urls: &[&str]) -> Redlock {
    let config = Config::servers(urls.iter().copied())
        .safety(Safety::Plain)
        .node_deadline(Duration::from_millis(400))
        .retry_interval(Duration::from_millis(2), Duration::from_millis(30));
    Redlock::new(config.build().unwrap())
}

/// Tasks take turns with all locks until the time is up.
async fn contend(redlocks: Vec<Redlock>, directory: &Path, seconds: u64) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let history = Arc::new(History::to_file(&directory.join("history")).unwrap());
    let redlocks: Arc<[Redlock]> = redlocks.into();
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let contender = Contender {
                name: format!("{}/{task}", id()),
                redlocks: Arc::clone(&redlocks),
                history: Arc::clone(&history),
                directory: directory.into(),
            };
            tokio::spawn(contender.run(end))
        })
        .collect();
    let mut counted = 0;
    for task in tasks {
        counted += task.await.unwrap();
    }
    for redlock in &*redlocks {
        assert_eq!(redlock.close(Duration::from_secs(10)).await.unreleased, 0);
    }
    println!("{counted}");
}

struct Contender {
    name: String,
    redlocks: Arc<[Redlock]>,
    history: Arc<History>,
    directory: PathBuf,
}

impl Contender {
    async fn run(self, end: Instant) -> u64 {
        let mut counted = 0;
        while Instant::now() < end {
            let redlock = &self.redlocks[fastrand::usize(..self.redlocks.len())];
            match self.take_a_turn(redlock, fastrand::usize(..KEYS)).await {
                Ok(()) => counted += 1,
                Err(error) if error.is_contended() => {}
                // A server that is paused for a moment is part of the test.
                Err(error) => eprintln!("{}: {error}", self.name),
            }
        }
        counted
    }

    async fn take_a_turn(&self, redlock: &Redlock, key: usize) -> Result<(), LockError> {
        let name = format!("key-{key}");
        let ledger = Ledger::file(&self.directory.join(&name)).unwrap();
        let guard = redlock.lock(&name).wait(Duration::from_secs(1)).await?;
        self.history.acquired(&name, &self.name, Stamp::of(guard.valid_until()));
        ledger.increment().await;
        self.history.released(&name, &self.name);
        // Half of them leave the release to the background.
        if fastrand::bool() {
            guard.release().await;
        }
        Ok(())
    }
}

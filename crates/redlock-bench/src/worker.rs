//! A process of its own, whose clients want one key with those of other processes.
//!
//! It is this program, started again: it reads what to do as one line of JSON, says that it is
//! ready, begins when it is told, and says in a last line who held the key and when.

use std::env::current_exe;
use std::process::Stdio;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use redlock_core::Redlock;
use rslock::LockManager;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, stdin};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::sleep;

use crate::contender::{Library, Mode, connect_patiently};
use crate::scenario::Result;

const KEY: &str = "order";
const TTL: Duration = Duration::from_secs(10);

/// Nobody waits in vain: they all get their turn, however long it takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients of one process do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) locks: Locks,
    pub(crate) servers: Vec<String>,
    pub(crate) clients: usize,
    /// How long somebody who has the key keeps it.
    pub(crate) inside: Duration,
    /// For how long they come again and again; zero: each comes once.
    pub(crate) again: Duration,
}

/// Whose locks they use: this library's with its defaults, or rslock's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Locks {
    Ours,
    Rslock,
}

/// One client had the key. Microseconds on a clock that all processes share.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Hold {
    pub(crate) client: usize,
    pub(crate) asked: u64,
    pub(crate) from: u64,
    pub(crate) until: u64,
}

/// The other side of the process. It ends with this value.
#[derive(Debug)]
pub(crate) struct Worker {
    _process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts a process and waits until it is connected to the servers.
    pub(crate) async fn start(job: &Job) -> Result<Self> {
        let mut process = Command::new(current_exe()?)
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let input = process.stdin.take().ok_or("no way to tell it")?;
        let output = process.stdout.take().ok_or("no way to hear it")?;
        let output = BufReader::new(output).lines();
        let mut worker = Self { _process: process, input, output };
        worker.tell(job).await?;
        worker.hear::<()>().await?;
        Ok(worker)
    }

    /// Lets the clients begin.
    pub(crate) async fn begin(&mut self) -> Result<()> {
        self.tell(&()).await
    }

    /// Waits until they are done.
    pub(crate) async fn holds(mut self) -> Result<Vec<Hold>> {
        self.hear().await
    }

    async fn tell(&mut self, what: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(what)? + "\n";
        Ok(self.input.write_all(line.as_bytes()).await?)
    }

    async fn hear<T: for<'a> Deserialize<'a>>(&mut self) -> Result<T> {
        let line = self.output.next_line().await?.ok_or("a worker ended")?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// What the process itself does.
pub(crate) async fn run() -> Result<()> {
    let mut input = BufReader::new(stdin()).lines();
    let job = input.next_line().await?.ok_or("nothing to do")?;
    let job: Job = serde_json::from_str(&job)?;
    let key = Key::connect(&job).await?;
    println!("null");
    input.next_line().await?.ok_or("nobody said when")?;
    let end = Instant::now() + job.again;
    let clients = (0..job.clients).map(|client| contend(client, &key, job.inside, end));
    let holds = join_all(clients).await.into_iter().collect::<Result<Vec<_>>>()?.concat();
    key.close().await?;
    println!("{}", serde_json::to_string(&holds)?);
    Ok(())
}

async fn contend(client: usize, key: &Key, inside: Duration, end: Instant) -> Result<Vec<Hold>> {
    let mut holds = Vec::new();
    loop {
        let asked = now();
        let (from, until) = key.hold(inside).await?;
        holds.push(Hold { client, asked, from, until });
        if Instant::now() >= end {
            return Ok(holds);
        }
    }
}

/// The one key that all want.
enum Key {
    Ours(Redlock),
    Rslock(LockManager),
}

impl Key {
    async fn connect(job: &Job) -> Result<Self> {
        Ok(match job.locks {
            Locks::Ours => Self::Ours(connect_patiently(&job.servers, Mode::Guarded).await?),
            Locks::Rslock => {
                let manager = LockManager::new(job.servers.clone());
                let lock = manager.lock("connect", TTL).await?;
                manager.unlock(&lock).await;
                Self::Rslock(manager)
            }
        })
    }

    /// From when until when it was held.
    async fn hold(&self, inside: Duration) -> Result<(u64, u64)> {
        match self {
            Self::Ours(redlock) => {
                let guard = redlock.lock(KEY).wait(PATIENCE).await?;
                let held = stay(inside).await;
                guard.release().await;
                Ok(held)
            }
            Self::Rslock(manager) => {
                let lock = manager.acquire_no_guard(KEY, TTL).await?;
                let held = stay(inside).await;
                manager.unlock(&lock).await;
                Ok(held)
            }
        }
    }

    async fn close(self) -> Result<()> {
        match self {
            Self::Ours(redlock) if redlock.close(PATIENCE).await.unreleased > 0 => {
                Err("a key was left behind".into())
            }
            Self::Ours(_) | Self::Rslock(_) => Ok(()),
        }
    }
}

async fn stay(inside: Duration) -> (u64, u64) {
    let from = now();
    sleep(inside).await;
    (from, now())
}

/// Microseconds on a clock that all processes share.
pub(crate) fn now() -> u64 {
    let now = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

impl From<Locks> for Library {
    fn from(locks: Locks) -> Self {
        match locks {
            Locks::Ours => Self::Ours(Mode::Guarded),
            Locks::Rslock => Self::Rslock,
        }
    }
}

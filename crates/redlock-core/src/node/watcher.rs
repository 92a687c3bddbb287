//! Hears when a key may be free again: a connection of its own, on which the server tells what has
//! changed (`CLIENT TRACKING`).
//!
//! A key that was read on this connection is watched: when it is written, deleted or expires, by
//! whomever, the server says so once, and whoever waits for it reads it again. So nobody who releases
//! has to tell anybody, and nothing is sent while nobody waits. Nothing relies on it either: a word
//! that is lost, and a server that does not do this, cost those who wait the time until they ask.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bb8_redis::redis::{Pipeline, PushInfo, PushKind, RedisError, Value};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::connection::{self, CONNECT_DEADLINE, Cause, Link};
use crate::config::{Backoff, CheckedServer};
use crate::deference::Deference;
use crate::key::Key;
use crate::latch::Latch;
use crate::panic::caught;

/// Time between two tries to watch a server that refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// For how long the connection is kept while nobody waits.
const IDLE: Duration = Duration::from_secs(60);

/// Watches the keys of one server.
#[derive(Debug)]
pub(super) struct Watcher {
    server: CheckedServer,
    address: Arc<str>,
    reconnection: Backoff,
    watched: Mutex<HashMap<Arc<[u8]>, Arc<Notify>>>,
    /// Somebody waits who did not before.
    wanted: Notify,
    link: watch::Sender<Option<Link>>,
    closed: Latch,
    /// A task runs.
    driven: AtomicBool,
    /// The log knows that the server refuses.
    told: AtomicBool,
}

/// Why there is no link.
enum Failure {
    /// The server, or what stands in front of it, does not do this.
    Refused(Cause),
    Down(Cause),
}

impl From<RedisError> for Failure {
    fn from(error: RedisError) -> Self {
        Self::Down(error.into())
    }
}

impl Watcher {
    /// Connects to nothing before somebody waits.
    pub(super) fn new(server: CheckedServer, address: Arc<str>, reconnection: Backoff) -> Self {
        Self {
            server,
            address,
            reconnection,
            watched: Mutex::default(),
            wanted: Notify::new(),
            link: watch::Sender::new(None),
            closed: Latch::default(),
            driven: AtomicBool::new(false),
            told: AtomicBool::new(false),
        }
    }

    pub(super) fn close(&self) {
        self.closed.raise();
    }

    /// Ends when the key was free on this server and nobody else has taken it in a moment. Never, if
    /// that can't be told.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the watching.
    pub(super) async fn freed(self: &Arc<Self>, key: &Key, deference: &Deference<'_>) {
        let watch = Watch::of(key, self);
        let mut link = self.link.subscribe();
        self.wanted.notify_one();
        self.start();
        loop {
            let current = link.borrow_and_update().clone();
            let freed = async {
                match &current {
                    Some(current) => watch.freed(current, deference).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = link.changed() => if changed.is_err() {
                    return pending().await;
                },
                () = freed => return,
            }
        }
    }

    /// Starts the task on the runtime of whoever waits, unless it runs.
    fn start(self: &Arc<Self>) {
        if let Ok(runtime) = Handle::try_current()
            && !self.driven.swap(true, Ordering::AcqRel)
        {
            runtime.spawn(Task(Arc::clone(self)).run());
        }
    }

    async fn connect(self: &Arc<Self>) -> Result<Link, Failure> {
        let watcher = Arc::downgrade(self);
        let told = move |push: &PushInfo| {
            if push.kind == PushKind::Invalidate
                && let Some(watcher) = watcher.upgrade()
            {
                watcher.hear(&push.data);
            }
        };
        let mut link = connection::open(&self.server, told).await?;
        let mut tracking = Pipeline::with_capacity(1);
        tracking.cmd("CLIENT").arg("TRACKING").arg("ON");
        match link.redis.send_packed_commands(&tracking, 0, 1).await?.pop() {
            Some(Value::Okay) => Ok(link),
            Some(Value::ServerError(error)) => {
                Err(Failure::Refused(Cause(super::wire::describe(&error))))
            }
            _ => Err(Failure::Refused(Cause("its answer is not the Redis protocol".into()))),
        }
    }

    /// Keys have changed; no keys: all have.
    fn hear(&self, data: &[Value]) {
        let watched = self.watched.lock();
        match data {
            [Value::Array(keys)] => {
                for key in keys {
                    if let Value::BulkString(key) = key
                        && let Some(changed) = watched.get(key.as_slice())
                    {
                        changed.notify_one();
                    }
                }
            }
            _ => watched.values().for_each(|changed| changed.notify_one()),
        }
    }

    /// Ends when the connection is of no use any more.
    async fn stay_connected(&self, broken: &Latch) {
        let idle = async {
            loop {
                sleep(IDLE).await;
                if self.watched.lock().is_empty() {
                    return;
                }
            }
        };
        tokio::select! {
            () = broken.raised() => {}
            () = self.closed.raised() => {}
            () = idle => {}
        }
    }

    /// For how long not to connect again.
    fn pause_after(&self, failure: &Failure, failed: u32) -> Duration {
        match failure {
            Failure::Refused(cause) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::info!(
                        node = %self.address, %cause,
                        "a server does not tell when a key is released; who waits asks from time to time"
                    );
                }
                REFUSED_PAUSE
            }
            Failure::Down(cause) => {
                tracing::debug!(node = %self.address, %cause, "keys can't be watched");
                self.reconnection.delay(failed)
            }
        }
    }
}

/// Somebody who waits for a key.
struct Watch<'w> {
    key: &'w Key,
    watcher: &'w Watcher,
    changed: Arc<Notify>,
}

impl<'w> Watch<'w> {
    fn of(key: &'w Key, watcher: &'w Watcher) -> Self {
        let changed = Arc::new(Notify::new());
        watcher.watched.lock().insert(key.as_bytes().into(), Arc::clone(&changed));
        Self { key, watcher, changed }
    }

    async fn freed(&self, link: &Link, deference: &Deference<'_>) {
        let mut redis = link.redis.clone();
        let mut read = Pipeline::with_capacity(1);
        read.cmd("GET").arg(self.key.as_bytes());
        let mut has_looked_away = false;
        loop {
            let answer = timeout(CONNECT_DEADLINE, redis.send_packed_commands(&read, 0, 1)).await;
            match answer.ok().and_then(Result::ok).as_deref() {
                Some([Value::Nil]) if has_looked_away => return,
                Some([Value::Nil]) => {}
                Some(_) => {
                    if has_looked_away {
                        deference.passed_over();
                    }
                    self.changed.notified().await;
                }
                None => {
                    link.broken.raise();
                    return pending().await;
                }
            }
            sleep(deference.pause()).await;
            has_looked_away = true;
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut watched = self.watcher.watched.lock();
        // The next one may watch the key already.
        if watched
            .get(self.key.as_bytes())
            .is_some_and(|changed| Arc::ptr_eq(changed, &self.changed))
        {
            watched.remove(self.key.as_bytes());
        }
    }
}

/// The task of a watcher. The next one who waits starts another when its runtime has ended.
struct Task(Arc<Watcher>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.link.send_replace(None);
        self.0.driven.store(false, Ordering::Release);
    }
}

impl Task {
    async fn run(self) {
        let watcher = &self.0;
        let mut failed = 0;
        while !watcher.closed.is_raised() {
            while watcher.watched.lock().is_empty() {
                tokio::select! {
                    () = watcher.wanted.notified() => {}
                    () = watcher.closed.raised() => return,
                }
            }
            let connecting = caught("connecting", watcher.connect());
            let connected = timeout(CONNECT_DEADLINE, connecting).await.map(|caught| {
                caught.unwrap_or_else(|panicked| Err(Failure::Down(Cause(panicked))))
            });
            let pause = match connected {
                Ok(Ok(link)) => {
                    let broken = Arc::clone(&link.broken);
                    watcher.link.send_replace(Some(link));
                    watcher.stay_connected(&broken).await;
                    watcher.link.send_replace(None);
                    failed = 0;
                    watcher.reconnection.delay(failed)
                }
                Ok(Err(failure)) => watcher.pause_after(&failure, failed),
                Err(_) => {
                    let late = format!("no connection within {CONNECT_DEADLINE:?}");
                    watcher.pause_after(&Failure::Down(Cause(late.into())), failed)
                }
            };
            failed = failed.saturating_add(1);
            tokio::select! {
                () = sleep(pause) => {}
                () = watcher.closed.raised() => {}
            }
        }
    }
}

//! Hears when a key may be free again: a connection of its own, on which the server tells what has
//! changed (`CLIENT TRACKING`).
//!
//! A key that was read on this connection is watched: when it is written, deleted or expires, by
//! whomever, the server says so once, and whoever waits for it reads it again. So nobody who releases
//! has to tell anybody, and nothing is sent while nobody waits. Nothing relies on it either: a word
//! that is lost, and a server that does not do this, cost those who wait the time until they ask.

use std::collections::{HashMap, VecDeque};
use std::future::{pending, poll_fn};
use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::connection::{CONNECT_DEADLINE, Cause, Connection};
use super::resp::Frame;
use super::wire::describe;
use crate::config::{Backoff, CheckedServer};
use crate::deference::Deference;
use crate::key::Key;
use crate::latch::Latch;

/// Time between two tries to watch a server that refused.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);

/// For how long the connection is kept while nobody waits.
const IDLE: Duration = Duration::from_secs(60);

/// Watches the keys of one server.
#[derive(Debug)]
pub(super) struct Watcher {
    server: CheckedServer,
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

/// The connection of a watcher, as its waiters know it.
#[derive(Clone, Debug, Default)]
struct Link {
    reads: Arc<Reads>,
    /// A read was not answered in time, or the connection is gone.
    broken: Arc<Latch>,
}

/// Keys to be read on the connection, one for each waiter at most.
#[derive(Debug, Default)]
struct Reads {
    queue: Mutex<VecDeque<Read>>,
    added: Notify,
}

#[derive(Debug)]
struct Read {
    key: Key,
    /// Whether the key is free.
    is_free: oneshot::Sender<bool>,
}

impl Link {
    /// Whether the key is free; `None` if the connection did not answer in time. The server then
    /// reports the next change of the key.
    async fn is_free(&self, key: &Key) -> Option<bool> {
        let (is_free, answer) = oneshot::channel();
        self.reads.queue.lock().push_back(Read { key: key.clone(), is_free });
        self.reads.added.notify_one();
        timeout(CONNECT_DEADLINE, answer).await.ok()?.ok()
    }
}

/// Why there is no link.
enum Failure {
    /// The server, or what stands in front of it, does not do this.
    Refused(Cause),
    Down(Cause),
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self::Down(cause)
    }
}

impl Watcher {
    /// Connects to nothing before somebody waits.
    pub(super) fn new(server: CheckedServer, reconnection: Backoff) -> Self {
        Self {
            server,
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

    async fn connect(&self) -> Result<Connection, Failure> {
        let mut connection = Connection::open(&self.server).await?;
        connection.requests().command(3).arg("CLIENT").arg("TRACKING").arg("ON");
        match connection.reply().await? {
            Frame::Simple(b"OK") => {}
            Frame::Error(error) => return Err(Failure::Refused(Cause(describe(error)))),
            _ => {
                let strange = "its answer to CLIENT TRACKING is not OK";
                return Err(Failure::Refused(Cause(strange.into())));
            }
        }
        Ok(connection)
    }

    /// Wakes the waiters of keys that have changed. A push without keys is about all of them.
    fn hear(&self, push: Frame<'_>) {
        let Frame::Push(push) = push else { return };
        let watched = self.watched.lock();
        match push.exactly() {
            Some([Frame::Bulk(b"invalidate"), Frame::Array(keys)]) => {
                for key in keys {
                    if let Frame::Bulk(key) = key
                        && let Some(changed) = watched.get(key)
                    {
                        changed.notify_one();
                    }
                }
            }
            Some([Frame::Bulk(b"invalidate"), _]) => {
                watched.values().for_each(|changed| changed.notify_one());
            }
            _ => {}
        }
    }

    /// Reads keys and hears of their changes, until the connection is of no use any more.
    async fn serve(&self, mut connection: Connection, link: &Link) {
        let mut in_flight: VecDeque<Read> = VecDeque::new();
        let idle = async {
            loop {
                sleep(IDLE).await;
                if self.watched.lock().is_empty() {
                    return;
                }
            }
        };
        tokio::pin!(idle);
        loop {
            tokio::select! {
                biased;
                () = self.closed.raised() => return,
                () = link.broken.raised() => return,
                () = &mut idle => return,
                () = link.reads.added.notified() => {
                    for read in take(&mut *link.reads.queue.lock()) {
                        connection.requests().command(2).arg("GET").arg(read.key.as_bytes());
                        in_flight.push_back(read);
                    }
                }
                ready = poll_fn(|cx| connection.poll_reply(cx)) => {
                    if ready.is_err() {
                        return;
                    }
                    match connection.take_reply() {
                        push @ Frame::Push(_) => self.hear(push),
                        reply => {
                            let Some(read) = in_flight.pop_front() else { return };
                            // A waiter that is gone does not need the answer.
                            let _gone = read.is_free.send(reply == Frame::Nil);
                        }
                    }
                }
            }
        }
    }

    /// For how long not to connect again.
    fn pause_after(&self, failure: &Failure, failed: u32) -> Duration {
        match failure {
            Failure::Refused(cause) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::info!(
                        node = %self.server.address(), %cause,
                        "server does not support key notifications; falling back to polling"
                    );
                }
                REFUSED_PAUSE
            }
            Failure::Down(cause) => {
                tracing::debug!(node = %self.server.address(), %cause, "keys can't be watched");
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
        let mut has_looked_away = false;
        loop {
            match link.is_free(self.key).await {
                Some(true) if has_looked_away => return,
                Some(true) => {}
                Some(false) => {
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
            let connected = timeout(CONNECT_DEADLINE, watcher.connect()).await;
            let pause = match connected {
                Ok(Ok(connection)) => {
                    let link = Link::default();
                    watcher.link.send_replace(Some(link.clone()));
                    watcher.serve(connection, &link).await;
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

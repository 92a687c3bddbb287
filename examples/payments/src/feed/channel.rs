//! The events of one tenant, gathered into frames. A frame is serialized once for all readers.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use serde::Serialize;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Feed, Request};
use crate::name::Tenant;

/// The shortest time between two frames.
const PERIOD: Duration = Duration::from_millis(200);

/// The requests of one frame. Others are counted as missed.
pub(super) const MAX_REQUESTS: usize = 64;

/// The frames that are kept for a reader whose connection stalls.
pub(super) const KEPT: usize = 16;

pub(super) struct Channel {
    gathered: Mutex<Gathered>,
    changed: Notify,
    frames: broadcast::Sender<Frame>,
}

#[derive(Default)]
struct Gathered {
    /// By number: the answer to a request replaces its arrival.
    requests: BTreeMap<u64, Request>,
    missed: u64,
    /// The events of all frames so far.
    total: u64,
}

#[derive(Clone)]
pub(super) struct Frame {
    pub(super) text: Bytes,
    pub(super) events: u64,
    /// With those of all frames before.
    pub(super) total: u64,
}

/// The channel of a tenant with its task, which ends with the last reader.
pub(super) struct Publisher {
    channel: Arc<Channel>,
    pub(super) task: AbortHandle,
    feed: Feed,
    tenant: Tenant,
}

impl Publisher {
    pub(super) fn start(feed: Feed, tenant: Tenant) -> Self {
        let channel = Arc::new(Channel {
            gathered: Mutex::default(),
            changed: Notify::new(),
            frames: broadcast::channel(KEPT).0,
        });
        let locks_changed = feed.locks_changed();
        let publish = publish(Arc::clone(&channel), feed.clone(), tenant.clone(), locks_changed);
        let task = tokio::spawn(publish).abort_handle();
        Self { channel, task, feed, tenant }
    }

    /// The frames from now on, and the events of all frames before.
    pub(super) fn subscribe(&self) -> (broadcast::Receiver<Frame>, u64) {
        let gathered = self.channel.gathered();
        (self.channel.frames.subscribe(), gathered.total)
    }

    /// The locks as an event.
    pub(super) fn locks(&self) -> String {
        let mut text = String::new();
        event(&mut text, "locks", &self.feed.locks(&self.tenant));
        text
    }

    pub(super) fn request(&self, request: Request) {
        let mut gathered = self.channel.gathered();
        if gathered.requests.len() < MAX_REQUESTS || gathered.requests.contains_key(&request.number)
        {
            gathered.requests.insert(request.number, request);
        } else {
            gathered.missed += 1;
        }
        drop(gathered);
        self.channel.changed.notify_one();
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
        self.feed.forget(&self.tenant);
    }
}

async fn publish(
    channel: Arc<Channel>,
    feed: Feed,
    tenant: Tenant,
    mut locks_changed: watch::Receiver<()>,
) {
    loop {
        tokio::select! {
            () = channel.changed.notified() => {}
            changed = locks_changed.changed() => if changed.is_err() { return },
            // The remaining time of a lock changes without an event.
            () = sleep(PERIOD), if feed.is_locked() => {}
        }
        locks_changed.mark_unchanged();
        channel.send(&feed.locks(&tenant));
        sleep(PERIOD).await;
    }
}

impl Channel {
    fn send(&self, locks: &impl Serialize) {
        let mut gathered = self.gathered();
        let requests = std::mem::take(&mut gathered.requests);
        let missed = std::mem::take(&mut gathered.missed);
        let events = requests.len() as u64 + missed;
        gathered.total += events;
        let mut text = String::new();
        if missed > 0 {
            event(&mut text, "missed", &missed);
        }
        event(&mut text, "locks", locks);
        for request in requests.values() {
            event(&mut text, "request", request);
        }
        let frame = Frame { text: text.into(), events, total: gathered.total };
        // An error means that no reader is left.
        self.frames.send(frame).map(drop).unwrap_or_default();
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn event(text: &mut String, name: &str, data: &impl Serialize) {
    // The events have no map with other keys than strings, so that JSON can represent them.
    if let Ok(json) = serde_json::to_string(data) {
        write!(text, "event: {name}\ndata: {json}\n\n").unwrap_or_default();
    }
}

//! One reader of the events of a tenant: it may be slow, and is told how much it has missed.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};
use tokio::time::timeout;

use super::channel::{Frame, Publisher, event};

/// A comment is sent after this time without a frame, so that proxies keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Ends its publisher when it is the last one that is dropped.
pub(crate) struct Reader {
    first: Option<Bytes>,
    frames: broadcast::Receiver<Frame>,
    /// The events of all frames up to the last one that was received.
    total: u64,
    closed: watch::Receiver<bool>,
    _publisher: Arc<Publisher>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    pub(super) fn new(
        publisher: Arc<Publisher>,
        closed: watch::Receiver<bool>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let (frames, total) = publisher.subscribe();
        let first = Some(publisher.locks().into());
        Self { first, frames, total, closed, _publisher: publisher, _permit: permit }
    }

    /// Waits for the next piece of the stream. `None` ends it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost: the next call returns what this one would have.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if *self.closed.borrow() {
            return None;
        }
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let frame = tokio::select! {
                _ = self.closed.wait_for(|closed| *closed) => return None,
                frame = timeout(KEEP_ALIVE, self.frames.recv()) => frame,
            };
            match frame {
                Err(_) => return Some(Bytes::from_static(b":\n\n")),
                Ok(Ok(frame)) => return Some(self.receive(frame)),
                // The next frame shows how many events were missed.
                Ok(Err(RecvError::Lagged(_))) => {}
                Ok(Err(RecvError::Closed)) => return None,
            }
        }
    }

    fn receive(&mut self, frame: Frame) -> Bytes {
        let missed = frame.total.saturating_sub(self.total + frame.events);
        self.total = frame.total;
        if missed == 0 {
            return frame.text;
        }
        let mut text = String::new();
        event(&mut text, "missed", &missed);
        [text.as_bytes(), &frame.text].concat().into()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance, sleep};

    use super::super::channel::{KEPT, MAX_REQUESTS};
    use super::super::{Answered, Feed, Request};
    use super::*;
    use crate::name::Tenant;

    const SECOND: Duration = Duration::from_secs(1);

    fn arrival(number: u64) -> Request {
        Request { number, tenant: Tenant::default(), key: format!("key-{number}"), answer: None }
    }

    fn count(text: &[u8], what: &str) -> u64 {
        std::str::from_utf8(text).unwrap().matches(what).count() as u64
    }

    fn missed(text: &[u8]) -> u64 {
        let text = std::str::from_utf8(text).unwrap();
        let counts = text.lines().zip(text.lines().skip(1));
        let counts = counts.filter(|(event, _)| *event == "event: missed");
        counts.map(|(_, data)| data.strip_prefix("data: ").unwrap().parse::<u64>().unwrap()).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_gets_few_frames_a_second_that_account_for_each_request() {
        let feed = Feed::new(1);
        let mut reader = feed.subscribe(Tenant::default()).unwrap();
        reader.next().await.unwrap();
        let sending = tokio::spawn({
            let feed = feed.clone();
            async move {
                for number in 0..5000 {
                    feed.request(arrival(number));
                    sleep(Duration::from_millis(1)).await;
                }
            }
        });
        let (started, mut frames, mut requests) = (Instant::now(), 0, 0);
        while requests < 5000 {
            let frame = reader.next().await.unwrap();
            frames += 1;
            assert!(count(&frame, "event: request") <= MAX_REQUESTS as u64);
            requests += count(&frame, "event: request") + missed(&frame);
        }
        sending.await.unwrap();
        let seconds = started.elapsed().as_secs_f64();
        assert!(frames as f64 <= 5.0 * seconds + 2.0, "{frames} frames in {seconds} s");
        assert_eq!(requests, 5000);
    }

    #[tokio::test(start_paused = true)]
    async fn all_readers_of_a_tenant_get_the_same_bytes_in_memory() {
        let feed = Feed::new(2);
        let mut readers = [0, 1].map(|_| feed.subscribe(Tenant::default()).unwrap());
        for reader in &mut readers {
            reader.next().await.unwrap();
        }
        feed.request(arrival(1));
        let [one, two] = &mut readers;
        let (one, two) = (one.next().await.unwrap(), two.next().await.unwrap());
        assert_eq!(one.as_ptr(), two.as_ptr(), "serialized once");
        assert_eq!(count(&one, "key-1"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_replaces_the_arrival_of_its_request_within_a_frame() {
        let feed = Feed::new(1);
        let mut reader = feed.subscribe(Tenant::default()).unwrap();
        reader.next().await.unwrap();
        feed.request(arrival(1));
        let answer = Answered { status: 201, outcome: "charged", retry_after: None, took_ms: 5 };
        feed.request(Request { answer: Some(answer), ..arrival(1) });
        let frame = reader.next().await.unwrap();
        assert_eq!((count(&frame, "event: request"), count(&frame, "charged")), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_is_told_how_much_it_has_missed_and_catches_up() {
        let feed = Feed::new(1);
        let mut reader = feed.subscribe(Tenant::default()).unwrap();
        reader.next().await.unwrap();
        for number in 0..40 {
            feed.request(arrival(number));
            sleep(SECOND).await;
        }
        let frame = reader.next().await.unwrap();
        assert_eq!(missed(&frame), 40 - KEPT as u64);
        assert_eq!((count(&frame, "event: locks"), count(&frame, "key-24")), (1, 1));
        let frame = reader.next().await.unwrap();
        assert_eq!((missed(&frame), count(&frame, "key-25")), (0, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_without_events_is_kept_open_by_comments() {
        let mut reader = Feed::new(1).subscribe(Tenant::default()).unwrap();
        reader.next().await.unwrap();
        let started = Instant::now();
        assert_eq!(&*reader.next().await.unwrap(), b":\n\n");
        assert!(started.elapsed() >= KEEP_ALIVE);
    }

    #[tokio::test(start_paused = true)]
    async fn the_task_of_a_tenant_ends_with_its_last_reader() {
        let feed = Feed::new(3);
        let readers = [0, 1].map(|_| feed.subscribe(Tenant::default()).unwrap());
        let publisher = Arc::downgrade(&readers[0]._publisher);
        let task = readers[0]._publisher.task.clone();
        assert_eq!((publisher.strong_count(), feed.publishers().len()), (2, 1));
        drop(readers);
        advance(SECOND).await;
        assert!(task.is_finished());
        assert!(feed.publishers().is_empty());
        let mut again = feed.subscribe(Tenant::default()).unwrap();
        again.next().await.unwrap();
        feed.request(arrival(1));
        assert_eq!(count(&again.next().await.unwrap(), "key-1"), 1);
    }
}

//! The line in front of each key, within one process.
//!
//! Tasks of one process that want the same key stand in line, first come first served, and only
//! the head talks to the servers. Whoever has the turn keeps it until the release is posted, and
//! with it the attempt of the next in line: a node executes the two in one piece. After a number of
//! such hand-overs in a row the next one leaves others a chance first: for another process there is
//! no other moment at which the key is free.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use twox_hash::XxHash3_64;

use crate::error::NodeReport;
use crate::key::Key;
use crate::posted::{Posted, Wish};

const SHARDS: usize = 32;

/// Turns of one process after which others have a chance, unless they took less than
/// [`SHORTEST_ROW`] together: a chance costs a pause.
const LONGEST_ROW: u32 = 16;

const SHORTEST_ROW: Duration = Duration::from_millis(30);

/// The chance: how long the key is left alone. Who comes later than that after the last turn begins
/// a new row.
const CHANCE: Duration = Duration::from_millis(2);

/// The lines of all keys that somebody in this process wants. `H` is what is known of a holder.
#[derive(Debug)]
pub(crate) struct Queue<H> {
    shards: Box<[Mutex<Shard<H>>]>,
    max_waiters: usize,
}

#[derive(Debug)]
struct Shard<H> {
    lines: HashMap<Key, Line<H>>,
    /// The last turn that nobody waited for.
    last: Option<LastTurn>,
}

#[derive(Debug)]
struct LastTurn {
    key: Key,
    row: Row,
    ended: Instant,
}

#[derive(Debug)]
struct Line<H> {
    /// Who has the turn, once they have the lock.
    held: Option<Arc<H>>,
    /// The answers to the last attempt, if no majority gave one: the servers are away, and the key is
    /// not known to be locked.
    unanswered: Option<Vec<NodeReport>>,
    waiters: VecDeque<Waiter<H>>,
}

#[derive(Debug)]
struct Waiter<H> {
    brief: bool,
    wish: Wish,
    entry: oneshot::Sender<Entry<H>>,
}

/// What standing in line comes to.
#[derive(Debug)]
pub(crate) enum Entry<H> {
    /// Nobody else in this process is about to lock the key.
    Turn(Turn<H>),
    /// Somebody in this process holds it, and the caller does not want to wait for that.
    Held(Arc<H>),
    /// No majority answers the attempts of this process, and the caller does not wait for that.
    Unanswered(Vec<NodeReport>),
    /// Too many stand in line already.
    Full(Option<Arc<H>>),
}

/// Whether there is anything to wait for.
#[derive(Debug)]
pub(crate) enum Entered<H> {
    AtOnce(Entry<H>),
    Place(Place<H>),
}

/// A place in line, to wait in. Dropping it leaves the line; a turn that was on its way passes to
/// the next.
#[derive(Debug)]
pub(crate) struct Place<H>(oneshot::Receiver<Entry<H>>);

impl<H> Future for Place<H> {
    type Output = Entry<H>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Entry<H>> {
        // The sender is in the line until the entry is sent.
        Pin::new(&mut self.0).poll(cx).map(|entry| entry.unwrap_or(Entry::Full(None)))
    }
}

impl<H> Line<H> {
    fn take_brief(&mut self) -> VecDeque<Waiter<H>> {
        if !self.waiters.iter().any(|waiter| waiter.brief) {
            return VecDeque::new();
        }
        let (brief, patient) = self.waiters.drain(..).partition(|waiter| waiter.brief);
        self.waiters = patient;
        brief
    }
}

impl<H> Queue<H> {
    pub(crate) fn new(max_waiters: usize) -> Self {
        let shard = || Mutex::new(Shard { lines: HashMap::new(), last: None });
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), max_waiters }
    }

    /// Stands in line for `key`, to do what `wish` says. A `brief` caller stays only while it is
    /// undecided whether the one whose turn it is gets the lock.
    pub(crate) fn enter(self: &Arc<Self>, key: &Key, wish: &Wish, brief: bool) -> Entered<H> {
        let mut shard = self.shard(key).lock();
        let Shard { lines, last } = &mut *shard;
        match lines.entry(key.clone()) {
            Slot::Vacant(vacant) => {
                vacant.insert(Line { held: None, unanswered: None, waiters: VecDeque::new() });
                // Who does not want to wait does not wait for the chance of others, either.
                let last = last.take_if(|last| last.key == *key && !brief);
                let row = last.map(LastTurn::row_that_goes_on).unwrap_or_default();
                Entered::AtOnce(Entry::Turn(self.turn(key.clone(), row)))
            }
            Slot::Occupied(mut occupied) => {
                let line = occupied.get_mut();
                if brief && let Some(held) = &line.held {
                    return Entered::AtOnce(Entry::Held(Arc::clone(held)));
                }
                if brief && let Some(nodes) = &line.unanswered {
                    return Entered::AtOnce(Entry::Unanswered(nodes.clone()));
                }
                if line.waiters.len() >= self.max_waiters {
                    line.waiters.retain(|waiter| !waiter.entry.is_closed());
                }
                if line.waiters.len() >= self.max_waiters {
                    return Entered::AtOnce(Entry::Full(line.held.clone()));
                }
                let (entry, place) = oneshot::channel();
                line.waiters.push_back(Waiter { brief, wish: wish.clone(), entry });
                Entered::Place(Place(place))
            }
        }
    }

    /// Who in this process holds `key`.
    pub(crate) fn held(&self, key: &Key) -> Option<Arc<H>> {
        self.shard(key).lock().lines.get(key).and_then(|line| line.held.clone())
    }

    /// The answers to the last attempt of this process, if no majority gave one.
    pub(crate) fn unanswered(&self, key: &Key) -> Option<Vec<NodeReport>> {
        self.shard(key).lock().lines.get(key).and_then(|line| line.unanswered.clone())
    }

    fn turn(self: &Arc<Self>, key: Key, row: Row) -> Turn<H> {
        Turn { posted: None, row, place: Some((Arc::clone(self), key)) }
    }

    fn shard(&self, key: &Key) -> &Mutex<Shard<H>> {
        // A caller who finds keys of one shard makes others wait for its lock, and no more: the maps
        // have hashes that nobody knows.
        let hash = XxHash3_64::oneshot(key.as_bytes());
        &self.shards[hash as usize % SHARDS]
    }

    /// Gives the turn to the first in line who is still there, or closes the line.
    fn pass_on(self: &Arc<Self>, key: &Key, row: Row) {
        let mut shard = self.shard(key).lock();
        let Some(line) = shard.lines.get_mut(key) else { return };
        // Dropped after the lock: the last owner of a holder may have work to do.
        let held = line.held.take();
        loop {
            let Some(waiter) = line.waiters.pop_front() else {
                shard.lines.remove(key);
                if held.is_some() {
                    let ended = Instant::now();
                    let (key, row) = (key.clone(), row.with_one_more(ended));
                    shard.last = Some(LastTurn { key, row, ended });
                }
                drop(shard);
                return;
            };
            let turn = self.turn(key.clone(), row);
            match waiter.entry.send(Entry::Turn(turn)) {
                Ok(()) => break,
                Err(Entry::Turn(mut refused)) => drop(refused.place.take()),
                Err(_) => {}
            }
        }
        drop(shard);
    }
}

/// The right to talk to the servers about a key. Dropping it passes it on.
#[derive(Debug)]
pub(crate) struct Turn<H> {
    /// What was posted already for whoever has the turn. Dropped before the turn passes on: what
    /// the next one posts must come behind its release.
    posted: Option<Box<Posted>>,
    row: Row,
    place: Option<(Arc<Queue<H>>, Key)>,
}

/// The next in line, who does not know so far.
#[derive(Debug)]
pub(crate) struct Successor<H>(Waiter<H>);

impl<H> Successor<H> {
    pub(crate) fn wish(&self) -> &Wish {
        &self.0.wish
    }
}

impl LastTurn {
    /// None, if others had a chance since.
    fn row_that_goes_on(self) -> Row {
        if self.ended.elapsed() < CHANCE { self.row } else { Row::default() }
    }
}

/// Turns of this process in a row, in which nobody else had the key.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    turns: u32,
    began: Option<Instant>,
}

impl Row {
    fn is_long(self) -> bool {
        self.turns >= LONGEST_ROW && self.began.is_none_or(|began| began.elapsed() >= SHORTEST_ROW)
    }

    fn with_one_more(self, ended: Instant) -> Self {
        let began = self.began.unwrap_or(ended);
        Self { turns: self.turns.saturating_add(1), began: Some(began) }
    }
}

impl<H> Turn<H> {
    /// Makes known that the key is held now, and sends those away who would not wait for that.
    pub(crate) fn hold(&self, holder: &Arc<H>) {
        let Some((queue, key)) = &self.place else { return };
        let mut sent_away = VecDeque::new();
        {
            let mut shard = queue.shard(key).lock();
            let Some(line) = shard.lines.get_mut(key) else { return };
            line.held = Some(Arc::clone(holder));
            line.unanswered = None;
            sent_away.extend(line.take_brief());
        }
        for waiter in sent_away {
            // Who has left needs no answer.
            let _gone = waiter.entry.send(Entry::Held(Arc::clone(holder)));
        }
    }

    /// What was posted for whoever has the turn, by who had it before.
    pub(crate) fn take_posted(&mut self) -> Option<Posted> {
        self.posted.take().map(|posted| *posted)
    }

    /// For how long others should have a chance before the servers are asked. That ends the row.
    pub(crate) fn chance_for_others(&mut self) -> Option<Duration> {
        let is_long = self.row.is_long();
        is_long.then(|| {
            self.row = Row::default();
            CHANCE
        })
    }

    /// The attempt failed: somebody else may have the key, and that ends the row. Without a majority
    /// that answers, `unanswered` is the answer to brief callers, and to those whose time runs out.
    pub(crate) fn failed(&mut self, unanswered: Option<&[NodeReport]>) {
        self.row = Row::default();
        let Some((queue, key)) = &self.place else { return };
        let sent_away = {
            let mut shard = queue.shard(key).lock();
            let Some(line) = shard.lines.get_mut(key) else { return };
            line.unanswered = unanswered.map(<[_]>::to_vec);
            if unanswered.is_some() { line.take_brief() } else { VecDeque::new() }
        };
        for waiter in sent_away {
            let nodes = unanswered.unwrap_or_default().to_vec();
            let _gone = waiter.entry.send(Entry::Unanswered(nodes));
        }
    }

    /// The next in line, to [`hand_over`](Self::hand_over) to; `None` if nobody is there, or if it
    /// is time for others to have a chance.
    pub(crate) fn successor(&self) -> Option<Successor<H>> {
        let (queue, key) = self.place.as_ref().filter(|_| !self.row.is_long())?;
        let mut shard = queue.shard(key).lock();
        let waiters = &mut shard.lines.get_mut(key)?.waiters;
        while let Some(waiter) = waiters.pop_front() {
            if !waiter.entry.is_closed() {
                return Some(Successor(waiter));
            }
        }
        None
    }

    /// Passes the turn to `successor`, with what was posted for them. If they have left it passes
    /// on from there.
    pub(crate) fn hand_over(mut self, successor: Successor<H>, posted: Option<Posted>) {
        let Some((queue, key)) = self.place.take() else { return };
        let mut shard = queue.shard(&key).lock();
        let held = shard.lines.get_mut(&key).and_then(|line| line.held.take());
        drop(shard);
        let row = match posted {
            Some(_) => self.row.with_one_more(Instant::now()),
            None => self.row,
        };
        let turn = Self { posted: posted.map(Box::new), row, place: Some((queue, key)) };
        drop(successor.0.entry.send(Entry::Turn(turn)));
        drop(held);
    }
}

impl<H> Drop for Turn<H> {
    fn drop(&mut self) {
        drop(self.posted.take());
        if let Some((queue, key)) = self.place.take() {
            queue.pass_on(&key, self.row);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use super::*;

    fn wish() -> Wish {
        Wish { ttl: Duration::from_secs(1), label: "me".into(), attempts: Arc::default() }
    }

    fn key() -> Key {
        Key::new("k").unwrap()
    }

    fn now<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    async fn enter(queue: &Arc<Queue<()>>, key: &Key) -> Entry<()> {
        match queue.enter(key, &wish(), false) {
            Entered::AtOnce(entry) => entry,
            Entered::Place(place) => place.await,
        }
    }

    fn turn(entry: Option<Entry<()>>) -> Turn<()> {
        match entry {
            Some(Entry::Turn(turn)) => turn,
            other => panic!("no turn: {other:?}"),
        }
    }

    #[tokio::test]
    async fn turns_are_taken_in_the_order_of_arrival() {
        let (queue, key) = (Arc::new(Queue::new(8)), key());
        let first = turn(now(enter(&queue, &key)));
        let (mut second, mut third) =
            (Box::pin(enter(&queue, &key)), Box::pin(enter(&queue, &key)));
        assert!(now(second.as_mut()).is_none());
        assert!(now(third.as_mut()).is_none());
        drop(first);
        assert!(now(third.as_mut()).is_none());
        drop(turn(now(second.as_mut())));
        drop(turn(now(third.as_mut())));
        assert!(queue.shards.iter().all(|shard| shard.lock().lines.is_empty()));
    }

    /// Takes the key `turns` times, for 3 ms each. Says before which of them others had a chance.
    async fn chances(turns: usize, brief: bool, between: Duration) -> Vec<usize> {
        let (queue, key, mut chances) = (Arc::new(Queue::new(8)), key(), Vec::new());
        for i in 0..turns {
            let Entered::AtOnce(entry) = queue.enter(&key, &wish(), brief) else { unreachable!() };
            let mut turn = turn(Some(entry));
            chances.extend(turn.chance_for_others().map(|_| i));
            turn.hold(&Arc::new(()));
            tokio::time::sleep(Duration::from_millis(3)).await;
            drop(turn);
            tokio::time::sleep(between).await;
        }
        chances
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_the_key_again_and_again_leaves_others_a_chance() {
        assert_eq!(chances(40, false, Duration::ZERO).await, [16, 32]);
        assert!(chances(40, false, CHANCE).await.is_empty());
        assert!(chances(40, true, Duration::ZERO).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_ends_when_somebody_else_has_the_key() {
        let (queue, key) = (Arc::new(Queue::new(8)), key());
        for i in 0..40 {
            let mut turn = turn(now(enter(&queue, &key)));
            assert_eq!(turn.chance_for_others(), None);
            if i % 10 == 0 {
                turn.failed(None);
            }
            turn.hold(&Arc::new(()));
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    }

    #[tokio::test]
    async fn a_turn_that_nobody_is_there_to_take_passes_to_the_next() {
        let (queue, key) = (Arc::new(Queue::new(8)), key());
        let first = turn(now(enter(&queue, &key)));
        let mut left_before = Box::pin(enter(&queue, &key));
        let mut left_after = Box::pin(enter(&queue, &key));
        let mut stays = Box::pin(enter(&queue, &key));
        for waiting in [&mut left_before, &mut left_after, &mut stays] {
            assert!(now(waiting.as_mut()).is_none());
        }
        drop(left_before);
        drop(first);
        drop(left_after);
        drop(turn(now(stays.as_mut())));
        assert!(queue.shards.iter().all(|shard| shard.lock().lines.is_empty()));
    }

    #[tokio::test]
    async fn the_line_is_bounded_and_those_who_left_do_not_count() {
        let (queue, key) = (Arc::new(Queue::new(2)), key());
        let _first = turn(now(enter(&queue, &key)));
        let mut second = Box::pin(enter(&queue, &key));
        let mut third = Box::pin(enter(&queue, &key));
        assert!(now(second.as_mut()).is_none());
        assert!(now(third.as_mut()).is_none());
        assert!(matches!(now(enter(&queue, &key)), Some(Entry::Full(None))));
        drop(third);
        assert!(now(enter(&queue, &key)).is_none());
    }
}

//! A lane: one connection's worth of commands, first in, first out.
//!
//! The lane's task drains its mailbox, checks one connection out and sends what has gathered as
//! one pipeline. A key always rides the same lane, so a release can't overtake the command that
//! it undoes.

use std::collections::VecDeque;
use std::iter::once;
use std::sync::Arc;
use std::time::Duration;

use bb8_redis::bb8::{Pool, PooledConnection};
use bb8_redis::redis::{Pipeline, RedisError, RedisResult};
use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Command;
use super::batch::{Again, Batch};
use super::connection::{CONNECT_DEADLINE, Causes, Connection, ConnectionId, Dialect, Manager};
use super::guarded::Guarding;
use super::mailbox::{Debt, Mailbox, Reopened};
use super::wire::{self, Reply, ScriptBy, classify_each, encode_releases};
use crate::config::Backoff;
use crate::latch::Latch;
use crate::observe::node_error;
use crate::panic::caught;
use crate::protocol::quorum::NodeAnswer;

/// Commands in one pipeline; more would only delay the answer to the first.
const MAX_BATCH: usize = 512;

/// Turns of the scheduler to wait for more commands. With 64 tasks two give more cycles per second
/// than one, and more than two give no more; a task alone does not feel them.
const TURNS_TO_GATHER: usize = 2;

/// Batches on the way at once, where the network is slow.
const MAX_WINDOW: u128 = 8;

/// A round trip has room for another batch each time that it is longer by this. More and smaller
/// batches made locks slower at a millisecond's distance, as they cost more CPU; where the server
/// answers sooner than this, a second batch would not have gathered before the first is back.
const ROOM_FOR_A_BATCH: Duration = Duration::from_micros(350);

/// Time between a missed deadline and giving up on the connection.
const LAST_CALL: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) mailbox: Mailbox,
    pub(super) pool: Pool<Manager>,
    pub(super) causes: Causes,
    pub(super) address: Arc<str>,
    /// For a batch: checkout, send and reply together.
    pub(super) deadline: Duration,
    pub(super) reconnection: Backoff,
}

/// Why a lane has no connection any more.
#[derive(Debug)]
enum Failure {
    /// Could not connect, or the server is not fit to vote.
    Down(Arc<str>),
    /// No answer in time.
    Hung,
    /// The connection broke, as it does when a server restarts: connecting again may just work.
    Cut(Arc<str>),
}

impl Failure {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Down(_) => "down",
            Self::Hung => "silent",
            Self::Cut(_) => "cut",
        }
    }
}

impl Lane {
    pub(super) fn post<const N: usize>(self: &Arc<Self>, commands: [Command; N]) {
        if self.mailbox.push(commands) {
            self.start();
        }
    }

    /// Starts the lane's task on the runtime of whoever posts; a lane whose runtime has ended is
    /// started again on the next. Without any runtime the commands wait for one, which only
    /// releases of dropped guards do.
    fn start(self: &Arc<Self>) {
        if let Ok(runtime) = Handle::try_current()
            && self.mailbox.drive()
        {
            runtime.spawn(Driver { lane: Arc::clone(self), suspects: Vec::new() }.run());
        }
    }
}

/// The lane's task.
struct Driver {
    lane: Arc<Lane>,
    /// Connections that were given up and may still execute what they were sent.
    suspects: Vec<ConnectionId>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.lane.mailbox.abandon();
    }
}

impl Driver {
    /// Ends when the lane is closed. A panic is a failure of the server like any other: its message
    /// is the cause, and the lane connects again.
    async fn run(mut self) {
        let lane = Arc::clone(&self.lane);
        let mut failed = 0;
        while let Err(panicked) = caught("the connection task", self.drive(failed)).await {
            // Not logged: the log may be what panicked, and the hook for panics has told of it.
            lane.mailbox.trip(&panicked);
            failed = failed.saturating_add(1);
            if !lane.pause(lane.reconnection.delay(failed)).await {
                return;
            }
        }
    }

    async fn drive(&mut self, mut failed: u32) {
        let lane = Arc::clone(&self.lane);
        let mut pace = Pace::default();
        let mut idle: Option<Arc<Latch>> = None;
        loop {
            if failed == 0 && !lane.wait_for_work(idle.take()).await {
                return;
            }
            let served = match lane.check_out().await {
                Ok(connection) => self.serve(&connection, &mut pace).await.map(|()| {
                    idle = Some(Arc::clone(connection.broken()));
                }),
                Err(failure) => Err(failure),
            };
            if let Err(failure) = &served {
                node_error(&lane.address, failure.kind());
            }
            let cause = match served {
                Ok(()) => {
                    failed = 0;
                    continue;
                }
                Err(Failure::Cut(_)) if failed == 0 => {
                    failed = 1;
                    continue;
                }
                Err(Failure::Cut(cause) | Failure::Down(cause)) => cause,
                Err(Failure::Hung) => format!("no answer within {:?}", lane.deadline).into(),
            };
            lane.trip(&cause);
            failed = failed.saturating_add(1);
            let pause = lane.reconnection.delay(failed.saturating_sub(2));
            if !lane.pause(pause).await {
                return;
            }
        }
    }

    /// Sends batches until nothing is left to send; the connection then goes back to the pool.
    async fn serve(&mut self, connection: &Connection, pace: &mut Pace) -> Result<(), Failure> {
        let serving = async {
            self.settle(connection).await?;
            exchange(&self.lane, connection, pace).await
        };
        let served = caught("the connection task", serving).await;
        let served = served.unwrap_or_else(|panicked| Err(Failure::Down(panicked)));
        if served.is_err() {
            connection.broken().raise();
            self.suspects.extend(connection.id().cloned());
        }
        served
    }

    /// Makes sure that earlier connections can't add to what they left behind, then deletes it
    /// (H11), then lets commands in again.
    async fn settle(&mut self, connection: &Connection) -> Result<(), Failure> {
        let lane = &self.lane;
        if !self.suspects.is_empty() {
            let silenced = timeout(lane.deadline, connection.silence(&self.suspects)).await;
            silenced.map_err(|_| Failure::Hung)?.map_err(|cause| Failure::Cut(cause.0))?;
            self.suspects.clear();
        }
        loop {
            let debts = match lane.mailbox.reopen(MAX_BATCH) {
                Reopened::Owing(debts) => debts,
                Reopened::Open { was_down } => {
                    if was_down {
                        tracing::info!(node = %lane.address, "node votes again");
                    }
                    return Ok(());
                }
            };
            let paid = timeout(lane.deadline, pay(connection, &debts)).await;
            paid.map_err(|_| Failure::Hung)?.map_err(|error| Failure::Cut(cause_of(&error)))?;
            lane.mailbox.paid(debts.len());
        }
    }
}

async fn pay(connection: &Connection, debts: &[Debt]) -> RedisResult<()> {
    match connection.dialect() {
        Dialect::Guarded(guarding) => pay_guarded(connection, guarding, debts).await,
        Dialect::Plain { .. } => pay_plain(connection, debts).await,
    }
}

async fn pay_guarded(
    connection: &Connection,
    guarding: &Guarding,
    debts: &[Debt],
) -> RedisResult<()> {
    for by in [ScriptBy::Hash, ScriptBy::Source] {
        let mut pipeline = Pipeline::new();
        guarding.encode_debts(&mut pipeline, debts, by);
        let replies = connection.send(pipeline, 1).await?;
        if !replies.into_iter().any(|reply| wire::classify_whole(reply) == Reply::Again) {
            break;
        }
    }
    Ok(())
}

async fn pay_plain(connection: &Connection, debts: &[Debt]) -> RedisResult<()> {
    let held = debts.iter().map(|debt| (&debt.key, debt.token.as_str()));
    let mut together = Pipeline::new();
    encode_releases(&mut together, held.clone(), ScriptBy::Hash);
    let replies = connection.send(together, 1).await?;
    let again = replies.into_iter().flat_map(|reply| classify_each(reply, debts.len()));
    if again.into_iter().any(|reply| reply == Reply::Again) {
        let mut singly = Pipeline::with_capacity(debts.len());
        for one in held {
            encode_releases(&mut singly, once(one), ScriptBy::Source);
        }
        connection.send(singly, debts.len()).await?;
    }
    Ok(())
}

async fn exchange(lane: &Lane, connection: &Connection, pace: &mut Pace) -> Result<(), Failure> {
    let mut in_flight: VecDeque<Batch<'_>> = VecDeque::new();
    let mut again = Again::new(&lane.mailbox);
    let overdue = sleep(lane.deadline);
    tokio::pin!(overdue);
    let mut last_call = false;
    let failure = loop {
        // Those who were just answered may have more to send: let them, it makes for fewer and
        // larger batches.
        for _ in 0..TURNS_TO_GATHER {
            yield_now().await;
        }
        while in_flight.len() < pace.window() && again.is_empty() {
            let commands = lane.mailbox.take(MAX_BATCH);
            if commands.is_empty() {
                break;
            }
            in_flight
                .push_back(Batch::send(&lane.mailbox, connection, commands, ScriptBy::Hash).await);
        }
        if in_flight.is_empty() && !again.is_empty() {
            let commands = again.take();
            in_flight.push_back(
                Batch::send(&lane.mailbox, connection, commands, ScriptBy::Source).await,
            );
        }
        let window_open = in_flight.len() < pace.window() && again.is_empty();
        let Some(first) = in_flight.front_mut() else { return Ok(()) };
        let due = first.sent + lane.deadline;
        tokio::select! {
            biased;
            replies = &mut first.replies => match replies {
                Ok(replies) => {
                    last_call = false;
                    pace.observe(first.sent.elapsed());
                    let counted = first.count(replies, &mut again);
                    in_flight.pop_front();
                    if let Err(cause) = counted {
                        break Failure::Down(cause);
                    }
                }
                Err(error) => break Failure::Cut(cause_of(&error)),
            },
            () = lane.mailbox.mail(), if window_open => {}
            () = &mut overdue => {
                let now = Instant::now();
                if now < due {
                    overdue.as_mut().reset(due);
                } else if std::mem::replace(&mut last_call, true) {
                    break Failure::Hung;
                } else {
                    // If it was this process that stood still, the answer is here already and
                    // the connection only has to be given a chance to read it.
                    overdue.as_mut().reset(now + LAST_CALL);
                }
            }
        }
    };
    for batch in &mut in_flight {
        batch.fate = match &failure {
            Failure::Hung => NodeAnswer::TimedOut,
            Failure::Down(cause) | Failure::Cut(cause) => NodeAnswer::Failed(Arc::clone(cause)),
        };
    }
    Err(failure)
}

fn cause_of(error: &RedisError) -> Arc<str> {
    error.to_string().into()
}

impl Lane {
    /// Waits for a command, or for the idle connection to break, so that it is replaced before
    /// the next command comes. `false`: the lane is closed and has sent everything.
    async fn wait_for_work(&self, idle: Option<Arc<Latch>>) -> bool {
        loop {
            if !self.mailbox.is_empty() {
                return true;
            }
            if self.mailbox.is_closed() {
                return false;
            }
            match &idle {
                Some(broken) => tokio::select! {
                    () = self.mailbox.mail() => {}
                    () = broken.raised() => return true,
                },
                None => self.mailbox.mail().await,
            }
        }
    }

    fn trip(&self, cause: &Arc<str>) {
        if self.mailbox.trip(cause) {
            tracing::warn!(node = %self.address, %cause, "node does not vote");
        }
    }

    /// Waits before connecting again; `false` if the lane is closed.
    async fn pause(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        loop {
            if self.mailbox.is_closed() {
                return false;
            }
            tokio::select! {
                () = sleep_until(end) => return true,
                () = self.mailbox.mail() => {}
            }
        }
    }

    /// Takes a working connection from the pool, or lets the pool make one. Commands wait for
    /// that no longer than their deadline; connecting goes on.
    async fn check_out(&self) -> Result<PooledConnection<'_, Manager>, Failure> {
        while let Some(Ok(connection)) = self.pool.get().now_or_never() {
            if !connection.broken().is_raised() {
                return Ok(connection);
            }
        }
        let mut causes = self.causes.subscribe();
        let mut patience = Some(Box::pin(sleep(self.deadline)));
        loop {
            let patient = patience.is_some();
            tokio::select! {
                biased;
                connection = self.pool.get() => match connection {
                    Ok(connection) if connection.broken().is_raised() => {}
                    Ok(connection) => return Ok(connection),
                    // The pool waited for longer than connecting may take, and knows no cause.
                    Err(_) => {
                        let cause = causes.borrow().clone().map(|cause| cause.0);
                        let unknown = || format!("no connection within {CONNECT_DEADLINE:?}").into();
                        return Err(Failure::Down(cause.unwrap_or_else(unknown)));
                    }
                },
                _ = causes.changed() => {
                    let cause = causes.borrow_and_update().clone();
                    let cause = cause.map_or_else(|| Arc::from("unknown"), |cause| cause.0);
                    return Err(Failure::Down(cause));
                }
                () = async { if let Some(patience) = &mut patience { patience.await } }, if patient => {
                    patience = None;
                    self.trip(&format!("not connected within {:?}", self.deadline).into());
                }
            }
        }
    }
}

/// How many batches may be on the way, by the shortest round trip of late.
#[derive(Debug, Default)]
struct Pace {
    shortest: Duration,
    shortest_of_these: Duration,
    seen: u32,
}

impl Pace {
    const SAMPLES: u32 = 64;

    fn observe(&mut self, round_trip: Duration) {
        if self.seen == 0 || round_trip < self.shortest_of_these {
            self.shortest_of_these = round_trip;
        }
        self.seen += 1;
        if self.seen == Self::SAMPLES || self.shortest_of_these < self.shortest {
            self.shortest = self.shortest_of_these;
        }
        if self.seen == Self::SAMPLES {
            self.seen = 0;
        }
    }

    fn window(&self) -> usize {
        let room = self.shortest.as_micros() / ROOM_FOR_A_BATCH.as_micros();
        room.clamp(1, MAX_WINDOW) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_opens_with_the_distance_and_closes_on_a_fast_network() {
        let window_at = |micros| {
            let mut pace = Pace::default();
            (0..Pace::SAMPLES).for_each(|_| pace.observe(Duration::from_micros(micros)));
            pace
        };
        assert_eq!(Pace::default().window(), 1);
        let windows = [0, 80, 500, 1_150, 2_000, 50_000].map(|micros| window_at(micros).window());
        assert_eq!(windows, [1, 1, 1, 3, 5, 8]);
        let mut pace = window_at(2_000);
        pace.observe(Duration::from_micros(80));
        assert_eq!(pace.window(), 1);
    }
}

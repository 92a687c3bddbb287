//! The simulated server: its data, its clock, and its faults.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::mutant::Mutant;
use crate::key::Key;
use crate::node::Op;
use crate::node::dataset::{Asked, Dataset, Introduction};
use crate::protocol::quorum::{NodeAnswer, Vote};
use crate::token::Token;

/// The longest way: no test lives to see its end, and no sum with it overflows.
const NEVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// What the wall clocks show when a cluster begins: some time in 2025.
pub(crate) const FIRST_MICROS: u64 = 1_764_000_000_000_000;

/// One server of a simulated cluster.
#[derive(Debug)]
pub(crate) struct Server {
    address: String,
    began: Instant,
    state: Mutex<State>,
    /// Something has changed that a command on its way may wait for.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    dataset: Dataset,
    faults: Faults,
    /// How far its wall clock was set ahead.
    ahead_micros: i64,
    /// By how many millionths its clock runs too fast.
    rate_ppm: i64,
    /// How often all connections were cut.
    cuts: u64,
    on_the_way: usize,
    provisioned: bool,
}

#[derive(Debug, Default)]
struct Faults {
    paused: bool,
    delay: Duration,
    lose_requests: bool,
    lose_replies: bool,
    /// What the next command is held up for.
    late: Option<Duration>,
    /// What was sent up to then is held up no more.
    healed: Option<Instant>,
}

/// Something on its way to the server.
#[derive(Debug)]
pub(super) struct Parcel {
    server: Arc<Server>,
    cuts: u64,
    sent: Instant,
    /// What the client's clock showed, which is right.
    said: u64,
    due: Instant,
    lost: bool,
    content: Content,
}

/// What can be sent to a server.
#[derive(Debug)]
pub(super) enum Content {
    /// The greeting of a new connection.
    Hello,
    Commands(Vec<Asked>),
}

/// What comes of a parcel.
#[derive(Debug)]
pub(super) enum Arrival {
    /// It was executed: the answer, and how long that is on the way.
    Executed(Vec<Vote>, Duration),
    /// There will be no answer. The command may have been executed.
    Lost,
    /// The connection was cut before it arrived.
    Cut,
}

impl Drop for Parcel {
    fn drop(&mut self) {
        self.server.state.lock().on_the_way -= 1;
    }
}

impl Server {
    pub(crate) fn new(address: String, began: Instant) -> Self {
        Self { address, began, state: Mutex::default(), changed: Notify::new() }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Begins its record, unless it was done before.
    pub(crate) fn provision_once(&self, introduction: Option<&Introduction>) {
        let mut state = self.state.lock();
        if let Some(introduction) = introduction
            && !std::mem::replace(&mut state.provisioned, true)
        {
            state.dataset.provision(introduction, false);
        }
    }

    /// Who holds which key, by the label of the holder.
    pub(crate) fn holders(&self) -> Vec<(Key, Token)> {
        let state = self.state.lock();
        let holders = state.dataset.holders(state.micros(self.began));
        let mut holders: Vec<_> =
            holders.map(|(key, token)| (key.clone(), token.clone())).collect();
        holders.sort_unstable_by(|one, other| one.0.cmp(&other.0));
        holders
    }

    pub(crate) fn on_the_way(&self) -> usize {
        self.state.lock().on_the_way
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.change(|state| state.faults.paused = paused);
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        self.change(|state| state.faults.delay = delay);
    }

    pub(crate) fn set_lose_requests(&self, lose: bool) {
        self.change(|state| state.faults.lose_requests = lose);
    }

    pub(crate) fn set_lose_replies(&self, lose: bool) {
        self.change(|state| state.faults.lose_replies = lose);
    }

    pub(crate) fn set_late(&self, late: Duration) {
        self.change(|state| state.faults.late = Some(late));
    }

    pub(crate) fn set_rate(&self, ppm: i64) {
        self.change(|state| state.rate_ppm = ppm);
    }

    pub(crate) fn step_clock(&self, micros: i64) {
        self.change(|state| state.ahead_micros = state.ahead_micros.saturating_add(micros));
    }

    pub(crate) fn cut(&self) {
        self.change(|state| state.cuts += 1);
    }

    pub(crate) fn flush(&self) {
        self.change(|state| state.dataset.flush());
    }

    pub(crate) fn restart(&self, keep_data: bool) {
        self.change(|state| {
            state.cuts += 1;
            state.dataset.restart();
            if !keep_data {
                state.dataset.flush();
            }
        });
    }

    pub(crate) fn heal(&self) {
        let healed = Some(Instant::now());
        self.change(|state| state.faults = Faults { healed, ..Faults::default() });
    }

    /// How often its connections were cut so far: a new one lives until that changes.
    pub(super) fn cuts(&self) -> u64 {
        self.state.lock().cuts
    }

    /// Waits until the connections that were there at `cuts` are gone.
    pub(super) async fn cut_after(&self, cuts: u64) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.cuts() != cuts {
                return;
            }
            changed.await;
        }
    }

    /// Sends something off on a connection that was there at `cuts`.
    pub(super) fn send(self: &Arc<Self>, content: Content, cuts: u64) -> Parcel {
        let mut state = self.state.lock();
        let sent = Instant::now();
        let late = match content {
            Content::Hello => None,
            Content::Commands(_) => state.faults.late.take(),
        };
        state.on_the_way += 1;
        Parcel {
            server: Arc::clone(self),
            cuts,
            sent,
            said: right_micros(self.began),
            due: sent + state.faults.delay.saturating_add(late.unwrap_or_default()).min(NEVER),
            lost: state.faults.lose_requests,
            content,
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_waiters();
    }
}

impl State {
    fn micros(&self, began: Instant) -> u64 {
        let elapsed = elapsed_micros(began);
        let fast = elapsed.saturating_mul(self.rate_ppm) / 1_000_000;
        let shown = elapsed.saturating_add(fast).saturating_add(self.ahead_micros);
        FIRST_MICROS.saturating_add_signed(shown)
    }
}

fn elapsed_micros(began: Instant) -> i64 {
    i64::try_from(began.elapsed().as_micros()).unwrap_or(i64::MAX)
}

/// What a clock shows that was never set and runs at the right rate.
fn right_micros(began: Instant) -> u64 {
    FIRST_MICROS.saturating_add_signed(elapsed_micros(began))
}

/// What a parcel that has not arrived waits for.
enum Obstacle {
    Distance(Instant),
    /// The server stands still.
    Pause,
}

impl Parcel {
    /// Ends when the server has executed it, or never will.
    pub(super) async fn arrive(
        self,
        introduction: Option<&Introduction>,
        mutant: Option<Mutant>,
    ) -> Arrival {
        loop {
            let changed = self.server.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.try_to_arrive(introduction, mutant) {
                Ok(arrival) => return arrival,
                Err(Obstacle::Pause) => changed.await,
                Err(Obstacle::Distance(due)) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = sleep_until(due) => {}
                },
            }
        }
    }

    fn try_to_arrive(
        &self,
        introduction: Option<&Introduction>,
        mutant: Option<Mutant>,
    ) -> Result<Arrival, Obstacle> {
        let mut state = self.server.state.lock();
        let state = &mut *state;
        if state.cuts != self.cuts {
            return Ok(Arrival::Cut);
        }
        if self.lost {
            return Ok(Arrival::Lost);
        }
        let held_up = state.faults.healed.is_none_or(|healed| self.sent > healed);
        if held_up && Instant::now() < self.due {
            return Err(Obstacle::Distance(self.due));
        }
        if state.faults.paused {
            return Err(Obstacle::Pause);
        }
        let micros = state.micros(self.server.began);
        let dataset = &mut state.dataset;
        let votes = match &self.content {
            Content::Hello => Vec::new(),
            Content::Commands(batch) => {
                let mut votes = dataset.run(introduction, self.said, micros, batch);
                match mutant {
                    Some(Mutant::ExtendRecreates) => {
                        recreate(dataset, introduction, micros, batch, &mut votes);
                    }
                    Some(Mutant::ConfirmByAnybody) => confirm(dataset, batch, &mut votes),
                    _ => {}
                }
                votes
            }
        };
        if state.faults.lose_replies {
            return Ok(Arrival::Lost);
        }
        Ok(Arrival::Executed(votes, state.faults.delay))
    }
}

fn confirm(dataset: &mut Dataset, batch: &[Asked], votes: &mut [Vote]) {
    for (asked, vote) in batch.iter().zip(votes) {
        if let Op::Confirm { fence } = asked.op
            && matches!(vote.answer, NodeAnswer::Held { .. } | NodeAnswer::NotHeld)
        {
            *vote = dataset.take_token(&asked.key, fence);
        }
    }
}

fn recreate(
    dataset: &mut Dataset,
    introduction: Option<&Introduction>,
    micros: u64,
    batch: &[Asked],
    votes: &mut [Vote],
) {
    for (Asked { op, key, token }, vote) in batch.iter().zip(votes) {
        if let Op::Extend { ttl } = *op
            && vote.answer == NodeAnswer::NotHeld
        {
            let op = Op::Acquire { ttl, proposal: 0 };
            let again = Asked { op, key: key.clone(), token: token.clone() };
            if let Some(set) = dataset.run(introduction, micros, micros, &[again]).pop() {
                *vote = set.answer.into();
            }
        }
    }
}

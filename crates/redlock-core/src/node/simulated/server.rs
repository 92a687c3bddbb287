//! The simulated server: its data, its clock, and its faults.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::mutant::Mutant;
use crate::key::Key;
use crate::node::Op;
use crate::node::dataset::{Asked, Dataset, Introduction};
use crate::node::link::ConnectionId;
use crate::node::wire::{Reply, ScriptBy};
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
    /// How often the server was started again.
    restarts: u64,
    /// How many connections it ever had.
    connections: i64,
    /// Connections that were closed by `CLIENT KILL`.
    killed: HashSet<i64>,
    /// The user may not ask for the number of a connection, nor close one.
    forbids_kill: bool,
    /// Scripts that it was sent and has lost: the one that looks at the record, and the other.
    forgot_scripts: [bool; 2],
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
    /// So many calls arrive, then their connection breaks.
    torn_after: Option<usize>,
    /// What was sent up to then is held up no more.
    healed: Option<Instant>,
}

/// One end of a connection, as the server knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Accepted {
    number: i64,
    /// How often all connections had been cut when it began.
    cuts: u64,
}

/// Something on its way to the server.
#[derive(Debug)]
pub(super) struct Parcel {
    server: Arc<Server>,
    connection: Accepted,
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
    /// Looks for the record of the server, or begins it.
    Provision { dry: bool },
    /// A script that looks at the record first.
    Guarded(Vec<Asked>, ScriptBy),
    /// A script that does not.
    Script(Vec<Asked>, ScriptBy),
    /// Commands without a script.
    Plain(Vec<Asked>),
    /// Closes another connection.
    Kill(i64),
}

/// What comes of a parcel.
#[derive(Debug)]
pub(super) enum Arrival {
    /// It was executed: the replies, and how long they are on the way.
    Executed(Vec<Reply>, Duration),
    /// It was lost on its way, and so is all that follows it on the connection.
    Lost,
    /// It was executed, and the reply was lost, with all that follow it on the connection.
    Unanswered,
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

    pub(crate) fn cut_all(&self) {
        self.change(|state| state.cuts += 1);
    }

    pub(crate) fn flush(&self) {
        self.change(|state| state.dataset.flush());
    }

    pub(crate) fn restart(&self, keep_data: bool) {
        self.change(|state| {
            state.cuts += 1;
            state.restarts += 1;
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

    pub(crate) fn forbid_kill(&self) {
        self.change(|state| state.forbids_kill = true);
    }

    pub(crate) fn forget_scripts(&self) {
        self.change(|state| state.forgot_scripts = [true; 2]);
    }

    pub(crate) fn tear_after(&self, calls: usize) {
        self.change(|state| state.faults.torn_after = Some(calls));
    }

    /// Accepts a connection.
    pub(super) fn accept(&self) -> Accepted {
        let mut state = self.state.lock();
        state.connections += 1;
        Accepted { number: state.connections, cuts: state.cuts }
    }

    /// What the server answers to `CLIENT ID`.
    pub(super) fn id_of(&self, connection: Accepted) -> Option<ConnectionId> {
        let state = self.state.lock();
        let run_id = || format!("{}-{}", self.address, state.restarts).into();
        (!state.forbids_kill)
            .then(|| ConnectionId { run_id: run_id(), client_id: connection.number })
    }

    /// Waits until the connection is gone.
    pub(super) async fn cut(self: &Arc<Self>, connection: Accepted) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.state.lock().has_cut(connection) {
                return;
            }
            changed.await;
        }
    }

    /// Sends something off on a connection.
    pub(super) fn send(self: &Arc<Self>, content: Content, connection: Accepted) -> Parcel {
        let mut state = self.state.lock();
        let sent = Instant::now();
        let late = match content {
            Content::Hello | Content::Kill(_) => None,
            _ => state.faults.late.take(),
        };
        state.on_the_way += 1;
        Parcel {
            server: Arc::clone(self),
            connection,
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
    fn has_cut(&self, connection: Accepted) -> bool {
        self.cuts != connection.cuts || self.killed.contains(&connection.number)
    }

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
        if state.has_cut(self.connection) {
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
        if let Some(left) = &mut state.faults.torn_after {
            match left.checked_sub(1) {
                Some(fewer) => *left = fewer,
                None => {
                    state.faults.torn_after = None;
                    state.killed.insert(self.connection.number);
                    return Ok(Arrival::Cut);
                }
            }
        }
        let replies = self.execute(state, introduction, mutant);
        if state.faults.lose_replies {
            return Ok(Arrival::Unanswered);
        }
        Ok(Arrival::Executed(replies, state.faults.delay))
    }

    fn execute(
        &self,
        state: &mut State,
        introduction: Option<&Introduction>,
        mutant: Option<Mutant>,
    ) -> Vec<Reply> {
        let micros = state.micros(self.server.began);
        if let Content::Guarded(call, by) | Content::Script(call, by) = &self.content {
            let is_guarded = matches!(self.content, Content::Guarded(..));
            let forgot = &mut state.forgot_scripts[usize::from(is_guarded)];
            match by {
                ScriptBy::Hash if *forgot => return vec![Reply::Again; call.len()],
                ScriptBy::Hash => {}
                ScriptBy::Source => *forgot = false,
            }
        }
        let dataset = &mut state.dataset;
        let votes = match (&self.content, introduction) {
            (Content::Hello, _) => Vec::new(),
            (Content::Kill(number), _) => {
                state.killed.insert(*number);
                self.server.changed.notify_waiters();
                Vec::new()
            }
            (Content::Provision { dry }, Some(introduction)) => {
                vec![dataset.provision(introduction, *dry).into()]
            }
            (Content::Provision { .. }, None) => {
                vec![NodeAnswer::Held { label: None, remaining: None }.into()]
            }
            (Content::Guarded(call, _), Some(introduction)) => {
                let mut votes = dataset.run_script(introduction, self.said, micros, call);
                match mutant {
                    Some(Mutant::ExtendRecreates) => {
                        recreate(dataset, Some(introduction), micros, call, &mut votes);
                    }
                    Some(Mutant::ConfirmByAnybody) => confirm(dataset, call, &mut votes),
                    _ => {}
                }
                votes
            }
            (Content::Guarded(call, _) | Content::Script(call, _) | Content::Plain(call), _) => {
                dataset.run_plain(micros, call)
            }
        };
        votes.into_iter().map(Reply::Vote).collect()
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

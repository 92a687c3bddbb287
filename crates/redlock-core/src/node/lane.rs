//! A lane: one connection's worth of commands, first in, first out.
//!
//! The lane's task drains its mailbox, connects, and sends what has gathered as one batch. A key
//! always rides the same lane, so a release can't overtake the command that it undoes.

use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Command;
use super::batch::{Again, Batch, Broken};
use super::call::Call;
use super::connection::{CONNECT_DEADLINE, Cause};
use super::last_chance::LastChance;
use super::link::{ConnectionId, Connector, LaneMistake, Link};
use super::mailbox::{Mailbox, PendingRelease, Reopened};
use super::outage::Outage;
use super::window::Window;
use super::wire::{Reply, ScriptBy};
use crate::config::Backoff;
use crate::observe::node_error;
use crate::panic::caught;
use crate::protocol::quorum::NodeAnswer;

/// Commands in one pipeline; more would only delay the answer to the first.
const MAX_BATCH: usize = 512;

/// Turns of the scheduler to wait for more commands, after a batch of more than one. With 64 tasks two
/// give more cycles per second than one, and more than two give no more. A task alone would pay for
/// each turn with a system call, and gather nothing.
const TURNS_TO_GATHER: usize = 2;

/// Time between a missed deadline and giving up on the connection.
const LAST_CALL: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Lane<C> {
    pub(super) mailbox: Mailbox,
    pub(super) connector: C,
    pub(super) address: Arc<str>,
    /// Shared by all lanes to the server.
    pub(super) outage: Arc<Outage>,
    /// For a batch, from sending to the last reply. A command waits no longer than this for a new
    /// connection, unless it is the first.
    pub(super) deadline: Duration,
    /// Set after the first connection to the server, for all of its lanes. Until then commands wait up
    /// to `CONNECT_DEADLINE`, because a first connection takes several round trips.
    pub(super) was_connected: Arc<AtomicBool>,
    pub(super) reconnection: Backoff,
    /// From one task to the next: connections that may still run what they were sent.
    pub(super) abandoned: Mutex<Vec<ConnectionId>>,
    pub(super) last_chance: LastChance,
}

/// Why a lane has no connection any more.
#[derive(Debug)]
enum Failure {
    /// Connecting failed, or the server is not fit to vote.
    Down(Arc<str>),
    /// No answer in time.
    Hung,
    /// The connection broke, as it does when a server restarts.
    Cut(Arc<str>),
    /// The connection broke while nothing was on the way.
    Idle(Arc<str>),
}

impl Failure {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Down(_) => "down",
            Self::Hung => "silent",
            Self::Cut(_) | Self::Idle(_) => "cut",
        }
    }
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Cut(cause) => Self::Cut(cause.0),
            Broken::Unfit(cause) => Self::Down(cause),
        }
    }
}

impl<C: Connector> Lane<C> {
    pub(super) fn post<const N: usize>(self: &Arc<Self>, commands: [Command; N]) {
        if let Some(claimed) = self.mailbox.push(commands) {
            self.start(claimed);
        }
    }

    /// Starts the lane's task on the caller's runtime. A lane whose runtime has ended is started
    /// again on the next one. Without any runtime the commands are answered, so that no caller waits
    /// for them, and releases have a last chance.
    fn start(self: &Arc<Self>, claimed: u64) {
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(Driver::new(self, claimed).run())),
            Err(_) => {
                self.mailbox.strand_claimed(claimed);
                if self.mailbox.has_releases() {
                    self.begin_last_chance();
                }
            }
        }
    }
}

/// The lane's task. It owns the connection, which ends with it.
pub(super) struct Driver<C: Connector> {
    lane: Arc<Lane<C>>,
    /// Failures since the last batch that was answered.
    failed: u32,
    /// When the server last left a batch without an answer.
    hung_at: Option<Instant>,
    /// Connections that were given up, or are in use, and may still run what they were sent.
    abandoned: Vec<ConnectionId>,
    /// It has ended, or it is the last chance itself: what is left then is left.
    is_last: bool,
    /// Its number in the mailbox.
    number: u64,
}

impl<C: Connector> Drop for Driver<C> {
    fn drop(&mut self) {
        let lane = &self.lane;
        lane.abandoned.lock().append(&mut self.abandoned);
        lane.mailbox.abandon(self.number);
        // Its runtime ends, or it would run.
        if !self.is_last && lane.mailbox.has_releases() && !thread::panicking() {
            lane.wait_for_a_last_chance();
        }
        // Callers in another runtime may wait for their releases.
        lane.mailbox.strand();
        lane.last_chance.driver_ended();
    }
}

impl<C: Connector> Driver<C> {
    fn new(lane: &Arc<Lane<C>>, number: u64) -> Self {
        lane.last_chance.driver_begins();
        let abandoned = take(&mut *lane.abandoned.lock());
        Self { lane: Arc::clone(lane), failed: 0, hung_at: None, abandoned, is_last: false, number }
    }

    /// `None` if the lane has a driver.
    pub(super) fn for_the_last_time(lane: &Arc<Lane<C>>) -> Option<Self> {
        let number = lane.mailbox.claim()?;
        let mut driver = Self::new(lane, number);
        driver.is_last = true;
        Some(driver)
    }

    /// Ends when the lane is closed. A panic is a failure of the server like any other: its message
    /// is the cause, and the lane connects again.
    pub(super) async fn run(mut self) {
        let lane = Arc::clone(&self.lane);
        while let Err(panicked) = caught("the connection task", self.drive()).await {
            // Without a log line: the log may be what panicked.
            lane.mailbox.trip(&panicked);
            self.failed = self.failed.saturating_add(1);
            if !lane.pause(lane.reconnection.delay(self.failed)).await {
                break;
            }
        }
        self.is_last = true;
    }

    async fn drive(&mut self) {
        let lane = Arc::clone(&self.lane);
        // Pending releases wait for a connection and not for a command.
        let mut reconnects = lane.mailbox.has_pending();
        loop {
            if self.failed == 0 && !reconnects && !lane.wait_for_work().await {
                return;
            }
            let connected = lane.connect().await;
            let began = Instant::now();
            let failure = match connected {
                Ok(link) => match self.serve(link).await {
                    Ok(()) => return,
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            let pause = lane.reconnection.delay(self.failed.saturating_sub(1));
            // An idle connection is replaced before the next command comes. One that breaks again
            // and again counts as a failure.
            reconnects = matches!(failure, Failure::Idle(_)) && began.elapsed() > pause;
            if reconnects {
                self.failed = 0;
                continue;
            }
            node_error(&lane.address, failure.kind());
            let cause = match failure {
                // One try before the breaker opens: the server may have restarted, or stalled briefly.
                Failure::Cut(_) | Failure::Idle(_) | Failure::Hung
                    if self.may_try_at_once(&failure) =>
                {
                    self.failed = 1;
                    continue;
                }
                Failure::Cut(cause) | Failure::Idle(cause) | Failure::Down(cause) => cause,
                Failure::Hung => format!("no answer within {:?}", lane.deadline).into(),
            };
            lane.trip(&cause);
            self.failed = self.failed.saturating_add(1);
            if !lane.pause(pause).await {
                return;
            }
        }
    }

    /// Whether to connect once more before the breaker opens: after the first failure in a row, unless
    /// the server also hung within the last second.
    fn may_try_at_once(&mut self, failure: &Failure) -> bool {
        if self.failed > 0 {
            return false;
        }
        let hung_before = match failure {
            Failure::Hung => self.hung_at.replace(Instant::now()),
            _ => None,
        };
        hung_before.is_none_or(|hung_before| hung_before.elapsed() >= CONNECT_DEADLINE)
    }

    /// Sends batches until the lane is closed or the connection fails.
    async fn serve(&mut self, mut link: C::Link) -> Result<(), Failure> {
        // A connection that carried nothing but these calls needs no killing itself.
        self.kill_abandoned(&mut link).await?;
        self.abandoned.extend(link.id().cloned());
        let lane = Arc::clone(&self.lane);
        lane.run_pending(&mut link).await?;
        exchange(&lane, &mut link, &mut self.failed).await?;
        // Nothing is on the way.
        self.abandoned.clear();
        Ok(())
    }

    /// Kills earlier connections, so that they can't add to what they left behind.
    async fn kill_abandoned(&mut self, link: &mut C::Link) -> Result<(), Failure> {
        let connector = &self.lane.connector;
        // A connection of an earlier run of the server is dead already, and its number may belong
        // to another client by now.
        if let Some(run) = link.id().map(|id| Arc::clone(&id.run_id))
            && !connector.makes(LaneMistake::ReleaseOvertakes)
        {
            let kills = self.abandoned.iter().filter(|id| id.run_id == run).cloned();
            let kills: Vec<Call> = kills.map(Call::Kill).collect();
            let refusals = self.lane.ask(link, &kills, ScriptBy::Hash).await?;
            connector.could_not_kill(&refusals);
        }
        self.abandoned.clear();
        Ok(())
    }
}

/// Sends batches and reads their replies. A batch that is answered sets `failed` to zero.
async fn exchange<C: Connector>(
    lane: &Lane<C>,
    link: &mut C::Link,
    failed: &mut u32,
) -> Result<(), Failure> {
    let mut window = Window::default();
    let mut in_flight: VecDeque<Batch<'_>> = VecDeque::new();
    let mut again = Again::new(&lane.mailbox);
    let mut replies = Vec::new();
    let overdue = sleep(lane.deadline);
    tokio::pin!(overdue);
    let (mut last_call, mut gathers) = (false, false);
    let failure = loop {
        // Those who were just answered may have more to send: let them, it makes for fewer and
        // larger batches.
        let turns = if gathers { TURNS_TO_GATHER } else { 0 };
        for _ in 0..turns {
            yield_now().await;
        }
        while in_flight.len() < window.size() && again.is_empty() {
            let commands = lane.mailbox.take(MAX_BATCH);
            if commands.is_empty() {
                break;
            }
            gathers = commands.len() > 1;
            in_flight.push_back(Batch::write(&lane.mailbox, link, commands, ScriptBy::Hash));
        }
        if in_flight.is_empty() && !again.is_empty() {
            let commands = again.take();
            in_flight.push_back(Batch::write(&lane.mailbox, link, commands, ScriptBy::Source));
        }
        let window_open = in_flight.len() < window.size() && again.is_empty();
        let Some(first) = in_flight.front_mut() else {
            if !lane.mailbox.is_empty() {
                // Refused releases are due.
                lane.run_pending(link).await?;
                continue;
            }
            if lane.mailbox.is_over() {
                return Ok(());
            }
            let retry_at = lane.mailbox.retry_at();
            tokio::select! {
                biased;
                () = lane.mailbox.mail() => continue,
                cause = poll_fn(|cx| link.poll_broken(cx)) => return Err(Failure::Idle(cause.0)),
                () = until(retry_at) => continue,
            }
        };
        let due = first.sent + lane.deadline;
        tokio::select! {
            biased;
            // First: a server that keeps the link busy must not put the deadline off.
            () = &mut overdue => {
                let now = Instant::now();
                if now < due {
                    overdue.as_mut().reset(due);
                } else if lane.connector.makes(LaneMistake::IgnoresMissingAnswer) {
                    in_flight.pop_front();
                } else if std::mem::replace(&mut last_call, true) {
                    break Failure::Hung;
                } else {
                    // If it was this process that stood still, the answer is here already and
                    // the connection only has to be given a chance to read it.
                    overdue.as_mut().reset(now + LAST_CALL);
                }
            }
            answered = poll_fn(|cx| first.poll_answers(cx, link, &mut again, &mut replies)) => {
                last_call = false;
                window.observe(first.sent.elapsed());
                lane.outage.answered(take(&mut first.standing));
                if let Err(broken) = answered {
                    break Failure::from(broken);
                }
                in_flight.pop_front();
                *failed = 0;
                if lane.connector.makes(LaneMistake::CountsTwice) {
                    in_flight.pop_front();
                }
            }
            () = lane.mailbox.mail(), if window_open => {}
        }
    };
    for batch in &mut in_flight {
        batch.fate = match &failure {
            Failure::Hung => NodeAnswer::TimedOut,
            Failure::Down(cause) | Failure::Cut(cause) | Failure::Idle(cause) => {
                NodeAnswer::Failed(Arc::clone(cause))
            }
        };
    }
    Err(failure)
}

impl<C: Connector> Lane<C> {
    /// Waits for a command, or for refused releases to be due. `false`: the lane is closed and has
    /// nothing left to send.
    async fn wait_for_work(&self) -> bool {
        while self.mailbox.is_empty() {
            if self.mailbox.is_over() {
                return false;
            }
            let retry_at = self.mailbox.retry_at();
            tokio::select! {
                () = self.mailbox.mail() => {}
                () = until(retry_at) => {}
            }
        }
        true
    }

    /// Runs pending releases (H11), then lets commands in again.
    async fn run_pending(&self, link: &mut C::Link) -> Result<(), Failure> {
        loop {
            let releases = match self.mailbox.reopen(MAX_BATCH) {
                Reopened::Pending(releases) => releases,
                Reopened::Open { refused } => {
                    self.outage.refused(refused);
                    return Ok(());
                }
            };
            if self.connector.makes(LaneMistake::ForgetsReleases) {
                self.mailbox.released(&vec![true; releases.len()]);
                continue;
            }
            let replies = self.release(link, releases).await?;
            let accepted: Vec<bool> = replies.iter().map(Reply::is_release).collect();
            if self.mailbox.released(&accepted) {
                let cause = replies.iter().filter(|reply| !reply.is_release());
                let cause = cause.filter_map(Reply::refusal).next();
                tracing::warn!(
                    node = %self.address,
                    cause = cause.as_deref(),
                    "node refuses to release keys; the releases are sent again until they expire"
                );
            }
        }
    }

    /// Sends releases in one call; or one by one, if the server refused that for the sake of one of
    /// them.
    async fn release(
        &self,
        link: &mut C::Link,
        releases: Vec<PendingRelease>,
    ) -> Result<Vec<Reply>, Failure> {
        let together = |releases| vec![Call::PendingReleases(releases)];
        let singly: Vec<Call> =
            releases.iter().map(|one| Call::PendingReleases(vec![one.clone()])).collect();
        let tries = [
            (together(releases.clone()), ScriptBy::Hash),
            (together(releases), ScriptBy::Source),
            (singly, ScriptBy::Source),
        ];
        let mut replies = Vec::new();
        for (calls, by) in tries {
            replies = self.ask(link, &calls, by).await?;
            let unfit = replies.iter().find_map(|reply| match reply {
                Reply::Unfit(cause) => Some(Arc::clone(cause)),
                Reply::Vote(_) | Reply::Again => None,
            });
            if let Some(cause) = unfit {
                return Err(Failure::Down(cause));
            }
            if !replies.contains(&Reply::Again) {
                break;
            }
        }
        Ok(replies)
    }

    fn trip(&self, cause: &Arc<str>) {
        self.mailbox.trip(cause);
        self.outage.failed(cause);
    }

    /// Waits before connecting again; `false` if the lane is closed.
    async fn pause(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        loop {
            if self.mailbox.is_over() {
                return false;
            }
            tokio::select! {
                () = sleep_until(end) => return true,
                () = self.mailbox.mail() => {}
            }
        }
    }

    /// Connects. Commands wait for that no longer than `most`; connecting goes on.
    async fn connect(&self) -> Result<C::Link, Failure> {
        let connecting = self.connector.connect();
        tokio::pin!(connecting);
        let most = match self.was_connected.load(Ordering::Relaxed) {
            true => self.deadline,
            false => self.deadline.max(CONNECT_DEADLINE),
        };
        let connected = match timeout(most, &mut connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                self.trip(&format!("not connected within {most:?}").into());
                connecting.await
            }
        };
        self.was_connected.fetch_or(connected.is_ok(), Ordering::Relaxed);
        connected.map_err(|cause: Cause| Failure::Down(cause.0))
    }

    /// Sends calls that no caller waits for, and returns the replies to all of them.
    async fn ask(
        &self,
        link: &mut C::Link,
        calls: &[Call],
        by: ScriptBy,
    ) -> Result<Vec<Reply>, Failure> {
        for call in calls {
            link.write(call, by);
        }
        let mut replies = Vec::new();
        let asking = async {
            for call in calls {
                poll_fn(|cx| link.poll_replies(cx, call, &mut replies)).await?;
            }
            Ok::<_, Cause>(())
        };
        match timeout(self.deadline, asking).await {
            Ok(Ok(())) => Ok(replies),
            Ok(Err(cause)) => Err(Failure::Cut(cause.0)),
            Err(_) => Err(Failure::Hung),
        }
    }
}

/// Waits until then, or for ever.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => pending().await,
    }
}

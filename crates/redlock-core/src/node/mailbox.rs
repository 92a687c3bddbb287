//! Commands that a lane has still to send, and releases that are pending until the server is back.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Command, Op};
use crate::config::Backoff;
use crate::key::Key;
use crate::protocol::quorum::NodeAnswer;
use crate::token::Token;

/// Commands that wait for one lane. More are refused, except releases: each of those belongs to
/// an acquisition that was let in before.
const CAPACITY: usize = 8_192;

/// Keys that may have to be deleted once the server is back. Releases beyond this are not kept:
/// their keys stay until they expire.
const MAX_PENDING: usize = 65_536;

/// A key that may hold a token nobody owns any more.
#[derive(Clone, Debug)]
pub(super) struct PendingRelease {
    pub(super) key: Key,
    pub(super) token: Token,
    /// When the key has expired, whatever the server says. Known of a release that was refused:
    /// until then it is sent again.
    expires: Option<Instant>,
}

impl PendingRelease {
    pub(super) fn of(command: &Command) -> Self {
        Self { key: command.key.clone(), token: command.token.clone(), expires: None }
    }
}

/// When a release that the server refused is sent again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Retry {
    /// Between two tries.
    pub(super) pause: Backoff,
    /// The longest that any key may live.
    pub(super) for_at_most: Duration,
}

/// What stands between a new connection and its first command.
#[derive(Debug)]
pub(super) enum Reopened {
    /// So many commands were refused meanwhile.
    Open { refused: usize },
    /// The oldest pending.
    Pending(Vec<PendingRelease>),
}

/// A bounded queue that callers push to without waiting and one lane drains in batches.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    mail: Notify,
    settled: Notify,
    retry: Retry,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Command>,
    in_flight: usize,
    pending: VecDeque<PendingRelease>,
    refused: Refused,
    /// Tokens whose acquisition may still be on the way on a connection that was given up.
    doubtful: HashSet<Token>,
    /// Why the server can't be asked: its breaker is open.
    down: Option<Arc<str>>,
    /// Commands that were refused since it is open.
    refusals: usize,
    closed: bool,
    /// For how long pending releases are sent although it is closed.
    lingers_until: Option<Instant>,
    /// The number of the driver, if there is one.
    driver: Option<u64>,
    /// How many drivers there were.
    drivers: u64,
}

/// Releases that the server refused, for a reason that may pass.
#[derive(Debug, Default)]
struct Refused {
    releases: VecDeque<PendingRelease>,
    /// When they are sent again; `None` if there are none.
    retry_at: Option<Instant>,
    /// How often in a row they were refused.
    tries: u32,
    /// The log has it.
    logged: bool,
}

impl Mailbox {
    pub(super) fn new(retry: Retry) -> Self {
        Self { retry, ..Self::default() }
    }

    /// Queues commands next to each other, or answers them at once. Returns the number of a new claim
    /// if the caller must start a driver.
    pub(super) fn push(&self, commands: impl IntoIterator<Item = Command>) -> Option<u64> {
        let mut state = self.state.lock();
        let waiting = state.queue.len();
        let refused: Vec<_> =
            commands.into_iter().filter_map(|command| state.take_in(command)).collect();
        let has_mail = state.queue.len() > waiting;
        let has_work = has_mail || !state.pending.is_empty();
        let claimed = if has_work { state.claim() } else { None };
        drop(state);
        if has_mail {
            self.mail.notify_one();
        }
        for (command, why) in refused {
            command.seat.answer(NodeAnswer::Refused(why));
        }
        claimed
    }

    /// Claims the mailbox for a driver and returns its number; `None` if it has one.
    pub(super) fn claim(&self) -> Option<u64> {
        self.state.lock().claim()
    }

    /// Gives the claim of the driver up if there is nothing left to send. The next command starts
    /// another one.
    pub(super) fn retire(&self) -> bool {
        let mut state = self.state.lock();
        let is_settled = state.unsettled() == 0;
        if is_settled {
            state.has_no_driver();
        }
        is_settled
    }

    /// Gives the claim of a driver up, unless it was retired: its task ended, or its runtime did.
    pub(super) fn abandon(&self, driver: u64) {
        let orphaned = {
            let mut state = self.state.lock();
            if state.driver != Some(driver) {
                return;
            }
            state.has_no_driver();
            let (releases, others) = std::mem::take(&mut state.queue)
                .into_iter()
                .partition::<VecDeque<_>, _>(|command| command.op.is_release());
            state.queue = releases;
            others
        };
        // Their callers may live on in another runtime: each seat fails as it is dropped.
        drop(orphaned);
        self.notify_if_settled();
    }

    fn notify_if_settled(&self) {
        if self.unsettled() == 0 {
            self.settled.notify_waiters();
        }
    }

    /// Gives up a claim for which no driver can be started, and answers what waits.
    pub(super) fn strand_claimed(&self, claimed: u64) {
        {
            let mut state = self.state.lock();
            if state.driver == Some(claimed) {
                state.has_no_driver();
            }
        }
        self.strand();
    }

    /// Answers what waits, unless a driver has the claim. Releases become pending until the next driver
    /// sends them.
    pub(super) fn strand(&self) {
        let waiting = {
            let mut state = self.state.lock();
            if state.driver.is_some() {
                return;
            }
            let waiting = std::mem::take(&mut state.queue);
            for command in waiting.iter().filter(|command| command.op.is_release()) {
                state.defer(command);
            }
            waiting
        };
        let why = "no runtime of tokio is left to send it";
        for command in waiting {
            command.seat.answer(NodeAnswer::Refused(why.into()));
        }
    }

    /// Takes the next commands out; they count as in flight until they are [`done`](Self::done).
    /// There are none while refused releases are due: those go first.
    pub(super) fn take(&self, most: usize) -> Vec<Command> {
        let mut state = self.state.lock();
        if state.refused.is_due() {
            return Vec::new();
        }
        let count = state.queue.len().min(most);
        state.in_flight += count;
        state.queue.drain(..count).collect()
    }

    pub(super) fn done(&self, count: usize) {
        let mut state = self.state.lock();
        state.in_flight -= count;
        let settled = state.unsettled() == 0;
        drop(state);
        if settled {
            self.settled.notify_waiters();
        }
    }

    /// Keeps releases that the server refused, to be sent again.
    pub(super) fn refused(&self, releases: Vec<PendingRelease>) {
        self.state.lock().refuse(releases, self.retry);
    }

    /// When refused releases are sent again, if there are any.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.state.lock().refused.retry_at
    }

    /// Gives up on commands in flight whose fate is unknown. A release becomes pending; for an
    /// acquisition its owner posts the release, as for every vote that was not a certain "no", and
    /// that makes its token void: it may come later than its release, which rides another
    /// connection.
    pub(super) fn lost(&self, commands: Vec<Command>, answer: &NodeAnswer) {
        {
            let mut state = self.state.lock();
            state.in_flight -= commands.len();
            for command in &commands {
                match command.op {
                    op if op.is_release() => state.defer(command),
                    Op::Acquire { .. } => state.doubt(command),
                    _ => {}
                }
            }
            state.void_what_waits();
        }
        for command in commands {
            command.seat.answer(answer.clone());
        }
        self.notify_if_settled();
    }

    /// Opens the breaker: what waits is answered now, what comes is answered at once.
    pub(super) fn trip(&self, cause: &Arc<str>) {
        let waiting = {
            let mut state = self.state.lock();
            state.down = Some(Arc::clone(cause));
            state.retry_refused();
            state.refused = Refused::default();
            let waiting = std::mem::take(&mut state.queue);
            state.refusals = state.refusals.saturating_add(waiting.len());
            for command in waiting.iter().filter(|command| command.op.is_release()) {
                state.defer(command);
            }
            waiting
        };
        for command in waiting {
            command.seat.answer(NodeAnswer::Refused(Arc::clone(cause)));
        }
        self.notify_if_settled();
    }

    /// Closes the breaker, unless there are pending to settle first.
    pub(super) fn reopen(&self, most: usize) -> Reopened {
        let mut state = self.state.lock();
        if state.refused.is_due() {
            state.retry_refused();
        }
        if state.pending.is_empty() {
            state.down = None;
            Reopened::Open { refused: std::mem::take(&mut state.refusals) }
        } else {
            Reopened::Pending(state.pending.iter().take(most).cloned().collect())
        }
    }

    /// Strikes out the oldest pending releases, as many as were sent. Those that the server did not
    /// accept are sent again later unless the key has expired. `true` if it has begun to refuse them
    /// just now.
    pub(super) fn released(&self, accepted: &[bool]) -> bool {
        let mut state = self.state.lock();
        let count = accepted.len().min(state.pending.len());
        let sent: Vec<PendingRelease> = state.pending.drain(..count).collect();
        let refused = sent.into_iter().zip(accepted).filter(|(_, accepted)| !**accepted);
        let refused: Vec<PendingRelease> = refused.map(|(release, _)| release).collect();
        let begins = !refused.is_empty() && !state.refused.logged;
        state.refused.logged |= begins;
        if refused.is_empty() && state.refused.releases.is_empty() {
            state.refused = Refused::default();
        }
        state.refuse(refused, self.retry);
        let settled = state.unsettled() == 0;
        drop(state);
        if settled {
            self.settled.notify_waiters();
        }
        begins
    }

    /// Refuses commands from now on, unless it does so already. What is queued is still sent, and
    /// pending releases are if that is possible within `grace`.
    pub(super) fn close(&self, grace: Duration) {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.closed, true) {
            state.lingers_until = Some(Instant::now() + grace);
        }
        drop(state);
        self.mail.notify_one();
    }

    /// The next driver has this long to send pending releases, also if the mailbox is closed.
    pub(super) fn linger(&self, grace: Duration) {
        self.state.lock().lingers_until = Some(Instant::now() + grace);
    }

    /// It is closed, and nothing is left to do but to send what is queued.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.closed && !state.lingers()
    }

    /// Whether a release waits to be sent.
    pub(super) fn has_releases(&self) -> bool {
        let state = self.state.lock();
        state.has_pending() || state.queue.iter().any(|command| command.op.is_release())
    }

    /// Whether a release waits for the next connection.
    pub(super) fn has_pending(&self) -> bool {
        !self.state.lock().pending.is_empty()
    }

    /// Whether there is nothing to send now.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        let releases_at_the_end = state.closed && state.lingers() && !state.pending.is_empty();
        state.queue.is_empty() && !state.refused.is_due() && !releases_at_the_end
    }

    /// Ends when something was pushed or the mailbox was closed since the last time.
    pub(super) async fn mail(&self) {
        self.mail.notified().await;
    }

    pub(super) fn unsettled(&self) -> usize {
        self.state.lock().unsettled()
    }

    pub(super) async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if self.unsettled() == 0 {
                return;
            }
            settled.await;
        }
    }
}

impl Refused {
    fn is_due(&self) -> bool {
        self.retry_at.is_some_and(|retry_at| retry_at <= Instant::now())
    }
}

impl State {
    fn claim(&mut self) -> Option<u64> {
        if self.driver.is_some() {
            return None;
        }
        self.drivers += 1;
        self.driver = Some(self.drivers);
        self.driver
    }

    /// Closes the breaker as well: it refuses commands, and the next command has to start a driver.
    fn has_no_driver(&mut self) {
        self.driver = None;
        self.down = None;
    }

    /// Puts a command into the queue, or gives it back with the reason.
    fn take_in(&mut self, mut command: Command) -> Option<(Command, Arc<str>)> {
        let is_release = command.op.is_release();
        // Hashing each token for a set that is nearly always empty would cost more than the rest.
        if is_release && !self.doubtful.is_empty() && self.doubtful.remove(&command.token) {
            command.op = Op::Void;
        }
        let refusal = match &self.down {
            _ if self.closed => "the lock service is closed".into(),
            Some(cause) => {
                self.refusals = self.refusals.saturating_add(1);
                Arc::clone(cause)
            }
            None if self.queue.len() >= CAPACITY && !is_release => {
                "too many commands wait for this node".into()
            }
            None => {
                self.queue.push_back(command);
                return None;
            }
        };
        if is_release && !self.closed {
            self.defer(&command);
        }
        Some((command, refusal))
    }

    fn unsettled(&self) -> usize {
        self.queue.len() + self.in_flight + self.pending.len() + self.refused.releases.len()
    }

    fn has_pending(&self) -> bool {
        !self.pending.is_empty() || !self.refused.releases.is_empty()
    }

    fn lingers(&self) -> bool {
        self.has_pending() && self.lingers_until.is_some_and(|until| Instant::now() < until)
    }

    fn refuse(&mut self, releases: Vec<PendingRelease>, retry: Retry) {
        let now = Instant::now();
        let unexpired = releases.into_iter().filter_map(|release| {
            let expires = release.expires.or_else(|| now.checked_add(retry.for_at_most));
            let is_left = expires.is_none_or(|expires| expires > now);
            is_left.then_some(PendingRelease { expires, ..release })
        });
        self.refused.releases.extend(unexpired);
        self.refused.releases.truncate(MAX_PENDING);
        if !self.refused.releases.is_empty() && self.refused.retry_at.is_none() {
            self.refused.retry_at = Some(now + retry.pause.delay(self.refused.tries));
            self.refused.tries = self.refused.tries.saturating_add(1);
        }
    }

    /// Refused releases are sent with the pending ones.
    fn retry_refused(&mut self) {
        self.refused.retry_at = None;
        let room = MAX_PENDING.saturating_sub(self.pending.len());
        let refused = std::mem::take(&mut self.refused.releases);
        self.pending.extend(refused.into_iter().take(room));
    }

    fn doubt(&mut self, command: &Command) {
        if self.doubtful.len() < MAX_PENDING {
            self.doubtful.insert(command.token.clone());
        }
    }

    /// A release that waits for the next connection already.
    fn void_what_waits(&mut self) {
        let releases = self.queue.iter_mut().filter(|command| command.op.is_release());
        for release in releases {
            if self.doubtful.remove(&release.token) {
                release.op = Op::Void;
            }
        }
    }

    fn defer(&mut self, command: &Command) {
        self.doubtful.remove(&command.token);
        // The oldest stay where they are: they may be on the way, and are struck out by number.
        if self.pending.len() < MAX_PENDING {
            self.pending.push_back(PendingRelease::of(command));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round::{Round, Seat};

    fn command(op: Op, token: &Token) -> Command {
        let seat = Seat::new(Arc::new(Round::new(1)), 0);
        Command { op, key: Key::new("k").unwrap(), token: token.clone(), seat }
    }

    fn acquire(token: &Token) -> Command {
        command(Op::Acquire { ttl: Duration::from_secs(1), proposal: 0 }, token)
    }

    fn ops(commands: &[Command]) -> Vec<Op> {
        commands.iter().map(|command| command.op).collect()
    }

    #[test]
    fn what_was_acquired_on_a_connection_that_is_gone_is_made_void_once() {
        let (mailbox, token) = (Mailbox::default(), Token::generate("me").unwrap());
        mailbox.push([acquire(&token)]);
        let lost = mailbox.take(9);
        mailbox.lost(lost, &NodeAnswer::TimedOut);
        for op in [Op::Release, Op::Release] {
            mailbox.push([command(op, &token)]);
        }
        assert_eq!(ops(&mailbox.take(9)), [Op::Void, Op::Release]);
    }

    #[test]
    fn a_release_that_waits_when_its_acquisition_is_lost_makes_it_void() {
        let (mailbox, token) = (Mailbox::default(), Token::generate("me").unwrap());
        mailbox.push([acquire(&token)]);
        let sent = mailbox.take(1);
        mailbox.push([command(Op::Reclaim, &token)]);
        mailbox.lost(sent, &NodeAnswer::TimedOut);
        assert_eq!(ops(&mailbox.take(9)), [Op::Void]);
    }

    #[test]
    fn a_release_that_is_lost_with_its_acquisition_is_pending_and_not_in_doubt() {
        let (mailbox, token) = (Mailbox::default(), Token::generate("me").unwrap());
        mailbox.push([acquire(&token)]);
        mailbox.push([command(Op::Release, &token)]);
        let lost = mailbox.take(9);
        mailbox.lost(lost, &NodeAnswer::TimedOut);
        let state = mailbox.state.lock();
        assert!(state.doubtful.is_empty());
        assert_eq!(state.pending.len(), 1);
    }

    #[test]
    fn a_refused_release_is_pending_again_after_a_pause_and_until_its_key_has_expired() {
        let (mailbox, token) = (Mailbox::new(Retry::default()), Token::generate("me").unwrap());
        let refuse =
            |mailbox: &Mailbox| mailbox.refused(vec![PendingRelease::of(&acquire(&token))]);
        refuse(&mailbox);
        assert_eq!(mailbox.unsettled(), 0, "no key lives for longer than nothing");

        let pause = Backoff { base: Duration::MAX, cap: Duration::ZERO };
        let mailbox = Mailbox::new(Retry { pause, for_at_most: Duration::from_secs(60) });
        refuse(&mailbox);
        assert_eq!((mailbox.unsettled(), mailbox.is_empty()), (1, false));
        assert!(mailbox.take(9).is_empty());
        let pending = |mailbox: &Mailbox| match mailbox.reopen(9) {
            Reopened::Pending(releases) => releases.len(),
            Reopened::Open { .. } => 0,
        };
        assert_eq!(pending(&mailbox), 1);
        assert!(mailbox.released(&[false]), "the operator is told");
        assert_eq!((mailbox.unsettled(), pending(&mailbox)), (1, 1));
        assert!(!mailbox.released(&[false]), "but once");
        assert_eq!(pending(&mailbox), 1);
        assert!(!mailbox.released(&[true]));
        assert_eq!((mailbox.unsettled(), mailbox.retry_at(), pending(&mailbox)), (0, None, 0));
    }

    #[test]
    fn a_refused_release_is_pending_for_the_next_connection_at_once() {
        let pause = Backoff { base: Duration::from_secs(60), cap: Duration::from_secs(60) };
        let mailbox = Mailbox::new(Retry { pause, for_at_most: Duration::from_secs(60) });
        mailbox.refused(vec![PendingRelease::of(&acquire(&Token::generate("me").unwrap()))]);
        assert!(matches!(mailbox.reopen(9), Reopened::Open { .. }));
        mailbox.trip(&"down".into());
        assert!(matches!(mailbox.reopen(9), Reopened::Pending(releases) if releases.len() == 1));
    }

    #[test]
    fn pending_releases_are_bounded_and_those_on_the_way_are_the_ones_struck_out() {
        let mailbox = Mailbox::new(Retry {
            pause: Backoff { base: Duration::ZERO, cap: Duration::ZERO },
            for_at_most: Duration::from_secs(60),
        });
        let tokens: [Token; 3] = std::array::from_fn(|_| Token::generate("me").unwrap());
        let [on_the_way, later, refused] = &tokens;
        let down = Arc::from("down");
        mailbox.trip(&down);
        mailbox.push([command(Op::Release, on_the_way)]);
        let Reopened::Pending(sent) = mailbox.reopen(1) else { panic!("one is pending") };
        for _ in 0..MAX_PENDING {
            mailbox.push([command(Op::Release, later)]);
        }
        let pending = || mailbox.state.lock().pending.len();
        assert_eq!(pending(), MAX_PENDING);
        mailbox.refused(vec![PendingRelease::of(&command(Op::Release, refused)); 9]);
        mailbox.trip(&down);
        assert_eq!(pending(), MAX_PENDING, "refused releases count as well");

        mailbox.released(&vec![true; sent.len()]);
        let state = mailbox.state.lock();
        assert_eq!(state.pending.len(), MAX_PENDING - 1);
        assert!(state.pending.iter().all(|release| release.token == *later));
    }

    #[test]
    fn a_driver_that_ends_leaves_commands_alone_that_were_pushed_for_the_next_one() {
        let (mailbox, token) = (Mailbox::default(), Token::generate("me").unwrap());
        let first = mailbox.push([acquire(&token)]).expect("it has no driver");
        mailbox.done(mailbox.take(9).len());
        mailbox.abandon(first);
        let second = mailbox.push([acquire(&token)]).expect("the first driver has ended");
        assert_eq!(mailbox.push([acquire(&token)]), None, "it is started once");
        mailbox.strand();
        assert_eq!(mailbox.take(9).len(), 2);
        mailbox.done(2);
        mailbox.push([acquire(&token)]);
        mailbox.strand_claimed(second);
        assert!(mailbox.is_empty(), "nothing could start it");
    }

    #[test]
    fn what_was_answered_is_released_as_ever_and_pending_leave_no_doubt() {
        let (mailbox, token) = (Mailbox::default(), Token::generate("me").unwrap());
        mailbox.push([acquire(&token)]);
        mailbox.done(mailbox.take(9).len());
        mailbox.push([command(Op::Release, &token)]);
        assert_eq!(ops(&mailbox.take(9)), [Op::Release]);
        mailbox.push([acquire(&token)]);
        let lost = mailbox.take(9);
        mailbox.trip(&"down".into());
        mailbox.lost(lost, &NodeAnswer::TimedOut);
        mailbox.push([command(Op::Release, &token)]);
        assert!(mailbox.state.lock().doubtful.is_empty());
    }
}

//! What a lane has still to send, and what it owes.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Command, Op};
use crate::key::Key;
use crate::protocol::quorum::NodeAnswer;
use crate::token::Token;

/// Commands that wait for one lane. More are refused, except releases: each of those belongs to
/// an acquisition that was let in before.
const CAPACITY: usize = 8_192;

/// Keys that may have to be deleted once the server is back. Beyond this the oldest are left to
/// their time to live.
const MAX_DEBTS: usize = 65_536;

/// A key that may hold a token nobody owns any more.
#[derive(Clone, Debug)]
pub(super) struct Debt {
    pub(super) key: Key,
    pub(super) token: Token,
}

/// What stands between a new connection and its first command.
#[derive(Debug)]
pub(super) enum Reopened {
    Open {
        was_down: bool,
    },
    /// The oldest debts.
    Owing(Vec<Debt>),
}

/// A bounded queue that callers push to without waiting and one lane drains in batches.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    mail: Notify,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Command>,
    in_flight: usize,
    debts: VecDeque<Debt>,
    /// Tokens whose acquisition may still be on the way on a connection that was given up.
    doubtful: HashSet<Token>,
    /// Why the server can't be asked: its breaker is open.
    down: Option<Arc<str>>,
    closed: bool,
    driven: bool,
}

impl Mailbox {
    /// Takes commands in, next to each other, or answers them at once. Says whether a driver has
    /// to be started.
    pub(super) fn push(&self, commands: impl IntoIterator<Item = Command>) -> bool {
        let mut state = self.state.lock();
        let waiting = state.queue.len();
        let refused: Vec<_> =
            commands.into_iter().filter_map(|command| state.take_in(command)).collect();
        let has_mail = state.queue.len() > waiting;
        let start = !state.driven && (has_mail || !state.debts.is_empty());
        drop(state);
        if has_mail {
            self.mail.notify_one();
        }
        for (command, why) in refused {
            command.seat.answer(NodeAnswer::Refused(why));
        }
        start
    }

    /// Claims the mailbox for a driver; `false` if it has one.
    pub(super) fn drive(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().driven, true)
    }

    /// Gives the claim up: the driver's task ended, or its runtime did. That closes the breaker,
    /// as the next command has to start a driver.
    pub(super) fn abandon(&self) {
        let orphaned = {
            let mut state = self.state.lock();
            state.driven = false;
            state.down = None;
            let (releases, others) = std::mem::take(&mut state.queue)
                .into_iter()
                .partition::<VecDeque<_>, _>(|command| command.op.is_release());
            state.queue = releases;
            others
        };
        // Their callers may live on in another runtime: each seat fails as it is dropped.
        drop(orphaned);
    }

    /// Takes the next commands out; they count as in flight until they are [`done`](Self::done).
    pub(super) fn take(&self, most: usize) -> Vec<Command> {
        let mut state = self.state.lock();
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

    /// Gives up on commands in flight whose fate is unknown. A release becomes a debt; for an
    /// acquisition its owner posts the release, as for every vote that was not a certain "no", and
    /// that makes its token void: it may come later than its release, which rides another
    /// connection.
    pub(super) fn lost(&self, commands: Vec<Command>, answer: &NodeAnswer) {
        {
            let mut state = self.state.lock();
            state.in_flight -= commands.len();
            for command in &commands {
                match command.op {
                    op if op.is_release() => state.owe(command),
                    Op::Acquire { .. } => state.doubt(command),
                    _ => {}
                }
            }
            state.void_what_waits();
        }
        for command in commands {
            command.seat.answer(answer.clone());
        }
    }

    /// Opens the breaker: what waits is answered now, what comes is answered at once. `true`
    /// unless it was open before.
    pub(super) fn trip(&self, cause: &Arc<str>) -> bool {
        let (first, waiting) = {
            let mut state = self.state.lock();
            let first = state.down.replace(Arc::clone(cause)).is_none();
            let waiting = std::mem::take(&mut state.queue);
            for command in waiting.iter().filter(|command| command.op.is_release()) {
                state.owe(command);
            }
            (first, waiting)
        };
        for command in waiting {
            command.seat.answer(NodeAnswer::Refused(Arc::clone(cause)));
        }
        first
    }

    /// Closes the breaker, unless there are debts to settle first.
    pub(super) fn reopen(&self, most: usize) -> Reopened {
        let mut state = self.state.lock();
        if state.debts.is_empty() {
            Reopened::Open { was_down: state.down.take().is_some() }
        } else {
            Reopened::Owing(state.debts.iter().take(most).cloned().collect())
        }
    }

    /// Strikes out the oldest `count` debts.
    pub(super) fn paid(&self, count: usize) {
        let mut state = self.state.lock();
        let count = count.min(state.debts.len());
        state.debts.drain(..count);
        let settled = state.unsettled() == 0;
        drop(state);
        if settled {
            self.settled.notify_waiters();
        }
    }

    /// Refuses commands from now on; what is queued is still sent.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.mail.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().queue.is_empty()
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

impl State {
    /// Puts a command into the queue, or gives it back with the reason.
    fn take_in(&mut self, mut command: Command) -> Option<(Command, Arc<str>)> {
        let is_release = command.op.is_release();
        if is_release && self.doubtful.remove(&command.token) {
            command.op = Op::Void;
        }
        let refusal = match &self.down {
            _ if self.closed => "the lock service is closed".into(),
            Some(cause) => Arc::clone(cause),
            None if self.queue.len() >= CAPACITY && !is_release => {
                "too many commands wait for this node".into()
            }
            None => {
                self.queue.push_back(command);
                return None;
            }
        };
        if is_release && !self.closed {
            self.owe(&command);
        }
        Some((command, refusal))
    }

    fn unsettled(&self) -> usize {
        self.queue.len() + self.in_flight + self.debts.len()
    }

    fn doubt(&mut self, command: &Command) {
        if self.doubtful.len() < MAX_DEBTS {
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

    fn owe(&mut self, command: &Command) {
        self.doubtful.remove(&command.token);
        if self.debts.len() == MAX_DEBTS {
            self.debts.pop_front();
        }
        self.debts.push_back(Debt { key: command.key.clone(), token: command.token.clone() });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn a_release_that_is_lost_with_its_acquisition_is_a_debt_and_no_doubt() {
        let (mailbox, token) = (Mailbox::default(), Token::generate("me").unwrap());
        mailbox.push([acquire(&token)]);
        mailbox.push([command(Op::Release, &token)]);
        let lost = mailbox.take(9);
        mailbox.lost(lost, &NodeAnswer::TimedOut);
        let state = mailbox.state.lock();
        assert!(state.doubtful.is_empty());
        assert_eq!(state.debts.len(), 1);
    }

    #[test]
    fn what_was_answered_is_released_as_ever_and_debts_leave_no_doubt() {
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

//! The client's side of a simulated server: a lane as a real one has it, with the same deadline,
//! breaker and debts.

use std::collections::VecDeque;
use std::future::Future;
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::link::Link;
use super::mutant::{Cheat, Mutant};
use super::server::{Content, Server};
use crate::config::{Backoff, Config};
use crate::node::dataset::{Asked, Introduction};
use crate::node::mailbox::{Debt, Mailbox, Reopened};
use crate::node::{Command, Node, Op};
use crate::protocol::quorum::{NodeAnswer, Vote};

/// Commands in one batch, and debts that are paid at once.
const MAX_BATCH: usize = 512;

/// Batches on the way at once.
const MAX_WINDOW: usize = 8;

/// How long connecting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// One client of a cluster: what its nodes have in common.
#[derive(Debug)]
pub(crate) struct Client {
    introduction: Option<Introduction>,
    deadline: Duration,
    reconnection: Backoff,
    cheat: Option<Cheat>,
}

impl Client {
    pub(crate) fn new(config: &Config, nodes: usize, mutant: Option<Mutant>) -> Self {
        let mut introduction = Introduction::new(config);
        if let (Some(introduction), Some(mutant)) = (&mut introduction, mutant) {
            introduction.quarantine_millis = mutant.quarantine(introduction.quarantine_millis);
        }
        Self {
            introduction,
            deadline: config.node_deadline,
            reconnection: config.reconnection_interval,
            cheat: mutant.map(|mutant| Cheat::new(mutant, nodes)),
        }
    }

    pub(crate) fn introduction(&self) -> Option<&Introduction> {
        self.introduction.as_ref()
    }

    /// The operation, unless the client makes nothing void.
    fn releasing(&self, op: Op) -> Op {
        match op {
            Op::Void if self.mutant() == Some(Mutant::NoTombstone) => Op::Release,
            op => op,
        }
    }

    pub(super) fn mutant(&self) -> Option<Mutant> {
        self.cheat.as_ref().map(Cheat::mutant)
    }
}

/// A simulated server, as one client sees it.
#[derive(Debug)]
pub(crate) struct SimulatedNode {
    lane: Arc<Lane>,
}

#[derive(Debug)]
struct Lane {
    index: usize,
    mailbox: Mailbox,
    server: Arc<Server>,
    client: Arc<Client>,
}

impl SimulatedNode {
    pub(crate) fn new(index: usize, server: &Arc<Server>, client: &Arc<Client>) -> Self {
        let (server, client) = (Arc::clone(server), Arc::clone(client));
        Self { lane: Arc::new(Lane { index, mailbox: Mailbox::default(), server, client }) }
    }

    fn push<const N: usize>(&self, commands: [Command; N]) {
        let lane = &self.lane;
        let asked = commands.map(|command| match &lane.client.cheat {
            None => Some(command),
            Some(cheat) => cheat.before(lane.index, command),
        });
        if lane.mailbox.push(asked.into_iter().flatten()) {
            match Handle::try_current() {
                Ok(runtime) if lane.mailbox.drive() => {
                    runtime.spawn(Driver(Arc::clone(lane)).run());
                }
                Ok(_) => {}
                Err(_) => lane.mailbox.strand(),
            }
        }
    }
}

impl Node for SimulatedNode {
    fn address(&self) -> &str {
        self.lane.server.address()
    }

    fn post(&self, command: Command) {
        self.push([command]);
    }

    fn post_both(&self, first: Command, second: Command) {
        self.push([first, second]);
    }

    fn unsettled(&self) -> usize {
        self.lane.mailbox.unsettled()
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.lane.mailbox.settled())
    }

    fn shut_down(&self) {
        self.lane.mailbox.close();
    }
}

impl Drop for SimulatedNode {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// Why a lane has no connection any more.
enum Failure {
    Down(Arc<str>),
    Hung,
    Cut,
}

/// The lane's task.
struct Driver(Arc<Lane>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.mailbox.abandon();
    }
}

impl Driver {
    async fn run(self) {
        let lane = &*self.0;
        let mut link: Option<Link> = None;
        let mut failed: u32 = 0;
        loop {
            if failed == 0 && !lane.wait_for_work(link.as_ref()).await {
                return;
            }
            let open = match link.take().filter(|link| !link.broken().is_raised()) {
                Some(open) => Ok(open),
                None => lane.connect().await,
            };
            let served = match open {
                Ok(open) => lane.serve(&open).await.map(|()| link = Some(open)),
                Err(failure) => Err(failure),
            };
            let cause: Arc<str> = match served {
                Ok(()) => {
                    failed = 0;
                    continue;
                }
                // As it is when a server restarts: connecting again may just work.
                Err(Failure::Cut) if failed == 0 => {
                    failed = 1;
                    continue;
                }
                Err(Failure::Cut) => CUT.into(),
                Err(Failure::Down(cause)) => cause,
                Err(Failure::Hung) => format!("no answer within {:?}", lane.client.deadline).into(),
            };
            lane.mailbox.trip(&cause);
            failed = failed.saturating_add(1);
            if !lane.pause(lane.client.reconnection.delay(failed.saturating_sub(2))).await {
                return;
            }
        }
    }
}

const CUT: &str = "the connection was cut";

impl Lane {
    /// Waits for a command, or for the idle connection to break. `false`: the lane is closed and
    /// has sent everything.
    async fn wait_for_work(&self, link: Option<&Link>) -> bool {
        loop {
            if !self.mailbox.is_empty() {
                return true;
            }
            if self.mailbox.is_closed() {
                return false;
            }
            match link {
                None => self.mailbox.mail().await,
                Some(link) => tokio::select! {
                    biased;
                    () = self.mailbox.mail() => {}
                    () = link.broken().raised() => return true,
                },
            }
        }
    }

    /// Waits before connecting again; `false` if the lane is closed.
    async fn pause(&self, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        while !self.mailbox.is_closed() {
            if timeout_at(end, self.mailbox.mail()).await.is_err() {
                return true;
            }
        }
        false
    }

    /// Commands wait for a connection no longer than their deadline; connecting goes on.
    async fn connect(&self) -> Result<Link, Failure> {
        let link = Link::open(&self.server, &self.client);
        let mut greeted = link.send(Content::Hello);
        let deadline = self.client.deadline;
        let greeting = match timeout(deadline, &mut greeted).await {
            Ok(greeting) => Ok(greeting),
            Err(_) => {
                self.mailbox.trip(&format!("not connected within {deadline:?}").into());
                timeout(CONNECT_DEADLINE, greeted).await
            }
        };
        match greeting {
            Ok(Ok(_)) => Ok(link),
            Ok(Err(_)) => Err(Failure::Down(CUT.into())),
            Err(_) => {
                let cause = format!("no connection within {:?}", deadline + CONNECT_DEADLINE);
                Err(Failure::Down(cause.into()))
            }
        }
    }

    /// Sends batches until nothing is left to send.
    async fn serve(&self, link: &Link) -> Result<(), Failure> {
        while let Reopened::Owing(debts) = self.mailbox.reopen(MAX_BATCH) {
            let count = debts.len();
            let pay =
                |Debt { key, token }| Asked { op: self.client.releasing(Op::Void), key, token };
            let payment = Content::Commands(debts.into_iter().map(pay).collect());
            match timeout(self.client.deadline, link.send(payment)).await {
                Ok(Ok(_)) => self.mailbox.paid(count),
                Ok(Err(_)) => return Err(Failure::Cut),
                Err(_) => return Err(Failure::Hung),
            }
        }
        self.exchange(link).await
    }

    async fn exchange(&self, link: &Link) -> Result<(), Failure> {
        let mut in_flight: VecDeque<Batch<'_>> = VecDeque::new();
        let failure = loop {
            while in_flight.len() < MAX_WINDOW {
                let commands = self.mailbox.take(MAX_BATCH);
                if commands.is_empty() {
                    break;
                }
                in_flight.push_back(Batch::send(self, link, commands));
            }
            let window_open = in_flight.len() < MAX_WINDOW;
            let Some(first) = in_flight.front_mut() else { return Ok(()) };
            tokio::select! {
                biased;
                votes = &mut first.votes => match votes {
                    Ok(votes) => {
                        first.count(votes);
                        in_flight.pop_front();
                    }
                    Err(_) => break Failure::Cut,
                },
                () = link.broken().raised() => break Failure::Cut,
                () = self.mailbox.mail(), if window_open => {}
                () = sleep_until(first.sent + self.client.deadline) => break Failure::Hung,
            }
        };
        for batch in &mut in_flight {
            batch.fate = match failure {
                Failure::Hung => NodeAnswer::TimedOut,
                Failure::Cut | Failure::Down(_) => NodeAnswer::Failed(CUT.into()),
            };
        }
        Err(failure)
    }
}

/// Commands on the way. A batch that is dropped unanswered is lost: its commands are answered and
/// its releases become debts.
struct Batch<'l> {
    lane: &'l Lane,
    commands: Vec<Command>,
    sent: Instant,
    votes: oneshot::Receiver<Vec<Vote>>,
    fate: NodeAnswer,
}

impl<'l> Batch<'l> {
    fn send(lane: &'l Lane, link: &Link, commands: Vec<Command>) -> Self {
        let asked = |command: &Command| Asked {
            op: lane.client.releasing(command.op),
            key: command.key.clone(),
            token: command.token.clone(),
        };
        let votes = link.send(Content::Commands(commands.iter().map(asked).collect()));
        let fate = NodeAnswer::Failed("its connection task ended".into());
        Self { lane, commands, sent: Instant::now(), votes, fate }
    }

    fn count(&mut self, votes: Vec<Vote>) {
        let commands = take(&mut self.commands);
        self.lane.mailbox.done(commands.len());
        for (command, mut vote) in commands.into_iter().zip(votes) {
            if let Some(cheat) = &self.lane.client.cheat {
                vote = cheat.after(self.lane.index, &command, vote);
            }
            command.seat.answer(vote);
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.commands.is_empty() {
            self.lane.mailbox.lost(take(&mut self.commands), &self.fate);
        }
    }
}

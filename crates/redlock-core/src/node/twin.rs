//! A real server and its double in memory, side by side: for a test that compares them.

#![allow(missing_docs, clippy::exhaustive_structs, reason = "public to checkers only")]

use std::sync::Arc;

use super::Command;
pub use super::Op;
use super::batch::{Again, Batch};
use super::call::Call;
use super::connection::{Cause, Connection};
pub use super::dataset::Asked;
use super::dataset::{Dataset, Introduction};
use super::guarded::Guarding;
use super::link::Dialect;
use super::mailbox::Mailbox;
use super::resp::Frame;
use super::wire::{self, EXTEND, GUARDED, READ, RELEASE, ScriptBy};
use crate::config::{Config, Safety};
use crate::protocol::fence::Counter;
use crate::protocol::quorum::{NodeAnswer, Vote};
use crate::round::{Round, Seat};

/// What a server answered, as the library understands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub answer: NodeAnswer,
    pub counter: Option<Counter>,
}

impl From<Vote> for Answered {
    fn from(Vote { answer, counter }: Vote) -> Self {
        Self { answer, counter }
    }
}

/// A connection to a real server, which knows the scripts.
#[derive(Debug)]
pub struct Wire(Connection);

impl Wire {
    /// Connects to the first server of a configuration.
    ///
    /// # Errors
    ///
    /// Why that is not possible.
    pub async fn connect(config: &Config) -> Result<Self, String> {
        let server = config.groups[0].servers().first().ok_or("no server is configured")?;
        let text = |cause: Cause| cause.to_string();
        let mut connection = Connection::open(server).await.map_err(text)?;
        for script in [&GUARDED, &RELEASE, &EXTEND, &READ] {
            connection.requests().command(3).arg("SCRIPT").arg("LOAD").arg(script.source);
            connection.reply().await.map_err(text)?;
        }
        Ok(Self(connection))
    }

    /// The time on the server's clock, in microseconds.
    async fn time(&mut self) -> Result<u64, Cause> {
        let strange = || Cause("its answer to TIME is no time".into());
        let Frame::Array(parts) = self.0.reply().await? else { return Err(strange()) };
        let number = |part: Frame<'_>| match part {
            Frame::Bulk(digits) => std::str::from_utf8(digits).ok()?.parse::<u64>().ok(),
            _ => None,
        };
        let [seconds, micros] = parts.exactly().ok_or_else(strange)?.map(number);
        Ok(seconds.ok_or_else(strange)? * 1_000_000 + micros.ok_or_else(strange)?)
    }
}

/// A client of the real server, by everything that ships but the task of its lane.
#[derive(Debug)]
pub struct Real {
    guarding: Option<Guarding>,
    mailbox: Mailbox,
}

impl Real {
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let guarding = (config.safety == Safety::Guarded).then(|| Guarding::new(config));
        Self { guarding, mailbox: Mailbox::default() }
    }

    /// Runs a batch. Returns the answers, and the server's time before and after each try in
    /// microseconds.
    ///
    /// # Errors
    ///
    /// The cause, if the connection fails.
    pub async fn run(
        &self,
        wire: &mut Wire,
        batch: &[Asked],
    ) -> Result<(Vec<Answered>, Vec<u64>), String> {
        let mut rounds = Vec::with_capacity(batch.len());
        for Asked { op, key, token } in batch {
            let round = Arc::new(Round::new(1));
            let seat = Seat::new(Arc::clone(&round), 0);
            self.mailbox.push([Command { op: *op, key: key.clone(), token: token.clone(), seat }]);
            rounds.push(round);
        }
        let mut commands = self.mailbox.take(batch.len());
        let mut again = Again::new(&self.mailbox);
        let mut times = Vec::new();
        for by in [ScriptBy::Hash, ScriptBy::Source] {
            let tried = self.try_once(wire, commands, by, &mut again, &mut times).await;
            tried.map_err(|cause| cause.to_string())?;
            commands = again.take();
            if commands.is_empty() {
                break;
            }
        }
        let answered = |round: Arc<Round>| {
            round.inspect(|ballot| Answered {
                answer: ballot.answers()[0].clone(),
                counter: ballot.counters().next().map(|(_, counter)| counter),
            })
        };
        Ok((rounds.into_iter().map(answered).collect(), times))
    }

    async fn try_once(
        &self,
        wire: &mut Wire,
        commands: Vec<Command>,
        by: ScriptBy,
        again: &mut Again<'_>,
        times: &mut Vec<u64>,
    ) -> Result<(), Cause> {
        let dialect = match &self.guarding {
            Some(_) => Dialect::Guarded,
            None => Dialect::Plain { native_delete: None },
        };
        let calls = Call::of(commands, by, dialect);
        let requests = wire.0.requests();
        requests.command(1).arg("TIME");
        for call in &calls {
            wire::encode_call(requests, call, by, dialect, self.guarding.as_ref());
        }
        requests.command(1).arg("TIME");
        times.push(wire.time().await?);
        let mut batch = Batch::of(&self.mailbox, by);
        let mut replies = Vec::new();
        for call in calls {
            wire::classify_call(&call, wire.0.reply().await?, &mut replies);
            batch.answer(call, &mut replies, again);
        }
        times.push(wire.time().await?);
        Ok(())
    }
}

/// The double.
#[derive(Clone, Debug, Default)]
pub struct Double(Dataset);

impl Double {
    /// Runs a batch of a client with this configuration, at this time of the server's clock and
    /// that one of the client's.
    pub fn run(
        &mut self,
        config: &Config,
        micros: u64,
        said: u64,
        batch: &[Asked],
    ) -> Vec<Answered> {
        let introduction = Introduction::new(config);
        let votes = self.0.run(introduction.as_ref(), said, micros, batch);
        votes.into_iter().map(Answered::from).collect()
    }

    pub fn flush(&mut self) {
        self.0.flush();
    }

    /// Another process serves the same data.
    pub fn restart(&mut self) {
        self.0.restart();
    }

    /// When the server votes, and until when there may be void tokens, in milliseconds.
    pub fn times(&mut self) -> Option<(&mut u64, &mut u64)> {
        self.0.times()
    }
}

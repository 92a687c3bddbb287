//! A real server and its double in memory, side by side: for a test that compares them.

#![allow(missing_docs, clippy::exhaustive_structs, reason = "public to checkers only")]

use std::sync::Arc;

use bb8_redis::redis::{Pipeline, RedisResult, Value};

use super::Command;
pub use super::Op;
use super::batch::{Again, Batch};
use super::connection::Dialect;
pub use super::dataset::Asked;
use super::dataset::{Dataset, Introduction};
use super::guarded::Guarding;
use super::mailbox::Mailbox;
use super::wire::{EXTEND, GUARDED, READ, RELEASE, ScriptBy};
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

/// The scripts that a connection loads before anything else.
#[must_use]
pub fn scripts() -> [&'static str; 4] {
    [GUARDED.source, RELEASE.source, EXTEND.source, READ.source]
}

/// A client of the real server, by everything that ships but the connection.
#[derive(Debug)]
pub struct Real {
    dialect: Dialect,
    mailbox: Mailbox,
}

impl Real {
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let dialect = match config.safety {
            Safety::Guarded => Dialect::Guarded(Arc::new(Guarding::new(config))),
            Safety::Plain => Dialect::Plain { native_delete: None },
        };
        Self { dialect, mailbox: Mailbox::default() }
    }

    /// Runs a batch; `send` sends a pipeline that has as many replies.
    ///
    /// # Errors
    ///
    /// Those of `send`.
    pub async fn run(
        &self,
        batch: &[Asked],
        mut send: impl AsyncFnMut(Pipeline) -> RedisResult<Vec<Value>>,
    ) -> RedisResult<Vec<Answered>> {
        let mut rounds = Vec::with_capacity(batch.len());
        for Asked { op, key, token } in batch {
            let round = Arc::new(Round::new(1));
            let seat = Seat::new(Arc::clone(&round), 0);
            self.mailbox.push([Command { op: *op, key: key.clone(), token: token.clone(), seat }]);
            rounds.push(round);
        }
        let mut commands = self.mailbox.take(batch.len());
        let mut again = Again::new(&self.mailbox);
        for by in [ScriptBy::Hash, ScriptBy::Source] {
            let (mut batch, pipeline) = Batch::prepare(&self.mailbox, &self.dialect, commands, by);
            let replies = send(pipeline).await?;
            let _unfit = batch.count(replies, &mut again);
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
        Ok(rounds.into_iter().map(answered).collect())
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

//! The in-process backend: the same semantics without a server, for demos and users' own tests.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;

use super::dataset::{Asked, Dataset, Introduction};
use super::{Command, Node};
use crate::clock::{Clock, Moment};
use crate::config::Config;

/// A node whose keys live in this process. It is as old as the process and has seen every lock
/// there was: it votes at once.
#[derive(Debug)]
pub(crate) struct MemoryNode {
    introduction: Option<Introduction>,
    clock: Arc<dyn Clock>,
    /// What the clocks showed when the node began.
    began: (Moment, u64),
    dataset: Mutex<Dataset>,
}

impl MemoryNode {
    pub(crate) fn new(config: &Config) -> Self {
        let mut dataset = Dataset::default();
        let introduction = Introduction::new(config);
        if let Some(introduction) = &introduction {
            dataset.provision(introduction, false);
        }
        let clock = Arc::clone(&config.clock);
        let began = (clock.now(), clock.unix_micros());
        Self { introduction, clock, began, dataset: Mutex::new(dataset) }
    }

    /// The wall clock, if nobody had set it since the node began: keys expire with their leases.
    fn micros(&self) -> u64 {
        let (moment, unix_micros) = self.began;
        let since = self.clock.now().since(moment);
        unix_micros.saturating_add(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn run<const N: usize>(&self, commands: [Command; N]) {
        let asked = commands.each_ref().map(|command| Asked {
            op: command.op,
            key: command.key.clone(),
            token: command.token.clone(),
        });
        let (introduction, micros) = (self.introduction.as_ref(), self.micros());
        // Its clock is ours.
        let said = micros;
        let votes = self.dataset.lock().run(introduction, said, micros, &asked);
        for (command, vote) in commands.into_iter().zip(votes) {
            command.seat.answer(vote);
        }
    }
}

impl Node for MemoryNode {
    fn address(&self) -> &str {
        "memory"
    }

    fn post(&self, command: Command) {
        self.run([command]);
    }

    fn post_both(&self, first: Command, second: Command) {
        self.run([first, second]);
    }

    fn unsettled(&self) -> usize {
        0
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(ready(()))
    }

    fn shut_down(&self) {}
}

//! A real server and its double in memory are told the same, and have to answer the same.
//!
//! The memory backend and everything that is simulated stand on the double: what is found there
//! says something of real servers only as far as the double does what the scripts do. The commands
//! are random, by a seed; the script, the encoding and the reading of replies are those that ship.

mod plan;

use std::time::Duration;

use fastrand::Rng;
use redis::aio::MultiplexedConnection;
use redis::cmd;
use redlock_core::testing::twin::{Answered, Asked, Double, Real, Wire};
use redlock_core::{Config, NodeAnswer};
use tokio::time::sleep;

use crate::RedisServer;
use plan::{Client, Plan, RECORD, Step};

/// By how much times may differ that were counted in whole milliseconds.
const PRECISION: Duration = Duration::from_millis(2);

/// By how much the times may differ for which a key still lives: the machine may have stood still
/// between the look at the clock and the command that set the key.
const SLACK: Duration = Duration::from_millis(500);

/// A server, its double, and what they were told last.
pub struct Differential {
    server: RedisServer,
    connection: MultiplexedConnection,
    wire: Wire,
    double: Double,
    clients: Vec<(Client, Real)>,
    plan: Plan,
    history: Vec<String>,
    operations: u64,
}

impl std::fmt::Debug for Differential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Differential").field("operations", &self.operations).finish_non_exhaustive()
    }
}

impl Differential {
    /// Starts a server.
    pub async fn start(seed: u64) -> Self {
        let server = RedisServer::start().await;
        let (connection, wire) = connect(&server).await;
        let clients = Client::all();
        let plan = Plan::new(Rng::with_seed(seed), &clients);
        let client = |client: Client| {
            let real = Real::new(&client.config);
            (client, real)
        };
        let clients = clients.into_iter().map(client).collect();
        let (double, history, operations) = (Double::default(), Vec::new(), 0);
        Self { server, connection, wire, double, clients, plan, history, operations }
    }

    /// How many operations were compared so far.
    #[must_use]
    pub const fn operations(&self) -> u64 {
        self.operations
    }

    /// Compares until so many operations were.
    ///
    /// # Errors
    ///
    /// The first difference, and what led to it.
    pub async fn run(&mut self, operations: u64) -> Result<(), String> {
        while self.operations < operations {
            let step = self.plan.next();
            self.take(step).await.map_err(|difference| {
                let last = self.history.len().saturating_sub(8);
                format!("{difference}\nafter\n{}", self.history[last..].join("\n"))
            })?;
        }
        Ok(())
    }

    async fn take(&mut self, step: Step) -> Result<(), String> {
        self.history.push(format!("{step:?}"));
        if self.history.len() > 10_000 {
            self.history.drain(..9_000);
        }
        match step {
            Step::Batch { client, batch } => self.compare(client, &batch).await?,
            Step::Wait(time) => sleep(time).await,
            Step::Flush => {
                cmd("FLUSHALL").exec_async(&mut self.connection).await.unwrap();
                self.double.flush();
            }
            Step::ForeignRun => {
                // As if the data came from another server: it kept everything but its identity.
                let found: bool =
                    cmd("EXISTS").arg(RECORD).query_async(&mut self.connection).await.unwrap();
                if found {
                    let mut set = cmd("HSET");
                    set.arg(RECORD).arg("run").arg(format!("other{}", self.operations));
                    set.exec_async(&mut self.connection).await.unwrap();
                }
                self.double.restart();
            }
            Step::Restart => {
                self.server.restart().await;
                (self.connection, self.wire) = connect(&self.server).await;
                self.double.restart();
                self.double.flush();
            }
        }
        Ok(())
    }

    async fn compare(&mut self, client: usize, batch: &[Asked]) -> Result<(), String> {
        let (Client { config, .. }, real) = &self.clients[client];
        let (answers, times) = real.run(&mut self.wire, batch).await?;
        let (&first, &last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
        let tolerance = PRECISION + Duration::from_micros(last - first);
        let mut difference = None;
        // Something may have expired between the looks at the clock before and after.
        for micros in [first, last] {
            let mut double = self.double.clone();
            let twins = double.run(config, micros, micros, batch);
            let differs = answers
                .iter()
                .zip(&twins)
                .position(|(one, other)| !is_the_same(one, other, tolerance));
            let Some(at) = differs.filter(|_| answers.len() == twins.len()) else {
                self.double = double;
                self.operations += batch.len() as u64;
                return self.adopt_times(tolerance).await;
            };
            difference.get_or_insert_with(|| {
                format!("{:?}: the server {:?}, its double {:?}", batch[at], answers[at], twins[at])
            });
        }
        Err(difference.unwrap_or_default())
    }

    /// Both count whole milliseconds from a moment of their own: from here on they agree to the
    /// last, so that what is taught later is not refused by one of them.
    async fn adopt_times(&mut self, tolerance: Duration) -> Result<(), String> {
        let told: (Option<u64>, Option<u64>) = cmd("HMGET")
            .arg(RECORD)
            .arg("until")
            .arg("void")
            .query_async(&mut self.connection)
            .await
            .unwrap();
        match (told.0, self.double.times()) {
            (None, None) => Ok(()),
            (Some(until), Some((own_until, own_void))) => {
                let void = told.1.unwrap_or(0);
                for (one, other) in [(until, *own_until), (void, *own_void)] {
                    if Duration::from_millis(one.abs_diff(other)) > tolerance {
                        return Err(format!("the record says {one}, the double {other}"));
                    }
                }
                (*own_until, *own_void) = (until, void);
                Ok(())
            }
            (one, other) => Err(format!("the record votes from {one:?}, the double {other:?}")),
        }
    }
}

/// A connection for the harness, and one as the library has them.
async fn connect(server: &RedisServer) -> (MultiplexedConnection, Wire) {
    let config = Config::servers([server.url()]).build().unwrap();
    (server.connection().await, Wire::connect(&config).await.unwrap())
}

fn is_the_same(one: &Answered, other: &Answered, tolerance: Duration) -> bool {
    let answers = match (&one.answer, &other.answer) {
        (
            NodeAnswer::Held { label, remaining },
            NodeAnswer::Held { label: other_label, remaining: other_remaining },
        ) => {
            let remaining = match (remaining, other_remaining) {
                (Some(one), Some(other)) => one.abs_diff(*other) <= SLACK,
                (one, other) => one == other,
            };
            label == other_label && remaining
        }
        (
            NodeAnswer::Quarantined { ready_in },
            NodeAnswer::Quarantined { ready_in: other_ready_in },
        ) => ready_in.abs_diff(*other_ready_in) <= tolerance,
        // What the library adds to the words of the server is for people.
        (NodeAnswer::Refused(one), NodeAnswer::Refused(other)) => {
            one.split(": ").next() == other.split(": ").next()
        }
        (one, other) => one == other,
    };
    answers && one.counter == other.counter
}

//! What the servers and the client could do at best: the commands of a lock in bare pipelines.
//!
//! A cycle sends each node the same two commands as this library does in its plain mode, in
//! batches over one connection, and goes on at the majority. There is no lock logic: no answer is
//! looked at, nothing is renewed, nothing cleaned up.

use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{Client, IntoConnectionInfo, Pipeline, RedisResult, Script};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::scenario::Result;

const RELEASE: &str = include_str!("../../redlock-core/src/node/scripts/release.lua");

const LARGEST_BATCH: usize = 256;

const TTL_MILLIS: u64 = 10_000;

/// Connections, each with a task that ends with this value.
#[derive(Debug)]
pub(crate) struct Limit {
    nodes: Vec<mpsc::UnboundedSender<Posted>>,
    _tasks: JoinSet<RedisResult<()>>,
}

#[derive(Debug)]
struct Posted {
    command: Command,
    key: Arc<str>,
    token: Arc<str>,
    round: Arc<Round>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    Lock,
    Release,
}

/// Tells whoever waits when a majority has answered, or that none will.
#[derive(Debug)]
struct Round {
    answers: AtomicUsize,
    majority: usize,
    done: Mutex<Option<oneshot::Sender<()>>>,
}

impl Limit {
    /// With so many batches on the way to each server at once: more than one pays only where the
    /// network is slow.
    pub(crate) async fn connect(urls: &[String], window: usize) -> Result<Self> {
        let (mut nodes, mut tasks) = (Vec::new(), JoinSet::new());
        for url in urls {
            let nodelay = TcpSettings::default().set_nodelay(true);
            let server = url.as_str().into_connection_info()?.set_tcp_settings(nodelay);
            let mut connection = Client::open(server)?.get_multiplexed_async_connection().await?;
            let release = Script::new(RELEASE).prepare_invoke().load_async(&mut connection).await?;
            let (sender, inbox) = mpsc::unbounded_channel();
            tasks.spawn(serve(connection, release, window, inbox));
            nodes.push(sender);
        }
        Ok(Self { nodes, _tasks: tasks })
    }

    pub(crate) async fn lock(&self, key: &str) -> Result<Held<'_>> {
        let token = format!("{:032x}", fastrand::u128(..));
        let held = Held { limit: self, key: key.into(), token: token.into() };
        self.ask(Command::Lock, &held).await?;
        Ok(held)
    }

    async fn ask(&self, command: Command, held: &Held<'_>) -> Result<()> {
        let (done, majority_answered) = oneshot::channel();
        let round = Arc::new(Round {
            answers: AtomicUsize::new(0),
            majority: self.nodes.len() / 2 + 1,
            done: Mutex::new(Some(done)),
        });
        for node in &self.nodes {
            let (key, token) = (Arc::clone(&held.key), Arc::clone(&held.token));
            node.send(Posted { command, key, token, round: Arc::clone(&round) })?;
        }
        drop(round);
        Ok(majority_answered.await?)
    }
}

/// A key that was set.
#[derive(Debug)]
pub(crate) struct Held<'l> {
    limit: &'l Limit,
    key: Arc<str>,
    token: Arc<str>,
}

impl Held<'_> {
    pub(crate) async fn release(self) -> Result<()> {
        self.limit.ask(Command::Release, &self).await
    }
}

impl Round {
    fn answer(&self) {
        if self.answers.fetch_add(1, Ordering::AcqRel) + 1 == self.majority
            && let Some(done) = self.done.lock().take()
        {
            // Whoever waited may have gone.
            let _ = done.send(());
        }
    }
}

/// Sends what has gathered while as many batches as may be were on the way.
async fn serve(
    connection: MultiplexedConnection,
    release: String,
    window: usize,
    mut inbox: mpsc::UnboundedReceiver<Posted>,
) -> RedisResult<()> {
    let mut gathered = Vec::new();
    let mut on_the_way = FuturesOrdered::new();
    loop {
        tokio::select! {
            Some(answered) = on_the_way.next() => {
                let answered: Vec<Posted> = answered?;
                answered.iter().for_each(|posted| posted.round.answer());
            }
            count = inbox.recv_many(&mut gathered, LARGEST_BATCH), if on_the_way.len() < window => {
                if count == 0 {
                    return Ok(());
                }
                let (batch, mut connection) = (take(&mut gathered), connection.clone());
                let pipeline = pipeline(&batch, &release);
                on_the_way.push_back(async move {
                    pipeline.exec_async(&mut connection).await?;
                    RedisResult::Ok(batch)
                });
            }
        }
    }
}

/// All releases are one call: so they are with this library.
fn pipeline(batch: &[Posted], release: &str) -> Pipeline {
    let mut pipeline = Pipeline::with_capacity(batch.len());
    for Posted { key, token, .. } in batch.iter().filter(|posted| posted.command == Command::Lock) {
        let set = pipeline.cmd("SET").arg(&**key).arg(&**token);
        set.arg("NX").arg("PX").arg(TTL_MILLIS);
    }
    let releases = || batch.iter().filter(|posted| posted.command == Command::Release);
    let count = releases().count();
    if count > 0 {
        let call = pipeline.cmd("EVALSHA").arg(release).arg(count);
        releases().for_each(|posted| {
            call.arg(&*posted.key);
        });
        releases().for_each(|posted| {
            call.arg(&*posted.token);
        });
    }
    pipeline
}

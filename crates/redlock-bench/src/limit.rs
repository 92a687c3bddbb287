//! What the servers and the client could do at best: the commands of a lock on bare sockets.
//!
//! A cycle sends each node the same two commands as this library does in its plain mode, in
//! batches over one connection, and goes on at the majority. One task for each node writes and reads
//! its socket. There is no lock logic: replies are only counted, nothing is renewed or cleaned up.

use std::collections::VecDeque;
use std::io::Write;
use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use redis::{Client, IntoConnectionInfo, Script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::scenario::Result;

const RELEASE: &str = include_str!("../../redlock-core/src/node/scripts/release.lua");

const LARGEST_BATCH: usize = 256;

const TTL_MILLIS: &str = "10000";

/// Connections, each with a task that ends with this value.
#[derive(Debug)]
pub(crate) struct Limit {
    nodes: Vec<mpsc::UnboundedSender<Posted>>,
    _tasks: JoinSet<Result<()>>,
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
            let client = Client::open(url.as_str())?;
            let mut loading = client.get_multiplexed_async_connection().await?;
            let release = Script::new(RELEASE).prepare_invoke().load_async(&mut loading).await?;
            let address = url.as_str().into_connection_info()?.addr().to_string();
            let connection = TcpStream::connect(address).await?;
            connection.set_nodelay(true)?;
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

/// Sends what has gathered while fewer batches than `window` are on the way.
async fn serve(
    mut connection: TcpStream,
    release: String,
    window: usize,
    mut inbox: mpsc::UnboundedReceiver<Posted>,
) -> Result<()> {
    let (mut reading, mut writing) = connection.split();
    let (mut gathered, mut requests, mut replies) = (Vec::new(), Vec::new(), vec![0; 64 << 10]);
    let mut on_the_way: VecDeque<(Vec<Posted>, usize)> = VecDeque::new();
    loop {
        tokio::select! {
            read = reading.read(&mut replies), if !on_the_way.is_empty() => {
                let mut lines = replies[..read?].iter().filter(|byte| **byte == b'\n').count();
                while let Some((batch, missing)) = on_the_way.front_mut() {
                    if lines < *missing {
                        *missing -= lines;
                        break;
                    }
                    lines -= *missing;
                    batch.iter().for_each(|posted| posted.round.answer());
                    on_the_way.pop_front();
                }
            }
            count = inbox.recv_many(&mut gathered, LARGEST_BATCH), if on_the_way.len() < window => {
                if count == 0 {
                    return Ok(());
                }
                let batch = take(&mut gathered);
                let lines = write_batch(&batch, &release, &mut requests)?;
                writing.write_all(&requests).await?;
                requests.clear();
                on_the_way.push_back((batch, lines));
            }
        }
    }
}

/// All releases are one call: so they are with this library. Returns how many lines the replies
/// have: one for each lock, and one more for the call than there are releases.
fn write_batch(batch: &[Posted], release: &str, requests: &mut Vec<u8>) -> Result<usize> {
    let locks = batch.iter().filter(|posted| posted.command == Command::Lock);
    let mut lines = 0;
    for Posted { key, token, .. } in locks {
        write!(requests, "*6\r\n$3\r\nSET\r\n")?;
        argument(requests, key)?;
        argument(requests, token)?;
        write!(requests, "$2\r\nNX\r\n$2\r\nPX\r\n")?;
        argument(requests, TTL_MILLIS)?;
        lines += 1;
    }
    let releases = || batch.iter().filter(|posted| posted.command == Command::Release);
    let count = releases().count();
    if count > 0 {
        write!(requests, "*{}\r\n$7\r\nEVALSHA\r\n", 3 + 2 * count)?;
        argument(requests, release)?;
        argument(requests, &count.to_string())?;
        for posted in releases() {
            argument(requests, &posted.key)?;
        }
        for posted in releases() {
            argument(requests, &posted.token)?;
        }
        lines += 1 + count;
    }
    Ok(lines)
}

fn argument(requests: &mut Vec<u8>, argument: &str) -> Result<()> {
    Ok(write!(requests, "${}\r\n{argument}\r\n", argument.len())?)
}

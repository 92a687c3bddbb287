//! One connection through the proxy: a queue in each direction.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// How many pieces may be under way in one direction. Then the sender has to wait, as it would
/// with a full TCP window.
const QUEUE: usize = 1024;

/// What happens to the traffic now.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    pub(super) requests: Way,
    pub(super) replies: Way,
    pub(super) request_delay: Duration,
    pub(super) reply_delay: Duration,
    /// Whether a connection to the server ends with the client's, and what it still had to carry
    /// is lost.
    pub(super) severs: bool,
}

/// What happens to one direction of the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Way {
    #[default]
    Pass,
    /// Kept for the connections with a smaller number; the others pass.
    HoldBelow(u64),
    Drop,
}

impl Way {
    pub(super) const HOLD_ALL: Self = Self::HoldBelow(u64::MAX);
}

/// What a test waits for, instead of sleeping.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) open: AtomicUsize,
    pub(super) accepted: AtomicU64,
    pub(super) held_requests: AtomicUsize,
    pub(super) held_replies: AtomicUsize,
    pub(super) dropped_replies: AtomicUsize,
}

/// A connection that lost bytes and must be closed.
struct Broken;

/// Carries both directions until both have ended.
///
/// One may end long before the other: a client that is gone may have left requests which are held
/// here, and the server still gets them.
pub(super) async fn run(
    number: u64,
    client: TcpStream,
    server: TcpStream,
    flow: watch::Receiver<Flow>,
    counts: &Counts,
) {
    for socket in [&client, &server] {
        // A piece must not wait for the next one; without it only the timing would suffer.
        let _ = socket.set_nodelay(true);
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let lost_requests = AtomicUsize::new(0);
    let requests = Direction {
        number,
        flow: flow.clone(),
        way: |flow| flow.requests,
        delay: |flow| flow.request_delay,
        severs: |flow| flow.severs,
        waiting: &counts.held_requests,
        lost: &lost_requests,
    };
    let replies = Direction {
        number,
        flow,
        way: |flow| flow.replies,
        delay: |flow| flow.reply_delay,
        severs: |_| false,
        waiting: &counts.held_replies,
        lost: &counts.dropped_replies,
    };
    // The first one that is broken takes the other with it, and both sockets are closed.
    let _ = tokio::try_join!(
        requests.carry(from_client, to_server),
        replies.carry(from_server, to_client)
    );
}

struct Direction<'a> {
    number: u64,
    flow: watch::Receiver<Flow>,
    way: fn(&Flow) -> Way,
    delay: fn(&Flow) -> Duration,
    severs: fn(&Flow) -> bool,
    waiting: &'a AtomicUsize,
    lost: &'a AtomicUsize,
}

/// Bytes under way, counted as waiting until they are delivered, lost or thrown away with the
/// connection. No bytes are the end of the stream, which must not overtake what was sent before.
struct Piece<'a> {
    due: Instant,
    bytes: Vec<u8>,
    waiting: &'a AtomicUsize,
}

impl<'a> Piece<'a> {
    fn new(due: Instant, bytes: &[u8], waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(bytes.len(), Ordering::SeqCst);
        Self { due, bytes: bytes.to_vec(), waiting }
    }
}

impl Drop for Piece<'_> {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.bytes.len(), Ordering::SeqCst);
    }
}

impl Direction<'_> {
    async fn carry(
        self,
        source: impl AsyncRead + Unpin,
        target: impl AsyncWrite + Unpin,
    ) -> Result<(), Broken> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let Self { number, flow, way, delay, severs, waiting, lost } = self;
        let read = async {
            read(source, sender, flow.clone(), delay, waiting).await;
            if severs(&flow.borrow()) { Err(Broken) } else { Ok(()) }
        };
        let gate = Gate { number, flow: flow.clone(), way };
        tokio::try_join!(read, write(target, receiver, gate, lost)).map(|_| ())
    }
}

async fn read<'a>(
    mut source: impl AsyncRead + Unpin,
    sender: mpsc::Sender<Piece<'a>>,
    flow: watch::Receiver<Flow>,
    delay: fn(&Flow) -> Duration,
    waiting: &'a AtomicUsize,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut due = Instant::now();
    loop {
        // A connection that fails ends like one that is closed: there is no more to carry.
        let length = source.read(&mut buffer).await.unwrap_or(0);
        // A shorter delay must not let this piece overtake the one before.
        due = due.max(Instant::now() + delay(&flow.borrow()));
        let piece = Piece::new(due, &buffer[..length], waiting);
        if sender.send(piece).await.is_err() || length == 0 {
            return;
        }
    }
}

async fn write(
    mut target: impl AsyncWrite + Unpin,
    mut receiver: mpsc::Receiver<Piece<'_>>,
    mut gate: Gate,
    lost: &AtomicUsize,
) -> Result<(), Broken> {
    while let Some(piece) = receiver.recv().await {
        sleep_until(piece.due).await;
        if gate.opens().await == Way::Drop {
            lost.fetch_add(piece.bytes.len(), Ordering::SeqCst);
            drop(piece);
            return swallow(receiver, gate, lost).await;
        }
        if piece.bytes.is_empty() {
            break;
        }
        if target.write_all(&piece.bytes).await.is_err() {
            break;
        }
    }
    let _ = target.shutdown().await;
    Ok(())
}

/// Bytes are lost, so nothing may follow them: not even when the traffic flows again.
async fn swallow(
    mut receiver: mpsc::Receiver<Piece<'_>>,
    mut gate: Gate,
    lost: &AtomicUsize,
) -> Result<(), Broken> {
    let swallow = async {
        while let Some(piece) = receiver.recv().await {
            lost.fetch_add(piece.bytes.len(), Ordering::SeqCst);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = swallow => Ok(()),
        () = gate.stops_dropping() => Err(Broken),
    }
}

/// What lets the pieces of one direction through, or not.
struct Gate {
    number: u64,
    flow: watch::Receiver<Flow>,
    way: fn(&Flow) -> Way,
}

impl Gate {
    /// Waits while the connection is held, and says whether its bytes pass or are lost. The proxy
    /// being gone is no reason to pass: its connections are being closed.
    async fn opens(&mut self) -> Way {
        let (number, way) = (self.number, self.way);
        let opened = self.flow.wait_for(|flow| match way(flow) {
            Way::Pass | Way::Drop => true,
            Way::HoldBelow(limit) => number >= limit,
        });
        opened.await.map_or(Way::Drop, |flow| way(&flow))
    }

    async fn stops_dropping(&mut self) {
        let way = self.way;
        let _ = self.flow.wait_for(|flow| way(flow) != Way::Drop).await;
    }
}

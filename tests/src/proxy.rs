//! A network between a client and one server that fails on demand.

mod pump;

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use self::pump::{Counts, Flow, Way};
use crate::server::free_port;
use crate::{RedisServer, eventually};

/// A TCP proxy on a port of its own. It forwards until it is told otherwise, and ends with this
/// value.
///
/// It does what a network can do and nothing else: bytes of a connection may be late, in order, or
/// they may be lost, and then that connection never carries another byte. Connections that lost
/// bytes are closed when the traffic flows again.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    port: u16,
    upstream: u16,
    flow: watch::Sender<Flow>,
    counts: Arc<Counts>,
    connections: Arc<Mutex<JoinSet<()>>>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    /// Starts a proxy in front of a port of 127.0.0.1.
    pub async fn start(upstream_port: u16) -> Self {
        let (listener, port) = listen_on_a_free_port().await;
        let proxy = Self {
            url: format!("redis://127.0.0.1:{port}/"),
            port,
            upstream: upstream_port,
            flow: watch::Sender::new(Flow::default()),
            counts: Arc::default(),
            connections: Arc::default(),
            acceptor: Mutex::default(),
        };
        *proxy.acceptor.lock() = Some(proxy.spawn_acceptor(listener));
        proxy
    }

    /// Starts a proxy in front of a server; the URL keeps the server's scheme and password.
    pub async fn in_front_of(server: &RedisServer) -> Self {
        let mut proxy = Self::start(server.port()).await;
        let (of_server, own) = (format!(":{}/", server.port()), format!(":{}/", proxy.port));
        proxy.url = server.url().replace(&of_server, &own);
        proxy
    }

    /// The URL a client is configured with.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on a connection to the server ends with the client's, and what it still had to
    /// carry is lost. Otherwise the server gets it, however long the client has been gone.
    #[must_use]
    pub fn severing(self) -> Self {
        self.flow.send_modify(|flow| flow.severs = true);
        self
    }

    /// Everything flows again: what was held is delivered, connections that lost bytes are closed,
    /// the delays are zero.
    pub fn pass(&self) {
        self.flow.send_modify(|flow| *flow = Flow { severs: flow.severs, ..Flow::default() });
    }

    /// Keeps what clients send, in order, until [`release`](Self::release).
    pub fn hold_requests(&self) {
        self.flow.send_modify(|flow| flow.requests = Way::HOLD_ALL);
    }

    /// Keeps what clients send on the connections that are open now; later connections pass.
    pub fn hold_open_connections(&self) {
        let until = self.counts.accepted.load(Ordering::SeqCst);
        self.flow.send_modify(|flow| flow.requests = Way::HoldBelow(until));
    }

    /// Keeps what the server answers, in order, until [`release`](Self::release).
    pub fn hold_replies(&self) {
        self.flow.send_modify(|flow| flow.replies = Way::HOLD_ALL);
    }

    /// Delivers what is held, and holds no more.
    pub fn release(&self) {
        self.flow.send_modify(|flow| {
            for way in [&mut flow.requests, &mut flow.replies] {
                if matches!(way, Way::HoldBelow(_)) {
                    *way = Way::Pass;
                }
            }
        });
    }

    /// Loses what the server answers; it still gets and obeys what clients send.
    pub fn drop_replies(&self) {
        self.flow.send_modify(|flow| flow.replies = Way::Drop);
    }

    /// Loses everything in both directions. Connections stay open, and new ones are accepted.
    pub fn blackhole(&self) {
        self.flow.send_modify(|flow| (flow.requests, flow.replies) = (Way::Drop, Way::Drop));
    }

    /// Delivers what clients send from now on this much later. The throughput stays.
    pub fn delay_requests(&self, delay: Duration) {
        self.flow.send_modify(|flow| flow.request_delay = delay);
    }

    /// Delivers what the server answers from now on this much later. The throughput stays.
    pub fn delay_replies(&self, delay: Duration) {
        self.flow.send_modify(|flow| flow.reply_delay = delay);
    }

    /// Closes all connections; what they still had to carry is lost. New ones are accepted.
    pub async fn cut(&self) {
        let mut connections = std::mem::take(&mut *self.connections.lock());
        connections.shutdown().await;
    }

    /// Stops listening: new connections are refused. Those that are open go on.
    pub async fn refuse(&self) {
        let acceptor = self.acceptor.lock().take();
        if let Some(acceptor) = acceptor {
            acceptor.abort();
            let _ = acceptor.await;
        }
    }

    /// Listens again after [`refuse`](Self::refuse).
    pub async fn accept(&self) {
        self.refuse().await;
        let address = (Ipv4Addr::LOCALHOST, self.port);
        let listener = eventually(Duration::from_secs(5), "the proxy's port", async || {
            TcpListener::bind(address).await
        })
        .await;
        *self.acceptor.lock() = Some(self.spawn_acceptor(listener));
    }

    /// How many connections are open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// How many connections there have been.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// How many bytes from clients wait to be delivered, because they are held or delayed.
    #[must_use]
    pub fn held_requests(&self) -> usize {
        self.counts.held_requests.load(Ordering::SeqCst)
    }

    /// How many bytes from the server wait to be delivered, because they are held or delayed.
    #[must_use]
    pub fn held_replies(&self) -> usize {
        self.counts.held_replies.load(Ordering::SeqCst)
    }

    /// How many bytes from the server were lost so far.
    #[must_use]
    pub fn dropped_replies(&self) -> usize {
        self.counts.dropped_replies.load(Ordering::SeqCst)
    }

    fn spawn_acceptor(&self, listener: TcpListener) -> JoinHandle<()> {
        let (counts, flow) = (Arc::clone(&self.counts), self.flow.subscribe());
        let (connections, upstream) = (Arc::clone(&self.connections), self.upstream);
        tokio::spawn(async move {
            loop {
                // It fails for one connection at a time: that client was already gone.
                let Ok((client, _)) = listener.accept().await else { continue };
                let number = counts.accepted.fetch_add(1, Ordering::SeqCst);
                let (open, flow) = (Open::count(&counts), flow.clone());
                let mut connections = connections.lock();
                while connections.try_join_next().is_some() {}
                connections.spawn(async move {
                    if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, upstream)).await {
                        pump::run(number, client, server, flow, &open.0).await;
                    }
                });
            }
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(acceptor) = self.acceptor.get_mut() {
            acceptor.abort();
        }
        self.connections.lock().abort_all();
    }
}

/// Counts a connection as open for as long as its task exists.
struct Open(Arc<Counts>);

impl Open {
    fn count(counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn listen_on_a_free_port() -> (TcpListener, u16) {
    eventually(Duration::from_secs(5), "a free port", async || {
        let port = free_port()?;
        Ok::<_, io::Error>((TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?, port))
    })
    .await
}

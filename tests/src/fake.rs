//! Servers that are not Redis, and servers that are Redis only as far as a test wants.

mod resp;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use redis::{Parser, Value};

pub use self::resp::Reply;
use crate::RedisServer;

/// A listener on a free port of 127.0.0.1 that answers as a test tells it to. It works in plain
/// threads, also under a paused clock, and ends with this value.
#[derive(Debug)]
pub struct FakeServer {
    port: u16,
    url: String,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// A command as a client sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct Command {
    words: Vec<String>,
}

impl Command {
    /// Its name in upper case.
    #[must_use]
    pub fn name(&self) -> String {
        self.words.first().map(|name| name.to_uppercase()).unwrap_or_default()
    }

    /// What follows the name; what is not UTF-8 is replaced.
    #[must_use]
    pub fn args(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }
}

type Script = dyn Fn(&Command) -> Option<Reply> + Send + Sync;

/// What a connection is met with.
enum Manner {
    /// Waits for the first bytes, sends this, and closes.
    Say(&'static [u8]),
    Close,
    Silence,
    Script {
        script: Box<Script>,
        upstream: Option<u16>,
    },
}

struct Shared {
    manner: Manner,
    ended: AtomicBool,
    accepted: AtomicUsize,
    commands: Mutex<Vec<String>>,
    /// Both ends of every connection's story: closing the sockets ends the threads.
    connections: Mutex<Vec<(TcpStream, JoinHandle<()>)>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("accepted", &self.accepted).finish_non_exhaustive()
    }
}

impl FakeServer {
    /// A web server: answers anything with `400 Bad Request`, and closes.
    #[must_use]
    pub fn http() -> Self {
        Self::start(Manner::Say(
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        ))
    }

    /// Answers anything with bytes that no protocol knows, and closes.
    #[must_use]
    pub fn garbage() -> Self {
        Self::start(Manner::Say(b"\x00\xff\x13\x37\xfe no \r\n protocol \x80\r\n"))
    }

    /// Closes every connection at once.
    #[must_use]
    pub fn closing() -> Self {
        Self::start(Manner::Close)
    }

    /// Accepts connections, reads everything, and never answers.
    #[must_use]
    pub fn silent() -> Self {
        Self::start(Manner::Silence)
    }

    /// Speaks the Redis protocol, and answers as `script` says. Where it says `None`, PING, SELECT
    /// and CLIENT are answered well, everything else is an unknown command.
    #[must_use]
    pub fn scripted(script: impl Fn(&Command) -> Option<Reply> + Send + Sync + 'static) -> Self {
        Self::start(Manner::Script { script: Box::new(script), upstream: None })
    }

    /// Stands in front of a real server without TLS, and lets it answer where `script` says
    /// `None`.
    #[must_use]
    pub fn in_front_of(
        server: &RedisServer,
        script: impl Fn(&Command) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let upstream = Some(server.port());
        let mut fake = Self::start(Manner::Script { script: Box::new(script), upstream });
        let (of_server, own) = (format!(":{}/", server.port()), format!(":{}/", fake.port));
        fake.url = server.url().replace(&of_server, &own);
        fake
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

    /// How many connections there have been.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// The names of the commands so far, in upper case, in order.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        self.shared.commands.lock().clone()
    }

    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let shared = Arc::new(Shared {
            manner,
            ended: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            commands: Mutex::default(),
            connections: Mutex::default(),
        });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        let url = format!("redis://127.0.0.1:{port}/");
        Self { port, url, shared, acceptor: Some(acceptor) }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then sees that it is over. If that fails it is already gone.
        let _ = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for (socket, thread) in self.shared.connections.lock().drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for socket in listener.incoming() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let Ok(socket) = socket else { continue };
            self.accepted.fetch_add(1, Ordering::SeqCst);
            let Ok(handle) = socket.try_clone() else { continue };
            let thread = thread::spawn({
                let shared = Arc::clone(self);
                // An error is the end of the connection; there is nobody to tell.
                move || drop(shared.serve(socket))
            });
            let mut connections = self.connections.lock();
            connections.retain(|(_, thread)| !thread.is_finished());
            connections.push((handle, thread));
        }
    }

    fn serve(&self, mut socket: TcpStream) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let outcome = match &self.manner {
            Manner::Close => Ok(()),
            Manner::Say(bytes) => {
                let _ = socket.read(&mut [0; 4096])?;
                socket.write_all(bytes)
            }
            Manner::Silence => io::copy(&mut socket, &mut io::sink()).map(drop),
            Manner::Script { script, upstream } => {
                let upstream = upstream.map(Upstream::connect).transpose()?;
                self.play(&socket, script, upstream)
            }
        };
        // The other handle of this socket, kept to end this thread, must not hold it open.
        let _ = socket.shutdown(Shutdown::Both);
        outcome
    }

    fn play(
        &self,
        mut socket: &TcpStream,
        script: &Script,
        mut upstream: Option<Upstream>,
    ) -> io::Result<()> {
        let mut parser = Parser::new();
        loop {
            let request = parser.parse_value(socket).map_err(io::Error::other)?;
            let command = Command { words: resp::words(request)? };
            self.commands.lock().push(command.name());
            let mut bytes = Vec::new();
            match (script(&command), &mut upstream) {
                (Some(Reply::Close), _) => return Ok(()),
                (Some(Reply::Endless(bytes)), _) => loop {
                    socket.write_all(&bytes)?;
                },
                (Some(Reply::Run(words)), Some(server)) => {
                    resp::write_value(&server.ask(&words)?, &mut bytes)?;
                }
                (Some(reply), _) => resp::write_reply(&reply, &mut bytes),
                (None, Some(server)) => {
                    resp::write_value(&server.ask(&command.words)?, &mut bytes)?;
                }
                (None, None) => resp::write_reply(&default_reply(&command), &mut bytes),
            }
            socket.write_all(&bytes)?;
        }
    }
}

fn default_reply(command: &Command) -> Reply {
    match command.name().as_str() {
        "PING" => Reply::Simple("PONG".to_owned()),
        "SELECT" | "CLIENT" => Reply::Ok,
        name => Reply::Error(format!("ERR unknown command '{name}'")),
    }
}

/// A connection of one client's own to the real server, so that AUTH and SELECT do what they should.
struct Upstream {
    socket: TcpStream,
    parser: Parser,
}

impl Upstream {
    fn connect(port: u16) -> io::Result<Self> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        // A server that is paused must not keep this thread, and so the test, for ever.
        socket.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
        Ok(Self { socket, parser: Parser::new() })
    }

    fn ask(&mut self, words: &[String]) -> io::Result<Value> {
        let mut command = redis::Cmd::new();
        command.arg(words);
        self.socket.write_all(&command.get_packed_command())?;
        self.parser.parse_value(&self.socket).map_err(io::Error::other)
    }
}

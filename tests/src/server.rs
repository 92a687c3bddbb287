//! A real `redis-server` of its own for one test.

mod admin;
mod clock;
mod options;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::Certificates;
use crate::process::Process;

pub(crate) use options::free_port;
pub use options::{ServerOptions, StartError};

/// How long a server may take from its start to its first answer.
const READY: Duration = Duration::from_secs(5);

/// A `redis-server` process on a free port of 127.0.0.1, in a temporary folder of its own.
///
/// It keeps nothing on disk, and it ends with this value: also when the test panics, and also when
/// the test process is killed.
///
/// # Examples
///
/// ```
/// # use redlock_tests::RedisServer;
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let server = RedisServer::options().password("secret").start().await;
/// let client = redis::Client::open(server.url()).unwrap();
/// let mut connection = client.get_multiplexed_async_connection().await.unwrap();
/// redis::cmd("SET").arg("a").arg(1).exec_async(&mut connection).await.unwrap();
/// assert_eq!(server.keys().await, ["a"]);
/// # });
/// ```
#[derive(Debug)]
pub struct RedisServer {
    options: ServerOptions,
    address: Address,
    state: Mutex<State>,
    dir: Arc<TempDir>,
}

/// Where the server listens, and what a client must know to get in.
#[derive(Clone, Debug)]
struct Address {
    port: u16,
    tls_port: Option<u16>,
    certificates: Option<Certificates>,
    socket: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct State {
    process: Option<Process>,
    paused: bool,
    admin: Option<Admin>,
}

#[derive(Clone)]
struct Admin(MultiplexedConnection);

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

impl RedisServer {
    /// Starts a plain server: no password, no TLS.
    pub async fn start() -> Self {
        Self::options().start().await
    }

    /// What else a server can be started with.
    pub fn options() -> ServerOptions {
        ServerOptions::default()
    }

    /// The URL a client is configured with, the password included. `rediss://` if the server
    /// speaks only TLS.
    #[must_use]
    pub fn url(&self) -> String {
        if self.options.is_tls_only() {
            return self.tls_url();
        }
        format!("redis://{}127.0.0.1:{}/", self.options.credentials(), self.address.port)
    }

    /// The `rediss://` URL of a server started with TLS.
    #[must_use]
    pub fn tls_url(&self) -> String {
        let port = self.address.tls_port.expect("the server was started with TLS");
        format!("rediss://{}127.0.0.1:{port}/", self.options.credentials())
    }

    /// The `redis+unix://` URL of a server started with a Unix socket.
    #[must_use]
    pub fn unix_url(&self) -> String {
        let password = self.options.plain_password();
        let query = password.map(|password| format!("?pass={password}")).unwrap_or_default();
        format!("redis+unix://{}{query}", self.unix_path().display())
    }

    /// The Unix socket of a server started with one.
    #[must_use]
    pub fn unix_path(&self) -> &Path {
        self.address.socket.as_deref().expect("the server was started with a Unix socket")
    }

    /// The certificate that clients of a TLS server must trust.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.certificates().ca_pem()
    }

    /// The file of [`ca_pem`](Self::ca_pem), for `SSL_CERT_FILE`.
    #[must_use]
    pub fn ca_path(&self) -> &Path {
        self.certificates().ca_path()
    }

    /// The port of [`url`](Self::url): the plain one, or the TLS one if there is no other.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self.address.tls_port {
            Some(port) if self.options.is_tls_only() => port,
            _ => self.address.port,
        }
    }

    /// The process id of `redis-server` itself. Panics if the server is killed.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.state.lock().process.as_ref().expect("the server is not killed").pid()
    }

    /// Whether it is neither killed nor paused.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let state = self.state.lock();
        !state.paused && state.process.as_ref().is_some_and(|process| !process.has_exited())
    }

    /// What the server said so far, since it was last started.
    #[must_use]
    pub fn log(&self) -> String {
        options::read_log(self.dir.path())
    }

    /// Kills the server with SIGKILL and waits until it is gone. Nothing happens if it already is.
    pub fn kill(&self) {
        let dead = std::mem::take(&mut *self.state.lock());
        drop(dead);
    }

    /// Starts it again, on the same ports and with no data. Kills it first if it still runs.
    pub async fn restart(&self) {
        self.kill();
        let started = self.options.launch(&self.address, self.dir.path()).await;
        let (process, admin) = started.unwrap_or_else(|error| panic!("{error}"));
        *self.state.lock() =
            State { process: Some(process), paused: false, admin: Some(Admin(admin)) };
    }

    /// Sets the wall clock of a server that was started with one of its own: so many milliseconds
    /// ahead of the right time, or behind it. It stays so across restarts.
    pub fn set_clock(&self, ahead_millis: i64) {
        assert!(self.options.has_own_clock(), "the server was started with a clock of its own");
        clock::set(self.dir.path(), ahead_millis).expect("the file of the clock can be written");
    }

    /// Kills the server, cuts up to so many bytes off the end of its append-only file, and starts
    /// it again on what is left. It must have been told `CONFIG SET appendonly yes`; afterwards it
    /// keeps nothing on disk again.
    pub async fn restart_torn(&self, bytes: u64) {
        self.kill();
        options::tear(self.dir.path(), bytes).expect("the append-only file can be cut");
        let options = self.options.clone().config("appendonly", "yes");
        let started = options.launch(&self.address, self.dir.path()).await;
        let (process, admin) = started.unwrap_or_else(|error| panic!("{error}"));
        *self.state.lock() =
            State { process: Some(process), paused: false, admin: Some(Admin(admin)) };
        let mut stop = redis::cmd("CONFIG");
        stop.arg("SET").arg("appendonly").arg("no");
        let deadline = Instant::now() + READY;
        while let Err(error) = self.try_ask::<()>(&stop).await {
            assert!(Instant::now() < deadline, "the server has not loaded its file: {error}");
            sleep(Duration::from_millis(5)).await;
        }
        options::remove_append_only(self.dir.path()).expect("the append-only file can go");
    }

    /// Stops the process (SIGSTOP): it keeps its connections and its data, and answers nothing.
    pub fn pause(&self) {
        let mut state = self.state.lock();
        state.process.as_ref().expect("the server is not killed").pause();
        state.paused = true;
    }

    /// Lets a paused server go on (SIGCONT).
    pub fn resume(&self) {
        let mut state = self.state.lock();
        state.process.as_ref().expect("the server is not killed").resume();
        state.paused = false;
    }

    fn certificates(&self) -> &Certificates {
        self.address.certificates.as_ref().expect("the server was started with TLS")
    }
}

//! What a server is started with, and starting it.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};

use super::{Address, Admin, READY, RedisServer, State, admin, clock};
use crate::Certificates;
use crate::process::Process;

/// Options of a [`RedisServer`].
#[derive(Clone, Default)]
#[must_use = "options do nothing until `start` is called"]
pub struct ServerOptions {
    binary: Option<String>,
    port: Option<u16>,
    password: Option<String>,
    tls: Tls,
    unix_socket: bool,
    own_clock: bool,
    lines: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Tls {
    #[default]
    Off,
    Only,
    AndPlain,
}

impl ServerOptions {
    /// The password of the default user (`requirepass`).
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// One ACL line: `user bob on >secret ~* +@all`, or `user default off`.
    pub fn acl(mut self, line: &str) -> Self {
        assert!(line.starts_with("user "), "an ACL line starts with `user `, not {line:?}");
        self.lines.push(line.to_owned());
        self
    }

    /// Listens with TLS and in no other way.
    pub fn tls_only(mut self) -> Self {
        self.tls = Tls::Only;
        self
    }

    /// Listens with TLS on a second port.
    pub fn tls_and_plain(mut self) -> Self {
        self.tls = Tls::AndPlain;
        self
    }

    /// Listens on a Unix socket as well.
    pub fn unix_socket(mut self) -> Self {
        self.unix_socket = true;
        self
    }

    /// Gives the server a wall clock of its own: see [`RedisServer::set_clock`].
    pub fn own_clock(mut self) -> Self {
        self.own_clock = true;
        self
    }

    /// The memory limit in bytes, and what happens at it: `noeviction`, `allkeys-lru`, …
    pub fn maxmemory(self, bytes: u64, policy: &str) -> Self {
        self.config("maxmemory", &bytes.to_string()).config("maxmemory-policy", policy)
    }

    /// Any other line of `redis.conf`.
    pub fn config(mut self, name: &str, value: &str) -> Self {
        self.lines.push(format!("{name} {value}"));
        self
    }

    /// A fixed port, instead of a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Another server than the default one, by name or path: `valkey-server`. The default is what
    /// the environment variable `REDLOCK_TEST_SERVER` says, or else `redis-server`.
    pub fn binary(mut self, binary: &str) -> Self {
        self.binary = Some(binary.to_owned());
        self
    }

    /// Starts the server and waits until it answers, at most 5 s. Panics if it does not.
    pub async fn start(self) -> RedisServer {
        self.try_start().await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts the server and waits until it answers, at most 5 s.
    ///
    /// # Errors
    ///
    /// When it does not; the error holds what the server said.
    pub async fn try_start(self) -> Result<RedisServer, StartError> {
        let dir = tempfile::Builder::new().prefix("redlock-").tempdir()?;
        let certificates = match self.tls {
            Tls::Off => None,
            Tls::Only | Tls::AndPlain => Some(Certificates::create_in(dir.path())?),
        };
        if self.own_clock {
            clock::build(dir.path())?;
        }
        let deadline = Instant::now() + READY;
        loop {
            let address = Address {
                port: self.port.map_or_else(free_port, Ok)?,
                tls_port: certificates.as_ref().map(|_| free_port()).transpose()?,
                certificates: certificates.clone(),
                socket: self.unix_socket.then(|| dir.path().join("redis.sock")),
            };
            match self.launch(&address, dir.path()).await {
                Ok((process, admin)) => {
                    let state =
                        State { process: Some(process), paused: false, admin: Some(Admin(admin)) };
                    let (state, dir) = (Mutex::new(state), Arc::new(dir));
                    return Ok(RedisServer { options: self, address, state, dir });
                }
                // Somebody was faster to take the port.
                Err(StartError::PortTaken) if Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// One start on a known address. A port that is taken may be one we just left: it is tried
    /// again until the deadline, if there is no other to try.
    pub(super) async fn launch(
        &self,
        address: &Address,
        dir: &Path,
    ) -> Result<(Process, MultiplexedConnection), StartError> {
        let config = dir.join("redis.conf");
        std::fs::write(&config, self.redis_conf(address, dir))?;
        let binary = self.binary.clone().unwrap_or_else(default_binary);
        let environment = if self.own_clock { clock::environment(dir) } else { Vec::new() };
        let environment: Vec<_> =
            environment.iter().map(|(name, path)| (*name, path.as_path())).collect();
        let process =
            Process::start(&binary, &config, &dir.join("log"), &environment).map_err(|error| {
                match error.kind() {
                    io::ErrorKind::NotFound => StartError::NotInstalled(binary.clone()),
                    _ => error.into(),
                }
            })?;
        let deadline = Instant::now() + READY;
        loop {
            let problem = match admin::connect(self, address).await {
                Ok(mut admin) => match admin::process_id(&mut admin).await {
                    Ok(pid) if pid == process.pid() => return Ok((process, admin)),
                    Ok(_) => "another server has its port".to_owned(),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            let log = read_log(dir);
            if log.contains("Address already in use") {
                return Err(StartError::PortTaken);
            }
            if process.has_exited() || Instant::now() >= deadline {
                return Err(StartError::NotReady { problem, log });
            }
            sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    fn redis_conf(&self, address: &Address, dir: &Path) -> String {
        let mut conf = String::from(
            "bind 127.0.0.1\nsave \"\"\nappendonly no\nloglevel warning\ndaemonize no\n",
        );
        let mut line = |name: &str, value: &dyn fmt::Display| {
            writeln!(conf, "{name} {value}").expect("a string takes everything");
        };
        line("dir", &dir.display());
        line("port", &if self.is_tls_only() { 0 } else { address.port });
        line("user", &admin::ACL);
        if let (Some(port), Some(certificates)) = (address.tls_port, &address.certificates) {
            line("tls-port", &port);
            line("tls-cert-file", &certificates.cert_path().display());
            line("tls-key-file", &certificates.key_path().display());
            line("tls-ca-cert-file", &certificates.ca_path().display());
            line("tls-auth-clients", &"no");
        }
        if let Some(socket) = &address.socket {
            line("unixsocket", &socket.display());
        }
        if let Some(password) = &self.password {
            line("requirepass", password);
        }
        conf + &self.lines.join("\n") + "\n"
    }

    pub(super) fn has_own_clock(&self) -> bool {
        self.own_clock
    }

    pub(super) fn is_tls_only(&self) -> bool {
        self.tls == Tls::Only
    }

    pub(super) fn plain_password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// The part of a URL in front of the host.
    pub(super) fn credentials(&self) -> String {
        self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default()
    }
}

/// Without the lines, which may hold passwords.
impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions")
            .field("port", &self.port)
            .field("tls", &self.tls)
            .field("unix_socket", &self.unix_socket)
            .finish_non_exhaustive()
    }
}

/// Why a server did not start.
#[derive(Debug)]
pub enum StartError {
    /// There is no such binary.
    NotInstalled(String),
    /// Another process listens on its port.
    PortTaken,
    /// It did not answer, or it ended.
    NotReady {
        /// What went wrong at last.
        problem: String,
        /// What the server said.
        log: String,
    },
    /// Its files could not be written, or the process not be started.
    Io(io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled(binary) => write!(
                f,
                "{binary} was not found on PATH; install it: apt-get install -y redis-server"
            ),
            Self::PortTaken => f.write_str("the port of the Redis server is taken"),
            Self::NotReady { problem, log } => {
                write!(f, "the Redis server did not start: {problem}\nIts log:\n{log}")
            }
            Self::Io(error) => write!(f, "the Redis server could not be started: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn default_binary() -> String {
    std::env::var("REDLOCK_TEST_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

pub(super) fn read_log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap_or_default()
}

const APPEND_ONLY: &str = "appendonlydir";

/// Cuts the end off what a server appended last.
pub(super) fn tear(dir: &Path, bytes: u64) -> io::Result<()> {
    for file in std::fs::read_dir(dir.join(APPEND_ONLY))? {
        let path = file?.path();
        if path.to_string_lossy().ends_with(".incr.aof") {
            let file = File::options().write(true).open(path)?;
            file.set_len(file.metadata()?.len().saturating_sub(bytes))?;
        }
    }
    Ok(())
}

pub(super) fn remove_append_only(dir: &Path) -> io::Result<()> {
    std::fs::remove_dir_all(dir.join(APPEND_ONLY))
}

/// A free port below the range from which the kernel takes the ports of outgoing connections.
///
/// From inside that range, a client that keeps trying to reach a killed server would sooner or
/// later be given that very port, connect to itself, and keep the server from coming back.
pub(crate) fn free_port() -> io::Result<u16> {
    for _ in 0..1000 {
        let port = fastrand::u16(10_000..32_000);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "found no free port between 10000 and 32000"))
}

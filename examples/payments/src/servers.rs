//! Redis servers of our own: `--with-redis 3`. The servers keep nothing, and end with this process.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

/// How long a server may take until it listens.
const READY: Duration = Duration::from_secs(5);

/// A shell that kills the server when its standard input ends: also when this process is killed.
const LEASH: &str = r#"
trap : HUP INT TERM PIPE
"$0" "$@" </dev/null >/dev/null 2>&1 &
echo started
read -r _
kill -9 $! 2>/dev/null
wait $! 2>/dev/null
"#;

/// Independent servers on free ports of 127.0.0.1.
#[derive(Debug)]
pub struct Servers {
    servers: Vec<(u16, Mutex<Option<Child>>)>,
}

impl Servers {
    /// Starts `count` servers.
    ///
    /// # Errors
    ///
    /// If `redis-server` is not installed, or does not listen within 5 s.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the servers that were started.
    pub async fn launch(count: usize) -> io::Result<Self> {
        let ports = (0..count).map(|_| free_port()).collect::<io::Result<Vec<u16>>>()?;
        let servers = ports.into_iter().map(|port| (port, Mutex::default())).collect();
        let launched = Self { servers };
        for index in 0..count {
            launched.start(index).await?;
        }
        Ok(launched)
    }

    /// How many there are, stopped ones included.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "none would be of no use")]
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Their URLs, in order.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(|(port, _)| format!("redis://127.0.0.1:{port}")).collect()
    }

    /// Kills a server: it forgets everything. Nothing happens if it is stopped.
    pub(crate) async fn stop(&self, index: usize) {
        let Some((_, server)) = self.servers.get(index) else { return };
        let mut server = server.lock().await;
        if let Some(mut shell) = server.take() {
            drop(shell.stdin.take());
            shell.wait().await.map(drop).unwrap_or_default();
        }
    }

    /// Starts a server again, on its port. Nothing happens if it runs.
    pub(crate) async fn start(&self, index: usize) -> io::Result<()> {
        let Some((port, server)) = self.servers.get(index) else { return Ok(()) };
        let mut server = server.lock().await;
        if server.is_some() {
            return Ok(());
        }
        let mut shell = Command::new("sh")
            .args(["-c", LEASH, "redis-server"])
            .args(["--bind", "127.0.0.1", "--port", &port.to_string()])
            // The servers write no file.
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(std::env::temp_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        if let Some(said) = shell.stdout.take() {
            BufReader::new(said).read_line(&mut String::new()).await?;
        }
        let deadline = Instant::now() + READY;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, *port)).await.is_err() {
            if Instant::now() >= deadline {
                let reason = "redis-server does not listen; is it installed?";
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            sleep(Duration::from_millis(10)).await;
        }
        *server = Some(shell);
        Ok(())
    }
}

/// A free port below those that the kernel gives to clients: one that tries to reach a stopped
/// server must not be given the port of that server.
fn free_port() -> io::Result<u16> {
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let mut ports = std::iter::repeat_with(|| fastrand::u16(10_000..32_000)).take(1000);
    ports.find(free).ok_or_else(|| io::ErrorKind::AddrInUse.into())
}

//! A Redis server that takes connections with TLS and without.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use redlock_core::Server;
use tempfile::TempDir;

use crate::Certificates;

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    tls_port: u16,
    certificates: Certificates,
    process: Child,
    _folder: TempDir,
}

impl Redis {
    /// Starts a server and waits until it takes connections. Panics if it does not within 10 s.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::create_in(folder.path());
        let (port, tls_port) = (free_port(), free_port());
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--tls-auth-clients", "no"])
            .args(["--port", &port.to_string(), "--tls-port", &tls_port.to_string()])
            .args(["--dir".as_ref(), folder.path().as_os_str()])
            .args(["--tls-ca-cert-file".as_ref(), certificates.authority().as_os_str()])
            .args(["--tls-cert-file".as_ref(), certificates.certificate().as_os_str()])
            .args(["--tls-key-file".as_ref(), certificates.key().as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed, for example by scripts/test");
        let started = Self { port, tls_port, certificates, process, _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", tls_port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server takes no connections");
            sleep(Duration::from_millis(5));
        }
        started
    }

    /// The server, without TLS.
    pub fn plain(&self) -> Server {
        format!("redis://127.0.0.1:{}/", self.port).into()
    }

    /// The server, with TLS by the authority that was made for it.
    pub fn tls(&self) -> Server {
        let server: Server = format!("rediss://localhost:{}/", self.tls_port).into();
        server.tls_ca(self.certificates.authority_pem())
    }

    /// The server, with TLS by the authorities of the system, which don't know it.
    pub fn tls_by_the_system(&self) -> Server {
        format!("rediss://localhost:{}/", self.tls_port).into()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

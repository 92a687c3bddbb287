//! A real PostgreSQL server that cannot outlive the test that started it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Makes a cluster, runs it until standard input ends, and removes it: also when the tests panic
/// or are killed. PostgreSQL refuses to run as root. `$2` is a port for TLS, `$3` a certificate
/// and `$4` its key, or all of them are missing.
const LEASH: &str = r#"
trap : HUP INT TERM PIPE
as=
listen=listen_addresses=
if [ -n "$2" ]; then
  cp "$3" "$1/server.pem" && cp "$4" "$1/server.key" && chmod 600 "$1/server.key"
  listen="listen_addresses=127.0.0.1 -c port=$2 -c ssl=on
    -c ssl_cert_file=$1/server.pem -c ssl_key_file=$1/server.key"
fi
if [ "$(id -u)" = 0 ]; then
  user=postgres
  id postgres >/dev/null 2>&1 || user=nobody
  chown -R "$user" "$1"
  as="setpriv --reuid=$user --regid=$(id -g $user) --clear-groups"
fi
cd "$1"
if $as "$0/initdb" -D data -A trust -U redlock -E UTF8 --locale=C --no-sync >log 2>&1; then
  if [ -n "$2" ]; then echo 'hostssl all all 127.0.0.1/32 trust' >data/pg_hba.conf; fi
  $as "$0/postgres" -D "$1/data" -k "$1" -c $listen -c max_connections=300 \
    -c fsync=off -c synchronous_commit=off -c full_page_writes=off </dev/null >>log 2>&1 &
  echo started
  read -r _
  kill -QUIT $!
  wait $!
else
  cat log
fi
cd / && rm -rf "$1"
"#;

/// A server with an empty database `postgres`, reached through a Unix socket or with TLS. It ends
/// when this is dropped, or with the process.
#[derive(Debug)]
pub struct Postgres {
    directory: PathBuf,
    tls_port: Option<u16>,
    shell: Child,
}

impl Postgres {
    /// Starts a server, which may not take connections yet. Panics if it can't be set up.
    #[must_use]
    pub fn start() -> Self {
        Self::launch(None)
    }

    /// Starts a server that takes connections with TLS only. Panics if it can't be set up.
    #[must_use]
    pub fn start_with_tls(certificate: &Path, key: &Path) -> Self {
        Self::launch(Some((certificate, key)))
    }

    fn launch(tls: Option<(&Path, &Path)>) -> Self {
        let directory = tempfile::Builder::new().prefix("redlock-pg-").tempdir().unwrap().keep();
        let mut shell = Command::new("sh");
        shell.args(["-c", LEASH]).arg(programs()).arg(&directory);
        let mut tls_port = None;
        if let Some((certificate, key)) = tls {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            shell.arg(port.to_string()).arg(certificate).arg(key);
            tls_port = Some(port);
        }
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(shell.stdout.take().unwrap()).lines().map(Result::unwrap);
        let first = said.next().unwrap_or_default();
        assert_eq!(first, "started", "initdb: {:?}", said.collect::<Vec<_>>());
        Self { directory, tls_port, shell }
    }

    /// The URL of a database by TCP, without parameters. Panics if the server has no TLS.
    #[must_use]
    pub fn tls_url(&self, database: &str) -> String {
        let port = self.tls_port.expect("a server started with TLS");
        format!("postgres://redlock@localhost:{port}/{database}")
    }

    /// The URL of a database, through the Unix socket of a server without TLS.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://redlock@localhost/{database}?host={}", self.directory.display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// Debian keeps the server's programs out of `PATH`.
fn programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = installed.map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let complete = |programs: &PathBuf| {
        ["initdb", "postgres"].iter().all(|name| programs.join(name).is_file())
    };
    debian.chain(path).find(complete).expect(
        "PostgreSQL is not installed; scripts/test installs it: apt-get install -y postgresql",
    )
}

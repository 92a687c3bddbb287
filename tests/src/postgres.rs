//! A real PostgreSQL server that cannot outlive the test that started it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::Certificates;
use crate::server::free_port;

/// Makes a cluster, runs it until standard input ends, and removes it: also when the tests panic
/// or are killed. PostgreSQL refuses to run as root.
const LEASH: &str = r#"
trap : HUP INT TERM PIPE
as=
if [ "$(id -u)" = 0 ]; then
  user=postgres
  id postgres >/dev/null 2>&1 || user=nobody
  chown -R "$user" "$1"
  as="setpriv --reuid=$user --regid=$(id -g $user) --clear-groups"
fi
cd "$1"
tls=
if [ -n "$2" ]; then
  chmod 600 server.key
  tls="-p $2 -c listen_addresses=127.0.0.1 -c ssl=on -c ssl_cert_file=$1/server.pem -c ssl_key_file=$1/server.key"
fi
if $as "$0/initdb" -D data -A trust -U redlock -E UTF8 --locale=C --no-sync >log 2>&1; then
  [ -z "$tls" ] || printf 'local all all trust\nhostssl all all 127.0.0.1/32 trust\n' >data/pg_hba.conf
  $as "$0/postgres" -D "$1/data" -k "$1" -c listen_addresses= -c max_connections=300 \
    -c fsync=off -c synchronous_commit=off -c full_page_writes=off $tls </dev/null >>log 2>&1 &
  echo started
  read -r _
  kill -QUIT $!
  wait $!
else
  cat log
fi
cd / && rm -rf "$1"
"#;

/// A server with an empty database `postgres`, reached through a Unix socket. It ends when this is
/// dropped, or with the process.
#[derive(Debug)]
pub struct Postgres {
    directory: PathBuf,
    shell: Child,
    tls: Option<(u16, Certificates)>,
}

impl Postgres {
    /// Starts a server, which may not take connections yet. Panics if it can't be set up.
    #[must_use]
    pub fn start() -> Self {
        Self::launch(None, new_directory())
    }

    /// The same, reached also through TCP, where it refuses connections without TLS.
    #[must_use]
    pub fn start_with_tls() -> Self {
        let directory = new_directory();
        let certificates = Certificates::create_in(&directory).unwrap();
        Self::launch(Some((free_port().unwrap(), certificates)), directory)
    }

    fn launch(tls: Option<(u16, Certificates)>, directory: PathBuf) -> Self {
        let port = tls.as_ref().map(|(port, _)| port.to_string()).unwrap_or_default();
        let mut shell = Command::new("sh")
            .args(["-c", LEASH])
            .arg(programs())
            .arg(&directory)
            .arg(port)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(shell.stdout.take().unwrap()).lines().map(Result::unwrap);
        let first = said.next().unwrap_or_default();
        assert_eq!(first, "started", "initdb: {:?}", said.collect::<Vec<_>>());
        Self { directory, shell, tls }
    }

    /// The URL of a database.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://redlock@localhost/{database}?host={}", self.directory.display())
    }

    /// The TCP port of a server that was started with TLS.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.tls.as_ref().expect("the server was started with TLS").0
    }

    /// The URL of a database by TCP, with its certificate authority and without an `sslmode`.
    #[must_use]
    pub fn tls_url(&self, database: &str) -> String {
        let (port, certificates) = self.tls.as_ref().expect("the server was started with TLS");
        let authority = certificates.ca_path().display();
        format!("postgres://redlock@localhost:{port}/{database}?sslrootcert={authority}")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

fn new_directory() -> PathBuf {
    tempfile::Builder::new().prefix("redlock-pg-").tempdir().unwrap().keep()
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

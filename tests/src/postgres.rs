//! A real PostgreSQL server that cannot outlive the test that started it.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

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
if $as "$0/initdb" -D data -A trust -U redlock -E UTF8 --locale=C --no-sync >log 2>&1; then
  $as "$0/postgres" -D "$1/data" -k "$1" -c listen_addresses= -c max_connections=300 \
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

/// A server with an empty database `postgres`, reached through a Unix socket. It ends when this is
/// dropped, or with the process.
#[derive(Debug)]
pub struct Postgres {
    directory: PathBuf,
    shell: Child,
}

impl Postgres {
    /// Starts a server, which may not take connections yet. Panics if it can't be set up.
    #[must_use]
    pub fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("redlock-pg-").tempdir().unwrap().keep();
        let mut shell = Command::new("sh")
            .args(["-c", LEASH])
            .arg(programs())
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(shell.stdout.take().unwrap()).lines().map(Result::unwrap);
        let first = said.next().unwrap_or_default();
        assert_eq!(first, "started", "initdb: {:?}", said.collect::<Vec<_>>());
        Self { directory, shell }
    }

    /// The URL of a database.
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

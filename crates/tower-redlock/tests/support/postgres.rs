//! A PostgreSQL server of the test's own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Runs a server in the directory until standard input ends, also when the test is killed.
/// PostgreSQL refuses to run as root.
const SERVER: &str = r#"
as=
if [ "$(id -u)" = 0 ]; then
  user=postgres
  id postgres >/dev/null 2>&1 || user=nobody
  chown -R "$user" "$1"
  as="setpriv --reuid=$user --regid=$(id -g $user) --clear-groups"
fi
cd "$1"
$as "$0/initdb" -D data -A trust -U records --no-sync >log 2>&1 || { cat log; exit 1; }
$as "$0/postgres" -D "$1/data" -k "$1" -c listen_addresses= -c fsync=off </dev/null >>log 2>&1 &
echo started
read -r _
kill -QUIT $!
wait $!
"#;

pub struct Postgres {
    directory: TempDir,
    server: Child,
}

impl Postgres {
    pub fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server = Command::new("sh")
            .args(["-c", SERVER])
            .arg(programs())
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
        let first = said.next().unwrap_or_default();
        assert_eq!(first, "started", "{:?}", said.collect::<Vec<_>>());
        Self { directory, server }
    }

    pub fn url(&self) -> String {
        format!("postgres://records@localhost/postgres?host={}", self.directory.path().display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        self.server.wait().unwrap();
    }
}

/// Debian keeps them out of `PATH`.
fn programs() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = installed.map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let complete = |programs: &PathBuf| {
        ["initdb", "postgres"].iter().all(|name| programs.join(name).is_file())
    };
    debian.chain(path).find(complete).expect("PostgreSQL is installed: scripts/test does that")
}

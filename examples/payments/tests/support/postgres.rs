//! A real PostgreSQL cluster, one for each test process, which ends with it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use redlock_tests::eventually;
use sqlx::{AnyConnection, Connection, Executor};

use super::SOON;

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
if $as "$0/initdb" -D data -A trust -U payments -E UTF8 --locale=C --no-sync >log 2>&1; then
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

struct Cluster {
    directory: PathBuf,
    /// Its end is the end of the cluster. Never dropped: it is closed when the process ends.
    _leash: (Child, ChildStdin),
}

/// The URL of a new database.
pub async fn new_database() -> String {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let cluster = CLUSTER.get_or_init(Cluster::start);
    sqlx::any::install_default_drivers();
    let mut admin = eventually(SOON, "PostgreSQL takes connections", async || {
        AnyConnection::connect(&cluster.url("postgres")).await
    })
    .await;
    let name = format!("payments_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    admin.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    cluster.url(&name)
}

impl Cluster {
    fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("payments-pg-").tempdir().unwrap().keep();
        let mut shell = Command::new("sh")
            .args(["-c", LEASH])
            .arg(binaries())
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(shell.stdout.take().unwrap()).lines().map(Result::unwrap);
        let first = said.next().unwrap_or_default();
        assert_eq!(first, "started", "initdb: {:?}", said.collect::<Vec<_>>());
        let leash = shell.stdin.take().unwrap();
        Self { directory, _leash: (shell, leash) }
    }

    fn url(&self, database: &str) -> String {
        format!("postgres://payments@localhost/{database}?host={}", self.directory.display())
    }
}

/// Debian keeps the server's programs out of PATH.
fn binaries() -> PathBuf {
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = installed.map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let has_server = |directory: &PathBuf| directory.join("initdb").is_file() && is_real(directory);
    debian.chain(path).find(has_server).expect(
        "PostgreSQL is not installed; scripts/test installs it: apt-get install -y postgresql",
    )
}

fn is_real(directory: &Path) -> bool {
    directory.join("postgres").is_file()
}

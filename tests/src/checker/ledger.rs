//! A second witness: a counter that only comes out right if nobody else counts meanwhile.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::cmd;

use crate::RedisServer;

/// Digits of the greatest `u64`: a value always covers the one before, so a reader never sees a
/// part of one.
const WIDTH: usize = 20;
const KEY: &str = "ledger";

/// A counter without any protection. It reads, lets others run, and writes one more.
///
/// If a lock protects it, [`total`](Self::total) is the number of increments. If it is less, two
/// were inside at the same time.
#[derive(Debug)]
pub struct Ledger {
    book: Book,
    gap: Duration,
}

enum Book {
    File(File),
    Redis(MultiplexedConnection),
}

impl std::fmt::Debug for Book {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(file) => file.fmt(f),
            Self::Redis(_) => f.write_str("Redis"),
        }
    }
}

impl Ledger {
    /// A counter in a file, shared by all processes that open it. A new one starts at zero.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(Self { book: Book::File(file), gap: Duration::ZERO })
    }

    /// A counter in a Redis server, under the key `ledger`. It should not be one of those that
    /// hold the locks.
    pub async fn redis(server: &RedisServer) -> Self {
        Self { book: Book::Redis(server.connection().await), gap: Duration::ZERO }
    }

    /// As [`redis`](Self::redis), for another process that knows only the URL.
    pub async fn at(url: &str) -> Self {
        let client = redis::Client::open(url).expect("a URL of a Redis server");
        let connection = client.get_multiplexed_async_connection().await;
        Self { book: Book::Redis(connection.expect("the ledger's server")), gap: Duration::ZERO }
    }

    /// How long an increment waits between reading and writing. By default it only lets other
    /// tasks run once.
    #[must_use]
    pub fn gap(mut self, gap: Duration) -> Self {
        self.gap = gap;
        self
    }

    /// Reads, yields, and writes one more.
    pub async fn increment(&self) {
        let value = self.total().await;
        if self.gap > Duration::ZERO {
            tokio::time::sleep(self.gap).await;
        } else {
            tokio::task::yield_now().await;
        }
        self.write(value + 1).await;
    }

    /// The count so far.
    pub async fn total(&self) -> u64 {
        match &self.book {
            Book::File(file) => {
                let mut digits = [0; WIDTH];
                match file.read_exact_at(&mut digits, 0) {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                    read => {
                        read.expect("the ledger can be read");
                        let digits = std::str::from_utf8(&digits).expect("digits");
                        digits.parse().expect("a number")
                    }
                }
            }
            Book::Redis(connection) => {
                let value = cmd("GET").arg(KEY).query_async(&mut connection.clone()).await;
                value.map(Option::<u64>::unwrap_or_default).expect("the ledger can be read")
            }
        }
    }

    async fn write(&self, value: u64) {
        match &self.book {
            Book::File(file) => {
                let digits = format!("{value:0WIDTH$}");
                file.write_all_at(digits.as_bytes(), 0).expect("the ledger can be written");
            }
            Book::Redis(connection) => {
                let mut connection = connection.clone();
                let written = cmd("SET").arg(KEY).arg(value).exec_async(&mut connection).await;
                written.expect("the ledger can be written");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Mutex;
    use tokio::task::JoinSet;

    use super::*;

    const TASKS: u64 = 20;

    async fn count(ledger: Ledger, lock: Option<Arc<Mutex<()>>>) -> u64 {
        let ledger = Arc::new(ledger);
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            let (ledger, lock) = (Arc::clone(&ledger), lock.clone());
            tasks.spawn(async move {
                let _guard = match &lock {
                    Some(lock) => Some(lock.lock().await),
                    None => None,
                };
                ledger.increment().await;
            });
        }
        tasks.join_all().await;
        ledger.total().await
    }

    #[tokio::test]
    async fn a_file_keeps_count_under_a_lock_and_loses_updates_without() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| Ledger::file(&dir.path().join(name)).unwrap();
        assert_eq!(count(file("locked"), Some(Arc::default())).await, TASKS);
        assert_eq!(Ledger::file(&dir.path().join("locked")).unwrap().total().await, TASKS);
        assert!(count(file("unlocked"), None).await < TASKS);
    }

    #[tokio::test]
    async fn a_redis_keeps_count_under_a_lock_and_loses_updates_without() {
        let server = RedisServer::start().await;
        assert_eq!(count(Ledger::redis(&server).await, Some(Arc::default())).await, TASKS);
        let second = Ledger::at(&server.url()).await.gap(Duration::from_millis(1));
        assert!(count(second, None).await < 2 * TASKS);
    }
}

//! What clients ask of servers, as the servers tell it.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use redis::cmd;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::Fleet;
use crate::fleet::NOT_COUNTED;

/// The last word that is waited for: nobody else says it.
const END: &str = "this monitor has seen enough";

/// Counts the commands that come over the network, from now on. What scripts run is not among
/// them, which [`Fleet::commands`] counts as well.
///
/// It needs a server without a password and TLS, and costs it a little for every command.
#[derive(Debug)]
pub struct Monitor(JoinSet<BTreeMap<String, u64>>);

impl Monitor {
    /// Watches all servers of a fleet.
    pub async fn start(fleet: &Fleet) -> Self {
        let mut watching = JoinSet::new();
        for server in fleet {
            let connection = TcpStream::connect(("127.0.0.1", server.port())).await;
            let mut connection = BufReader::new(connection.expect("the server accepts"));
            connection.write_all(b"MONITOR\r\n").await.expect("the server reads");
            let mut answer = String::new();
            connection.read_line(&mut answer).await.expect("the server answers");
            assert_eq!(answer, "+OK\r\n");
            watching.spawn(count(connection));
        }
        Self(watching)
    }

    /// How often each command came until now, by its lower-case name, without those that only
    /// connect and look in.
    pub async fn commands(self, fleet: &Fleet) -> BTreeMap<String, u64> {
        let ends = fleet.iter().map(async |server| {
            server.try_ask::<String>(cmd("ECHO").arg(END)).await.expect("the server answers");
        });
        join_all(ends).await;
        let mut sums = BTreeMap::new();
        for (name, calls) in self.0.join_all().await.into_iter().flatten() {
            *sums.entry(name).or_default() += calls;
        }
        sums
    }
}

async fn count(server: BufReader<TcpStream>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let mut lines = server.split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        let Some((from, command)) = line.split_once("] \"") else { continue };
        let mut words = command.split('"');
        let name = words.next().unwrap_or_default().to_lowercase();
        if name == "echo" && words.nth(1) == Some(END) {
            break;
        }
        if !from.ends_with(" lua") && !NOT_COUNTED.contains(&name.as_str()) {
            *counts.entry(name).or_default() += 1;
        }
    }
    counts
}

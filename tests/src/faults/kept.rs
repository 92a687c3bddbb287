//! What is kept of a run, for whoever wants to know how something came about.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Report;
use super::memory::Memory;
use super::nemesis::Done;
use crate::{Fleet, Stamp};

/// A folder of one run.
#[derive(Debug)]
pub(super) struct Kept {
    folder: PathBuf,
    monitors: JoinSet<()>,
}

impl Kept {
    /// Panics if there is something in the folder already: two histories would be judged as one.
    pub(super) fn in_folder(folder: &Path) -> Self {
        fs::create_dir_all(folder.join("history")).expect("the folder of --keep can be made");
        let mut entries = fs::read_dir(folder.join("history")).expect("it can be read");
        assert!(entries.next().is_none(), "--keep {}: holds another run", folder.display());
        Self { folder: folder.to_owned(), monitors: JoinSet::new() }
    }

    pub(super) fn history(&self) -> PathBuf {
        self.folder.join("history")
    }

    /// Writes down whatever the servers execute. What they do right after a restart may be missing.
    pub(super) fn monitor(&mut self, fleet: &Fleet) {
        for (node, server) in fleet.iter().enumerate() {
            let path = self.folder.join(format!("server-{node}.monitor"));
            self.monitors.spawn(monitor(server.port(), path));
        }
    }

    pub(super) fn write(mut self, faults: &[Done], memory: &Memory, report: &Report) {
        self.monitors.abort_all();
        let write = |name: &str, text: String| {
            fs::write(self.folder.join(name), text).expect("what is kept can be written");
        };
        write("faults.jsonl", lines(faults));
        write("unknown-counters.jsonl", lines(&memory.gaps()));
        let unix = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_micros();
        write(
            "clock.json",
            json!({ "stamp": Stamp::now(), "unix_micros": unix as u64 }).to_string(),
        );
        let report = serde_json::to_string_pretty(&report.to_json());
        write("report.json", report.expect("JSON"));
    }
}

fn lines<T: Serialize>(rows: &[T]) -> String {
    let line = |row| serde_json::to_string(row).expect("JSON") + "\n";
    rows.iter().map(line).collect()
}

async fn monitor(port: u16, path: PathBuf) {
    let mut file = File::create(&path).expect("what is kept can be written");
    loop {
        writeln!(file, "-- connecting at {:?}", Stamp::now()).expect("the file takes a line");
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await {
            let ask = b"AUTH redlock-harness redlock-harness\r\nMONITOR\r\n";
            if stream.write_all(ask).await.is_ok() {
                let mut buffer = vec![0; 1 << 16];
                // Until the connection ends, as it does when the server is killed.
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    file.write_all(&buffer[..read]).expect("the file takes what was said");
                }
            }
        }
        sleep(Duration::from_millis(2)).await;
    }
}

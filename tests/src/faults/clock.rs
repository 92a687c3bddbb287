//! Servers whose wall clock can be set.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use redis::{RedisResult, cmd};

use crate::RedisServer;

const SOURCE: &str = include_str!("clock.c");

/// What a clock is ahead of the true time, in seconds: one of these, and another one after that.
const AHEAD: [i64; 4] = [0, -2, 2, 5];

/// Makes what starts `redis-server` with a clock of its own.
///
/// # Errors
///
/// When there is no C compiler, or no room.
pub(super) fn server(folder: &Path) -> io::Result<PathBuf> {
    let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
    fs::write(&source, SOURCE)?;
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(&source);
    if !compile.status()?.success() {
        return Err(io::Error::other("cc does not compile the clock"));
    }
    let start = folder.join("redis-server-with-clock");
    // The first argument is the configuration: the clock is next to it.
    let script = format!(
        "#!/bin/sh\nexec env LD_PRELOAD={} WALL_CLOCK=\"$(dirname \"$1\")/clock\" redis-server \"$@\"\n",
        library.display()
    );
    fs::write(&start, script)?;
    fs::set_permissions(&start, fs::Permissions::from_mode(0o755))?;
    Ok(start)
}

/// Sets the clock of a server to another time. `choice` says to which.
pub(super) async fn set(server: &RedisServer, choice: Duration) -> RedisResult<()> {
    let told: Vec<String> = server.try_ask(cmd("CONFIG").arg("GET").arg("dir")).await?;
    let path = Path::new(told.last().map_or("", String::as_str)).join("clock");
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut ahead = [0; 8];
    file.read_exact_at(&mut ahead, 0)?;
    let ahead = i64::from_ne_bytes(ahead);
    let others: Vec<i64> = AHEAD.into_iter().filter(|other| *other != ahead).collect();
    let chosen = choice.subsec_micros() as usize % others.len();
    file.write_all_at(&others[chosen].to_ne_bytes(), 0)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_believes_the_clock_that_it_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let binary = super::server(folder.path()).unwrap();
        let server = RedisServer::options().binary(binary.to_str().unwrap()).start().await;
        let seconds = async || {
            let time: (u64, u64) = server.try_ask(&cmd("TIME")).await.unwrap();
            time.0
        };
        let before = seconds().await;
        let true_time = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        assert!(before.abs_diff(true_time) <= 1);
        server.set_foreign("k", "v", Duration::from_secs(4)).await;
        set(&server, Duration::from_micros(2)).await.unwrap();
        let ahead = seconds().await - before;
        assert!((5..60).contains(&ahead), "{ahead}");
        assert_eq!(server.get("k").await, None, "it expired four seconds before its time");
    }
}

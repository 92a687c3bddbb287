//! A wall clock of a server's own: a library that is loaded into it adds what stands in a file to
//! whatever time the system tells.
//!
//! Only the wall clock is touched. The library asks the system directly and allocates nothing, as
//! the server's allocator looks at the clock itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = include_str!("clock.c");

/// Compiles the library, for a clock that is right so far.
pub(super) fn build(dir: &Path) -> io::Result<()> {
    set(dir, 0)?;
    let source = dir.join("clock.c");
    fs::write(&source, SOURCE)?;
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(library(dir)).arg(source);
    let compiled = cc.output().map_err(|error| {
        io::Error::new(error.kind(), format!("cc, for a clock: {error}; apt-get install -y gcc"))
    })?;
    if compiled.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&compiled.stderr).into_owned();
    Err(io::Error::other(format!("the clock can't be compiled: {said}")))
}

/// What a server is started with that is to have the clock.
pub(super) fn environment(dir: &Path) -> Vec<(&'static str, PathBuf)> {
    vec![("LD_PRELOAD", library(dir)), ("REDLOCK_CLOCK", file(dir))]
}

/// How far the clock is ahead from now on. The server has the file mapped: it is never replaced.
pub(super) fn set(dir: &Path, ahead_millis: i64) -> io::Result<()> {
    use std::io::Write as _;
    let micros = ahead_millis.saturating_mul(1_000);
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(false).open(file(dir))?;
    file.write_all(&micros.to_ne_bytes())
}

fn library(dir: &Path) -> PathBuf {
    dir.join("clock.so")
}

fn file(dir: &Path) -> PathBuf {
    dir.join("clock")
}

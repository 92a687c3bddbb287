//! Who acquired and released what, and when, by a clock that all processes of the host share.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Add;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// An instant in nanoseconds of `CLOCK_MONOTONIC`: comparable between the processes of one host,
/// until it is booted again.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Stamp(u64);

impl Stamp {
    /// Later than every other one.
    pub const END: Self = Self(u64::MAX);

    /// The present instant.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(now.tv_sec).expect("the clock starts at zero");
        let nanos = u64::try_from(now.tv_nsec).expect("nanoseconds are positive");
        Self(seconds * 1_000_000_000 + nanos)
    }

    /// The same instant as `instant`, or an earlier one if this process was held up meanwhile: the
    /// end of a hold must never be noted too late.
    #[must_use]
    pub fn of(instant: Instant) -> Self {
        let stamp = Self::now();
        let now = Instant::now();
        match instant.checked_duration_since(now) {
            Some(ahead) => stamp + ahead,
            None => Self(stamp.0.saturating_sub(nanos(now.saturating_duration_since(instant)))),
        }
    }
}

impl Add<Duration> for Stamp {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A client got the lock.
    Acquired {
        /// What it locked.
        key: String,
        /// Who: a name that nobody else uses, in this process or another.
        client: String,
        /// When the acquisition returned.
        at: Stamp,
        /// How long the lock is valid.
        until: Stamp,
        /// The fencing token, if the lock has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fence: Option<Fence>,
    },
    /// A client finds that its lock is valid for longer than it knew.
    Extended {
        /// What it has locked.
        key: String,
        /// Who.
        client: String,
        /// When it looked.
        at: Stamp,
        /// How long the lock is valid.
        until: Stamp,
    },
    /// A client gives the lock back.
    Released {
        /// What it had locked.
        key: String,
        /// Who.
        client: String,
        /// When the release was called.
        at: Stamp,
    },
}

/// What a fencing token promises is about when the lock was asked for, and not only when it was
/// had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// When the acquisition was called.
    pub requested: Stamp,
    /// The token.
    pub token: u64,
    /// Whether nothing but a wall clock makes it greater than earlier ones.
    #[serde(default)]
    pub by_clock: bool,
}

impl Event {
    /// When it happened.
    #[must_use]
    pub fn at(&self) -> Stamp {
        match self {
            Self::Acquired { at, .. } | Self::Extended { at, .. } | Self::Released { at, .. } => {
                *at
            }
        }
    }
}

/// Events from many tasks, threads and processes.
#[derive(Debug, Default)]
pub struct History {
    events: Mutex<Vec<Event>>,
    file: Option<File>,
}

impl History {
    /// A history in memory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A history that is also appended to a file, one JSON object a line. Several processes may
    /// write to the same file; [`read`](Self::read) gives what all of them wrote.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub fn to_file(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file: Some(file), ..Self::default() })
    }

    /// Reads what [`to_file`](Self::to_file) wrote.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or a line is not an event; the error names the line.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let events = text.lines().enumerate().map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| {
                let place = format!("{}:{}: {error}", path.display(), index + 1);
                io::Error::new(io::ErrorKind::InvalidData, place)
            })
        });
        Ok(Self { events: Mutex::new(events.collect::<io::Result<_>>()?), file: None })
    }

    /// Reads all files of a directory that [`to_file`](Self::to_file) wrote.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read), and when the directory cannot be read.
    pub fn read_all(directory: &Path) -> io::Result<Self> {
        let mut events = Vec::new();
        for file in std::fs::read_dir(directory)? {
            events.append(Self::read(&file?.path())?.events.get_mut());
        }
        Ok(Self { events: Mutex::new(events), file: None })
    }

    /// Notes that `client` holds `key` until `until`. To be called when the acquisition has
    /// returned, before anything else.
    pub fn acquired(&self, key: &str, client: &str, until: Stamp) {
        let (at, key, client) = (Stamp::now(), key.to_owned(), client.to_owned());
        self.record(Event::Acquired { key, client, at, until, fence: None });
    }

    /// Notes that `client` no longer counts on `key`. To be called *before* the lock is released
    /// or dropped: afterwards somebody else may already have it.
    pub fn released(&self, key: &str, client: &str) {
        let (at, key, client) = (Stamp::now(), key.to_owned(), client.to_owned());
        self.record(Event::Released { key, client, at });
    }

    /// Adds an event. Panics if it cannot be written to the file.
    pub fn record(&self, event: Event) {
        if let Some(mut file) = self.file.as_ref() {
            let mut line = serde_json::to_vec(&event).expect("an event is valid JSON");
            line.push(b'\n');
            // One write to a file opened for appending: lines of several processes do not mix.
            file.write_all(&line).expect("the history's file takes a line");
        }
        self.events.lock().push(event);
    }

    /// All events in the order in which they were noted.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_follow_the_clock_of_std() {
        let before = Stamp::now();
        let instant = Instant::now();
        let after = Stamp::now();
        let (minute, slack) = (Duration::from_secs(60), Duration::from_secs(1));
        for (ahead, stamp) in
            [(Duration::ZERO, Stamp::of(instant)), (minute, Stamp::of(instant + minute))]
        {
            assert!(stamp <= after + ahead, "never later");
            assert!(stamp + slack >= before + ahead, "hardly earlier");
        }
    }

    #[test]
    fn two_writers_of_one_file_are_read_as_one_history() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let (one, two) = (History::to_file(&path).unwrap(), History::to_file(&path).unwrap());
        one.acquired("k", "a", Stamp::now() + Duration::from_secs(1));
        two.acquired("k", "b", Stamp::now() + Duration::from_secs(1));
        one.released("k", "a");
        let read = History::read(&path).unwrap().events();
        assert_eq!(read.len(), 3);
        assert_eq!((&read[0], &read[2]), (&one.events()[0], &one.events()[1]));
        assert_eq!(read[1], two.events()[0]);
    }

    #[test]
    fn a_broken_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        History::to_file(&path).unwrap().released("k", "a");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\n").unwrap();
        let error = History::read(&path).unwrap_err().to_string();
        assert!(error.contains("history:2: "), "{error}");
    }
}

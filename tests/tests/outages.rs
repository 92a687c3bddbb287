//! The log of an outage: one warning when it begins, one line when it ends, and none for a request.
//!
//! Nothing else is tested here: whether anybody listens to an event is decided once, for all
//! threads of a process.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redlock_core::{CheckPolicy, Config, ConfigBuilder, ErrorKind, Redlock, Safety, ServerCheck};
use redlock_tests::{Fleet, eventually};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// A hang, also on a machine with too much to do.
const HANG: Duration = Duration::from_secs(40);

const BEGINS: &str = "WARN redlock_core::node::outage: node does not vote";
const ENDS: &str = "INFO redlock_core::node::outage: node votes again";

/// The events of this thread from INFO on.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn listen(&self) -> impl Sized + use<> {
        let log = self.clone();
        let events = tracing_subscriber::fmt().with_max_level(LevelFilter::INFO).with_ansi(false);
        events.with_writer(move || log.clone()).finish().set_default()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }

    fn lines(&self, event: &str) -> Vec<String> {
        self.text().lines().filter(|line| line.contains(event)).map(str::to_owned).collect()
    }

    /// What `event` says of each server that it is about; no server is named twice.
    fn of_each(&self, event: &str, servers: usize) -> Result<Vec<String>, String> {
        let lines = self.lines(event);
        assert!(lines.len() <= servers, "more than one for a server:\n{}", self.text());
        if lines.len() == servers { Ok(lines) } else { Err(self.text()) }
    }
}

fn settings(fleet: &Fleet) -> ConfigBuilder {
    Config::servers(fleet.urls())
        .ttl(Duration::from_secs(4))
        .node_deadline(Duration::from_millis(500))
        .reconnection_interval(Duration::from_millis(5), Duration::from_millis(20))
        .pool_size(4)
}

/// Asks for many locks of which none can be had.
async fn ask_in_vain(redlock: &Redlock) {
    for number in 0..200 {
        let error = redlock.try_lock(format!("order:{number}")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Locks until the log has the end of the outage of so many servers.
async fn until_it_ends(log: &Log, redlock: &Redlock, servers: usize) -> Vec<String> {
    eventually(HANG, "the end of the outage in the log", async || {
        for number in 0..16 {
            if let Ok(guard) = redlock.try_lock(format!("order:{number}")).await {
                guard.release().await;
            }
        }
        log.of_each(ENDS, servers)
    })
    .await
}

#[tokio::test]
async fn servers_that_are_down_are_one_warning_each_and_one_line_when_they_are_back() {
    let log = Log::default();
    let _listening = log.listen();
    let fleet = Fleet::start(3).await;
    let redlock = Redlock::new(settings(&fleet).safety(Safety::Plain).build().unwrap());
    for number in 0..16 {
        redlock.lock(format!("order:{number}")).await.unwrap().release().await;
    }
    fleet.kill(0);
    fleet.kill(1);
    eventually(HANG, "two servers to be missed", async || {
        let error = redlock.try_lock("order").await.err().ok_or("locked")?;
        if error.is_unavailable() { Ok(()) } else { Err("contended") }
    })
    .await;
    ask_in_vain(&redlock).await;
    let begun = log.of_each(BEGINS, 2).unwrap();
    assert!(begun.iter().all(|line| line.contains("cause=")), "{begun:?}");
    fleet.restart(0).await;
    fleet.restart(1).await;
    for line in until_it_ends(&log, &redlock, 2).await {
        let refused = line.rsplit_once("refused=").unwrap().1;
        assert!(refused.trim().parse::<usize>().unwrap() >= 200, "{line}");
    }
    assert_eq!(log.lines(BEGINS), begun);
    assert_eq!(log.text().lines().count(), 4, "{}", log.text());
}

#[tokio::test]
async fn a_quarantine_is_an_outage_of_each_server() {
    let log = Log::default();
    let _listening = log.listen();
    let fleet = Fleet::start(3).await;
    let redlock = Redlock::new(settings(&fleet).build().unwrap());
    let error = eventually(HANG, "all servers to answer", async || {
        let error = redlock.try_lock("order").await.unwrap_err();
        if error.is_quarantined() { Ok(error) } else { Err(error.to_string()) }
    })
    .await;
    assert!(error.to_string().contains("some are quarantined"), "{error}");
    ask_in_vain(&redlock).await;
    let begun = log.of_each(BEGINS, 3).unwrap();
    assert!(begun.iter().all(|line| line.contains("quarantined")), "{begun:?}");
    until_it_ends(&log, &redlock, 3).await;
    assert_eq!(log.text().lines().count(), 6, "{}", log.text());
}

#[tokio::test]
async fn a_check_that_fails_is_one_warning_for_a_server_and_not_one_for_each_connection() {
    let log = Log::default();
    let _listening = log.listen();
    let fleet = Fleet::start(1).await;
    let settings = settings(&fleet).safety(Safety::Plain);
    let settings = settings.check(ServerCheck::Persistence, CheckPolicy::Warn);
    let redlock = Redlock::new(settings.build().unwrap());
    for round in 0..5 {
        for number in 0..16 {
            eventually(HANG, "a lock", async || redlock.try_lock(format!("order:{number}")).await)
                .await
                .release()
                .await;
        }
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL").arg("USER").arg("default");
        let killed: i64 = kill.query_async(&mut fleet[0].connection().await).await.unwrap();
        assert!(killed > 0, "nobody was connected in round {round}");
    }
    assert_eq!(log.lines("server check failed").len(), 1, "{}", log.text());
}

#[tokio::test]
async fn closing_is_no_outage_and_is_told_apart_from_one() {
    let log = Log::default();
    let _listening = log.listen();
    let fleet = Fleet::start(3).await;
    let redlock = Redlock::new(settings(&fleet).safety(Safety::Plain).build().unwrap());
    let mut held = Vec::new();
    for number in 0..16 {
        held.push(redlock.lock(format!("order:{number}")).await.unwrap());
    }
    redlock.close(HANG).await;
    let token = held[0].token();
    let errors = [
        redlock.try_lock("order").await.unwrap_err(),
        redlock.inspect("order").await.unwrap_err(),
        redlock.ready().await.unwrap_err(),
        redlock.extend("order", token, Duration::from_secs(4)).await.unwrap_err(),
        redlock.unlock("order", token).await.unwrap_err(),
    ];
    for error in errors {
        assert!(error.is_closed() && !error.is_unavailable(), "{error}");
    }
    assert_eq!(log.text(), "");
}

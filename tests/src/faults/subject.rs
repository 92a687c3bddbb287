//! The lock under test: the only place that knows how it is set up.

use std::time::Duration;

use redlock_core::{Clock, Config, Moment, Provisioned, Redlock, Safety, SystemClock};

use super::client::Job;
use super::{Options, Switch};
use crate::eventually;

/// Declares servers that were just started fit to vote, which they otherwise are only after one
/// time to live.
pub(super) async fn provision(options: &Options, urls: &[String]) {
    if options.guard == Switch::On {
        let skew = options.max_clock_skew.map(Into::into);
        let redlock = redlock(urls, options.guard, 0, *options.ttl, "provision", (0.0, skew));
        eventually(Duration::from_secs(20), "the servers to be provisioned", async || {
            redlock.provision().await.map(|outcome| assert_eq!(outcome, Provisioned::New))
        })
        .await;
    }
}

pub(super) fn client(job: &Job) -> Redlock {
    let clocks = (job.clock_ahead, job.max_clock_skew);
    redlock(&job.urls, job.guard, job.epoch, job.ttl, &job.name, clocks)
}

fn redlock(
    urls: &[String],
    guard: Switch,
    epoch: u32,
    ttl: Duration,
    label: &str,
    (ahead, max_clock_skew): (f64, Option<Duration>),
) -> Redlock {
    let safety = match guard {
        Switch::On => Safety::Guarded,
        Switch::Off => Safety::Plain,
    };
    // The deadline is long enough for a busy machine to answer. The name stands for the servers,
    // to each of which every client goes a way of its own.
    let config = Config::servers(urls.iter().map(String::as_str))
        .safety(safety)
        .epoch(epoch)
        .clock(WrongClock { right: SystemClock::new(), ahead })
        .fleet("faults")
        .ttl(ttl)
        .node_deadline((ttl / 8).min(Duration::from_millis(100)))
        .retry_interval(Duration::from_millis(5), Duration::from_millis(50))
        .reconnection_interval(Duration::from_millis(10), Duration::from_millis(100))
        .label(label);
    let config = match max_clock_skew {
        Some(skew) => config.max_clock_skew(skew),
        None => config,
    };
    Redlock::new(config.build().expect("a configuration"))
}

/// A wall clock that somebody has set wrong: the order of fencing tokens must not depend on it.
#[derive(Debug)]
struct WrongClock {
    right: SystemClock,
    /// In seconds.
    ahead: f64,
}

impl Clock for WrongClock {
    fn now(&self) -> Moment {
        self.right.now()
    }

    fn unix_micros(&self) -> u64 {
        let ahead = Duration::from_secs_f64(self.ahead.abs());
        let ahead = u64::try_from(ahead.as_micros()).expect("a sensible time");
        let right = self.right.unix_micros();
        if self.ahead < 0.0 { right - ahead } else { right + ahead }
    }
}

/// Waits until a majority of the servers answers.
pub(super) async fn answers(redlock: &Redlock) {
    eventually(Duration::from_secs(20), "the servers to answer", async || redlock.ready().await)
        .await;
}

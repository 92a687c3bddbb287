//! The extremes of every duration, count, size and share of the public API: each is a value or an
//! error with the fix, and none panics or hangs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use redlock_core::{
    Clock, Config, ConfigBuilder, ErrorKind, Key, Moment, Redlock, Released, Renew, Safety, Server,
    Token,
};
use tokio::time::timeout;

/// A hang, also on a machine with too much to do.
const HANG: Duration = Duration::from_secs(20);

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const DURATIONS: [Duration; 12] = [
    Duration::ZERO,
    Duration::from_nanos(1),
    Duration::from_micros(999),
    Duration::from_millis(1),
    Duration::from_secs(1),
    Duration::from_secs(10),
    YEAR,
    Duration::from_secs(365 * 24 * 60 * 60 + 1),
    Duration::from_secs(i64::MAX as u64),
    Duration::from_millis(u64::MAX),
    Duration::from_secs(u64::MAX),
    Duration::MAX,
];

const SHARES: [f64; 12] = [
    0.0,
    -0.0,
    f64::MIN_POSITIVE,
    0.5,
    1.0 - f64::EPSILON,
    1.0,
    -1.0,
    f64::MAX,
    f64::MIN,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
];

const SIZES: [usize; 6] = [0, 1, 2, 64, 65, usize::MAX];

/// Builds each of the configurations that `set` makes; those that are refused name the field.
fn build<T: std::fmt::Debug + Copy>(
    field: &str,
    values: &[T],
    set: impl Fn(ConfigBuilder, T) -> ConfigBuilder,
) -> Vec<Config> {
    let mut built = Vec::new();
    for value in values {
        for safety in [Safety::Guarded, Safety::Plain] {
            let builder = Config::servers(["redis://a"]).safety(safety);
            match set(builder, *value).build() {
                Ok(config) => built.push(config),
                Err(error) => {
                    let shown = error.to_string();
                    let about_ttl = ["drift_factor", "max_clock_skew"].contains(&field);
                    assert!(
                        error.field() == field || (about_ttl && error.field() == "ttl"),
                        "{value:?}: {shown}"
                    );
                    assert!(shown.len() < 400 && shown.contains(": "), "{value:?}: {shown}");
                    let advised = shown.split_once("at least ").and_then(|(_, fix)| {
                        fix.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u128>().ok()
                    });
                    let usable = advised.is_none_or(|millis| millis <= YEAR.as_millis());
                    assert!(usable, "{value:?}: {shown}");
                }
            }
        }
    }
    assert!(!built.is_empty(), "no value of {field} is taken");
    built
}

fn all_extremes() -> Vec<Config> {
    let with_max_ttl = |builder: ConfigBuilder, ttl| builder.max_ttl(ttl).epoch(u32::MAX);
    let with_skew =
        |builder: ConfigBuilder, skew| builder.ttl(YEAR).max_ttl(YEAR).max_clock_skew(skew);
    let counts = [0, 1, u32::MAX];
    [
        build("ttl", &DURATIONS, ConfigBuilder::ttl),
        build("max_ttl", &DURATIONS, with_max_ttl),
        build("node_deadline", &DURATIONS, ConfigBuilder::node_deadline),
        build("max_clock_skew", &DURATIONS, with_skew),
        build("retry_interval", &DURATIONS, |builder, base| builder.retry_interval(base, base)),
        build("retry_interval", &DURATIONS, |builder, cap| {
            builder.retry_interval(Duration::from_millis(1), cap)
        }),
        build("reconnection_interval", &DURATIONS, |builder, cap| {
            builder.reconnection_interval(Duration::from_millis(1), cap)
        }),
        build("drift_factor", &SHARES, ConfigBuilder::drift_factor),
        build("pool_size", &SIZES, ConfigBuilder::pool_size),
        build("max_waiters", &SIZES, ConfigBuilder::max_waiters),
        build("max_retry", &counts, ConfigBuilder::max_retry),
        build("epoch", &counts, ConfigBuilder::epoch),
    ]
    .concat()
}

#[test]
fn every_extreme_of_a_setting_is_a_value_or_an_error_with_the_fix() {
    for config in all_extremes() {
        assert!(!format!("{config:?}").is_empty());
        drop(Redlock::new(config));
    }
    for database in [0, u32::MAX] {
        for port in [0, 1, u16::MAX] {
            let server = Server::new("h").port(port).database(database);
            assert_eq!(Config::servers([server]).build().is_ok(), port != 0);
        }
    }
    for len in [0, 1, Key::MAX_LEN, Key::MAX_LEN + 1, 1 << 20] {
        let long = "x".repeat(len);
        assert_eq!(Key::new(&long).is_ok(), (1..=Key::MAX_LEN).contains(&len));
        assert!(!Key::hashed(&long).as_bytes().is_empty());
        assert_eq!(long.parse::<Token>().is_ok(), (1..=128).contains(&len));
        assert_eq!(Config::servers(["redis://a"]).label(&long).build().is_ok(), len == 1);
        let prefixed = Config::servers(["redis://a"]).key_prefix(&long).build();
        assert_eq!(prefixed.is_ok(), len <= 256);
        assert!(Config::servers(["redis://a"]).fleet(&long).build().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn every_extreme_of_a_request_is_a_lock_or_an_error() {
    let redlock = Redlock::in_memory();
    for ttl in DURATIONS {
        let taken = timeout(HANG, redlock.lock("ttl").ttl(ttl).into_future()).await.unwrap();
        match taken {
            Ok(guard) => assert!(!guard.remaining().is_zero(), "{ttl:?}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{ttl:?}: {error}"),
        }
    }
    for max_hold in DURATIONS {
        for renew in [Renew::No, Renew::Yes] {
            let request = redlock.lock("hold").max_hold(max_hold).renew(renew);
            match timeout(HANG, request.into_future()).await.unwrap() {
                Ok(guard) => assert!(!guard.is_lost(), "{max_hold:?}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{max_hold:?}"),
            }
        }
    }
    let held = redlock.lock("wait").await.unwrap();
    for wait in DURATIONS {
        // The holder's lease ends after ten seconds, and so does the waiting.
        let request = redlock.lock("wait").wait(wait.min(Duration::from_millis(1)));
        assert!(request.await.unwrap_err().is_contended());
    }
    drop(held);
    for wait in DURATIONS {
        redlock.lock("wait").wait(wait).await.unwrap().release().await;
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_without_an_end_gets_the_lock_when_it_is_free() {
    let redlock = Redlock::in_memory();
    let held = redlock.lock("k").await.unwrap();
    let waiting = tokio::spawn(redlock.lock("k").wait(Duration::MAX).into_future());
    tokio::time::sleep(Duration::from_secs(1)).await;
    held.release().await;
    let guard = timeout(HANG, waiting).await.unwrap().unwrap().unwrap();
    assert!(!guard.is_lost());
}

#[tokio::test(start_paused = true)]
async fn every_extreme_of_an_extension_is_a_validity_or_an_error() {
    let redlock = Redlock::in_memory();
    for ttl in DURATIONS {
        let guard = redlock.lock("k").await.unwrap();
        for extended in [guard.extend(ttl).await, redlock.extend("k", guard.token(), ttl).await] {
            match extended {
                Ok(validity) => assert!(!validity.is_zero() && validity < ttl),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{ttl:?}: {error}"),
            }
        }
        assert_eq!(guard.ensure(ttl).is_ok(), ttl <= guard.remaining(), "{ttl:?}");
        assert_eq!(guard.release().await, Released::Released);
    }
}

#[tokio::test(start_paused = true)]
async fn closing_with_every_extreme_of_a_grace_ends() {
    for grace in DURATIONS {
        let redlock = Redlock::in_memory();
        let _guard = redlock.lock("k").await.unwrap();
        let closed = timeout(HANG, redlock.close(grace)).await.expect("no hang");
        assert_eq!(closed.unreleased, 0, "{grace:?}");
    }
    let nowhere = Config::servers(["redis://127.0.0.1:1"]).build().unwrap();
    let redlock = Redlock::new(nowhere);
    assert!(redlock.try_lock("k").await.unwrap_err().is_unavailable());
    timeout(HANG, redlock.close(Duration::MAX)).await.expect("no hang");
}

/// A clock at one end of the time.
#[derive(Debug)]
struct Extreme(Duration, u64);

impl Clock for Extreme {
    fn now(&self) -> Moment {
        Moment::from_origin(self.0)
    }

    fn unix_micros(&self) -> u64 {
        self.1
    }
}

#[tokio::test]
async fn a_clock_at_either_end_of_time_is_no_panic() {
    for now in DURATIONS {
        for micros in [0, 1, i64::MAX as u64, u64::MAX] {
            let nowhere = Config::servers(["redis://127.0.0.1:1"]).clock(Extreme(now, micros));
            let redlock = Redlock::new(nowhere.max_retry(1).build().unwrap());
            let error = timeout(HANG, redlock.lock("k").into_future()).await.unwrap().unwrap_err();
            assert!(error.is_unavailable(), "{error}");
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// What the future gives on a thread without tokio, or `None` if it panics. It must end.
fn without_tokio<T: Send + 'static>(
    future: impl FnOnce() -> Box<dyn Future<Output = T>> + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let awaited = catch_unwind(AssertUnwindSafe(|| {
            let mut future = pin!(Box::into_pin(future()));
            let waker = Waker::from(Arc::new(Unpark(thread::current())));
            loop {
                match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    Poll::Ready(output) => break output,
                    Poll::Pending => thread::park(),
                }
            }
        }));
        drop(sender.send(awaited.ok()));
    });
    receiver.recv_timeout(HANG).expect("no hang")
}

#[test]
fn outside_of_tokio_everything_ends_with_an_error_or_a_panic_of_tokio() {
    let servers = Config::servers(["redis://127.0.0.1:1"]).build().unwrap();
    let token: Token = "t:00112233445566778899aabbccddeeff".parse().unwrap();
    for redlock in [Redlock::new(servers.clone()), Redlock::in_memory()] {
        let config = servers.clone();
        let handle = || (redlock.clone(), token.clone());
        let mut errors = Vec::new();
        let (r, _) = handle();
        errors.push(without_tokio(move || Box::new(async move { r.lock("k").await.err() })));
        let (r, _) = handle();
        errors.push(without_tokio(move || Box::new(async move { r.try_lock("k").await.err() })));
        let (r, _) = handle();
        errors.push(without_tokio(move || {
            Box::new(async move { r.with_lock("k", |_| async {}).await.err() })
        }));
        let (r, _) = handle();
        errors.push(without_tokio(move || Box::new(async move { r.lock_all(["k"]).await.err() })));
        let (r, t) = handle();
        errors.push(without_tokio(move || Box::new(async move { r.unlock("k", &t).await.err() })));
        let (r, t) = handle();
        errors.push(without_tokio(move || {
            Box::new(async move { r.extend("k", &t, Duration::from_secs(5)).await.err() })
        }));
        let (r, _) = handle();
        errors.push(without_tokio(move || Box::new(async move { r.inspect("k").await.err() })));
        let (r, _) = handle();
        errors.push(without_tokio(move || Box::new(async move { r.ready().await.err() })));
        let (r, _) = handle();
        errors.push(without_tokio(move || Box::new(async move { r.health().await.err() })));
        let (r, _) = handle();
        errors.push(without_tokio(move || Box::new(async move { r.provision().await.err() })));
        errors.push(without_tokio(move || {
            Box::new(async move { Redlock::connect(config).await.err() })
        }));
        for error in errors {
            let error = error.expect("no panic").expect("an error");
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("tokio runtime"), "{error}");
        }
        let (r, _) = handle();
        without_tokio(move || Box::new(async move { r.close(HANG).await }));
    }
}

#[test]
fn a_release_outside_of_tokio_ends_and_is_sent_later() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let redlock = Redlock::in_memory();
    let guard = runtime().block_on(async { redlock.lock("k").await.unwrap() });
    let released = without_tokio(move || Box::new(guard.release()));
    assert_eq!(released, Some(Released::Released));
    let guard = runtime().block_on(async { redlock.lock("k").await.unwrap() });
    assert!(!guard.is_lost());
}

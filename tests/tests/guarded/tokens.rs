//! Fencing tokens: larger for every later lock of a key.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::future::join_all;
use redlock_core::{Clock, FenceBasis, Moment, Provisioned, Redlock, SystemClock};
use redlock_tests::{Fleet, RedisServer, eventually};
use twox_hash::XxHash3_64;

use crate::{HANG, LONG, provisioned, redlock, settings};

async fn token(redlock: &Redlock, key: &str) -> u64 {
    let guard = redlock.lock(key).wait(HANG).await.unwrap();
    let token = guard.fencing_token().expect("guarded locks have one").get();
    guard.release().await;
    token
}

/// A wall clock that is wrong by as much.
#[derive(Debug)]
struct Wrong(SystemClock, i64);

impl Clock for Wrong {
    fn now(&self) -> Moment {
        self.0.now()
    }

    fn unix_micros(&self) -> u64 {
        self.0.unix_micros().saturating_add_signed(self.1)
    }
}

fn wrong_by(fleet: &Fleet, micros: i64) -> Redlock {
    let clock = Wrong(SystemClock::new(), micros);
    Redlock::new(settings(&fleet.urls(), LONG).clock(clock).build().unwrap())
}

#[tokio::test]
async fn later_locks_have_larger_tokens_whatever_the_clocks_of_their_holders() {
    const DAY: i64 = 24 * 60 * 60 * 1_000_000;
    let fleet = Fleet::start(3).await;
    let right = provisioned(&fleet, LONG).await;
    let holders =
        [right, wrong_by(&fleet, DAY), wrong_by(&fleet, -DAY), wrong_by(&fleet, i64::MIN)];
    let mut last = 0;
    for round in 0..40 {
        let next = token(&holders[round % 4], "order").await;
        assert!(next > last, "{next} after {last}");
        last = next;
    }
    assert!(last < 1 << 53, "{last} does not survive JSON");
}

#[tokio::test]
async fn a_key_in_steady_use_needs_one_round_trip() {
    let fleet = Fleet::start(3).await;
    let redlock = provisioned(&fleet, LONG).await;
    token(&redlock, "order").await;
    fleet.eventually_empty(HANG).await;
    fleet.reset_stats().await;
    for _ in 0..20 {
        token(&redlock, "order").await;
    }
    redlock.close(HANG).await;
    let commands = fleet.commands().await;
    // One call of the script to lock and one to release, on each of three servers; fewer if a
    // release shares its call with the next lock. A token that is confirmed costs another GET.
    assert!(commands["evalsha"] <= 120, "{commands:?}");
    assert_eq!((commands["set"], commands["get"]), (60, 60), "{commands:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_of_many_tasks_and_handles_never_share_a_token() {
    let fleet = Fleet::start(3).await;
    let one = provisioned(&fleet, LONG).await;
    let handles = [one, redlock(&fleet, LONG), wrong_by(&fleet, 5_000_000)];
    let one_after_another = |redlock: Redlock| async move {
        let mut tokens = Vec::new();
        for _ in 0..40 {
            tokens.push(token(&redlock, "order").await);
        }
        tokens
    };
    let tokens = join_all(handles.map(one_after_another)).await;
    for own in &tokens {
        assert!(own.is_sorted_by(|earlier, later| earlier < later), "{own:?}");
    }
    let all: HashSet<u64> = tokens.iter().flatten().copied().collect();
    assert_eq!(all.len(), 120, "two locks had the same token");
}

#[tokio::test]
async fn a_lock_of_servers_that_forgot_their_counters_is_ordered_by_clocks_and_the_next_is_not() {
    let fleet = Fleet::start(3).await;
    let short = Duration::from_millis(1_200);
    let redlock = Redlock::connect(settings(&fleet.urls(), short).build().unwrap()).await.unwrap();
    // The hash of "order" says which counter it is.
    let counter = (XxHash3_64::oneshot(b"order") % 1024).to_string();
    let basis = async || {
        let guard = redlock.lock("order").wait(HANG).await.unwrap();
        let (token, basis) = (guard.fencing_token().unwrap(), guard.fence_basis().unwrap());
        guard.release().await;
        (token, basis)
    };
    let (first, clock) = basis().await;
    let (second, majority) = basis().await;
    assert_eq!((clock, majority), (FenceBasis::Clock, FenceBasis::Majority));
    assert!(second > first);

    // A majority took part in those locks. The third server knows what it was taught since.
    eventually(HANG, "all three to know the counter", async || {
        basis().await;
        for server in &fleet {
            let mut connection = server.connection().await;
            let mut ask = redis::cmd("HKEYS");
            let fields: Vec<String> =
                ask.arg("{redlock}:node").query_async(&mut connection).await.unwrap();
            if !fields.contains(&counter) {
                return false;
            }
        }
        true
    })
    .await;

    // One server forgets: the majority that remembers is asked, also by those who must rely on
    // the forgetful one to lock.
    fleet.restart(0).await;
    redlock.lock("wait").wait(HANG).await.unwrap().release().await;
    let (third, majority) = basis().await;
    assert_eq!(majority, FenceBasis::Majority);
    assert!(third > second);
}

/// One of three has lost its counters and one is down: what that one remembers may be larger than
/// what the third does.
#[tokio::test]
async fn without_a_majority_that_remembers_or_forgot_there_is_no_lock() {
    let fleet = Fleet::start(3).await;
    let short = Duration::from_millis(1_200);
    let redlock = Redlock::new(settings(&fleet.urls(), short).build().unwrap());
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    let first = token(&redlock, "order").await;
    fleet.restart(0).await;
    fleet.pause(2);
    // "order" can be locked again only when the third is back, however long the first waits.
    let error = redlock.lock("order").wait(3 * short).await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    fleet.resume(2);
    let next = eventually(HANG, "the third to be back", async || {
        let guard = redlock.try_lock("order").await.map_err(|error| error.to_string())?;
        assert_eq!(guard.fence_basis(), Some(FenceBasis::Majority));
        Ok::<_, String>(guard.fencing_token().unwrap().get())
    })
    .await;
    assert!(next > first, "{next} after {first}");
}

#[tokio::test]
async fn what_a_server_keeps_besides_locks_is_bounded() {
    let fleet = Fleet::start(1).await;
    let redlock = provisioned(&fleet, LONG).await;
    let lock = |number: usize| {
        let redlock = redlock.clone();
        async move { token(&redlock, &format!("order:{number}")).await }
    };
    for batch in 0..40 {
        join_all((0..200).map(|number| lock(200 * batch + number))).await;
    }
    let mut connection = fleet[0].connection().await;
    let fields: usize =
        redis::cmd("HLEN").arg("{redlock}:node").query_async(&mut connection).await.unwrap();
    assert!(fields > 1000 && fields <= 1024 + 6, "{fields} fields");
    let bytes: usize = redis::cmd("MEMORY")
        .arg("USAGE")
        .arg("{redlock}:node")
        .arg("SAMPLES")
        .arg(0)
        .query_async(&mut connection)
        .await
        .unwrap();
    assert!(bytes < 100_000, "{bytes} bytes");
}

/// Two locks of a batch share a counter that the server had lost, and both confirm their tokens.
#[tokio::test]
async fn what_was_kept_of_a_lost_counter_is_gone_once_it_is_known_again() {
    const SCRIPT: &str = include_str!("../../../crates/redlock-core/src/node/scripts/guarded.lua");
    let server = RedisServer::start().await;
    let mut redis = server.connection().await;
    let run: String = redis::cmd("INFO").arg("server").query_async(&mut redis).await.unwrap();
    let run = run.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap().trim();
    let mut record = redis::cmd("HSET");
    record.arg("node").arg(&["run", run, "epoch", "0", "config", "c", "until", "0"]);
    record.arg(&["quarantine", "1000", "u17", "5"]).exec_async(&mut redis).await.unwrap();
    for key in ["a", "b"] {
        server.set_foreign(key, key, HANG).await;
    }
    let introduction = ["1000", "0", "c", "0", "void:", "", "", "2", "17", "17"];
    let answers: Vec<i64> = redis::cmd("EVAL")
        .arg(SCRIPT)
        .arg(&["3", "node", "a", "b"])
        .arg(&introduction)
        .arg(&["confirm", "2", "a", "7", "b", "9"])
        .query_async(&mut redis)
        .await
        .unwrap();
    assert_eq!(answers, [1, 1]);
    let kept: (Option<u64>, Option<u64>) =
        redis::cmd("HMGET").arg(&["node", "17", "u17"]).query_async(&mut redis).await.unwrap();
    assert_eq!(kept, (Some(9), None));
}

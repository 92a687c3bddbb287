//! Who waits for another process is told when the key is free, and asks from time to time anyway.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use redis::cmd;
use redlock_core::{Config, ConfigBuilder, ErrorKind, Guard, LockError, Redlock, Safety, WakeUp};
use redlock_tests::{Command, FakeServer, Fleet, RedisServer, Reply, ServerOptions, eventually};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(30);

/// Nobody who waits asks before this, unless told.
const NEVER: Duration = Duration::from_secs(36_000);

const FOREIGN: &str = "somebody:00112233445566778899aabbccddeeff";

fn settings(urls: Vec<String>) -> ConfigBuilder {
    Config::servers(urls)
        .ttl(Duration::from_secs(600))
        .node_deadline(Duration::from_secs(5))
        .retry_interval(NEVER, NEVER)
        .safety(Safety::Plain)
}

fn redlock(fleet: &Fleet) -> Redlock {
    Redlock::new(settings(fleet.urls()).build().unwrap())
}

type Waiting = JoinHandle<Result<Guard, LockError>>;

fn wait(redlock: &Redlock) -> Waiting {
    tokio::spawn(redlock.lock("order").wait(NEVER).into_future())
}

async fn won(waiting: Waiting) -> Guard {
    timeout(PATIENCE, waiting).await.expect("it is told").unwrap().unwrap()
}

/// A number that the server says of itself.
async fn number(server: &RedisServer, field: &str) -> u64 {
    let mut redis = server.connection().await;
    let info: String = cmd("INFO").arg("everything").query_async(&mut redis).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().parse().unwrap()
}

/// Which server is watched, once one is.
async fn watched(fleet: &Fleet) -> usize {
    eventually(PATIENCE, "a server to be watched", async || {
        for (i, server) in fleet.iter().enumerate() {
            if number(server, "tracking_total_keys").await > 0 {
                return Some(i);
            }
        }
        None
    })
    .await
}

async fn watching(fleet: &Fleet) -> u64 {
    let mut sum = 0;
    for server in fleet.iter().filter(|server| server.is_running()) {
        sum += number(server, "tracking_clients").await;
    }
    sum
}

async fn foreign_lock(fleet: &Fleet) {
    for server in fleet {
        server.set_foreign("order", FOREIGN, Duration::from_secs(600)).await;
    }
}

async fn foreign_release(fleet: &Fleet) {
    for server in fleet {
        server.delete("order").await;
    }
}

#[tokio::test]
async fn a_release_by_another_process_wakes_who_waits() {
    let fleet = Fleet::start(3).await;
    for safety in [Safety::Plain, Safety::Guarded] {
        let make = || Redlock::new(settings(fleet.urls()).safety(safety).build().unwrap());
        let (first, second) = (make(), make());
        first.provision().await.unwrap();
        let guard = first.lock("order").await.unwrap();
        let waiting = wait(&second);
        watched(&fleet).await;
        drop(guard);
        let guard = won(waiting).await;
        let waiting = wait(&first);
        watched(&fleet).await;
        guard.release().await;
        won(waiting).await.release().await;
    }
}

#[tokio::test]
async fn a_release_by_another_library_wakes_who_waits() {
    let fleet = Fleet::start(3).await;
    foreign_lock(&fleet).await;
    let redlock = redlock(&fleet);
    let waiting = wait(&redlock);
    watched(&fleet).await;
    foreign_release(&fleet).await;
    drop(won(waiting).await);
}

/// The holder is gone, and its key with it, earlier than was said when it was asked for.
#[tokio::test]
async fn a_lock_that_runs_out_wakes_who_waits() {
    let fleet = Fleet::start(3).await;
    foreign_lock(&fleet).await;
    let redlock = redlock(&fleet);
    let waiting = wait(&redlock);
    watched(&fleet).await;
    for server in &fleet {
        server.set_foreign("order", FOREIGN, Duration::from_millis(50)).await;
    }
    drop(won(waiting).await);
}

#[tokio::test]
async fn without_wake_up_nobody_is_told() {
    let fleet = Fleet::start(3).await;
    foreign_lock(&fleet).await;
    let redlock = Redlock::new(settings(fleet.urls()).wake_up(WakeUp::Poll).build().unwrap());
    let waiting = wait(&redlock);
    eventually(PATIENCE, "it to be refused", async || {
        fleet.commands().await.get("pttl").is_some_and(|asked| *asked >= 3)
    })
    .await;
    foreign_release(&fleet).await;
    assert!(timeout(Duration::from_millis(500), waiting).await.is_err(), "it was told");
    assert_eq!(watching(&fleet).await, 0);
}

#[tokio::test]
async fn nobody_is_watched_while_nobody_waits_for_another_process() {
    let fleet = Fleet::start(3).await;
    let redlock = redlock(&fleet);
    for _ in 0..10 {
        drop(redlock.lock("order").await.unwrap());
    }
    let guard = redlock.lock("order").await.unwrap();
    assert_eq!(redlock.try_lock("order").await.unwrap_err().kind(), ErrorKind::Contended);
    let waiting = wait(&redlock);
    drop(guard);
    drop(won(waiting).await);
    assert_eq!(watching(&fleet).await, 0);
}

#[tokio::test]
async fn a_connection_for_watching_that_breaks_is_made_again() {
    let fleet = Fleet::start(3).await;
    foreign_lock(&fleet).await;
    let redlock = redlock(&fleet);
    let waiting = wait(&redlock);
    let server = &fleet[watched(&fleet).await];
    let mut redis = server.connection().await;
    let clients: String = cmd("CLIENT").arg("LIST").query_async(&mut redis).await.unwrap();
    let watcher = clients.lines().find(|client| client.contains(" flags=t")).unwrap();
    let id = watcher.split(' ').find_map(|field| field.strip_prefix("id=")).unwrap();
    let killed: i64 =
        cmd("CLIENT").arg("KILL").arg("ID").arg(id).query_async(&mut redis).await.unwrap();
    assert_eq!(killed, 1);
    eventually(PATIENCE, "another connection", async || {
        let clients: String = cmd("CLIENT").arg("LIST").query_async(&mut redis).await.unwrap();
        clients.lines().any(|c| c.contains(" flags=t") && !c.starts_with(&format!("id={id} ")))
    })
    .await;
    watched(&fleet).await;
    foreign_release(&fleet).await;
    drop(won(waiting).await);
}

/// A release that falls into the time without connection is seen when there is one again.
#[tokio::test]
async fn who_was_not_told_while_the_connection_was_gone_finds_out_on_the_next() {
    let fleet = Fleet::start(3).await;
    foreign_lock(&fleet).await;
    let redlock = redlock(&fleet);
    let waiting = wait(&redlock);
    let i = watched(&fleet).await;
    // A server that starts again has lost the key.
    fleet.kill(i);
    for (j, server) in fleet.iter().enumerate() {
        if j != i {
            server.delete("order").await;
        }
    }
    fleet.restart(i).await;
    drop(won(waiting).await);
}

#[tokio::test]
async fn where_servers_tell_nothing_who_waits_asks_from_time_to_time() {
    let fleet = Fleet::start(3).await;
    for reply in [Reply::Ok, Reply::Error("ERR unknown subcommand 'TRACKING'".into())] {
        foreign_lock(&fleet).await;
        let asked = Arc::new(AtomicUsize::new(0));
        let deaf = |server| {
            let (asked, reply) = (Arc::clone(&asked), reply.clone());
            FakeServer::in_front_of(server, move |command: &Command| {
                let is_tracking = command.args().first().is_some_and(|arg| arg == "TRACKING");
                is_tracking.then(|| {
                    asked.fetch_add(1, Ordering::Relaxed);
                    reply.clone()
                })
            })
        };
        let fakes: Vec<_> = fleet.iter().map(deaf).collect();
        let interval = Duration::from_millis(100);
        let urls = fakes.iter().map(FakeServer::url).collect();
        let config = settings(urls).retry_interval(interval, interval).build();
        let waiting = wait(&Redlock::new(config.unwrap()));
        eventually(PATIENCE, "it to ask for tracking", async || asked.load(Ordering::Relaxed) > 0)
            .await;
        assert!(!waiting.is_finished());
        foreign_release(&fleet).await;
        drop(won(waiting).await);
    }
}

#[tokio::test]
async fn a_server_where_the_user_may_not_watch_is_asked_from_time_to_time() {
    let rights = "+eval +evalsha +script|load +info +time +get +set +del +exists +pexpire +pttl \
                  +hmget +hset +hdel +hello +auth +ping +select +client|id +client|kill";
    let user = format!("user locker on >s3cret resetchannels ~* -@all {rights}");
    let options: ServerOptions = RedisServer::options().acl(&user);
    let fleet = Fleet::start_with(3, options).await;
    foreign_lock(&fleet).await;
    let url = |server: &RedisServer| format!("redis://locker:s3cret@127.0.0.1:{}/", server.port());
    let interval = Duration::from_millis(100);
    let config = settings(fleet.iter().map(url).collect()).retry_interval(interval, interval);
    let redlock = Redlock::new(config.build().unwrap());
    let waiting = wait(&redlock);
    eventually(PATIENCE, "it to be refused", async || {
        let mut redis = fleet[0].connection().await;
        let log: Vec<redis::Value> = cmd("ACL").arg("LOG").query_async(&mut redis).await.unwrap();
        format!("{log:?}").contains("client|tracking")
    })
    .await;
    foreign_release(&fleet).await;
    drop(won(waiting).await);
}

/// Being told in vain is none of the tries that the policy allows.
#[tokio::test]
async fn who_is_told_in_vain_goes_on_waiting() {
    let fleet = Fleet::start(5).await;
    foreign_lock(&fleet).await;
    let redlock = Redlock::new(settings(fleet.urls()).max_retry(1).build().unwrap());
    let waiting: Waiting = tokio::spawn(redlock.lock("order").into_future());
    for round in 0..4 {
        let server = &fleet[watched(&fleet).await];
        let asked = async || server.command_stats().await.get("set").copied().unwrap_or_default();
        let before = asked().await;
        server.delete("order").await;
        eventually(PATIENCE, "it to ask", async || asked().await > before).await;
        assert!(!waiting.is_finished(), "round {round}");
        eventually(PATIENCE, "it to give way", async || server.get("order").await.is_none()).await;
        server.set_foreign("order", FOREIGN, Duration::from_secs(600)).await;
    }
    watched(&fleet).await;
    foreign_release(&fleet).await;
    drop(won(waiting).await);
}

#[tokio::test]
async fn one_in_a_process_asks_for_all_who_wait_there() {
    let fleet = Fleet::start(3).await;
    foreign_lock(&fleet).await;
    fleet.reset_stats().await;
    let redlock = redlock(&fleet);
    let waiting: Vec<_> = (0..50).map(|_| wait(&redlock)).collect();
    watched(&fleet).await;
    let commands = fleet.commands().await;
    assert_eq!(commands["set"], 3, "{commands:?}");
    foreign_release(&fleet).await;
    for waiting in waiting {
        drop(won(waiting).await);
    }
}

#[tokio::test]
async fn nothing_is_watched_any_more_once_nobody_can_wait() {
    let fleet = Fleet::start(3).await;
    foreign_lock(&fleet).await;
    let (closed, dropped) = (redlock(&fleet), redlock(&fleet));
    let (one, other) = (wait(&closed), wait(&dropped));
    watched(&fleet).await;
    eventually(PATIENCE, "both to watch", async || watching(&fleet).await == 2).await;
    closed.close(PATIENCE).await;
    assert_eq!(one.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    eventually(PATIENCE, "one to be gone", async || watching(&fleet).await == 1).await;
    other.abort();
    drop(dropped);
    eventually(PATIENCE, "all to be gone", async || watching(&fleet).await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_share_a_key_without_asking_for_it_all_the_time() {
    let fleet = Fleet::start(3).await;
    let interval = Duration::from_millis(50);
    let make = || {
        let config = settings(fleet.urls()).retry_interval(interval, Duration::from_secs(3));
        Redlock::new(config.build().unwrap())
    };
    let processes: Vec<_> = (0..8).map(|_| make()).collect();
    for process in &processes {
        process.ready().await.unwrap();
    }
    fleet.reset_stats().await;
    let clients = processes.iter().flat_map(|process| (0..8).map(move |_| process));
    let clients = clients.map(async |process| {
        let guard = timeout(PATIENCE, process.lock("order").wait(PATIENCE)).await.unwrap().unwrap();
        sleep(Duration::from_millis(5)).await;
        guard.release().await;
    });
    assert_eq!(join_all(clients).await.len(), 64);
    fleet.eventually_empty(PATIENCE).await;
    let commands = fleet.commands().await;
    let calls = |name: &str| commands.get(name).copied().unwrap_or_default();
    // Scripts read once for each key that they delete, and set what they hand over.
    let messages = calls("set") + calls("get") - calls("eval");
    assert!(messages <= 64 * 16, "{messages} commands: {commands:?}");
}

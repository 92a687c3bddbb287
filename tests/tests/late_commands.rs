//! A command that was given up arrives all the same, after the command that was to undo it.
//!
//! The order of two connections is nobody's promise: what a client sent on the first may be held
//! up somewhere until long after it has connected again. Each test has a control, which does by
//! hand what a client without the defence would do, and shows that the harm then is certain.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{Client, Cmd, RedisResult, Value, cmd};
use redlock_core::{Config, ErrorKind, Redlock, Safety};
use redlock_tests::{Proxy, RedisServer, ServerOptions, all_vote, eventually};
use tokio::time::timeout;

/// Most of a round is waiting, so some are played at a time, each on a scene of its own.
const SCENES: usize = 5;
const ROUNDS: usize = 20;
const ALL: usize = SCENES * ROUNDS;

const SOON: Duration = Duration::from_secs(20);

/// Longer than any test: a key that goes away was deleted, it did not expire.
const TTL: Duration = Duration::from_secs(600);

/// After so long without an answer a connection is given up.
const DEADLINE: Duration = Duration::from_millis(25);

const WITHOUT_CLIENT_KILL: &str = "user default on nopass ~* &* +@all -client +client|id";

/// A server, and a network in front of it that holds up what is on the way.
struct Scene {
    server: RedisServer,
    proxy: Proxy,
    safety: Safety,
}

impl Scene {
    async fn new(options: ServerOptions, safety: Safety) -> Self {
        let server = options.start().await;
        let proxy = Proxy::in_front_of(&server).await;
        Self { server, proxy, safety }
    }

    /// The connection that was given up can be closed: no more is needed.
    async fn plain() -> Self {
        Self::new(RedisServer::options(), Safety::Plain).await
    }

    /// What is held up is lost when the client closes the connection.
    async fn severing() -> Self {
        let scene = Self::plain().await;
        Self { proxy: scene.proxy.severing(), ..scene }
    }

    /// The connection that was given up can't be closed.
    async fn without_client_kill(safety: Safety) -> Self {
        Self::new(RedisServer::options().acl(WITHOUT_CLIENT_KILL), safety).await
    }

    async fn plain_without_client_kill() -> Self {
        Self::without_client_kill(Safety::Plain).await
    }

    async fn guarded_without_client_kill() -> Self {
        Self::without_client_kill(Safety::Guarded).await
    }

    async fn redlock(&self) -> Redlock {
        let config = Config::servers([self.proxy.url().as_str()])
            .safety(self.safety)
            .ttl(TTL)
            .node_deadline(DEADLINE)
            .reconnection_interval(Duration::from_millis(1), Duration::from_millis(5));
        let redlock = Redlock::new(config.build().unwrap());
        eventually(SOON, "the server", async || redlock.provision().await).await;
        redlock.lock("it grants").wait(SOON).await.unwrap().release().await;
        all_vote(&redlock).await;
        redlock
    }

    /// A connection of a client that knows no better.
    async fn connection(&self) -> MultiplexedConnection {
        let client = Client::open(self.proxy.url()).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// Sends a command that is held up, and gives its connection up.
    async fn give_up(&self, command: &Cmd) {
        let mut connection = self.connection().await;
        self.proxy.hold_open_connections();
        let answer = command.query_async::<Value>(&mut connection);
        assert!(timeout(DEADLINE, answer).await.is_err(), "nothing passes");
        assert!(self.proxy.held_requests() > 0);
    }

    /// Sends a command on a connection of its own.
    async fn execute(&self, command: &Cmd) -> RedisResult<Value> {
        command.query_async(&mut self.connection().await).await
    }

    /// What is held up arrives, and the server executes it, if it will at all.
    async fn let_go(&self) {
        self.proxy.release();
        eventually(SOON, "the last byte", async || self.proxy.held_requests() == 0).await;
        // The answer to the first tells that the server has looked at its connections since.
        self.server.keys().await;
        self.server.keys().await;
    }
}

/// Counts the harm of all rounds.
async fn harm(scene: impl AsyncFn() -> Scene, play: impl AsyncFn(&Scene) -> usize) -> usize {
    let scenes = join_all((0..SCENES).map(async |_| play(&scene().await).await));
    scenes.await.into_iter().sum()
}

fn names() -> impl Iterator<Item = String> {
    (0..ROUNDS).map(|round| format!("key:{round}"))
}

fn set(key: &str) -> Cmd {
    let mut set = cmd("SET");
    set.arg(key).arg("a token").arg("NX").arg("PX").arg(600_000);
    set
}

fn delete_if_ours(key: &str) -> Cmd {
    const SCRIPT: &str =
        "return redis.call('get', KEYS[1]) == ARGV[1] and redis.call('del', KEYS[1])";
    let mut eval = cmd("EVAL");
    eval.arg(SCRIPT).arg(1).arg(key).arg("a token");
    eval
}

/// How many keys are left of acquisitions that were given up and released.
async fn orphans_of_acquisitions(scene: &Scene) -> usize {
    let redlock = scene.redlock().await;
    let mut orphans = 0;
    for key in names() {
        scene.proxy.hold_open_connections();
        let error = redlock.try_lock(&key).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        // It votes again as soon as it has been told of the release.
        all_vote(&redlock).await;
        scene.let_go().await;
        orphans += usize::from(scene.server.get(&key).await.is_some());
        all_vote(&redlock).await;
    }
    orphans
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acquisition_that_arrives_after_its_release_leaves_no_key() {
    assert_eq!(harm(Scene::plain, orphans_of_acquisitions).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn such_an_acquisition_leaves_no_key_either_if_its_connection_can_not_be_closed() {
    assert_eq!(harm(Scene::guarded_without_client_kill, orphans_of_acquisitions).await, 0);
}

/// How many keys are left where the server was full when it was told of the release.
async fn orphans_on_a_full_server(scene: &Scene) -> usize {
    let redlock = scene.redlock().await;
    let mut orphans = 0;
    for key in names().take(3) {
        scene.proxy.hold_open_connections();
        let error = redlock.try_lock(&key).await.unwrap_err();
        scene.server.config_set("maxmemory", "1").await;
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        all_vote(&redlock).await;
        scene.server.config_set("maxmemory", "0").await;
        scene.let_go().await;
        let is_free = async || scene.server.get(&key).await.is_none();
        orphans +=
            usize::from(timeout(SOON / 4, eventually(SOON, "no key", is_free)).await.is_err());
        all_vote(&redlock).await;
    }
    orphans
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acquisition_that_arrives_after_a_release_that_a_full_server_refused_leaves_no_key() {
    assert_eq!(harm(Scene::guarded_without_client_kill, orphans_on_a_full_server).await, 0);
}

/// Which is why the guarded mode voids what it gives up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_mode_relies_on_closing_that_connection() {
    assert_eq!(harm(Scene::plain_without_client_kill, orphans_of_acquisitions).await, ALL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acquisition_that_is_lost_with_its_connection_leaves_no_key() {
    assert_eq!(harm(Scene::severing, orphans_of_acquisitions).await, 0);
}

async fn orphans_without_a_defence(scene: &Scene) -> usize {
    let mut orphans = 0;
    for key in names() {
        scene.give_up(&set(&key)).await;
        scene.execute(&delete_if_ours(&key)).await.unwrap();
        scene.let_go().await;
        orphans += usize::from(scene.server.get(&key).await.is_some());
    }
    orphans
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_leaves_every_key_of_an_acquisition_that_arrives_after_its_release() {
    assert_eq!(harm(Scene::plain, orphans_without_a_defence).await, ALL);
}

/// How many locks were deleted by the release of an earlier one.
async fn phantom_votes(scene: &Scene) -> usize {
    let redlock = scene.redlock().await;
    let mut phantoms = 0;
    for key in names() {
        let first = redlock.lock(&key).wait(SOON).await.unwrap();
        scene.proxy.hold_open_connections();
        first.release().await;
        assert!(scene.proxy.held_requests() > 0);
        let second = redlock.lock(&key).wait(SOON).await.unwrap();
        scene.let_go().await;
        let kept = scene.server.get(&key).await;
        phantoms += usize::from(kept.as_deref() != Some(second.token().as_str()));
        second.release().await;
    }
    phantoms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_arrives_after_the_next_acquisition_does_not_delete_it() {
    assert_eq!(harm(Scene::plain, phantom_votes).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn such_a_release_does_not_delete_it_either_if_its_connection_can_not_be_closed() {
    assert_eq!(harm(Scene::plain_without_client_kill, phantom_votes).await, 0);
    assert_eq!(harm(Scene::guarded_without_client_kill, phantom_votes).await, 0);
}

async fn phantom_votes_for_a_token_that_is_reused(scene: &Scene) -> usize {
    let mut phantoms = 0;
    for key in names() {
        scene.execute(&set(&key)).await.unwrap();
        scene.give_up(&delete_if_ours(&key)).await;
        scene.execute(&delete_if_ours(&key)).await.unwrap();
        assert_eq!(scene.execute(&set(&key)).await, Ok(Value::Okay));
        scene.let_go().await;
        phantoms += usize::from(scene.server.get(&key).await.is_none());
    }
    phantoms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_reuses_its_token_and_loses_every_lock_to_its_own_release() {
    assert_eq!(harm(Scene::plain, phantom_votes_for_a_token_that_is_reused).await, ALL);
}

/// How many keys are there again after they were released.
async fn keys_brought_back(scene: &Scene) -> usize {
    let redlock = scene.redlock().await;
    let mut brought_back = 0;
    for key in names() {
        let guard = redlock.lock(&key).wait(SOON).await.unwrap();
        scene.proxy.hold_open_connections();
        let error = guard.extend(TTL).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(scene.proxy.held_requests() > 0);
        guard.release().await;
        all_vote(&redlock).await;
        assert_eq!(scene.server.get(&key).await, None);
        scene.let_go().await;
        brought_back += usize::from(scene.server.get(&key).await.is_some());
        all_vote(&redlock).await;
    }
    brought_back
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_extension_that_arrives_after_the_release_does_not_bring_the_key_back() {
    assert_eq!(harm(Scene::plain, keys_brought_back).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn such_an_extension_does_not_either_if_its_connection_can_not_be_closed() {
    assert_eq!(harm(Scene::plain_without_client_kill, keys_brought_back).await, 0);
    assert_eq!(harm(Scene::guarded_without_client_kill, keys_brought_back).await, 0);
}

async fn keys_brought_back_by_setting_them(scene: &Scene) -> usize {
    let mut brought_back = 0;
    for key in names() {
        scene.execute(&set(&key)).await.unwrap();
        // What is not there is set: an extension that brings a lost key back.
        scene.give_up(&set(&key)).await;
        scene.execute(&delete_if_ours(&key)).await.unwrap();
        scene.let_go().await;
        brought_back += usize::from(scene.server.get(&key).await.is_some());
    }
    brought_back
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_extends_by_setting_and_brings_every_key_back() {
    assert_eq!(harm(Scene::plain, keys_brought_back_by_setting_them).await, ALL);
}

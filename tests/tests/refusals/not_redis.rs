//! Listeners that are no Redis servers, and ports without a listener.

use redlock_tests::{FakeServer, Reply};

use crate::never_votes;

#[tokio::test]
async fn a_web_server_is_no_redis_server() {
    let fakes = [FakeServer::http(), FakeServer::http()];
    never_votes(fakes.each_ref().map(FakeServer::url), "its answer is not the Redis protocol")
        .await;
}

#[tokio::test]
async fn a_server_that_speaks_no_protocol_is_no_redis_server() {
    let fakes = [FakeServer::garbage(), FakeServer::garbage()];
    never_votes(fakes.each_ref().map(FakeServer::url), "its answer is not the Redis protocol")
        .await;
}

#[tokio::test]
async fn a_server_that_hangs_up_does_not_vote() {
    let fakes = [FakeServer::closing(), FakeServer::closing()];
    never_votes(fakes.each_ref().map(FakeServer::url), "refused: ").await;
}

#[tokio::test]
async fn a_server_that_never_says_a_word_does_not_vote() {
    let fakes = [FakeServer::silent(), FakeServer::silent()];
    never_votes(fakes.each_ref().map(FakeServer::url), "no connection within 1s").await;
}

#[tokio::test]
async fn a_server_from_before_redis_6_is_told_apart() {
    let redis_5 = FakeServer::scripted(|command| {
        let unknown = "ERR unknown command `HELLO`, with args beginning with: `3`, ";
        (command.name() == "HELLO").then(|| Reply::Error(unknown.into()))
    });
    let redis_4 = FakeServer::scripted(|_| None);
    let fakes = [redis_5, redis_4];
    never_votes(fakes.each_ref().map(FakeServer::url), "Redis 6 or later is needed").await;
}

#[tokio::test]
async fn a_server_that_answers_locks_with_nonsense_does_not_vote() {
    let nonsense = || {
        FakeServer::scripted(|command| {
            Some(match command.name().as_str() {
                "HELLO" => Reply::Array(vec![]),
                "SET" => Reply::Simple("QUEUED".into()),
                _ => Reply::Ok,
            })
        })
    };
    let fakes = [nonsense(), nonsense()];
    let good = redlock_tests::Fleet::start(1).await;
    let redlock = crate::redlock(&[&fakes[0].url(), &fakes[1].url(), &good[0].url()]);
    let error = crate::no_lock(&redlock).await;
    for node in &error.nodes()[..2] {
        crate::says(node, "unexpected reply").unwrap();
    }
    good.eventually_empty(crate::HANG).await;
}

#[tokio::test]
async fn a_port_without_a_listener_does_not_vote() {
    let ports = [FakeServer::closing(), FakeServer::closing()];
    let urls = ports.each_ref().map(FakeServer::url);
    drop(ports);
    never_votes(urls, "onnection refused").await;
}

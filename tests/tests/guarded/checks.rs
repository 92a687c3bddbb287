//! What is asked of a server before it may vote, and what becomes of one that fails.

use redlock_core::{CheckPolicy, Provisioned, Redlock, ServerCheck};
use redlock_tests::{Fleet, RedisServer, ServerOptions, eventually};

use crate::{HANG, LONG, settings};

/// Whether servers with these options can be locked on, or what they are refused for.
async fn verdict(
    options: ServerOptions,
    policies: &[(ServerCheck, CheckPolicy)],
) -> Result<(), String> {
    let fleet = Fleet::start_with(3, options).await;
    let settings = settings(&fleet.urls(), LONG);
    let settings =
        policies.iter().fold(settings, |all, (check, policy)| all.check(*check, *policy));
    let redlock = Redlock::new(settings.build().unwrap());
    match redlock.provision().await {
        Ok(provisioned) => {
            assert_eq!(provisioned, Provisioned::New);
            redlock.try_lock("order").await.map_err(|error| error.to_string())?.release().await;
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    }
}

fn evicting() -> ServerOptions {
    RedisServer::options().config("maxmemory", "64mb").config("maxmemory-policy", "allkeys-lru")
}

#[tokio::test]
async fn a_server_that_evicts_keys_does_not_vote_unless_that_is_wanted() {
    let why = verdict(evicting(), &[]).await.unwrap_err();
    assert!(why.contains("maxmemory-policy allkeys-lru") && why.contains("set"), "{why}");
    for policy in [CheckPolicy::Warn, CheckPolicy::Ignore] {
        verdict(evicting(), &[(ServerCheck::Eviction, policy)]).await.unwrap();
    }
    let bounded = RedisServer::options().config("maxmemory", "64mb");
    verdict(bounded.config("maxmemory-policy", "noeviction"), &[]).await.unwrap();
}

#[tokio::test]
async fn a_server_without_an_append_only_file_votes_unless_one_is_required() {
    verdict(RedisServer::options(), &[]).await.unwrap();
    let required = [(ServerCheck::Persistence, CheckPolicy::Refuse)];
    let why = verdict(RedisServer::options(), &required).await.unwrap_err();
    assert!(why.contains("set appendonly yes"), "{why}");
    verdict(RedisServer::options().config("appendonly", "yes"), &required).await.unwrap();
}

#[tokio::test]
async fn one_server_under_two_names_has_one_vote() {
    let fleet = Fleet::start(2).await;
    let twin = format!("redis://localhost:{}/", fleet[0].port());
    let urls = [fleet[0].url(), twin, fleet[1].url()];
    let redlock = Redlock::new(settings(&urls, LONG).build().unwrap());
    let refused = eventually(HANG, "the second name to be refused", async || {
        let error = redlock.provision().await.err()?.to_string();
        error.contains("it is the same server as").then_some(error)
    })
    .await;
    assert!(refused.contains("name independent servers"), "{refused}");
}

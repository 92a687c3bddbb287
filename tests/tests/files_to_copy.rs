//! The files in `docs/redis` are ones that a server starts with and locks can be taken on.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use redlock_core::{Config, Provisioned, Redlock, Released, Server};
use redlock_tests::{Fleet, RedisServer, ServerOptions};

const REDIS_CONF: &str = include_str!("../../docs/redis/redis.conf");
const TLS_CONF: &str = include_str!("../../docs/redis/tls.conf");
const USERS: &str = include_str!("../../docs/redis/users.acl");
const SAFETY: &str = include_str!("../../SAFETY.md");

/// Where a server is and where its files are is each user's own.
const PLACES: [&str; 9] = [
    "bind",
    "port",
    "dir",
    "aclfile",
    "include",
    "tls-port",
    "tls-cert-file",
    "tls-key-file",
    "tls-ca-cert-file",
];

fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once(' ').unwrap_or_else(|| panic!("{line} has no value")))
}

fn with_settings(options: ServerOptions, file: &str) -> ServerOptions {
    lines(file)
        .filter(|(name, _)| !PLACES.contains(name))
        .fold(options, |options, (name, value)| options.config(name, value))
}

/// Without the default user's line, which the harness's servers keep for themselves.
fn with_users(options: ServerOptions) -> ServerOptions {
    USERS.lines().filter(|line| !line.starts_with("user default")).fold(options, ServerOptions::acl)
}

fn as_locker(url: String) -> Server {
    Server::from(url).username("locker").auth("change-me")
}

async fn takes_locks(servers: Vec<Server>) {
    let config = Config::servers(servers)
        .key_prefix("app:")
        .node_deadline(Duration::from_secs(2))
        .build()
        .unwrap();
    let redlock = Redlock::new(config);
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    let guard = redlock.lock("order:42").await.unwrap();
    assert!(guard.fencing_token().is_some());
    assert_eq!(guard.release().await, Released::Released);
}

#[tokio::test]
async fn servers_with_the_files_to_copy_take_locks() {
    let options = with_users(with_settings(RedisServer::options(), REDIS_CONF));
    let fleet = Fleet::start_with(3, options).await;
    takes_locks(fleet.iter().map(|node| as_locker(node.url())).collect()).await;
}

#[tokio::test]
async fn they_do_so_over_tls() {
    let options = with_settings(RedisServer::options().tls_only(), REDIS_CONF);
    let options = with_users(with_settings(options, TLS_CONF));
    let fleet = Fleet::start_with(3, options).await;
    let trusting = |node: &RedisServer| as_locker(node.tls_url()).tls_ca(node.ca_pem());
    takes_locks(fleet.iter().map(trusting).collect()).await;
}

#[test]
fn the_locks_user_has_the_rights_that_are_documented() {
    let rights = |text: &str| {
        let user = text.lines().find_map(|line| line.strip_prefix("user locker on "));
        let (_password, rights) = user.unwrap().split_once(' ').unwrap();
        rights.to_owned()
    };
    assert_eq!(rights(USERS), rights(SAFETY));
}

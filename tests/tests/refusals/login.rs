//! Servers that do not let this client in, or not far enough.

use redlock_tests::{Fleet, RedisServer, ServerOptions};

use crate::{SECRET, never_votes, no_lock, redlock, says};

fn as_user(server: &RedisServer, credentials: &str) -> String {
    format!("redis://{credentials}@127.0.0.1:{}/", server.port())
}

#[tokio::test]
async fn a_wrong_password_is_named_and_not_repeated() {
    let closed =
        Fleet::start_with(2, RedisServer::options().password("s3cret-of-the-server")).await;
    let wrong = [0, 1].map(|i| as_user(&closed[i], ":s3cret-but-wrong"));
    never_votes(wrong, "authentication failed, check username and password").await;
}

#[tokio::test]
async fn a_password_that_is_missing_is_asked_for() {
    let closed =
        Fleet::start_with(2, RedisServer::options().password("s3cret-of-the-server")).await;
    let without = [0, 1].map(|i| format!("redis://127.0.0.1:{}/", closed[i].port()));
    never_votes(without, "authentication failed, check username and password").await;
}

#[tokio::test]
async fn a_user_who_is_unknown_is_refused() {
    let open = Fleet::start(2).await;
    let unknown = [0, 1].map(|i| as_user(&open[i], "nobody:s3cret"));
    never_votes(unknown, "authentication failed, check username and password").await;
}

fn with_user(rights: &str) -> ServerOptions {
    RedisServer::options().acl(&format!("user locker on >{SECRET} ~* {rights}"))
}

#[tokio::test]
async fn a_user_without_the_right_to_run_scripts_is_told_which_one_is_missing() {
    let servers = Fleet::start_with(2, with_user("+@all -eval")).await;
    let urls = [0, 1].map(|i| as_user(&servers[i], "locker:s3cret"));
    never_votes(urls, "has no permissions to run the 'eval' command").await;
}

#[tokio::test]
async fn a_user_without_a_right_that_scripts_need_is_found_out_before_a_lock_is_held() {
    let servers = Fleet::start_with(2, with_user("+@all -pexpire")).await;
    let urls = [0, 1].map(|i| as_user(&servers[i], "locker:s3cret"));
    never_votes(urls, "it refuses what locks need").await;
}

#[tokio::test]
async fn a_user_who_may_not_touch_the_keys_is_told_so() {
    let other_keys = RedisServer::options().acl("user locker on >s3cret ~other:* +@all");
    let servers = Fleet::start_with(2, other_keys).await;
    let urls = [0, 1].map(|i| as_user(&servers[i], "locker:s3cret"));
    never_votes(urls, "it refuses what locks need: NOPERM").await;
}

#[tokio::test]
async fn a_user_without_the_right_to_set_locks_nothing_and_is_told_so() {
    let servers = Fleet::start_with(2, with_user("+@all -set")).await;
    let good = Fleet::start(1).await;
    let urls = [0, 1].map(|i| as_user(&servers[i], "locker:s3cret"));
    let redlock = redlock(&[&urls[0], &urls[1], &good[0].url()]);
    let error = no_lock(&redlock).await;
    for node in &error.nodes()[..2] {
        says(node, "has no permissions to run the 'set' command").unwrap();
        says(node, "; grant this right to the user").unwrap();
    }
    good.eventually_empty(crate::HANG).await;
}

#[tokio::test]
async fn a_password_that_is_changed_while_connected_counts_from_the_next_connection_on() {
    let servers = Fleet::start_with(2, RedisServer::options().password("s3cret-old")).await;
    let urls = [0, 1].map(|i| as_user(&servers[i], ":s3cret-old"));
    let connected = redlock(&urls[..1]);
    connected.lock("order").await.unwrap().release().await;
    for server in &servers {
        server.config_set("requirepass", "s3cret-new").await;
    }
    connected.try_lock("order").await.unwrap().release().await;
    never_votes(urls, "authentication failed").await;
}

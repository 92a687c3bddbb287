//! Every way to reach a server and to log in: TLS, Unix sockets, ACL users, databases.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use redlock_core::{Config, ErrorKind, Redlock, Released, Safety, Server};
use redlock_tests::{Certificates, Fleet, RedisServer, all_vote, eventually};

const PATIENCE: Duration = Duration::from_secs(20);

fn redlock(servers: impl IntoIterator<Item: Into<Server>>) -> Redlock {
    let config = Config::servers(servers)
        .safety(Safety::Plain)
        .ttl(Duration::from_secs(30))
        .node_deadline(Duration::from_secs(2))
        .reconnection_interval(Duration::from_millis(5), Duration::from_millis(20));
    Redlock::new(config.build().unwrap())
}

/// A lock is taken, seen on all servers, extended, and gone again.
async fn works(redlock: &Redlock, fleet: &Fleet) {
    all_vote(redlock).await;
    let guard = redlock.lock("order").await.unwrap();
    eventually(PATIENCE, "every vote", async || fleet.total_keys().await == fleet.len()).await;
    guard.extend(Duration::from_secs(60)).await.unwrap();
    assert!(redlock.inspect("order").await.unwrap().held);
    assert_eq!(guard.release().await, Released::Released);
    fleet.eventually_empty(PATIENCE).await;
}

/// No lock, for a reason that names all of `words`.
async fn is_refused(server: Server, words: &[&str]) {
    let redlock = redlock([server]);
    eventually(PATIENCE, &format!("the reason {words:?}"), async || {
        let error = redlock.try_lock("order").await.expect_err("it is refused");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let shown = error.to_string();
        assert!(!shown.contains("s3cret"), "{shown}");
        if words.iter().all(|word| shown.contains(word)) { Ok(()) } else { Err(shown) }
    })
    .await;
}

#[tokio::test]
async fn locks_work_over_tls_with_the_authority_that_is_given() {
    let fleet = Fleet::start_with(3, RedisServer::options().password("s3cret").tls_only()).await;
    let by_url = fleet.iter().map(|server| Server::from(server.tls_url()).tls_ca(server.ca_pem()));
    works(&redlock(by_url), &fleet).await;
    let by_name = fleet.iter().map(|server| {
        Server::new("localhost").port(server.port()).auth("s3cret").tls_ca(server.ca_pem())
    });
    works(&redlock(by_name), &fleet).await;
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let server = RedisServer::options().password("s3cret").tls_only().start().await;
    let dir = tempfile::tempdir().unwrap();
    let other = Certificates::create_in(dir.path()).unwrap();
    let wrong = Server::from(server.tls_url()).tls_ca(other.ca_pem());
    is_refused(wrong, &["certificate"]).await;
    // Nor do the authorities that the system trusts know it.
    is_refused(Server::from(server.tls_url()), &["certificate"]).await;
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused() {
    let both = RedisServer::options().tls_only().config("bind", "127.0.0.1 127.0.0.2");
    let server = both.start().await;
    let wrong = Server::new("127.0.0.2").port(server.port()).tls_ca(server.ca_pem());
    is_refused(wrong, &["certificate", "not valid for name"]).await;
    let right = Server::new("127.0.0.1").port(server.port()).tls_ca(server.ca_pem());
    redlock([right]).lock("order").await.unwrap().release().await;
}

#[tokio::test]
async fn tls_on_one_side_only_is_no_connection() {
    let server = RedisServer::options().tls_and_plain().start().await;
    let tls_port = server.tls_url().rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
    let tls_to_plain = Server::new("127.0.0.1").port(server.port()).tls_ca(server.ca_pem());
    is_refused(tls_to_plain, &["127.0.0.1", "refused: "]).await;
    let plain_to_tls = Server::new("127.0.0.1").port(tls_port.parse().unwrap());
    is_refused(plain_to_tls, &["127.0.0.1", "refused: "]).await;
    assert!(server.keys().await.is_empty());
}

#[test]
fn what_is_no_certificate_is_refused_by_the_configuration() {
    let server = Server::new("localhost").tls_ca("s3cret, not a certificate");
    let error = Config::servers([server]).build().unwrap_err();
    assert_eq!(error.field(), "servers[0]");
    let shown = error.to_string();
    assert!(shown.contains("-----BEGIN CERTIFICATE-----") && !shown.contains("s3cret"), "{shown}");
}

#[tokio::test]
async fn locks_work_over_unix_sockets() {
    let fleet = Fleet::start_with(3, RedisServer::options().password("s3cret").unix_socket()).await;
    works(&redlock(fleet.iter().map(RedisServer::unix_url)), &fleet).await;
    let by_path = fleet.iter().map(|server| Server::unix(server.unix_path()).auth("s3cret"));
    works(&redlock(by_path), &fleet).await;
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no-such.sock");
    is_refused(Server::unix(&path), &["no-such.sock", "No such file"]).await;
}

/// All that has a meaning in a URL, in user and password.
const USER: &str = "lock/er@home";
const PASSWORD: &str = "p@ss:w/o?r#d%20s3cret";
const ENCODED: &str = "lock%2Fer%40home:p%40ss%3Aw%2Fo%3Fr%23d%2520s3cret";

#[tokio::test]
async fn an_acl_user_logs_in_by_url_and_by_fields() {
    let fleet = Fleet::start(3).await;
    for server in &fleet {
        let mut connection = server.connection().await;
        let mut user = redis::cmd("ACL");
        user.arg("SETUSER").arg(USER).arg("on").arg(format!(">{PASSWORD}")).arg("~*").arg("+@all");
        user.exec_async(&mut connection).await.unwrap();
        let mut off = redis::cmd("ACL");
        off.arg("SETUSER").arg("default").arg("off").exec_async(&mut connection).await.unwrap();
    }
    let by_url =
        fleet.iter().map(|server| format!("redis://{ENCODED}@127.0.0.1:{}", server.port()));
    works(&redlock(by_url), &fleet).await;
    let by_fields = fleet
        .iter()
        .map(|server| Server::new("127.0.0.1").port(server.port()).username(USER).auth(PASSWORD));
    works(&redlock(by_fields), &fleet).await;

    let port = fleet[0].port();
    let wrong = format!("redis://lock%2Fer%40home:s3cret@127.0.0.1:{port}");
    is_refused(Server::from(wrong), &["authentication failed"]).await;
    is_refused(Server::new("127.0.0.1").port(port), &["authentication failed"]).await;
}

/// The keys of each database that has any, by what the server itself counts.
async fn keyspace(server: &RedisServer) -> Vec<String> {
    let info: String = redis::cmd("INFO")
        .arg("keyspace")
        .query_async(&mut server.connection().await)
        .await
        .unwrap();
    let lines = info.lines().filter_map(|line| line.split_once(",expires"));
    lines.map(|(keys, _)| keys.to_owned()).collect()
}

#[tokio::test]
async fn keys_are_in_the_database_that_is_named() {
    let server = RedisServer::options().unix_socket().start().await;
    let port = server.port();
    for (named, database) in [
        (Server::from(format!("redis://127.0.0.1:{port}/5")), "db5:keys=1"),
        (Server::new("127.0.0.1").port(port).database(7), "db7:keys=1"),
        (Server::from(format!("{}?db=3", server.unix_url())), "db3:keys=1"),
        (Server::unix(server.unix_path()).database(2), "db2:keys=1"),
        (Server::new("127.0.0.1").port(port), "db0:keys=1"),
    ] {
        let redlock = redlock([named]);
        let guard = redlock.lock("order").await.unwrap();
        assert_eq!(keyspace(&server).await, [database]);
        assert_eq!(guard.release().await, Released::Released);
        assert_eq!(keyspace(&server).await, [""; 0]);
    }
}

#[tokio::test]
async fn a_database_that_the_server_does_not_have_is_refused() {
    let server = RedisServer::start().await;
    let beyond = Server::new("127.0.0.1").port(server.port()).database(16);
    is_refused(beyond, &["database", "16"]).await;
}

#[tokio::test]
async fn locks_in_two_databases_have_nothing_to_do_with_each_other() {
    let server = RedisServer::start().await;
    let database =
        |number| redlock([Server::new("127.0.0.1").port(server.port()).database(number)]);
    let guard = database(1).lock("order").await.unwrap();
    assert_eq!(database(2).try_lock("order").await.unwrap().release().await, Released::Released);
    assert_eq!(database(1).try_lock("order").await.unwrap_err().kind(), ErrorKind::Contended);
    assert_eq!(guard.release().await, Released::Released);
}

#[test]
fn two_databases_of_one_server_have_one_vote_and_are_refused() {
    for twins in [
        ["redis://a/0", "redis://b", "redis://a/1"],
        ["redis://u:s3cret@a:6379", "redis://b", "rediss://A./1"],
        ["redis+unix:///run/a.sock", "redis://b", "unix:///run/a.sock?db=1&pass=s3cret"],
        ["redis://[::1]/0", "redis://b", "redis://[0:0:0:0:0:0:0:1]:6379/1"],
    ] {
        let error = Config::servers(twins).build().unwrap_err();
        assert_eq!(error.field(), "servers[2]");
        let shown = error.to_string();
        assert!(shown.contains("it is the same server as servers[0]"), "{shown}");
        assert!(shown.contains("name another server") && !shown.contains("s3cret"), "{shown}");
    }
}

//! How servers are logged in to.

use redlock_core::{Config, Redlock, Safety, Server};
use redlock_tests::RedisServer;

use crate::millis;

/// Takes a lock as whoever `server` names.
async fn locks(server: Server) -> String {
    let config = Config::servers([server]).safety(Safety::Plain).node_deadline(millis(4_000));
    let redlock = Redlock::new(config.build().unwrap());
    match redlock.try_lock("order").await {
        Ok(guard) => format!("{:?}", guard.release().await),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_plus_in_a_password_is_a_plus_over_tcp_and_over_a_socket() {
    let acl = "user locker on >a+b ~* +@all";
    let server = RedisServer::options().unix_socket().acl(acl).start().await;
    let tcp = format!("redis://locker:a+b@127.0.0.1:{}", server.port());
    assert_eq!(locks(Server::from(tcp)).await, "Released");
    for scheme in ["unix", "redis+unix"] {
        let path = server.unix_path().display();
        for password in ["a+b", "a%2Bb"] {
            let socket = format!("{scheme}://{path}?user=locker&pass={password}");
            assert_eq!(locks(Server::from(socket)).await, "Released", "{scheme}, {password}");
        }
    }
}

#[tokio::test]
async fn an_acl_user_without_a_password_is_logged_in_by_name() {
    let options = RedisServer::options().unix_socket().acl("user default off");
    let server = options.acl("user locker on nopass ~* +@all").start().await;
    let port = server.port();
    for named in [
        Server::from(format!("redis://locker@127.0.0.1:{port}")),
        Server::from(format!("redis://locker:@127.0.0.1:{port}")),
        Server::from(format!("unix://{}?user=locker", server.unix_path().display())),
        Server::new("127.0.0.1").port(port).username("locker"),
    ] {
        assert_eq!(locks(named.clone()).await, "Released", "{named:?}");
    }
    let nobody = locks(Server::new("127.0.0.1").port(port)).await;
    assert!(nobody.contains("authentication failed"), "{nobody}");
}

#[tokio::test]
async fn a_password_in_the_place_of_the_user_is_refused_with_the_fix_and_not_shown() {
    let server = RedisServer::options().password("s3cret").start().await;
    let misplaced = format!("redis://s3cret@127.0.0.1:{}", server.port());
    let refused = locks(Server::from(&misplaced)).await;
    assert!(refused.contains("in a URL a password has a colon in front"), "{refused}");
    assert!(!refused.contains("s3cret"), "{refused}");
    let placed = misplaced.replace("s3cret@", ":s3cret@");
    assert_eq!(locks(Server::from(placed)).await, "Released");
}

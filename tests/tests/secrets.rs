//! Passwords, tokens and keys are looked for in everything that could end up in a log.
//!
//! Nothing else that logs is tested here: whether anybody listens to an event is decided once, for
//! all threads of a process.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redlock_core::{
    Config, ConfigBuilder, ErrorKind, Lease, LockError, Provisioned, Redlock, Server,
};
use redlock_tests::{RedisServer, all_vote, eventually};
use serde_json::json;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// Long enough for a slow machine.
const HANG: Duration = Duration::from_secs(60);

const PASSWORD: &str = "s3cr3t@w0rd";
const ENCODED: &str = "s3cr3t%40w0rd";
/// What gives it away, in whichever way it is written.
const HALVES: [&str; 2] = ["s3cr3t", "w0rd"];
const KEY: &str = "patient-4711";

/// What the library said, by way of its events and of its values.
#[derive(Clone, Default)]
struct Said {
    log: Arc<Mutex<Vec<u8>>>,
    errors: String,
    values: String,
}

impl io::Write for Said {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.log.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Said {
    /// Every event of this thread, those of the libraries below included.
    fn listen(&self) -> impl Sized + use<> {
        let said = self.clone();
        let events = tracing_subscriber::fmt().with_max_level(LevelFilter::TRACE);
        events.with_ansi(false).with_writer(move || said.clone()).finish().set_default()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock()).into_owned()
    }

    fn value(&mut self, value: &impl Debug) {
        self.values.push_str(&format!("{value:?}\n{value:#?}\n"));
    }

    fn error<T: Debug>(&mut self, outcome: Result<T, LockError>) -> LockError {
        let error = outcome.unwrap_err();
        self.errors.push_str(&format!("{error}\n{error:?}\n{:?}\n", error.nodes()));
        error
    }

    /// Nothing of `secrets` may be in anything, and the key neither in the log nor in an error.
    fn has_none_of(&self, secrets: &[String]) {
        let log = self.log();
        for (what, text) in [("log", &log), ("errors", &self.errors), ("values", &self.values)] {
            let secrets = HALVES.into_iter().chain(secrets.iter().map(String::as_str));
            for secret in secrets.chain((what != "values").then_some(KEY)) {
                let line = text.lines().find(|line| line.contains(secret));
                assert_eq!(line, None, "{secret} is in the {what}");
            }
        }
    }
}

/// The half of a token that proves a lock, whatever is shown of the other.
fn random_half(lease: &Lease) -> String {
    lease.token().as_str().rsplit_once(':').unwrap().1.to_owned()
}

fn settings(servers: Vec<Server>) -> ConfigBuilder {
    let often = Duration::from_millis(20);
    Config::servers(servers).ttl(HANG).node_deadline(HANG / 20).reconnection_interval(often, often)
}

#[tokio::test]
async fn no_secret_is_in_any_log_line_error_or_value_of_a_lock_from_its_making_to_its_loss() {
    let mut said = Said::default();
    let _listening = said.listen();
    let with_password = || RedisServer::options().password(PASSWORD);
    let servers = [
        with_password().start().await,
        RedisServer::options().acl(&format!("user bob on >{PASSWORD} ~* &* +@all")).start().await,
        with_password().tls_only().start().await,
        with_password().unix_socket().start().await,
        with_password().start().await,
    ];
    let [tcp, user, tls, unix, fields] = &servers;
    let named = |password: &str| {
        vec![
            Server::from(format!("redis://:{password}@127.0.0.1:{}", tcp.port())),
            Server::from(format!("valkey://bob:{password}@127.0.0.1:{}/0", user.port())),
            Server::from(format!("rediss://:{password}@127.0.0.1:{}", tls.port()))
                .tls_ca(tls.ca_pem()),
            Server::from(format!("unix://{}?pass={password}", unix.unix_path().display())),
            Server::new("127.0.0.1").port(fields.port()).auth(password.replace("%40", "@")),
        ]
    };
    let builder = settings(named(ENCODED)).key_prefix("clinic:").label("ward");
    said.value(&builder);
    let config = builder.build().unwrap();
    let [redlock, rival] = [config.clone(), config.clone()].map(Redlock::new);
    said.value(&(named(ENCODED), config, &redlock));
    assert_eq!(redlock.provision().await.unwrap(), Provisioned::New);
    all_vote(&redlock).await;

    let guard = redlock.lock(KEY).await.unwrap();
    let mut secrets = vec![random_half(&guard)];
    said.value(&(&guard, guard.lease(), guard.token(), guard.fencing_token()));
    said.value(&(&redlock, redlock.inspect(KEY).await.unwrap()));
    assert!(said.error(rival.try_lock(KEY).await).is_contended());
    assert!(said.error(redlock.try_lock(KEY).await).is_contended());
    guard.extend(HANG).await.unwrap();
    for server in &servers {
        server.delete(&format!("clinic:{KEY}")).await;
    }
    assert_eq!(said.error(guard.extend(HANG).await).kind(), ErrorKind::Lost);
    said.value(&guard);
    said.value(&guard.release().await);
    said.error(redlock.lock("").await);
    said.error(redlock.lock(KEY.repeat(100)).await);

    // Whoever has the wrong password is told so by each server in its own words.
    let wrong = Redlock::new(settings(named("s3cr3t-but-not-the-w0rd")).build().unwrap());
    let refused = eventually(HANG, "all to refuse the password", async || {
        let error = wrong.try_lock(KEY).await.unwrap_err();
        let said = error.to_string();
        if said.matches("WRONGPASS").count() == servers.len() { Ok(error) } else { Err(said) }
    });
    said.error::<()>(Err(refused.await));

    let held = redlock.lock(KEY).await.unwrap();
    secrets.push(random_half(&held));
    servers[..3].iter().for_each(RedisServer::kill);
    eventually(HANG, "three to be gone", async || {
        let error = rival.try_lock(KEY).await.unwrap_err();
        said.error::<()>(Err(error)).is_unavailable()
    })
    .await;
    said.error(held.extend(HANG).await);
    said.value(&(held, &redlock));
    said.value(&redlock.close(HANG / 20).await);
    said.error(redlock.lock(KEY).await);

    // The ears are open, and would have heard more.
    for event in ["lock lost", "node does not vote", "ward:…"] {
        assert!(said.log().contains(event), "{event}");
    }
    assert!(said.values.contains(KEY) && said.errors.contains("held by ward"));
    said.has_none_of(&secrets);
}

#[test]
fn no_secret_is_in_what_is_said_of_a_configuration_that_is_wrong() {
    let mut said = Said::default();
    let (raw, encoded) = (PASSWORD, ENCODED);
    let urls = [
        format!("redis://:{raw}@h:port"),
        format!("redis://:{encoded}@"),
        format!("redis://bob:{raw}/@h"),
        format!("redis://bob:{raw}#@h"),
        format!("redis://bob:{encoded}@h/db"),
        format!("redis://bob:{encoded}@h?db=1"),
        format!("http://:{encoded}@h"),
        format!("{raw}@h:6379"),
        format!(":{encoded}"),
        format!("redis:{raw}@h"),
        format!("unix:///run/redis.sock?pass={encoded}&db=x"),
        format!("redis+unix://h/redis.sock?pass={encoded}"),
        format!("redis+unix:///run/redis.sock?password={encoded}"),
    ];
    let mut refuse = |error: &dyn std::error::Error| {
        said.errors.push_str(&format!("{error}\n{error:?}\n"));
    };
    for url in &urls {
        refuse(&Config::servers([url]).build().unwrap_err());
        refuse(&Config::cluster([[url]]).build().unwrap_err());
        for file in [json!({ "servers": [url] }), json!({ "servers": url })] {
            refuse(&serde_json::from_value::<Config>(file.clone()).unwrap_err());
            refuse(&serde_json::from_str::<Config>(&file.to_string()).unwrap_err());
        }
    }
    let good = format!("redis://:{encoded}@h");
    refuse(&Config::servers([&good, &good, &good]).build().unwrap_err());
    refuse(&Config::servers([&good, &good]).build().unwrap_err());
    for file in [
        json!({ "servers": [{ "host": "h", "auth": raw, "port": "6379" }] }),
        json!({ "servers": [{ "host": format!("bob:{raw}@h"), "auth": raw }] }),
        json!({ "servers": [{ "host": "h", "password": raw }] }),
        json!({ "servers": [{ "host": "h", "auth": [raw] }] }),
        json!({ "servers": { "auth": raw } }),
    ] {
        refuse(&serde_json::from_value::<Config>(file).unwrap_err());
    }
    for url in urls {
        said.value(&Server::from(&url));
        said.value(&Config::servers([url]));
    }
    assert!(said.errors.lines().count() > 60, "{}", said.errors);
    said.has_none_of(&[]);
}

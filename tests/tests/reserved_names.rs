//! The names that the library itself uses on servers: no lock has one, and nothing that others keep
//! under one is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use redlock_core::{Config, ErrorKind, Guard, Key, Provisioned, Redlock, Safety};
use redlock_tests::{Fleet, eventually};

/// A hang, also on a machine with too much to do.
const HANG: Duration = Duration::from_secs(20);

/// Names of the library, with and without its mark and a prefix.
const NAMES: [&str; 10] = [
    "redlock:node",
    "redlock:preflight",
    "redlock:ready",
    "redlock:void:",
    "app:redlock:node",
    "app:redlock:preflight",
    "{redlock}:node",
    "{redlock}:preflight",
    "app:{redlock}:node",
    "app:{redlock}:ready",
];

fn redlock(fleet: &Fleet, safety: Safety, prefix: &str) -> Redlock {
    let config = Config::servers(fleet.urls())
        .ttl(Duration::from_secs(60))
        .node_deadline(Duration::from_secs(2))
        .key_prefix(prefix)
        .safety(safety);
    Redlock::new(config.build().unwrap())
}

async fn in_use(fleet: &Fleet, safety: Safety, prefix: &str) -> Redlock {
    let redlock = redlock(fleet, safety, prefix);
    let provisioned = redlock.provision().await.unwrap();
    assert_eq!(provisioned == Provisioned::New, safety == Safety::Guarded);
    redlock
}

/// Whether a process that connects now can lock on all servers.
async fn connects(fleet: &Fleet, safety: Safety, prefix: &str) {
    let newcomer = redlock(fleet, safety, prefix);
    eventually(HANG, "all servers to vote", async || {
        let groups = newcomer.health().await.map_err(|error| error.to_string())?;
        let all = groups.iter().all(|group| group.voting() == group.nodes.len());
        if all { Ok(()) } else { Err(format!("{groups:?}")) }
    })
    .await;
    newcomer.ready().await.unwrap();
    newcomer.lock("order").await.unwrap().release().await;
    assert!(!newcomer.inspect("order").await.unwrap().held);
    newcomer.close(HANG).await;
}

#[tokio::test]
async fn a_lock_of_any_name_is_in_no_connection_s_way_and_survives_it() {
    for safety in [Safety::Guarded, Safety::Plain] {
        let fleet = Fleet::start(3).await;
        for prefix in ["", "app:"] {
            in_use(&fleet, safety, prefix).await;
        }
        let locker = redlock(&fleet, safety, "");
        let mut guards: Vec<Guard> = Vec::new();
        for name in NAMES {
            guards.push(locker.lock(Key::hashed(name)).await.unwrap());
        }
        for prefix in ["", "app:"] {
            connects(&fleet, safety, prefix).await;
        }
        for guard in &guards {
            let inspection = locker.inspect(guard.key()).await.unwrap();
            assert!(inspection.held, "{:?} in the mode {safety:?}", guard.key());
        }
    }
}

#[tokio::test]
async fn a_connection_neither_minds_nor_deletes_what_others_keep() {
    for safety in [Safety::Guarded, Safety::Plain] {
        let fleet = Fleet::start(3).await;
        in_use(&fleet, safety, "").await;
        for server in &fleet {
            let mut connection = server.connection().await;
            for name in ["redlock:preflight", "{redlock}:preflight"] {
                let mut push = redis::cmd("RPUSH");
                push.arg(name).arg("theirs").exec_async(&mut connection).await.unwrap();
            }
        }
        let newcomer = redlock(&fleet, safety, "");
        newcomer.lock("another").await.unwrap().release().await;
        newcomer.close(HANG).await;
        for server in &fleet {
            let mut exist = redis::cmd("EXISTS");
            exist.arg("redlock:preflight").arg("{redlock}:preflight");
            let found: usize = exist.query_async(&mut server.connection().await).await.unwrap();
            assert_eq!(found, 2, "in the mode {safety:?}");
        }
    }
}

#[tokio::test]
async fn a_reserved_name_is_no_key_of_any_kind() {
    let redlock = Redlock::in_memory();
    for name in NAMES.iter().filter(|name| name.contains("{redlock}")) {
        for request in [
            redlock.lock(*name),
            redlock.lock((*name).to_owned()),
            redlock.lock(name.as_bytes()),
            redlock.lock(name.as_bytes().to_vec()),
        ] {
            let error = request.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("reserved"), "{error}");
        }
        assert!(Key::try_from(*name).is_err());
        assert!(redlock.inspect(*name).await.is_err());
        assert_ne!(Key::hashed(name).as_bytes(), name.as_bytes());
    }
}

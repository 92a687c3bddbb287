//! Servers that the environment names. A process can't change its own, so it starts another one.

use std::process::{Command, Output};

use redlock_tests::Fleet;

/// What a process says that takes its servers from this environment.
async fn with_servers(servers: Option<String>) -> String {
    let mut process = Command::new(env!("CARGO_BIN_EXE_contender"));
    process.arg("environment");
    match servers {
        Some(servers) => process.env("REDLOCK_SERVERS", servers),
        None => process.env_remove("REDLOCK_SERVERS"),
    };
    let ended = tokio::task::spawn_blocking(move || process.output());
    let Output { status, stdout, stderr } = ended.await.unwrap().unwrap();
    let said = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{said}{}", String::from_utf8_lossy(&stderr));
    said
}

#[tokio::test]
async fn commas_stand_between_servers() {
    let fleet = Fleet::start(3).await;
    let said = with_servers(Some(fleet.urls().join(", "))).await;
    assert!(said.contains("locked"), "{said}");
    let keys = fleet.keys().await;
    let votes =
        |order| keys.values().filter(|keys| keys.contains(&format!("order:{order}"))).count();
    assert!((0..20).all(|order| votes(order) >= 2), "{keys:?}");
}

#[tokio::test]
async fn semicolons_stand_between_groups() {
    let (eu, us) = (Fleet::start(3).await, Fleet::start(1).await);
    let said = with_servers(Some(format!("{};{}", eu.urls().join(","), us.urls().join(",")))).await;
    assert!(said.contains("locked"), "{said}");
    let in_us = us[0].keys().await;
    assert!((1..20).contains(&in_us.len()), "{in_us:?}");
    let in_eu: Vec<String> = eu.keys().await.into_values().flatten().collect();
    assert!(!in_us.iter().any(|key| in_eu.contains(key)), "{in_us:?} and {in_eu:?}");
    let mut everywhere = [in_us, in_eu].concat();
    everywhere.sort();
    everywhere.dedup();
    assert_eq!(everywhere.len(), 20, "{everywhere:?}");
}

#[tokio::test]
async fn what_is_wrong_is_said_with_the_variable_and_without_the_password() {
    for (servers, error) in [
        (None, "REDLOCK_SERVERS / REDLOCK_SERVERS = (empty or not set): set it to the URLs"),
        (Some(""), "REDLOCK_SERVERS / REDLOCK_SERVERS = (empty or not set): set it to the URLs"),
        (
            Some("redis://a,redis://b"),
            "REDLOCK_SERVERS[0] / REDLOCK_SERVERS[0] = 2 servers: an even",
        ),
        (Some("redis://a;redis://:s3cret@b/x"), "REDLOCK_SERVERS[1][0] / REDLOCK_SERVERS[1][0] = "),
        (
            Some("redis://a,redis://:s3cret@b,redis://:s3cret@b"),
            "it is the same server as REDLOCK_SERVERS[0][1]",
        ),
    ] {
        let said = with_servers(servers.map(str::to_owned)).await;
        assert!(said.contains(error), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}

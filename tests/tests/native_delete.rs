//! Servers with a compare-and-delete of their own release with it, all others with the script.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::time::Duration;

use redlock_core::{Config, Redlock, Released, Safety, Token};
use redlock_tests::{Command, FakeServer, Fleet, Reply, eventually};

const PATIENCE: Duration = Duration::from_secs(30);

const COMPARE_AND_DELETE: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then \
                                  return redis.call('del', KEYS[1]) else return 0 end";

/// What a newer server says and does, on top of the one that is installed.
#[derive(Clone, Copy)]
struct Offers {
    delex: bool,
    delifeq: bool,
}

fn compare_and_delete(key: &str, token: &str) -> Reply {
    Reply::Run(["EVAL", COMPARE_AND_DELETE, "1", key, token].map(str::to_owned).into())
}

impl Offers {
    const DELEX: Self = Self { delex: true, delifeq: false };
    const DELIFEQ: Self = Self { delex: false, delifeq: true };
    const BOTH: Self = Self { delex: true, delifeq: true };
    /// Whatever the installed server has.
    const NEITHER: Self = Self { delex: false, delifeq: false };

    fn answer(self, command: &Command) -> Option<Reply> {
        match (command.name().as_str(), command.args()) {
            ("COMMAND", [info, names @ ..]) if info.eq_ignore_ascii_case("INFO") => {
                let details = |name: &String| match name.as_str() {
                    "DELEX" if self.delex => Self::details("delex", -2),
                    "DELIFEQ" if self.delifeq => Self::details("delifeq", 3),
                    _ => Reply::Nil,
                };
                Some(Reply::Array(names.iter().map(details).collect()))
            }
            ("DELEX", [key, condition, token]) if self.delex && condition == "IFEQ" => {
                Some(compare_and_delete(key, token))
            }
            ("DELIFEQ", [key, token]) if self.delifeq => Some(compare_and_delete(key, token)),
            _ => None,
        }
    }

    fn details(name: &str, arity: i64) -> Reply {
        let flags = Reply::Array(vec![Reply::Simple("write".into()), Reply::Simple("fast".into())]);
        let key = Reply::Int(1);
        Reply::Array(vec![
            Reply::Bulk(name.into()),
            Reply::Int(arity),
            flags,
            key.clone(),
            key.clone(),
            key,
        ])
    }

    fn on(self, fleet: &Fleet) -> Vec<FakeServer> {
        let on = |server| FakeServer::in_front_of(server, move |command| self.answer(command));
        fleet.iter().map(on).collect()
    }
}

fn redlock(servers: impl IntoIterator<Item = String>) -> Redlock {
    let config = Config::servers(servers)
        .ttl(Duration::from_secs(60))
        .node_deadline(Duration::from_secs(5))
        .label("native")
        .safety(Safety::Plain);
    Redlock::new(config.build().unwrap())
}

/// The commands that a server gets between a lock that all hold, and its end.
async fn commands_of_a_release(fleet: &Fleet, fakes: &[FakeServer]) -> Vec<Vec<String>> {
    let redlock = redlock(fakes.iter().map(FakeServer::url));
    let guard = redlock.lock("order").await.unwrap();
    eventually(PATIENCE, "every vote", async || fleet.total_keys().await == fleet.len()).await;
    let before: Vec<_> = fakes.iter().map(|fake| fake.commands().len()).collect();
    assert_eq!(guard.release().await, Released::Released);
    fleet.eventually_empty(PATIENCE).await;
    fakes.iter().zip(before).map(|(fake, before)| fake.commands().split_off(before)).collect()
}

#[tokio::test]
async fn delex_releases_where_the_server_has_it() {
    let fleet = Fleet::start(3).await;
    let commands = commands_of_a_release(&fleet, &Offers::DELEX.on(&fleet)).await;
    assert_eq!(commands, [["DELEX"], ["DELEX"], ["DELEX"]]);
}

#[tokio::test]
async fn delifeq_releases_where_the_server_has_it() {
    let fleet = Fleet::start(3).await;
    let commands = commands_of_a_release(&fleet, &Offers::DELIFEQ.on(&fleet)).await;
    assert_eq!(commands, [["DELIFEQ"], ["DELIFEQ"], ["DELIFEQ"]]);
}

#[tokio::test]
async fn of_both_the_first_one_is_enough() {
    let fleet = Fleet::start(3).await;
    let commands = commands_of_a_release(&fleet, &Offers::BOTH.on(&fleet)).await;
    assert_eq!(commands, [["DELEX"], ["DELEX"], ["DELEX"]]);
}

#[tokio::test]
async fn the_script_releases_where_the_server_has_neither() {
    let fleet = Fleet::start(3).await;
    let commands = commands_of_a_release(&fleet, &Offers::NEITHER.on(&fleet)).await;
    assert_eq!(commands, [["EVALSHA"], ["EVALSHA"], ["EVALSHA"]]);
}

#[tokio::test]
async fn servers_of_different_versions_release_each_in_its_way() {
    let fleet = Fleet::start(3).await;
    let fakes = [
        FakeServer::in_front_of(&fleet[0], |command| Offers::DELEX.answer(command)),
        FakeServer::in_front_of(&fleet[1], |command| Offers::DELIFEQ.answer(command)),
        FakeServer::in_front_of(&fleet[2], |command| Offers::NEITHER.answer(command)),
    ];
    let commands = commands_of_a_release(&fleet, &fakes).await;
    assert_eq!(commands, [["DELEX"], ["DELIFEQ"], ["EVALSHA"]]);
}

#[tokio::test]
async fn a_command_that_the_user_may_not_call_or_that_is_another_one_is_not_used() {
    for strange in [
        Reply::Error("NOPERM this user has no permissions to run the 'delex' command".into()),
        Reply::Error("ERR wrong number of arguments for 'delex' command".into()),
        Reply::Ok,
        Reply::Nil,
        Reply::Int(1),
    ] {
        let fleet = Fleet::start(3).await;
        let on = |server| {
            let strange = strange.clone();
            FakeServer::in_front_of(server, move |command| match command.name().as_str() {
                "DELEX" => Some(strange.clone()),
                _ => Offers::DELEX.answer(command),
            })
        };
        let fakes: Vec<_> = fleet.iter().map(on).collect();
        let commands = commands_of_a_release(&fleet, &fakes).await;
        assert_eq!(commands, [["EVALSHA"], ["EVALSHA"], ["EVALSHA"]], "{strange:?}");
    }
}

#[tokio::test]
async fn a_user_who_may_not_ask_which_commands_there_are_releases_with_the_script() {
    let fleet = Fleet::start(3).await;
    let on = |server| {
        FakeServer::in_front_of(server, |command| match command.name().as_str() {
            "COMMAND" => Some(Reply::Error("NOPERM this user has no permissions".into())),
            _ => Offers::BOTH.answer(command),
        })
    };
    let fakes: Vec<_> = fleet.iter().map(on).collect();
    let commands = commands_of_a_release(&fleet, &fakes).await;
    assert_eq!(commands, [["EVALSHA"], ["EVALSHA"], ["EVALSHA"]]);
}

#[tokio::test]
async fn a_lock_of_somebody_else_is_not_released_and_its_holder_is_named() {
    for offers in [Offers::DELEX, Offers::DELIFEQ] {
        let fleet = Fleet::start(3).await;
        let fakes = offers.on(&fleet);
        let (here, there) = (redlock(fakes.iter().map(FakeServer::url)), redlock(fleet.urls()));
        let guard = there.lock("order").label("there").await.unwrap();
        eventually(PATIENCE, "every vote", async || fleet.total_keys().await == 3).await;

        let other: Token = "other:00112233445566778899aabbccddeeff".parse().unwrap();
        assert_eq!(here.unlock("order", &other).await.unwrap(), Released::AlreadyExpired);
        let error = here.try_lock("order").await.unwrap_err();
        assert_eq!(error.holder(), Some("there"), "{error}");
        assert_eq!(fleet.total_keys().await, 3);
        // Whoever has the token releases it, by whatever command.
        assert_eq!(here.unlock("order", guard.token()).await.unwrap(), Released::Released);
        fleet.eventually_empty(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_lock_in_the_background_and_a_cancelled_one_are_released_natively_too() {
    let fleet = Fleet::start(3).await;
    let fakes = Offers::DELIFEQ.on(&fleet);
    let redlock = redlock(fakes.iter().map(FakeServer::url));
    for _ in 0..20 {
        drop(redlock.try_lock("order").await.unwrap());
        let cancelled = redlock.lock("order").into_future();
        assert!(futures_util::FutureExt::now_or_never(cancelled).is_none());
    }
    assert_eq!(redlock.close(PATIENCE).await.unreleased, 0);
    fleet.eventually_empty(PATIENCE).await;
    for fake in &fakes {
        let commands = fake.commands();
        let count = |name: &str| commands.iter().filter(|command| *command == name).count();
        // One of each is a trial on connecting. A release that goes out with the next acquisition
        // is one call with it.
        let together = count("EVAL") - 1;
        let (alone, released) = (count("SET"), count("DELIFEQ"));
        assert_eq!((alone + together, released + together, count("EVALSHA")), (40, 41, 1));
    }
}

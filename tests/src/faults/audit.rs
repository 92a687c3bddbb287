//! What is left on the servers when everybody has gone.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;

use super::client;
use crate::Fleet;

/// Two round trips on a busy machine: what was sent last may still be under way.
const ROUND_TRIPS: Duration = Duration::from_millis(100);

/// A lock that is held by nobody.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Orphan {
    /// The server that keeps it.
    pub node: usize,
    /// What is locked.
    pub key: String,
    /// Whose it was.
    pub label: String,
    /// Tells it from a later lock of the same key.
    #[serde(skip)]
    token: String,
}

/// The locks that no client released although it should have: all but those of clients that were
/// killed or left them on purpose. The servers must be well again, and the clients have ended.
pub(super) async fn orphans(fleet: &Fleet, keys: usize, left_by: &[String]) -> Vec<Orphan> {
    let before = locks(fleet, keys, left_by).await;
    if before.is_empty() {
        return Vec::new();
    }
    sleep(ROUND_TRIPS).await;
    let after = locks(fleet, keys, left_by).await;
    before.intersection(&after).cloned().collect()
}

async fn locks(fleet: &Fleet, keys: usize, left_by: &[String]) -> BTreeSet<Orphan> {
    let mut locks = BTreeSet::new();
    for (node, server) in fleet.iter().enumerate() {
        for key in (0..keys).map(client::key) {
            let Some(token) = server.get(&key).await else { continue };
            let label = token.rsplit_once(':').map_or("", |(label, _)| label).to_owned();
            if !left_by.contains(&label) {
                locks.insert(Orphan { node, key, label, token });
            }
        }
    }
    locks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_that_is_left_is_an_orphan_unless_its_owner_was_killed() {
        let fleet = Fleet::start(1).await;
        let ttl = Duration::from_secs(60);
        fleet[0].set_foreign(&client::key(0), "c1:1", ttl).await;
        fleet[0].set_foreign(&client::key(1), "c2.1:1", ttl).await;
        let left_by = ["c1".to_owned()];
        let orphans = orphans(&fleet, 3, &left_by).await;
        let [orphan] = &orphans[..] else { panic!("{orphans:?}") };
        assert_eq!((orphan.key.as_str(), orphan.label.as_str()), ("key-1", "c2.1"));
    }

    #[tokio::test]
    async fn a_key_that_goes_away_within_two_round_trips_is_none() {
        let fleet = Fleet::start(1).await;
        fleet[0].set_foreign(&client::key(0), "c1:1", ROUND_TRIPS / 2).await;
        assert_eq!(orphans(&fleet, 3, &[]).await, []);
    }
}

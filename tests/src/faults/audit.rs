//! What is left on the servers when everybody has gone.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;

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

/// Where a lock may be left.
#[derive(Debug, Default)]
pub(super) struct Exempt {
    /// The labels of clients that were killed, or left locks on purpose.
    pub(super) labels: Vec<String>,
    /// Servers that took over another one's locks. One of those may have been released while it
    /// was being copied, here before it came and there after it went: nobody can know of it. It
    /// expires, and a guarded lock asks no such server until then.
    pub(super) nodes: Vec<usize>,
}

/// The locks that no client released although it should have. The servers must be well again, and
/// the clients have ended.
pub(super) async fn orphans(fleet: &Fleet, exempt: &Exempt) -> Vec<Orphan> {
    let before = locks(fleet, exempt).await;
    if before.is_empty() {
        return Vec::new();
    }
    sleep(ROUND_TRIPS).await;
    let after = locks(fleet, exempt).await;
    before.intersection(&after).cloned().collect()
}

async fn locks(fleet: &Fleet, exempt: &Exempt) -> BTreeSet<Orphan> {
    let mut locks = BTreeSet::new();
    let servers = fleet.iter().enumerate();
    for (node, server) in servers.filter(|(node, _)| !exempt.nodes.contains(node)) {
        for key in server.keys().await {
            let Some(token) = server.get(&key).await else { continue };
            let label = token.rsplit_once(':').map_or("", |(label, _)| label).to_owned();
            if !exempt.labels.contains(&label) {
                locks.insert(Orphan { node, key, label, token });
            }
        }
    }
    locks
}

#[cfg(test)]
mod tests {
    use super::super::client;
    use super::*;

    #[tokio::test]
    async fn a_key_that_is_left_is_an_orphan_unless_it_is_exempt() {
        let fleet = Fleet::start(2).await;
        let ttl = Duration::from_secs(60);
        for server in fleet.iter() {
            server.set_foreign(&client::key(0), "c1:1", ttl).await;
            server.set_foreign(&client::key(1), "c2.1:1", ttl).await;
        }
        let found = async |labels: &[&str], nodes: &[usize]| {
            let labels = labels.iter().copied().map(str::to_owned).collect();
            let orphans = orphans(&fleet, &Exempt { labels, nodes: nodes.to_vec() }).await;
            let found = orphans.into_iter().map(|orphan| (orphan.node, orphan.key, orphan.label));
            found.collect::<Vec<_>>()
        };
        assert_eq!(found(&[], &[]).await.len(), 4);
        let only = (1, "key-1".to_owned(), "c2.1".to_owned());
        assert_eq!(found(&["c1"], &[0]).await, [only]);
    }

    #[tokio::test]
    async fn a_key_that_goes_away_within_two_round_trips_is_none() {
        let fleet = Fleet::start(1).await;
        fleet[0].set_foreign(&client::key(0), "c1:1", ROUND_TRIPS / 2).await;
        assert_eq!(orphans(&fleet, &Exempt::default()).await, []);
    }
}

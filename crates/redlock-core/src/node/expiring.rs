//! What a server in memory keeps for a time.

use std::collections::HashMap;
use std::hash::Hash;

/// Values that live until a time. What has expired is swept out when there is much of it, so that
/// memory follows what is alive.
#[derive(Clone, Debug)]
pub(super) struct Expiring<K, V> {
    entries: HashMap<K, (V, u64)>,
    sweep_at: usize,
}

impl<K, V> Default for Expiring<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), sweep_at: 0 }
    }
}

impl<K: Hash + Eq, V> Expiring<K, V> {
    /// A server lets a key live through the whole of its last millisecond.
    fn is_alive(until: u64, now: u64) -> bool {
        now <= until
    }

    pub(super) fn get(&self, key: &K, now: u64) -> Option<&V> {
        let (value, until) = self.entries.get(key)?;
        Self::is_alive(*until, now).then_some(value)
    }

    pub(super) fn remaining(&self, key: &K, now: u64) -> Option<u64> {
        self.entries.get(key).map(|(_, until)| until.saturating_sub(now))
    }

    pub(super) fn set(&mut self, key: K, value: V, now: u64, until: u64) {
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, (_, until)| Self::is_alive(*until, now));
            self.sweep_at = (2 * self.entries.len()).max(64);
        }
        self.entries.insert(key, (value, until));
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.entries.remove(key);
    }

    /// How many there are in memory, alive or not.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(any(test, feature = "test-util"))]
    pub(super) fn iter(&self, now: u64) -> impl Iterator<Item = (&K, &V)> {
        let alive = move |(_, (_, until)): &(&K, &(V, u64))| Self::is_alive(*until, now);
        self.entries.iter().filter(alive).map(|(key, (value, _))| (key, value))
    }
}

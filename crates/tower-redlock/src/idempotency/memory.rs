//! Records in the memory of this process.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::fmt;

use parking_lot::Mutex;
use redlock_core::FencingToken;

use super::key::RecordId;
use super::record::{Record, RecordStore, Saved};

/// Records in the memory of this process: for tests, and for services of one process whose work
/// does not outlive it either.
///
/// It keeps 10,000 records, unless told otherwise. When there is one more it forgets the one that
/// was saved first, whether or not that has expired: the request is carried out again if it is
/// repeated.
pub struct MemoryRecords {
    capacity: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    records: HashMap<RecordId, (Record, Option<FencingToken>)>,
    /// In the order in which they were saved first.
    order: VecDeque<RecordId>,
}

impl MemoryRecords {
    /// Keeps 10,000 records.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(10_000)
    }

    /// Keeps this many records, one at least.
    #[must_use]
    pub fn with_capacity(records: usize) -> Self {
        Self { capacity: records.max(1), kept: Mutex::default() }
    }
}

impl Default for MemoryRecords {
    fn default() -> Self {
        Self::new()
    }
}

impl RecordStore for MemoryRecords {
    async fn find(&self, id: &RecordId) -> Result<Option<Record>, Box<dyn Error + Send + Sync>> {
        let kept = self.kept.lock();
        let found = kept.records.get(id).map(|(record, _)| record);
        Ok(found.filter(|record| !record.has_expired()).cloned())
    }

    async fn save(
        &self,
        id: &RecordId,
        record: Record,
        token: Option<FencingToken>,
    ) -> Result<Saved, Box<dyn Error + Send + Sync>> {
        Ok(self.kept.lock().save(id, record, token, self.capacity))
    }
}

impl Kept {
    fn save(
        &mut self,
        id: &RecordId,
        record: Record,
        token: Option<FencingToken>,
        capacity: usize,
    ) -> Saved {
        if let Some((there, its_token)) = self.records.get(id) {
            if !there.has_expired() && *its_token >= token {
                return Saved::Superseded;
            }
        } else {
            while self.order.len() >= capacity
                && let Some(first) = self.order.pop_front()
            {
                self.records.remove(&first);
            }
            self.order.push_back(*id);
        }
        self.records.insert(*id, (record, token));
        Saved::Saved
    }
}

impl fmt::Debug for MemoryRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRecords")
            .field("capacity", &self.capacity)
            .field("len", &self.kept.lock().records.len())
            .finish()
    }
}

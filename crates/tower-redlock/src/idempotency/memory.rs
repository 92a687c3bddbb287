//! Records in the memory of this process.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use redlock_core::FencingToken;

use super::key::RecordId;
use super::record::{Record, RecordStore, Saved};

/// Records in the memory of this process: for tests, and for services of one process whose work
/// does not outlive it either.
///
/// | bound | default |
/// |---|---|
/// | [`max_records`](Self::max_records) | 10,000 records |
/// | [`max_bytes`](Self::max_bytes) | 64 MiB of headers and bodies |
///
/// When a bound is reached, expired records are removed first. Then the oldest record of the caller
/// that takes up the most space is removed, so that no caller evicts the records of one that takes
/// up less. A request whose record was removed is handled again if it is repeated.
///
/// A caller is a [tenant](super::IdempotencyLayer::tenant), or all requests
/// with the same credentials.
///
/// ```
/// use redlock_core::Redlock;
/// use tower_redlock::idempotency::{IdempotencyLayer, MemoryRecords};
///
/// let records = MemoryRecords::new().max_records(1_000).max_bytes(8 * 1024 * 1024);
/// IdempotencyLayer::new(Redlock::in_memory(), records);
/// ```
pub struct MemoryRecords {
    max_records: usize,
    max_bytes: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    records: HashMap<RecordId, Entry>,
    callers: HashMap<u64, Share>,
    /// The cost of each caller, to find the largest.
    by_cost: BTreeSet<(usize, u64)>,
    by_expiry: BTreeSet<(u64, RecordId)>,
    cost: usize,
    saved: u64,
}

struct Entry {
    record: Record,
    token: Option<FencingToken>,
    number: u64,
    cost: usize,
}

#[derive(Default)]
struct Share {
    cost: usize,
    /// In the order in which they were saved.
    records: BTreeMap<u64, RecordId>,
}

/// The space of a record besides its headers and its body, about.
const OVERHEAD: usize = 512;

impl MemoryRecords {
    /// Keeps up to 10,000 records and 64 MiB.
    #[must_use]
    pub fn new() -> Self {
        Self { max_records: 10_000, max_bytes: 64 * 1024 * 1024, kept: Mutex::default() }
    }

    /// Keeps up to this many records, one at least. Default: 10,000.
    #[must_use]
    pub fn max_records(self, records: usize) -> Self {
        Self { max_records: records.max(1), ..self }
    }

    /// Keeps records of up to this many bytes, with about 512 bytes for each record itself. A record
    /// that is larger on its own is kept without its answer: when its request is repeated, it is
    /// answered with 410. At least 512. Default: 64 MiB.
    #[must_use]
    pub fn max_bytes(self, bytes: usize) -> Self {
        Self { max_bytes: bytes.max(OVERHEAD), ..self }
    }

    /// The least cost of a record. It makes both bounds one bound on the sum of all costs.
    fn min_cost(&self) -> usize {
        self.max_bytes.div_ceil(self.reachable_records())
    }

    fn max_cost(&self) -> usize {
        self.min_cost().saturating_mul(self.reachable_records())
    }

    /// The bound in records, unless the bytes are used up before it.
    fn reachable_records(&self) -> usize {
        self.max_records.min(self.max_bytes / OVERHEAD).max(1)
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
        let found = kept.records.get(id).map(|entry| &entry.record);
        Ok(found.filter(|record| !record.has_expired()).cloned())
    }

    async fn save(
        &self,
        id: &RecordId,
        record: Record,
        token: Option<FencingToken>,
    ) -> Result<Saved, Box<dyn Error + Send + Sync>> {
        let mut record = compact(record);
        if size(&record) > self.max_bytes {
            // The status is enough for a 410.
            (record.body, record.headers, record.trailers) = Default::default();
        }
        let cost = size(&record).max(self.min_cost());
        let mut kept = self.kept.lock();
        kept.remove_expired();
        if kept.records.get(id).is_some_and(|there| there.token >= token) {
            return Ok(Saved::Superseded);
        }
        kept.remove(id);
        kept.insert(*id, record, token, cost);
        kept.evict(self.max_cost(), id);
        Ok(Saved::Saved)
    }
}

impl Kept {
    fn insert(&mut self, id: RecordId, record: Record, token: Option<FencingToken>, cost: usize) {
        self.saved += 1;
        let number = self.saved;
        self.by_expiry.insert((record.expires_at, id));
        self.cost += cost;
        let share = self.callers.entry(id.caller()).or_default();
        self.by_cost.remove(&(share.cost, id.caller()));
        share.cost += cost;
        share.records.insert(number, id);
        self.by_cost.insert((share.cost, id.caller()));
        self.records.insert(id, Entry { record, token, number, cost });
    }

    fn remove(&mut self, id: &RecordId) {
        let Some(entry) = self.records.remove(id) else { return };
        self.by_expiry.remove(&(entry.record.expires_at, *id));
        self.cost -= entry.cost;
        let Some(share) = self.callers.get_mut(&id.caller()) else { return };
        self.by_cost.remove(&(share.cost, id.caller()));
        share.cost -= entry.cost;
        share.records.remove(&entry.number);
        if share.records.is_empty() {
            self.callers.remove(&id.caller());
        } else {
            self.by_cost.insert((share.cost, id.caller()));
        }
    }

    fn remove_expired(&mut self) {
        while let Some((_, id)) = self.by_expiry.first().copied()
            && self.records.get(&id).is_none_or(|entry| entry.record.has_expired())
        {
            self.by_expiry.pop_first();
            self.remove(&id);
        }
    }

    /// Keeps the record that was saved just now, also where it is the only one of its caller.
    fn evict(&mut self, max_cost: usize, saved: &RecordId) {
        while self.cost > max_cost {
            let oldest = self.by_cost.iter().rev().find_map(|(_, caller)| {
                let records = &self.callers.get(caller)?.records;
                records.values().find(|id| *id != saved).copied()
            });
            let Some(oldest) = oldest else { return };
            self.remove(&oldest);
        }
    }
}

/// A body or a header value may be a slice of a larger buffer, which it keeps in memory.
fn compact(mut record: Record) -> Record {
    record.body = record.body.map(|body| Bytes::copy_from_slice(&body));
    for value in record.headers.values_mut().chain(record.trailers.values_mut()) {
        if let Ok(mut copied) = HeaderValue::from_bytes(value.as_bytes()) {
            copied.set_sensitive(value.is_sensitive());
            *value = copied;
        }
    }
    record
}

fn size(record: &Record) -> usize {
    let headers = |headers: &HeaderMap| -> usize {
        headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum()
    };
    let body = record.body.as_ref().map_or(0, Bytes::len);
    OVERHEAD + body + headers(&record.headers) + headers(&record.trailers)
}

impl fmt::Debug for MemoryRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept.lock();
        f.debug_struct("MemoryRecords")
            .field("max_records", &self.max_records)
            .field("max_bytes", &self.max_bytes)
            .field("len", &kept.records.len())
            .field("callers", &kept.callers.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, StatusCode};

    use super::super::caller::Callers;
    use super::super::key::Fingerprint;
    use super::super::record::unix_seconds;
    use super::*;

    fn id(caller: &str, key: &str) -> RecordId {
        let request = Request::post("/").header(http::header::AUTHORIZATION, caller);
        let (parts, ()) = request.body(()).unwrap().into_parts();
        RecordId::new(&parts, Callers::Credentials.caller(&parts).unwrap(), key)
    }

    fn record(body: impl Into<Bytes>, expires_at: u64) -> Record {
        let fingerprint = Fingerprint::from_bytes([0; 32]);
        let headers = [(http::header::LOCATION, HeaderValue::from_static("/7"))];
        let headers = headers.into_iter().collect();
        Record::new(fingerprint, StatusCode::OK, headers, Some(body.into()), expires_at)
    }

    fn later() -> u64 {
        unix_seconds(std::time::Duration::from_secs(3600))
    }

    async fn save(records: &MemoryRecords, caller: &str, key: usize, record: Record) {
        let saved = records.save(&id(caller, &key.to_string()), record, None).await.unwrap();
        assert_eq!(saved, Saved::Saved);
    }

    async fn has(records: &MemoryRecords, caller: &str, key: usize) -> bool {
        records.find(&id(caller, &key.to_string())).await.unwrap().is_some()
    }

    #[tokio::test]
    async fn a_caller_with_large_or_many_records_does_not_evict_those_of_others() {
        for (size, number) in [(100_000, 50), (0, 1_000)] {
            let records = MemoryRecords::new().max_records(100).max_bytes(1_000_000);
            for key in 0..30 {
                save(&records, "alice", key, record("small", later())).await;
            }
            for key in 0..number {
                save(&records, "mallory", key, record(vec![0; size], later())).await;
            }
            for key in 0..30 {
                assert!(has(&records, "alice", key).await, "{key}, after {number} of {size}");
            }
            assert!(has(&records, "mallory", number - 1).await);
            assert!(!has(&records, "mallory", 0).await);
            assert!(records.kept.lock().records.len() <= 100);
        }
    }

    #[tokio::test]
    async fn the_bound_in_bytes_holds_for_any_bound_in_records() {
        for max_records in [1, 3, 2_000, usize::MAX] {
            let records = MemoryRecords::new().max_bytes(1_000_000).max_records(max_records);
            for key in 0..50 {
                save(&records, "a", key, record(vec![0; 100_000], later())).await;
            }
            let kept = records.kept.lock();
            let bytes: usize = kept.records.values().map(|entry| size(&entry.record)).sum();
            assert!(bytes <= 1_100_000, "{bytes} of {max_records} records");
        }
    }

    #[tokio::test]
    async fn expired_records_are_removed_before_any_other() {
        let records = MemoryRecords::new().max_records(3);
        save(&records, "a", 0, record("", later())).await;
        save(&records, "a", 1, record("", unix_seconds(std::time::Duration::ZERO))).await;
        save(&records, "b", 2, record("", later())).await;
        assert!(!has(&records, "a", 1).await);
        assert_eq!(records.kept.lock().records.len(), 2);
        save(&records, "b", 3, record("", later())).await;
        assert!(has(&records, "a", 0).await);
    }

    #[tokio::test]
    async fn a_record_that_is_too_large_by_itself_keeps_its_status() {
        let records = MemoryRecords::new().max_bytes(10_000);
        save(&records, "a", 0, record("", later())).await;
        save(&records, "b", 1, record(vec![0; 10_000], later())).await;
        let found = records.find(&id("b", "1")).await.unwrap().unwrap();
        assert_eq!((found.status, found.body), (StatusCode::OK, None));
        assert!(found.headers.is_empty());
        assert!(has(&records, "a", 0).await);
    }

    #[tokio::test]
    async fn a_record_does_not_keep_the_buffer_that_its_body_was_a_slice_of() {
        let records = MemoryRecords::new();
        let buffer = Bytes::from(vec![7; 1_000_000]);
        save(&records, "a", 0, record(buffer.slice(..3), later())).await;
        assert!(buffer.is_unique());
        let found = records.find(&id("a", "0")).await.unwrap().unwrap();
        assert_eq!(found.body.unwrap(), [7; 3].as_slice());
    }

    #[tokio::test]
    async fn the_costs_add_up_after_any_order_of_saves() {
        let records = MemoryRecords::new().max_records(20).max_bytes(20_000);
        let mut random = 1_u64;
        for _ in 0..2_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pick = |below: u64, shift: u32| (random >> shift) % below;
            let (caller, key) = (format!("c{}", pick(5, 33)), pick(20, 37).to_string());
            let expires_at = if pick(10, 41) == 0 { 0 } else { later() };
            let body = vec![0; usize::try_from(pick(3_000, 45)).unwrap()];
            let token = Some(FencingToken::new(pick(100, 49)));
            records.save(&id(&caller, &key), record(body, expires_at), token).await.unwrap();

            let kept = records.kept.lock();
            let entries = kept.records.values().map(|entry| entry.cost).sum::<usize>();
            let shares = kept.callers.values().map(|share| share.cost).sum::<usize>();
            let numbers = kept.callers.values().map(|share| share.records.len()).sum::<usize>();
            assert_eq!([entries, shares], [kept.cost; 2]);
            assert_eq!([numbers, kept.by_expiry.len()], [kept.records.len(); 2]);
            assert_eq!(kept.by_cost.len(), kept.callers.len());
            assert!(kept.cost <= 20_000 && kept.records.len() <= 20);
        }
    }
}

//! What a server does with the commands it is sent, in memory: the same as the scripts, step by
//! step. That it is the same is tested against a real server.

use std::collections::HashMap;
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use super::expiring::Expiring;
use super::wire::{self, millis};
use super::{Op, guarded};
use crate::config::{Config, Safety};
use crate::fencing::bucket_of;
use crate::key::Key;
use crate::protocol::fence::Counter;
use crate::protocol::quorum::{NodeAnswer, Vote};
use crate::token::{Token, label_of};

/// A clock that is further ahead must not use up the numbers of the fencing tokens.
const FURTHEST_AHEAD_MICROS: u64 = 60_000_000;

/// What a client tells a server of its configuration in the guarded mode.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    pub(super) quarantine_millis: u64,
    /// For how long a token is of no use that was released before it was acquired.
    void_millis: u64,
    epoch: u32,
    fingerprint: Arc<str>,
    durable: bool,
    /// By how much this server's clock and the client's may differ.
    max_skew_micros: Option<u64>,
}

impl Introduction {
    /// `None` in the plain mode.
    pub(crate) fn new(config: &Config) -> Option<Self> {
        (config.safety == Safety::Guarded).then(|| Self {
            quarantine_millis: millis(config.quarantine()),
            void_millis: millis(config.quarantine()),
            epoch: config.epoch,
            fingerprint: config.fingerprint().into(),
            durable: config.durable,
            max_skew_micros: config.max_clock_skew.map(micros),
        })
    }
}

/// What is asked of a server in one command.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "test-util"), allow(unreachable_pub))]
#[allow(clippy::exhaustive_structs, missing_docs, reason = "public to checkers only")]
pub struct Asked {
    pub op: Op,
    pub key: Key,
    pub token: Token,
}

/// All that one server knows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dataset {
    /// Tells one run of the server from its others.
    run: u64,
    record: Option<Record>,
    held: Expiring<Key, Token>,
    /// Tokens whose release came before what it undoes.
    void: Expiring<Token, ()>,
}

/// What the server knows of itself.
#[derive(Clone, Debug)]
struct Record {
    run: u64,
    epoch: u32,
    fingerprint: Arc<str>,
    /// When it votes, in milliseconds of its own clock.
    until: u64,
    quarantine_millis: u64,
    /// Until when there may be void tokens.
    void_until: u64,
    /// It was provisioned: a counter that is missing was never raised.
    all_known: bool,
    counters: HashMap<u64, Counter>,
}

impl Dataset {
    /// Runs the commands of one batch at the time `micros` of the server's wall clock, sent at the
    /// time `said` of the client's. As on the wire, records are begun first.
    pub(crate) fn run(
        &mut self,
        introduction: Option<&Introduction>,
        said: u64,
        micros: u64,
        batch: &[Asked],
    ) -> Vec<Vote> {
        let now = micros / 1_000;
        let is_read = if introduction.is_some() { guarded::is_read } else { wire::is_plain_read };
        let written = batch.iter().filter(|asked| !is_read(asked.op));
        let votes: Vec<Vote> = match introduction {
            None => written.map(|asked| self.plain(asked, now).into()).collect(),
            Some(introduction) => {
                self.run_guarded(introduction, said, micros, &written.collect::<Vec<_>>())
            }
        };
        // Reads come last, and are the same in both modes.
        let mut votes = votes.into_iter();
        let voted = |asked: &Asked| {
            let vote = if is_read(asked.op) { None } else { votes.next() };
            vote.unwrap_or_else(|| self.holder_of(&asked.key, now).into())
        };
        batch.iter().map(voted).collect()
    }

    fn run_guarded(
        &mut self,
        introduction: &Introduction,
        said: u64,
        micros: u64,
        batch: &[&Asked],
    ) -> Vec<Vote> {
        let provision = |asked: &&Asked| match asked.op {
            Op::Provision { dry } => Some(self.provision(introduction, dry).into()),
            _ => None,
        };
        let provisioned: Vec<Option<Vote>> = batch.iter().map(provision).collect();
        let last = batch.iter().map(|asked| (guarded::is_no_vote(asked.op), &asked.key));
        let may_go_last = wire::may_go_last(last);
        let mut session = None;
        let votes = batch.iter().zip(provisioned).zip(may_go_last);
        let votes = votes.map(|((asked, provisioned), may_go_last)| match provisioned {
            Some(vote) => vote,
            // It looks at nothing but the key, and nothing later does.
            None if may_go_last => self.plain(asked, micros / 1_000).into(),
            None => {
                let session = session.get_or_insert_with(|| self.look(introduction, said, micros));
                self.guarded(session, asked)
            }
        });
        votes.collect()
    }

    /// Begins a record unless there is one, or if it is `dry` only looks for it.
    pub(crate) fn provision(&mut self, introduction: &Introduction, dry: bool) -> NodeAnswer {
        if self.record.is_some() {
            NodeAnswer::Held { label: None, remaining: None }
        } else if dry {
            NodeAnswer::NotHeld
        } else {
            let mut record = Record::new(self.run, introduction, 0);
            record.all_known = true;
            self.record = Some(record);
            NodeAnswer::Granted
        }
    }

    /// Another process serves the same data from now on.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn restart(&mut self) {
        self.run += 1;
    }

    /// Forgets everything.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn flush(&mut self) {
        *self = Self { run: self.run, ..Self::default() };
    }

    /// Takes a fencing token from whoever has one.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn take_token(&mut self, key: &Key, fence: u64) -> Vote {
        self.count(|record| record.know(bucket_of(key), |last| last.max(fence)))
    }

    /// Who holds which key.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn holders(&self, micros: u64) -> impl Iterator<Item = (&Key, &Token)> {
        self.held.iter(micros / 1_000)
    }

    /// When it votes, and until when there may be void tokens.
    #[cfg(feature = "test-util")]
    pub(super) fn times(&mut self) -> Option<(&mut u64, &mut u64)> {
        self.record.as_mut().map(|record| (&mut record.until, &mut record.void_until))
    }

    /// Decides whether the server votes, as it is before each batch.
    fn look(&mut self, introduction: &Introduction, said: u64, micros: u64) -> Session {
        let now = micros / 1_000;
        let run = self.run;
        let quarantined = |until: u64| NodeAnswer::Quarantined {
            ready_in: Duration::from_millis(until.saturating_sub(now)),
        };
        let refused = |why: String| NodeAnswer::Refused(why.into());
        let usable = |record: &&mut Record| record.run == run || introduction.durable;
        let refusal = match self.record.as_mut().filter(usable) {
            None => {
                let until = now.saturating_add(introduction.quarantine_millis);
                self.record = Some(Record::new(run, introduction, until));
                Some(quarantined(until))
            }
            Some(record) if introduction.epoch > record.epoch => {
                let longest = introduction.quarantine_millis.max(record.quarantine_millis);
                let until = now.saturating_add(longest).max(record.until);
                record.adopt(run, introduction, until);
                Some(quarantined(until))
            }
            Some(record) if introduction.epoch < record.epoch => {
                Some(refused(format!("EPOCH {}", record.epoch)))
            }
            Some(record) if introduction.fingerprint != record.fingerprint => {
                Some(refused(format!("CONFIG {}", record.epoch)))
            }
            Some(record) if now < record.until => Some(quarantined(record.until)),
            Some(record) => {
                record.run = run;
                None
            }
        };
        let ahead = i64::try_from(i128::from(micros) - i128::from(said)).unwrap_or(i64::MAX);
        let is_skewed =
            introduction.max_skew_micros.is_some_and(|most| ahead.unsigned_abs() > most);
        let refusal = if is_skewed { Some(NodeAnswer::skewed(ahead / 1_000)) } else { refusal };
        let void_until = now.saturating_add(introduction.void_millis);
        let distrusted_until = (said / 1_000).saturating_add(introduction.quarantine_millis);
        Session { micros, now, void_until, distrusted_until, refusal }
    }

    fn guarded(&mut self, session: &mut Session, Asked { op, key, token }: &Asked) -> Vote {
        let now = session.now;
        if !op.is_release()
            && op != &Op::Distrust
            && let Some(refusal) = &session.refusal
        {
            return refusal.clone().into();
        }
        match *op {
            Op::Release | Op::Reclaim => self.release(key, token, now).into(),
            Op::Void => {
                let released = self.release(key, token, now);
                if released != NodeAnswer::Granted {
                    self.void.set(token.clone(), (), now, session.void_until);
                    if let Some(record) = &mut self.record {
                        record.void_until = record.void_until.max(session.void_until);
                    }
                }
                released.into()
            }
            Op::Inspect | Op::Provision { .. } => self.holder_of(key, now).into(),
            Op::Distrust => {
                let until = session.distrusted_until;
                let ready_in = Duration::from_millis(until.saturating_sub(now));
                self.count(|record| {
                    if record.until < until {
                        record.until = until;
                        let quarantined = NodeAnswer::Quarantined { ready_in };
                        session.refusal.get_or_insert(quarantined);
                    }
                    NodeAnswer::Granted.into()
                })
            }
            Op::Extend { ttl } => {
                // Never shorter: one that comes late must not cut off what was confirmed since.
                let left = self.held.remaining(key, now).unwrap_or_default();
                self.extend(key, token, now, millis(ttl).max(left)).into()
            }
            Op::Acquire { ttl, proposal } => {
                let may_be_void = self.record.as_ref().is_some_and(|own| now < own.void_until);
                if may_be_void && self.void.get(token, now).is_some() {
                    return NodeAnswer::Refused("VOID its release came first".into()).into();
                }
                if self.held.get(key, now).is_some() {
                    return self.holder_of(key, now).into();
                }
                self.held.set(key.clone(), token.clone(), now, now.saturating_add(millis(ttl)));
                let furthest = session.micros.saturating_add(FURTHEST_AHEAD_MICROS);
                let raise = |last: u64| last.saturating_add(1).max(proposal.min(furthest));
                self.count(|record| record.raise(bucket_of(key), raise))
            }
            Op::Confirm { fence } => match self.held.get(key, now) {
                Some(holder) if holder == token => {
                    let raise = |last: u64| last.max(fence);
                    self.count(|record| record.know(bucket_of(key), raise))
                }
                _ => self.holder_of(key, now).into(),
            },
            Op::Count { bucket } => self.count(|record| {
                let counter = record.counter(bucket);
                match counter.known {
                    true => counted(NodeAnswer::Granted, counter),
                    false => {
                        let since = record.until;
                        counted(NodeAnswer::NotHeld, Counter { since, ..counter })
                    }
                }
            }),
            Op::Learn { bucket, value, since } => self.count(|record| {
                if since != record.until {
                    NodeAnswer::NotHeld.into()
                } else if record.counter(bucket).known {
                    NodeAnswer::Granted.into()
                } else {
                    record.know(bucket, |last| last.max(value))
                }
            }),
        }
    }

    /// The plain mode counts nothing and keeps no record: what it can't do says who has the key.
    fn plain(&mut self, Asked { op, key, token }: &Asked, now: u64) -> NodeAnswer {
        match *op {
            Op::Acquire { .. } if self.held.get(key, now).is_some() => {
                NodeAnswer::Held { label: None, remaining: None }
            }
            Op::Acquire { ttl, .. } => {
                self.held.set(key.clone(), token.clone(), now, now.saturating_add(millis(ttl)));
                NodeAnswer::Granted
            }
            Op::Extend { ttl } => self.extend(key, token, now, millis(ttl)),
            Op::Release | Op::Reclaim | Op::Void => self.release(key, token, now),
            Op::Confirm { .. }
            | Op::Count { .. }
            | Op::Learn { .. }
            | Op::Distrust
            | Op::Inspect
            | Op::Provision { .. } => self.holder_of(key, now),
        }
    }

    fn extend(&mut self, key: &Key, token: &Token, now: u64, ttl: u64) -> NodeAnswer {
        match self.held.get(key, now) {
            Some(holder) if holder == token => {
                self.held.set(key.clone(), token.clone(), now, now.saturating_add(ttl));
                NodeAnswer::Granted
            }
            _ => self.holder_of(key, now),
        }
    }

    fn release(&mut self, key: &Key, token: &Token, now: u64) -> NodeAnswer {
        match self.held.get(key, now) {
            Some(holder) if holder == token => {
                self.held.remove(key);
                NodeAnswer::Granted
            }
            _ => self.holder_of(key, now),
        }
    }

    fn holder_of(&self, key: &Key, now: u64) -> NodeAnswer {
        match self.held.get(key, now) {
            None => NodeAnswer::NotHeld,
            Some(holder) => NodeAnswer::Held {
                label: label_of(holder.as_str().as_bytes()).map(Arc::from),
                remaining: self.held.remaining(key, now).map(Duration::from_millis),
            },
        }
    }

    /// Does something with the record of a server that votes, which has one.
    fn count(&mut self, work: impl FnOnce(&mut Record) -> Vote) -> Vote {
        match &mut self.record {
            Some(record) => work(record),
            None => NodeAnswer::Failed("it has no record".into()).into(),
        }
    }
}

/// What the look at the server found, for all commands of a batch.
struct Session {
    micros: u64,
    now: u64,
    void_until: u64,
    distrusted_until: u64,
    /// Why commands that count as votes are not executed.
    refusal: Option<NodeAnswer>,
}

impl Record {
    fn new(run: u64, introduction: &Introduction, until: u64) -> Self {
        Self {
            run,
            epoch: introduction.epoch,
            fingerprint: Arc::clone(&introduction.fingerprint),
            until,
            quarantine_millis: introduction.quarantine_millis,
            void_until: 0,
            all_known: false,
            counters: HashMap::new(),
        }
    }

    /// Takes over another configuration; what was counted stays.
    fn adopt(&mut self, run: u64, introduction: &Introduction, until: u64) {
        let counters = take(&mut self.counters);
        let (all_known, void_until) = (self.all_known, self.void_until);
        let new = Self::new(run, introduction, until);
        *self = Self { counters, all_known, void_until, ..new };
    }

    fn counter(&self, bucket: u64) -> Counter {
        let never = Counter { value: 0, known: self.all_known, since: 0 };
        self.counters.get(&bucket).copied().unwrap_or(never)
    }

    /// Moves a counter, whether or not it counts all there ever was.
    fn raise(&mut self, bucket: u64, next: impl FnOnce(u64) -> u64) -> Vote {
        let counter = self.counter(bucket);
        let raised = Counter { value: next(counter.value), ..counter };
        self.counters.insert(bucket, raised);
        counted(NodeAnswer::Granted, raised)
    }

    /// Moves a counter that from now on counts all there ever was.
    fn know(&mut self, bucket: u64, next: impl FnOnce(u64) -> u64) -> Vote {
        let value = next(self.counter(bucket).value);
        self.counters.insert(bucket, Counter::known(value));
        NodeAnswer::Granted.into()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn counted(answer: NodeAnswer, counter: Counter) -> Vote {
    Vote { answer, counter: Some(counter) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_764_000_000_000_000;
    const TTL: Duration = Duration::from_secs(1);

    struct Server {
        dataset: Dataset,
        introduction: Option<Introduction>,
        /// What the client's clock shows.
        said: u64,
        micros: u64,
    }

    impl Server {
        fn new(config: &Config) -> Self {
            let introduction = Introduction::new(config);
            Self { dataset: Dataset::default(), introduction, said: START, micros: START }
        }

        fn provisioned() -> Self {
            let mut server = Self::new(&config());
            assert_eq!(server.answer(Op::Provision { dry: false }, &token("me")), granted());
            server
        }

        fn vote(&mut self, op: Op, key: &str, token: &Token) -> Vote {
            let asked = Asked { op, key: Key::new(key).unwrap(), token: token.clone() };
            let introduction = self.introduction.as_ref();
            let votes = self.dataset.run(introduction, self.said, self.micros, &[asked]);
            votes.into_iter().next().unwrap()
        }

        fn answer(&mut self, op: Op, token: &Token) -> NodeAnswer {
            self.vote(op, "k", token).answer
        }

        fn counter(&mut self, op: Op) -> Counter {
            self.vote(op, "k", &token("me")).counter.unwrap()
        }

        fn pass(&mut self, time: Duration) {
            self.micros += micros(time);
            self.said += micros(time);
        }
    }

    fn config() -> Config {
        Config::memory().ttl(TTL).build().unwrap()
    }

    fn token(label: &str) -> Token {
        format!("{label}:00112233445566778899aabbccddeeff").parse().unwrap()
    }

    fn granted() -> NodeAnswer {
        NodeAnswer::Granted
    }

    fn acquire(proposal: u64) -> Op {
        Op::Acquire { ttl: TTL, proposal }
    }

    fn count() -> Op {
        Op::Count { bucket: bucket_of(&Key::new("k").unwrap()) }
    }

    #[test]
    fn keys_expire_and_what_expired_does_not_pile_up() {
        let mut server = Server::provisioned();
        for round in 0..100 {
            for index in 0..50 {
                let key = format!("{round}:{index}");
                assert_eq!(server.vote(acquire(0), &key, &token("me")).answer, granted());
            }
            server.pass(TTL + Duration::from_millis(1));
        }
        assert!(server.dataset.held.len() <= 128);
    }

    #[test]
    fn only_the_token_that_holds_a_key_extends_or_releases_it() {
        let mut server = Server::provisioned();
        let (mine, other, extend) = (token("me"), token("you"), Op::Extend { ttl: TTL });
        assert_eq!(server.answer(extend, &mine), NodeAnswer::NotHeld);
        assert_eq!(server.answer(acquire(0), &mine), granted());
        server.pass(TTL / 4);
        let held = NodeAnswer::Held { label: Some("me".into()), remaining: Some(TTL * 3 / 4) };
        for op in [acquire(0), extend, Op::Confirm { fence: 9 }, Op::Release, Op::Inspect] {
            assert_eq!(server.answer(op, &other), held);
        }
        assert_eq!(server.answer(Op::Release, &mine), granted());
        assert_eq!(server.answer(Op::Release, &mine), NodeAnswer::NotHeld);
    }

    #[test]
    fn every_grant_raises_the_counter() {
        let mut server = Server::provisioned();
        let mine = token("me");
        for (proposal, raised) in [(0, 1), (50, 50), (20, 51), (u64::MAX, START + 60_000_000)] {
            assert_eq!(server.counter(acquire(proposal)), Counter::known(raised));
            assert_eq!(server.answer(Op::Release, &mine), granted());
        }
        server.answer(acquire(0), &mine);
        let last = START + 60_000_001;
        assert_eq!(server.answer(Op::Confirm { fence: 3 }, &mine), granted());
        assert_eq!(server.counter(count()), Counter::known(last));
        assert_eq!(server.answer(Op::Confirm { fence: last + 9 }, &mine), granted());
        assert_eq!(server.counter(count()), Counter::known(last + 9));
    }

    #[test]
    fn who_lost_data_does_not_vote_for_a_quarantine_and_counts_from_zero_until_taught() {
        let mut server = Server::provisioned();
        let mine = token("me");
        server.answer(acquire(0), &mine);
        server.dataset.restart();
        server.dataset.flush();
        let quarantine = config().quarantine();
        let ready_in = quarantine;
        assert_eq!(server.answer(acquire(0), &mine), NodeAnswer::Quarantined { ready_in });
        server.pass(quarantine);
        let since = server.micros / 1_000;
        assert_eq!(server.counter(acquire(7)), Counter::unknown(7, 0));
        assert_eq!(server.counter(count()), Counter::unknown(7, since));
        let bucket = bucket_of(&Key::new("k").unwrap());
        let learn = |since| Op::Learn { bucket, value: 90, since };
        assert_eq!(server.answer(learn(since - 1), &mine), NodeAnswer::NotHeld);
        assert_eq!(server.answer(learn(since), &mine), granted());
        assert_eq!(server.counter(count()), Counter::known(90));
    }

    #[test]
    fn a_clock_that_was_set_is_noticed_and_its_server_distrusted_by_the_right_time() {
        let mut server = Server::provisioned();
        let mine = token("me");
        let (skew, jump) = (Duration::from_millis(100), Duration::from_secs(5));
        let config = Config::memory().ttl(TTL).max_clock_skew(skew).build().unwrap();
        server.introduction = Introduction::new(&config);
        server.micros += micros(skew);
        assert_eq!(server.answer(acquire(0), &mine), granted());
        assert_eq!(server.answer(Op::Release, &mine), granted());
        for (clock, ahead) in [(START + micros(jump), 5_000), (START - micros(jump), -5_000)] {
            server.micros = clock;
            let skewed = NodeAnswer::skewed(ahead);
            assert_eq!(server.answer(acquire(0), &mine), skewed);
            assert_eq!(server.answer(Op::Distrust, &mine), granted());
            assert_eq!(server.answer(acquire(0), &mine), skewed);
            assert_eq!(server.answer(Op::Release, &mine), NodeAnswer::NotHeld);
        }
        server.micros = START;
        let ready_in = config.quarantine();
        assert_eq!(server.answer(acquire(0), &mine), NodeAnswer::Quarantined { ready_in });
        server.pass(ready_in);
        assert_eq!(server.answer(acquire(0), &mine), granted());
    }

    #[test]
    fn what_was_released_before_it_was_acquired_is_void() {
        let mut server = Server::provisioned();
        let mine = token("me");
        assert_eq!(server.answer(Op::Void, &mine), NodeAnswer::NotHeld);
        let refused = server.answer(acquire(0), &mine);
        assert!(matches!(refused, NodeAnswer::Refused(_)), "{refused:?}");
        assert_eq!(server.answer(acquire(0), &token("you")), granted());
    }

    #[test]
    fn other_configurations_are_told_apart_by_their_epoch() {
        let mut server = Server::provisioned();
        let mine = token("me");
        let with = |epoch, max_ttl| {
            let builder = Config::memory().ttl(TTL).epoch(epoch).max_ttl(max_ttl);
            Introduction::new(&builder.build().unwrap())
        };
        let refused = |why: &str| NodeAnswer::Refused(why.into());
        server.introduction = with(0, 2 * TTL);
        assert_eq!(server.answer(acquire(0), &mine), refused("CONFIG 0"));
        server.introduction = with(1, 2 * TTL);
        assert!(matches!(server.answer(acquire(0), &mine), NodeAnswer::Quarantined { .. }));
        server.introduction = with(0, TTL);
        assert_eq!(server.answer(acquire(0), &mine), refused("EPOCH 1"));
        server.introduction = with(1, 2 * TTL);
        server.pass(3 * TTL);
        assert_eq!(server.answer(acquire(0), &mine), granted());
    }
}

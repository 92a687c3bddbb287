//! Did two ever hold the same lock at the same time?

mod history;
mod ledger;
mod tokens;

use std::collections::BTreeMap;

pub use history::{Event, Fence, History, Stamp};
pub use ledger::Ledger;
pub use tokens::{Acquisition, Beginnings, Disorder, TokenVerdict, check_tokens};

/// What a history says about mutual exclusion.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// How many holds were checked. A test should demand some: none is no proof.
    pub holds: usize,
    /// Every hold that began while another of the same key was still on.
    pub overlaps: Vec<Overlap>,
}

/// Two holds of one key at the same time.
#[derive(Clone, Debug, PartialEq)]
pub struct Overlap {
    /// What was locked.
    pub key: String,
    /// The hold that was on.
    pub first: Hold,
    /// The hold that began meanwhile.
    pub second: Hold,
}

/// From when to when a client could believe that the lock was its own: from the return of the
/// acquisition to the call of the release, or to the last end of the validity that it has seen, if
/// that is earlier.
#[derive(Clone, Debug, PartialEq)]
pub struct Hold {
    /// Who held.
    pub client: String,
    /// When it began, inclusive.
    pub from: Stamp,
    /// When it ended, exclusive.
    pub to: Stamp,
}

impl Verdict {
    /// Panics unless there was at least one hold and no two overlapped.
    pub fn assert_exclusive(&self) {
        assert!(self.holds > 0, "the history holds no lock: there is nothing to judge");
        let (count, holds) = (self.overlaps.len(), self.holds);
        let shown = &self.overlaps[..count.min(5)];
        assert!(count == 0, "{count} overlaps among {holds} holds, the first ones: {shown:#?}");
    }
}

/// Looks for holds of the same key that overlap. One that ends in the instant when the next begins
/// does not overlap it.
///
/// A release belongs to the latest acquisition of the same key by the same client that came before
/// it. One that is never released ends with its validity, and so does one whose client acquired
/// the key again without releasing it.
#[must_use]
pub fn check(history: &History) -> Verdict {
    let mut verdict = Verdict { holds: 0, overlaps: Vec::new() };
    for (key, mut holds) in holds(history) {
        holds.sort_by_key(|hold| (hold.from, hold.to));
        verdict.holds += holds.len();
        let mut longest: Option<Hold> = None;
        for hold in holds {
            let Some(on) = &longest else {
                longest = Some(hold);
                continue;
            };
            if hold.from < on.to {
                let (key, first, second) = (key.clone(), on.clone(), hold.clone());
                verdict.overlaps.push(Overlap { key, first, second });
            }
            if hold.to > on.to {
                longest = Some(hold);
            }
        }
    }
    verdict
}

/// The holds by key. Those that ended before they began, because the validity was over when the
/// acquisition returned, are no holds.
fn holds(history: &History) -> BTreeMap<String, Vec<Hold>> {
    let mut events = history.events();
    // Of two events of one client in the same instant, the release ends what was before.
    events.sort_by_key(|event| (event.at(), matches!(event, Event::Acquired { .. })));
    let mut holds: BTreeMap<String, Vec<Hold>> = BTreeMap::new();
    let mut current: BTreeMap<(String, String), usize> = BTreeMap::new();
    for event in events {
        match event {
            Event::Acquired { key, client, at, until, .. } => {
                let of_key = holds.entry(key.clone()).or_default();
                current.insert((key, client.clone()), of_key.len());
                of_key.push(Hold { client, from: at, to: until });
            }
            Event::Extended { key, client, until, .. } => {
                if let Some(index) = current.get(&(key.clone(), client)) {
                    let of_key = holds.entry(key).or_default();
                    of_key[*index].to = of_key[*index].to.max(until);
                }
            }
            Event::Released { key, client, at } => {
                if let Some(index) = current.remove(&(key.clone(), client)) {
                    let of_key = holds.entry(key).or_default();
                    of_key[index].to = of_key[index].to.min(at);
                }
            }
        }
    }
    for of_key in holds.values_mut() {
        of_key.retain(|hold| hold.from < hold.to);
    }
    holds
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Stamp {
        Stamp::default() + Duration::from_millis(millis)
    }

    fn acquired(client: &str, from: u64, until: u64) -> Event {
        let (key, client) = ("k".to_owned(), client.to_owned());
        Event::Acquired { key, client, at: at(from), until: at(until), fence: None }
    }

    fn extended(client: &str, when: u64, until: u64) -> Event {
        let (key, client) = ("k".to_owned(), client.to_owned());
        Event::Extended { key, client, at: at(when), until: at(until) }
    }

    fn released(client: &str, when: u64) -> Event {
        Event::Released { key: "k".to_owned(), client: client.to_owned(), at: at(when) }
    }

    fn verdict(events: impl IntoIterator<Item = Event>) -> Verdict {
        let history = History::new();
        events.into_iter().for_each(|event| history.record(event));
        check(&history)
    }

    #[test]
    fn holds_one_after_the_other_are_exclusive() {
        let verdict = verdict([
            acquired("a", 0, 100),
            released("a", 10),
            acquired("b", 20, 120),
            released("b", 30),
        ]);
        assert_eq!(verdict, Verdict { holds: 2, overlaps: vec![] });
        verdict.assert_exclusive();
    }

    #[test]
    fn a_hold_inside_another_is_found() {
        let verdict = verdict([
            acquired("a", 0, 100),
            acquired("b", 20, 120),
            released("b", 30),
            released("a", 40),
        ]);
        assert_eq!(verdict.holds, 2);
        let [overlap] = &verdict.overlaps[..] else { panic!("{verdict:?}") };
        assert_eq!((overlap.first.client.as_str(), overlap.second.client.as_str()), ("a", "b"));
        assert_eq!((overlap.first.to, overlap.second.to), (at(40), at(30)));
    }

    #[test]
    fn a_long_hold_is_compared_with_all_that_begin_during_it() {
        let verdict = verdict([
            acquired("long", 0, 100),
            acquired("short", 10, 20),
            acquired("late", 50, 60),
        ]);
        assert_eq!(verdict.overlaps.len(), 2);
        assert_eq!(verdict.overlaps[1].first.client, "long");
        assert_eq!(verdict.overlaps[1].second.client, "late");
    }

    #[test]
    fn touching_holds_do_not_overlap() {
        let touching = [acquired("a", 0, 100), released("a", 10), acquired("b", 10, 50)];
        assert_eq!(verdict(touching), Verdict { holds: 2, overlaps: vec![] });
        let expiring = [acquired("a", 0, 10), acquired("b", 10, 50)];
        assert_eq!(verdict(expiring), Verdict { holds: 2, overlaps: vec![] });
    }

    #[test]
    fn a_hold_that_is_not_released_lasts_until_its_validity_ends() {
        let during = [acquired("dead", 0, 100), acquired("b", 99, 150)];
        assert_eq!(verdict(during).overlaps.len(), 1);
        let after = [acquired("dead", 0, 100), acquired("b", 100, 150)];
        assert_eq!(verdict(after).overlaps, []);
    }

    #[test]
    fn a_hold_that_is_extended_lasts_until_its_last_validity_ends() {
        let during = [acquired("a", 0, 100), extended("a", 60, 160), acquired("b", 150, 250)];
        assert_eq!(verdict(during).overlaps.len(), 1);
        let after = [acquired("a", 0, 100), extended("a", 60, 160), acquired("b", 160, 250)];
        assert_eq!(verdict(after).overlaps, []);
    }

    #[test]
    fn an_extension_that_was_seen_after_the_release_extends_nothing() {
        let events = [
            acquired("a", 0, 100),
            released("a", 10),
            acquired("b", 20, 50),
            extended("a", 30, 200),
        ];
        assert_eq!(verdict(events).overlaps, []);
    }

    #[test]
    fn a_release_after_the_validity_does_not_make_the_hold_longer() {
        let events = [acquired("slow", 0, 10), acquired("b", 20, 50), released("slow", 30)];
        assert_eq!(verdict(events).overlaps, []);
    }

    #[test]
    fn a_client_overlaps_itself_too() {
        let twice = [acquired("a", 0, 100), acquired("a", 50, 150), released("a", 60)];
        assert_eq!(verdict(twice).overlaps.len(), 1);
    }

    #[test]
    fn different_keys_have_nothing_to_do_with_each_other() {
        let mut other = acquired("b", 5, 50);
        if let Event::Acquired { key, .. } = &mut other {
            "other".clone_into(key);
        }
        assert_eq!(verdict([acquired("a", 0, 100), other]), Verdict { holds: 2, overlaps: vec![] });
    }

    #[test]
    fn an_acquisition_that_returned_too_late_is_no_hold() {
        let events = [acquired("a", 0, 100), acquired("late", 50, 40)];
        assert_eq!(verdict(events), Verdict { holds: 1, overlaps: vec![] });
    }

    #[test]
    #[should_panic(expected = "nothing to judge")]
    fn an_empty_history_proves_nothing() {
        verdict([]).assert_exclusive();
    }

    #[test]
    #[should_panic(expected = "1 overlaps among 2 holds")]
    fn overlaps_fail_the_assertion() {
        verdict([acquired("a", 0, 10), acquired("b", 5, 15)]).assert_exclusive();
    }
}

//! Do fencing tokens tell the later lock from the earlier one?

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{Event, Fence, History, Stamp};

/// What a history says about its fencing tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenVerdict {
    /// How many acquisitions had a token.
    pub checked: usize,
    /// How many of them owed it to a wall clock.
    pub by_clock: usize,
    /// Acquisitions of one key that had the same token.
    pub duplicates: Vec<Disorder>,
    /// Acquisitions whose token is smaller than that of another one, which had returned before
    /// they were asked for.
    pub regressions: Vec<Disorder>,
}

/// Two acquisitions of one key whose tokens are not in order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disorder {
    /// What was locked.
    pub key: String,
    /// The one that returned first.
    pub first: Acquisition,
    /// The other one.
    pub second: Acquisition,
}

/// A lock that somebody got.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Acquisition {
    /// Who.
    pub client: String,
    /// When it was asked for.
    pub requested: Stamp,
    /// When it was had.
    pub returned: Stamp,
    /// What it was had with.
    pub token: u64,
    /// Whether nothing but a wall clock makes it greater than earlier ones.
    pub by_clock: bool,
}

/// Looks for tokens that were given twice for a key, and for those that went back: whoever asks
/// when another already has the lock must get a greater token. It does not matter whether the
/// holds overlap or how long they last.
///
/// Where wall clocks do not agree, a token that is owed to one is a new beginning for all keys: it
/// shows that a majority of the servers has lost its counters. What was had before it and what is had
/// later are not compared. Not even of other keys: the first lock of such a key, whose token would
/// say so as well, may have been somebody's who was killed with it.
#[must_use]
pub fn check_tokens(history: &History, clocks_agree: bool) -> TokenVerdict {
    let mut verdict = TokenVerdict::default();
    let by_key = acquisitions(history);
    let beginnings = match clocks_agree {
        true => Vec::new(),
        false => beginnings(by_key.values().flatten()),
    };
    for (key, by_return) in &by_key {
        let of_key = OfKey { key, by_return, beginnings: &beginnings };
        verdict.checked += by_return.len();
        verdict.by_clock += by_return.iter().filter(|acquisition| acquisition.by_clock).count();
        verdict.duplicates.extend(of_key.duplicates());
        verdict.regressions.extend(of_key.regressions());
    }
    verdict
}

/// The acquisitions by key, in the order in which they returned.
fn acquisitions(history: &History) -> BTreeMap<String, Vec<Acquisition>> {
    let mut by_key: BTreeMap<String, Vec<Acquisition>> = BTreeMap::new();
    for event in history.events() {
        if let Event::Acquired { key, client, at: returned, fence: Some(fence), .. } = event {
            let Fence { requested, token, by_clock } = fence;
            let acquisition = Acquisition { client, requested, returned, token, by_clock };
            by_key.entry(key).or_default().push(acquisition);
        }
    }
    for of_key in by_key.values_mut() {
        of_key.sort_by_key(|acquisition| acquisition.returned);
    }
    by_key
}

/// From when to when tokens began anew, in that order.
fn beginnings<'a>(acquisitions: impl Iterator<Item = &'a Acquisition>) -> Vec<(Stamp, Stamp)> {
    let by_clock = acquisitions.filter(|acquisition| acquisition.by_clock);
    let mut beginnings: Vec<_> =
        by_clock.map(|begins| (begins.requested, begins.returned)).collect();
    beginnings.sort_unstable();
    let mut latest = Stamp::default();
    for (_, returned) in &mut beginnings {
        latest = latest.max(*returned);
        *returned = latest;
    }
    beginnings
}

struct OfKey<'a> {
    key: &'a str,
    by_return: &'a [Acquisition],
    beginnings: &'a [(Stamp, Stamp)],
}

impl OfKey<'_> {
    /// What returned before this is not to be compared with `acquisition`.
    fn compared_since(&self, acquisition: &Acquisition) -> Stamp {
        let begun = |(requested, _): &(Stamp, Stamp)| *requested <= acquisition.returned;
        let count = self.beginnings.partition_point(begun);
        let latest = count.checked_sub(1).map(|last| self.beginnings[last].1);
        // One that is a beginning itself has nobody before it.
        latest.unwrap_or_default()
    }

    fn duplicates(&self) -> Vec<Disorder> {
        let mut last_with: HashMap<u64, &Acquisition> = HashMap::new();
        let mut duplicates = Vec::new();
        for second in self.by_return {
            if let Some(first) = last_with.insert(second.token, second)
                && first.returned >= self.compared_since(second)
            {
                duplicates.push(self.disorder(first, second));
            }
        }
        duplicates
    }

    fn regressions(&self) -> Vec<Disorder> {
        let greatest_so_far = greatest_so_far(self.by_return);
        let mut regressions = Vec::new();
        for second in self.by_return {
            let before = |stamp: Stamp| {
                self.by_return.partition_point(|acquisition| acquisition.returned < stamp)
            };
            let (from, to) = (before(self.compared_since(second)), before(second.requested));
            let greatest = match from {
                _ if from >= to => continue,
                0 => greatest_so_far[to - 1],
                _ => greatest_so_far_of(&self.by_return[from..to]),
            };
            if let Some(first) = greatest
                && first.token > second.token
            {
                regressions.push(self.disorder(first, second));
            }
        }
        regressions
    }

    fn disorder(&self, first: &Acquisition, second: &Acquisition) -> Disorder {
        Disorder { key: self.key.to_owned(), first: first.clone(), second: second.clone() }
    }
}

fn greatest_so_far_of(acquisitions: &[Acquisition]) -> Option<&Acquisition> {
    acquisitions.iter().max_by_key(|acquisition| acquisition.token)
}

/// For each acquisition, the one with the greatest token up to it.
fn greatest_so_far(by_return: &[Acquisition]) -> Vec<Option<&Acquisition>> {
    let greatest = by_return.iter().scan(None, |greatest: &mut Option<&Acquisition>, next| {
        if greatest.is_none_or(|greatest| next.token > greatest.token) {
            *greatest = Some(next);
        }
        Some(*greatest)
    });
    greatest.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Stamp {
        Stamp::default() + Duration::from_millis(millis)
    }

    /// Asked for, had, token.
    fn verdict(acquisitions: &[(u64, u64, u64)]) -> (usize, usize, usize) {
        by_clock(acquisitions, None, true)
    }

    /// The same, where one of them owes its token to a clock.
    fn by_clock(
        acquisitions: &[(u64, u64, u64)],
        by_clock: Option<u64>,
        clocks_agree: bool,
    ) -> (usize, usize, usize) {
        let history = History::new();
        for (requested, returned, token) in acquisitions {
            history.record(Event::Acquired {
                key: "k".to_owned(),
                client: "c".to_owned(),
                at: at(*returned),
                until: at(returned + 100),
                fence: Some(Fence {
                    requested: at(*requested),
                    token: *token,
                    by_clock: by_clock == Some(*token),
                }),
            });
        }
        let verdict = check_tokens(&history, clocks_agree);
        (verdict.checked, verdict.duplicates.len(), verdict.regressions.len())
    }

    #[test]
    fn tokens_that_grow_are_in_order() {
        assert_eq!(verdict(&[(0, 10, 1), (20, 30, 2), (40, 50, 7)]), (3, 0, 0));
    }

    #[test]
    fn the_same_token_twice_is_found() {
        assert_eq!(verdict(&[(0, 10, 5), (20, 30, 6), (40, 50, 6)]), (3, 1, 0));
        assert_eq!(verdict(&[(0, 30, 5), (10, 20, 5)]), (2, 1, 0), "also of two at a time");
    }

    #[test]
    fn a_token_that_went_back_is_found_also_long_after() {
        assert_eq!(verdict(&[(0, 10, 9), (20, 30, 8)]), (2, 0, 1));
        let long_after = [(0, 10, 9), (20, 30, 10), (40, 50, 11), (60, 70, 8)];
        assert_eq!(verdict(&long_after), (4, 0, 1));
    }

    #[test]
    fn of_two_that_were_asked_for_at_a_time_either_may_be_greater() {
        assert_eq!(verdict(&[(0, 30, 5), (10, 20, 6)]), (2, 0, 0));
        assert_eq!(verdict(&[(0, 20, 6), (20, 30, 5)]), (2, 0, 0), "asked for in that instant");
    }

    #[test]
    fn a_token_by_clock_begins_anew_unless_the_clocks_agree() {
        let history = [(0, 10, 9), (20, 30, 5), (40, 50, 6), (60, 70, 7)];
        assert_eq!(by_clock(&history, Some(5), true), (4, 0, 3));
        assert_eq!(by_clock(&history, Some(5), false), (4, 0, 0));
        assert_eq!(
            by_clock(&history, Some(6), false),
            (4, 0, 1),
            "what was before it still counts"
        );
        let after = [(0, 10, 1), (20, 30, 5), (40, 50, 6), (60, 70, 5)];
        assert_eq!(by_clock(&after, Some(5), false), (4, 0, 0), "both are beginnings");
        let smaller = [(0, 10, 9), (20, 30, 5), (40, 50, 4)];
        assert_eq!(by_clock(&smaller, Some(5), false), (3, 0, 1), "smaller than the new beginning");
    }

    #[test]
    fn what_was_under_way_when_the_tokens_began_anew_is_not_compared() {
        let under_way = [(0, 10, 9), (20, 45, 5), (30, 60, 3), (70, 80, 6)];
        assert_eq!(by_clock(&under_way, Some(5), false), (4, 0, 0));
    }

    #[test]
    fn tokens_of_different_keys_have_nothing_to_do_with_each_other() {
        let history = History::new();
        for (key, requested) in [("a", 0), ("b", 20)] {
            history.record(Event::Acquired {
                key: key.to_owned(),
                client: "c".to_owned(),
                at: at(requested + 10),
                until: at(100),
                fence: Some(Fence { requested: at(requested), token: 1, by_clock: false }),
            });
        }
        let checked = TokenVerdict { checked: 2, ..TokenVerdict::default() };
        assert_eq!(check_tokens(&history, true), checked);
    }

    #[test]
    fn a_history_without_tokens_has_none_to_check() {
        let history = History::new();
        history.acquired("k", "c", at(10));
        assert_eq!(check_tokens(&history, true), TokenVerdict::default());
    }
}

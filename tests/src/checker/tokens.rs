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

/// When tokens of a key began anew, from when to when: only wall clocks order what was under way or
/// over by then and what came later.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Beginnings(BTreeMap<String, Vec<(Stamp, Stamp)>>);

impl Beginnings {
    /// They never did, or wall clocks agree.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Those of each key, in whatever order.
    #[must_use]
    pub fn of(keys: impl IntoIterator<Item = (String, Vec<(Stamp, Stamp)>)>) -> Self {
        let joined = keys.into_iter().map(|(key, spans)| (key, joined(spans)));
        Self(joined.filter(|(_, spans)| !spans.is_empty()).collect())
    }

    /// Those that the history itself tells: a lock of the key says that its token is owed to a
    /// clock. Who was killed before saying so, or did not get the lock, is not among them.
    #[must_use]
    pub fn told_by(history: &History) -> Self {
        let spans = |acquisitions: Vec<Acquisition>| {
            let by_clock = acquisitions.into_iter().filter(|acquisition| acquisition.by_clock);
            by_clock.map(|begins| (begins.requested, begins.returned)).collect()
        };
        Self::of(acquisitions(history).into_iter().map(|(key, of_key)| (key, spans(of_key))))
    }

    /// Those of a key, in order.
    #[must_use]
    pub fn of_key(&self, key: &str) -> &[(Stamp, Stamp)] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// The locks that owe their token to a clock although nothing began anew while they were asked
    /// for.
    #[must_use]
    pub fn unfounded(&self, history: &History) -> Vec<Acquisition> {
        let mut unfounded = Vec::new();
        for (key, of_key) in acquisitions(history) {
            let spans = self.of_key(&key);
            unfounded.extend(of_key.into_iter().filter(|acquisition| {
                let span = latest(spans, acquisition.returned);
                acquisition.by_clock && span.is_none_or(|(_, end)| end < acquisition.requested)
            }));
        }
        unfounded
    }
}

/// Looks for tokens that were given twice for a key, and for those that went back: whoever asks
/// when another already has the lock must get a greater token. It does not matter whether the
/// holds overlap or how long they last.
///
/// Two locks are not compared if the tokens of their key began anew after the first was asked for
/// and before the second was had.
#[must_use]
pub fn check_tokens(history: &History, beginnings: &Beginnings) -> TokenVerdict {
    let mut verdict = TokenVerdict::default();
    for (key, by_return) in acquisitions(history) {
        verdict.checked += by_return.len();
        verdict.by_clock += by_return.iter().filter(|acquisition| acquisition.by_clock).count();
        let spans = beginnings.of_key(&key);
        for order in
            by_return.chunk_by(|a, b| latest(spans, a.returned) == latest(spans, b.returned))
        {
            let began = latest(spans, order[0].returned).map(|(_, end)| end);
            let compared: Vec<_> = order
                .iter()
                .filter(|acquisition| began.is_none_or(|end| end < acquisition.requested))
                .collect();
            verdict.duplicates.extend(duplicates(&key, &compared));
            verdict.regressions.extend(regressions(&key, &compared));
        }
    }
    verdict
}

/// The last span that had begun by then.
fn latest(spans: &[(Stamp, Stamp)], by: Stamp) -> Option<(Stamp, Stamp)> {
    let count = spans.partition_point(|(start, _)| *start <= by);
    count.checked_sub(1).map(|last| spans[last])
}

/// The same spans in order, those that overlap as one.
fn joined(mut spans: Vec<(Stamp, Stamp)>) -> Vec<(Stamp, Stamp)> {
    spans.sort_unstable();
    let mut joined: Vec<(Stamp, Stamp)> = Vec::with_capacity(spans.len());
    for (start, end) in spans {
        match joined.last_mut() {
            Some((_, last)) if start <= *last => *last = end.max(*last),
            _ => joined.push((start, end)),
        }
    }
    joined
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

fn duplicates(key: &str, by_return: &[&Acquisition]) -> Vec<Disorder> {
    let mut last_with: HashMap<u64, &Acquisition> = HashMap::new();
    let mut duplicates = Vec::new();
    for second in by_return {
        if let Some(first) = last_with.insert(second.token, second) {
            duplicates.push(disorder(key, first, second));
        }
    }
    duplicates
}

fn regressions(key: &str, by_return: &[&Acquisition]) -> Vec<Disorder> {
    let greatest_so_far = greatest_so_far(by_return);
    let mut regressions = Vec::new();
    for second in by_return {
        let before = by_return.partition_point(|first| first.returned < second.requested);
        if let Some(first) = before.checked_sub(1).map(|last| greatest_so_far[last])
            && first.token > second.token
        {
            regressions.push(disorder(key, first, second));
        }
    }
    regressions
}

fn disorder(key: &str, first: &Acquisition, second: &Acquisition) -> Disorder {
    Disorder { key: key.to_owned(), first: first.clone(), second: second.clone() }
}

/// For each acquisition, the one with the greatest token up to it.
fn greatest_so_far<'a>(by_return: &[&'a Acquisition]) -> Vec<&'a Acquisition> {
    let mut greatest: Option<&Acquisition> = None;
    let so_far = by_return.iter().map(|next| {
        let greater = greatest.filter(|greatest| greatest.token >= next.token).unwrap_or(next);
        greatest = Some(greater);
        greater
    });
    so_far.collect()
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
        began(acquisitions, &[])
    }

    /// The same, where tokens began anew.
    fn began(acquisitions: &[(u64, u64, u64)], spans: &[(u64, u64)]) -> (usize, usize, usize) {
        let spans = spans.iter().map(|(from, to)| (at(*from), at(*to))).collect();
        let beginnings = Beginnings::of([("k".to_owned(), spans)]);
        let verdict = check_tokens(&history(acquisitions, None), &beginnings);
        (verdict.checked, verdict.duplicates.len(), verdict.regressions.len())
    }

    /// The acquisitions of one key, where one token is owed to a clock.
    fn history(acquisitions: &[(u64, u64, u64)], by_clock: Option<u64>) -> History {
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
        history
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
    fn what_was_before_a_new_beginning_is_not_compared_with_what_comes_after() {
        let history = [(0, 10, 9), (20, 30, 5), (40, 50, 6), (60, 70, 7)];
        assert_eq!(began(&history, &[]), (4, 0, 3));
        assert_eq!(began(&history, &[(12, 15)]), (4, 0, 0));
        assert_eq!(began(&history, &[(32, 35)]), (4, 0, 1), "what was before it still counts");
        assert_eq!(began(&history, &[(72, 75)]), (4, 0, 3), "and so do those that came too early");
        let smaller = [(0, 10, 9), (20, 30, 5), (40, 50, 4)];
        assert_eq!(began(&smaller, &[(12, 15)]), (3, 0, 1), "smaller than the new beginning");
        let twice = [(0, 10, 9), (20, 30, 9), (40, 50, 9)];
        assert_eq!(began(&twice, &[(12, 15)]), (3, 1, 0));
    }

    #[test]
    fn what_was_under_way_when_the_tokens_began_anew_is_not_compared() {
        let under_way = [(0, 10, 9), (20, 45, 5), (30, 60, 3), (70, 80, 6)];
        assert_eq!(began(&under_way, &[(25, 31)]), (4, 0, 0));
        assert_eq!(began(&under_way, &[(25, 29)]), (4, 0, 0), "begun before the other returned");
        let after = [(0, 10, 9), (20, 25, 5), (30, 60, 3)];
        assert_eq!(began(&after, &[(12, 15)]), (3, 0, 1));
    }

    #[test]
    fn new_beginnings_that_overlap_are_one() {
        let history = [(0, 10, 9), (26, 30, 5)];
        assert_eq!(began(&history, &[(20, 28), (12, 25)]), (2, 0, 0));
        assert_eq!(joined(vec![(at(5), at(9)), (at(1), at(6)), (at(20), at(30))]).len(), 2);
    }

    #[test]
    fn a_history_tells_only_those_beginnings_that_somebody_lived_to_see() {
        let told = history(&[(0, 10, 9), (20, 30, 5), (40, 50, 6)], Some(5));
        assert_eq!(Beginnings::told_by(&told).of_key("k"), [(at(20), at(30))]);
        assert_eq!(check_tokens(&told, &Beginnings::told_by(&told)).regressions, []);
        let unseen = history(&[(0, 10, 9), (40, 50, 6)], None);
        assert_eq!(check_tokens(&unseen, &Beginnings::told_by(&unseen)).regressions.len(), 1);
    }

    #[test]
    fn a_token_by_clock_where_nothing_began_anew_is_unfounded() {
        let history = history(&[(0, 10, 9), (20, 30, 5)], Some(5));
        let beginnings = |from, to| Beginnings::of([("k".to_owned(), vec![(at(from), at(to))])]);
        assert_eq!(Beginnings::none().unfounded(&history).len(), 1);
        assert_eq!(beginnings(12, 15).unfounded(&history).len(), 1);
        assert_eq!(beginnings(12, 25).unfounded(&history).len(), 0);
        assert_eq!(beginnings(31, 35).unfounded(&history).len(), 1);
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
        assert_eq!(check_tokens(&history, &Beginnings::none()), checked);
    }

    #[test]
    fn a_history_without_tokens_has_none_to_check() {
        let history = History::new();
        history.acquired("k", "c", at(10));
        assert_eq!(check_tokens(&history, &Beginnings::none()), TokenVerdict::default());
    }
}

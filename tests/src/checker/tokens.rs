//! Do fencing tokens tell the later lock from the earlier one?

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::{Event, Fence, History, Stamp};

/// What a history says about its fencing tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenVerdict {
    /// How many acquisitions had a token.
    pub checked: usize,
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
}

/// Looks for tokens that were given twice for a key, and for those that went back: whoever asks
/// when another already has the lock must get a greater token. It does not matter whether the
/// holds overlap or how long they last.
#[must_use]
pub fn check_tokens(history: &History) -> TokenVerdict {
    let mut verdict = TokenVerdict::default();
    for (key, acquisitions) in acquisitions(history) {
        verdict.checked += acquisitions.len();
        verdict.duplicates.extend(duplicates(&key, &acquisitions));
        verdict.regressions.extend(regressions(&key, &acquisitions));
    }
    verdict
}

/// The acquisitions by key, in the order in which they returned.
fn acquisitions(history: &History) -> BTreeMap<String, Vec<Acquisition>> {
    let mut by_key: BTreeMap<String, Vec<Acquisition>> = BTreeMap::new();
    for event in history.events() {
        if let Event::Acquired { key, client, at, fence: Some(fence), .. } = event {
            let Fence { requested, token } = fence;
            let acquisition = Acquisition { client, requested, returned: at, token };
            by_key.entry(key).or_default().push(acquisition);
        }
    }
    for of_key in by_key.values_mut() {
        of_key.sort_by_key(|acquisition| acquisition.returned);
    }
    by_key
}

fn duplicates(key: &str, by_return: &[Acquisition]) -> Vec<Disorder> {
    let mut first_with: HashMap<u64, &Acquisition> = HashMap::new();
    let mut duplicates = Vec::new();
    for second in by_return {
        if let Some(first) = first_with.get(&second.token) {
            duplicates.push(disorder(key, first, second));
        } else {
            first_with.insert(second.token, second);
        }
    }
    duplicates
}

fn regressions(key: &str, by_return: &[Acquisition]) -> Vec<Disorder> {
    let mut by_request: Vec<&Acquisition> = by_return.iter().collect();
    by_request.sort_by_key(|acquisition| acquisition.requested);
    let mut returned = by_return.iter().peekable();
    let mut greatest: Option<&Acquisition> = None;
    let mut regressions = Vec::new();
    for second in by_request {
        while let Some(first) = returned.next_if(|first| first.returned < second.requested) {
            if greatest.is_none_or(|greatest| first.token > greatest.token) {
                greatest = Some(first);
            }
        }
        if let Some(first) = greatest
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> Stamp {
        Stamp::default() + Duration::from_millis(millis)
    }

    /// Asked for, had, token.
    fn verdict(acquisitions: &[(u64, u64, u64)]) -> (usize, usize, usize) {
        let history = History::new();
        for (requested, returned, token) in acquisitions {
            history.record(Event::Acquired {
                key: "k".to_owned(),
                client: "c".to_owned(),
                at: at(*returned),
                until: at(returned + 100),
                fence: Some(Fence { requested: at(*requested), token: *token }),
            });
        }
        let verdict = check_tokens(&history);
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
    fn tokens_of_different_keys_have_nothing_to_do_with_each_other() {
        let history = History::new();
        for (key, requested) in [("a", 0), ("b", 20)] {
            history.record(Event::Acquired {
                key: key.to_owned(),
                client: "c".to_owned(),
                at: at(requested + 10),
                until: at(100),
                fence: Some(Fence { requested: at(requested), token: 1 }),
            });
        }
        let checked = TokenVerdict { checked: 2, ..TokenVerdict::default() };
        assert_eq!(check_tokens(&history), checked);
    }

    #[test]
    fn a_history_without_tokens_has_none_to_check() {
        let history = History::new();
        history.acquired("k", "c", at(10));
        assert_eq!(check_tokens(&history), TokenVerdict::default());
    }
}

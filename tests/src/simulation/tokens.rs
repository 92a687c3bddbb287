//! The fencing tokens of a run in which no server loses its data.

use parking_lot::Mutex;
use redlock_core::{FenceBasis, Guard};
use tokio::time::Instant;

/// All tokens that clients got.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<Vec<Taken>>);

#[derive(Debug)]
struct Taken {
    key: String,
    asked: Instant,
    returned: Instant,
    token: u64,
    basis: FenceBasis,
}

impl Tokens {
    /// Notes the token of a lock that somebody has just got.
    pub(super) fn note(&self, key: &str, asked: Instant, guard: &Guard) {
        let Some((token, basis)) = guard.fencing_token().zip(guard.fence_basis()) else { return };
        let (key, token, returned) = (key.to_owned(), token.get(), Instant::now());
        self.0.lock().push(Taken { key, asked, returned, token, basis });
    }

    /// What clocks have no part in: no token is given twice, who asks after another has got a lock
    /// has the larger one, and it is a majority that says so.
    pub(super) fn violations(&self) -> Vec<String> {
        let taken = self.0.lock();
        let mut violations = Vec::new();
        for (at, later) in taken.iter().enumerate() {
            let Taken { key, token, .. } = later;
            if later.basis == FenceBasis::Clock {
                violations.push(format!("token {token} of {key} is ordered by clocks"));
            }
            for earlier in taken[..at].iter().filter(|earlier| earlier.key == *key) {
                let before = earlier.token;
                if before == *token {
                    violations.push(format!("token {token} of {key} was given twice"));
                } else if earlier.returned < later.asked && before > *token {
                    violations.push(format!("{key} was got with token {token} after {before}"));
                }
            }
        }
        violations
    }
}

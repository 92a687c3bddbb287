//! Who makes which attempt.

use std::fmt;

/// A set of servers or of attempts, one bit for each.
pub type Set = u8;

/// Servers of the group.
pub const SERVERS: usize = 3;

/// The smallest number of servers of which any two choices share one.
pub const QUORUM: u32 = SERVERS as u32 / 2 + 1;

/// Attempts that there is room for.
pub const ATTEMPTS: usize = 4;

/// How many attempts each client makes, one after the other. Attempts are numbered through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clients(pub &'static [usize]);

impl Clients {
    /// All attempts.
    #[must_use]
    pub fn attempts(self) -> usize {
        self.0.iter().sum()
    }

    /// The client that makes `attempt`.
    #[must_use]
    pub fn client_of(self, attempt: usize) -> usize {
        let mut before = 0;
        let is_later = |attempts: &&usize| {
            before += **attempts;
            before <= attempt
        };
        self.0.iter().take_while(is_later).count()
    }

    /// The attempt that the same client makes before.
    #[must_use]
    pub fn before(self, attempt: usize) -> Option<usize> {
        let before = attempt.checked_sub(1)?;
        (self.client_of(before) == self.client_of(attempt)).then_some(before)
    }

    /// The first attempt of the client before, if it makes as many attempts as this one, which is
    /// the first of its own. Which of the two begins makes no difference then.
    #[must_use]
    pub fn twin(self, attempt: usize) -> Option<usize> {
        let client = self.client_of(attempt);
        let size = self.0[client];
        let before = *self.0.get(client.checked_sub(1)?)?;
        (before == size && self.before(attempt).is_none()).then(|| attempt - size)
    }

    /// `A2` is the second attempt of the first client.
    #[must_use]
    pub fn name(self, attempt: usize) -> String {
        let client = self.client_of(attempt);
        let earlier: usize = self.0[..client].iter().sum();
        format!("{}{}", char::from(b'A' + client as u8), attempt - earlier + 1)
    }

    /// The names of all in `set`.
    #[must_use]
    pub fn names(self, set: Set) -> String {
        let names: Vec<String> = members(set).map(|attempt| self.name(attempt)).collect();
        names.join(" and ")
    }
}

impl fmt::Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attempts: Vec<String> = self.0.iter().map(usize::to_string).collect();
        write!(f, "({})", attempts.join(","))
    }
}

/// The members of `set`.
pub(super) fn members(set: Set) -> impl Iterator<Item = usize> {
    (0..Set::BITS as usize).filter(move |member| contains(set, *member))
}

/// The set of all below `size` for which `is` holds.
pub(super) fn set_of(size: usize, is: impl Fn(usize) -> bool) -> Set {
    (0..size).filter(|member| is(*member)).fold(0, |set, member| set | 1 << member)
}

pub(super) const fn contains(set: Set, member: usize) -> bool {
    set & (1 << member) != 0
}

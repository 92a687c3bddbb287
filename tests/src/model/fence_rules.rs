//! What the client of the fence decides: the same rules as the code that ships.

/// A node's counter for a key, as told with a grant or when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The last token that the node has seen; with a grant, the one that it raised it to.
    pub value: u64,
    /// Whether the node kept its counter for as long as there have been locks.
    pub known: bool,
    /// When the node's last quarantine ended, if it does not know its counter.
    pub since: u64,
}

impl Counter {
    /// A counter that was never lost.
    #[must_use]
    pub const fn known(value: u64) -> Self {
        Self { value, known: true, since: 0 }
    }

    /// One that was lost.
    #[must_use]
    pub const fn unknown(value: u64, since: u64) -> Self {
        Self { value, known: false, since }
    }
}

/// What makes a token larger than all earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FenceBasis {
    /// A majority of the servers remembers the earlier tokens: no clock is involved.
    Majority,
    /// A majority of the servers lost its data: only wall clocks order the tokens.
    Clock,
}

/// What a lock that was won still needs for its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A majority has this token already.
    Done(u64),
    /// Have a majority take this token, of those that still hold the lock for us.
    Confirm {
        /// The token.
        token: u64,
        /// What makes it larger.
        basis: FenceBasis,
    },
    /// Ask all nodes for their counters, then see [`after_reads`].
    Read,
    /// There is no token now: it could be smaller than one that a node remembers which does not
    /// answer.
    Stuck,
}

/// What follows from the counters of the nodes that granted the lock, out of `nodes`.
#[must_use]
pub fn after_grants(nodes: usize, grants: &[Counter]) -> Step {
    let quorum = majority(nodes);
    if grants.len() < quorum || grants.iter().any(|grant| !grant.known) {
        return Step::Read;
    }
    let token = largest(grants);
    let have_it = grants.iter().filter(|grant| grant.known && grant.value == token);
    if have_it.count() >= quorum {
        Step::Done(token)
    } else {
        Step::Confirm { token, basis: FenceBasis::Majority }
    }
}

/// What follows when the counters of all nodes were read after the grants were in. `proposal` is
/// what the nodes were asked to raise their counters to.
#[must_use]
pub fn after_reads(nodes: usize, grants: &[Counter], reads: &[Counter], proposal: u64) -> Step {
    let (known, unknown): (Vec<Counter>, Vec<Counter>) =
        reads.iter().partition(|counter| counter.known);
    let granted = largest(grants);
    if known.len() >= majority(nodes) {
        let token = granted.max(largest(&known).saturating_add(1));
        Step::Confirm { token, basis: FenceBasis::Majority }
    } else if unknown.len() >= majority(nodes) {
        Step::Confirm { token: granted.max(proposal), basis: FenceBasis::Clock }
    } else {
        Step::Stuck
    }
}

/// What a node that lost its counter can be taught, from what all were asked after its quarantine:
/// with it, the node is as good as one that never lost it.
#[must_use]
pub fn to_learn(nodes: usize, reads: &[Counter]) -> Option<u64> {
    let known: Vec<Counter> = reads.iter().copied().filter(|counter| counter.known).collect();
    (known.len() >= majority(nodes)).then(|| largest(&known))
}

/// The smallest number of nodes of which any two choices out of `nodes` share one.
const fn majority(nodes: usize) -> usize {
    nodes / 2 + 1
}

fn largest(counters: &[Counter]) -> u64 {
    counters.iter().map(|counter| counter.value).max().unwrap_or_default()
}

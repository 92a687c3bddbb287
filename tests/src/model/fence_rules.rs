//! What the client of the fence decides: the same rules as the code that ships.

/// A node's counter for a key, as told with a grant or when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The last token that the node has seen; with a grant, the one that it raised it to.
    pub value: u64,
    /// Whether the node kept its counter for as long as there have been locks.
    pub known: bool,
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
    let known: Vec<Counter> = reads.iter().copied().filter(|read| read.known).collect();
    let granted = largest(grants);
    if known.len() >= majority(nodes) {
        let token = granted.max(largest(&known).saturating_add(1));
        Step::Confirm { token, basis: FenceBasis::Majority }
    } else {
        Step::Confirm { token: granted.max(proposal), basis: FenceBasis::Clock }
    }
}

/// The smallest number of nodes of which any two choices out of `nodes` share one.
const fn majority(nodes: usize) -> usize {
    nodes / 2 + 1
}

fn largest(counters: &[Counter]) -> u64 {
    counters.iter().map(|counter| counter.value).max().unwrap_or_default()
}

//! Why there is no lock, with what each node had to say about it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use crate::protocol::quorum::NodeAnswer;
use crate::protocol::quorum::majority;
use crate::protocol::tenure::LostReason;

/// What kind of failure a [`LockError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Somebody else has the key: a majority of the servers says so, or this process knows by itself.
    /// Or too many wait for it in this process already. Trying again later helps.
    Contended,
    /// No majority answered, or could vote: the lock service is not there.
    Unavailable,
    /// A majority granted the key, but so late that nothing of the lease was left; or less is left
    /// of it than was asked for.
    Expired,
    /// The lease is gone: it ran out, or a majority said that it is not ours.
    Lost,
    /// The request is invalid: a bad key or duration, or a future that is awaited outside of a tokio
    /// runtime. A retry fails in the same way.
    Invalid,
    /// The [`Redlock`](crate::Redlock) was closed.
    Closed,
}

/// The answer of one node, for a report.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeReport {
    /// Host, port and database, or the path of the socket; never a password.
    pub node: String,
    /// What it answered.
    pub answer: NodeAnswer,
}

impl NodeReport {
    pub(crate) fn new(node: &str, answer: NodeAnswer) -> Self {
        Self { node: node.into(), answer }
    }
}

impl fmt::Display for NodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.node, self.answer)
    }
}

/// Why a key could not be locked, extended or kept.
///
/// [`kind`](Self::kind) tells "locked by somebody else" from "the lock service is not there",
/// [`nodes`](Self::nodes) what each server answered.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use redlock_core::{ErrorKind, Redlock};
///
/// let redlock = Redlock::in_memory();
/// let guard = redlock.try_lock("order:42").await.unwrap();
/// let error = redlock.try_lock("order:42").await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Contended);
/// assert!(error.retry_after().is_some());
/// guard.release().await;
/// # }
/// ```
pub struct LockError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    reason: String,
    nodes: Vec<NodeReport>,
    holder: Option<Arc<str>>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl LockError {
    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether somebody else has the key.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        self.0.kind == ErrorKind::Contended
    }

    /// Whether no majority of the nodes could be asked.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        self.0.kind == ErrorKind::Unavailable
    }

    /// Whether it is [`Unavailable`](ErrorKind::Unavailable) because of a quarantine and not because
    /// servers can't be reached: with those in quarantine there would be a majority. It ends in
    /// [`retry_after`](Self::retry_after).
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.is_unavailable() && are_quarantined(&self.0.nodes)
    }

    /// Whether the [`Redlock`](crate::Redlock) was closed: this process ends, and no server is at
    /// fault.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.kind == ErrorKind::Closed
    }

    /// In how long trying again may succeed. For [`Contended`](ErrorKind::Contended): when a majority
    /// of the nodes will be free, unless the holder renews its lease. For
    /// [`Unavailable`](ErrorKind::Unavailable): when servers that are down will next be tried, or
    /// when those that may have forgotten locks vote again. `None`
    /// for all others, and if nobody knows.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The label of who holds the key, if that is known.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.0.holder.as_deref()
    }

    /// What each node of the group answered; empty if none was asked.
    #[must_use]
    pub fn nodes(&self) -> &[NodeReport] {
        &self.0.nodes
    }

    fn new(kind: ErrorKind, reason: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            reason: reason.into(),
            nodes: Vec::new(),
            holder: None,
            retry_after: None,
            source: None,
        }))
    }

    pub(crate) fn contended(nodes: Vec<NodeReport>) -> Self {
        let holding = Holding::of(&nodes);
        Self::held(holding.label, holding.free_in).with_nodes(nodes)
    }

    /// Contended within this process: no node was asked.
    pub(crate) fn held(holder: Option<Arc<str>>, free_in: Option<Duration>) -> Self {
        let mut reason = "locked by ".to_owned();
        reason.push_str(holder.as_deref().unwrap_or("somebody else"));
        if let Some(free_in) = free_in.filter(|free_in| !free_in.is_zero()) {
            reason.push_str(&format!(" for another {free_in:.1?}"));
        }
        let mut error = Self::new(ErrorKind::Contended, reason);
        error.0.holder = holder;
        error.0.retry_after = free_in;
        error
    }

    /// The line of those who wait for the key in this process is as long as it may get.
    pub(crate) fn line_full(waiting: usize, holder: Option<Arc<str>>) -> Self {
        let reason = format!("{waiting} wait for it in this process already (`max_waiters`)");
        let mut error = Self::new(ErrorKind::Contended, reason);
        error.0.holder = holder;
        error
    }

    /// `back_within`: after which time a node that is down is tried again.
    pub(crate) fn unavailable(nodes: Vec<NodeReport>, back_within: Duration) -> Self {
        let votes = nodes.iter().filter(|node| node.answer.is_vote()).count();
        let reason = match (are_quarantined(&nodes), votes >= majority(nodes.len())) {
            (true, _) => "no majority of the nodes votes so far: some are quarantined",
            (_, true) => "no majority of the nodes confirmed it",
            (_, false) => "no majority of the nodes answered",
        };
        let mut error = Self::new(ErrorKind::Unavailable, reason);
        error.0.retry_after = Some(votes_in(&nodes, back_within));
        error.with_nodes(nodes)
    }

    pub(crate) fn no_randomness(error: getrandom::Error) -> Self {
        let reason = "the operating system gave no random bytes for a token";
        Self::new(ErrorKind::Unavailable, reason).with_source(error)
    }

    pub(crate) fn expired(nodes: Vec<NodeReport>) -> Self {
        let reason = "a majority granted the key too late, nothing of the lease was left";
        Self::new(ErrorKind::Expired, reason).with_nodes(nodes)
    }

    pub(crate) fn lost(reason: LostReason) -> Self {
        Self::new(ErrorKind::Lost, format!("the lock was lost: {reason}"))
    }

    pub(crate) fn released() -> Self {
        Self::new(ErrorKind::Lost, "the lock was released")
    }

    pub(crate) fn too_little(left: Duration, needed: Duration) -> Self {
        let reason = format!("only {left:.1?} of the lease are left, and {needed:.1?} are needed");
        Self::new(ErrorKind::Expired, reason)
    }

    pub(crate) fn invalid(error: impl Error + Send + Sync + 'static) -> Self {
        Self::new(ErrorKind::Invalid, error.to_string()).with_source(error)
    }

    pub(crate) fn no_runtime() -> Self {
        let reason = "this future needs a tokio runtime: await it under #[tokio::main] or in \
                      Runtime::block_on";
        Self::new(ErrorKind::Invalid, reason)
    }

    pub(crate) fn closed() -> Self {
        Self::new(ErrorKind::Closed, "the lock service was closed")
    }

    pub(crate) fn with_nodes(mut self, nodes: Vec<NodeReport>) -> Self {
        self.0.nodes = nodes;
        self
    }

    fn with_source(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.0.source = Some(Box::new(source));
        self
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.reason)?;
        for (index, report) in self.0.nodes.iter().enumerate() {
            write!(f, "{}{report}", if index == 0 { " (" } else { "; " })?;
        }
        if self.0.nodes.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl fmt::Debug for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, reason, nodes, holder, retry_after, source } = &*self.0;
        f.debug_struct("LockError")
            .field("kind", kind)
            .field("reason", reason)
            .field("nodes", nodes)
            .field("holder", holder)
            .field("retry_after", retry_after)
            .field("source", source)
            .finish()
    }
}

impl Error for LockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}

/// Whether a majority could vote if it were not for a quarantine.
fn are_quarantined(nodes: &[NodeReport]) -> bool {
    let is_quarantined =
        |report: &&NodeReport| matches!(report.answer, NodeAnswer::Quarantined { .. });
    let may_vote = |report: &&NodeReport| {
        is_quarantined(report)
            || report.answer.is_vote()
            || matches!(report.answer, NodeAnswer::NoAnswer)
    };
    nodes.iter().any(|report| is_quarantined(&report))
        && nodes.iter().filter(may_vote).count() >= majority(nodes.len())
}

/// When a majority may vote again: those in quarantine are ready when they say, those that are down
/// may be back when they are tried next.
fn votes_in(nodes: &[NodeReport], back_within: Duration) -> Duration {
    let mut waits: Vec<Duration> = nodes
        .iter()
        .map(|report| match report.answer {
            NodeAnswer::Quarantined { ready_in } => ready_in,
            NodeAnswer::Granted | NodeAnswer::Held { .. } | NodeAnswer::NotHeld => Duration::ZERO,
            _ => back_within,
        })
        .collect();
    waits.sort_unstable();
    // If a majority votes already and can't decide it, the next one does.
    let first = majority(nodes.len()) - 1;
    let decides = waits.iter().skip(first).find(|wait| !wait.is_zero());
    decides.or_else(|| waits.get(first)).copied().unwrap_or(back_within)
}

/// Who holds a key, as far as the answers of a group tell.
#[derive(Debug, Default)]
pub(crate) struct Holding {
    /// The label of who has it for the longest.
    pub(crate) label: Option<Arc<str>>,
    /// When a majority will be free, if nobody renews or releases.
    pub(crate) free_in: Option<Duration>,
}

impl Holding {
    pub(crate) fn of(nodes: &[NodeReport]) -> Self {
        let mut free_in: Vec<Duration> = Vec::with_capacity(nodes.len());
        let mut longest = (Duration::ZERO, None);
        for report in nodes {
            match &report.answer {
                NodeAnswer::Held { label, remaining } => {
                    // A key without expiry, or a node that was not asked for how long.
                    free_in.push(remaining.unwrap_or(Duration::MAX));
                    let remaining = remaining.unwrap_or_default();
                    if label.is_some() && remaining >= longest.0 {
                        longest = (remaining, label.clone());
                    }
                }
                NodeAnswer::Granted | NodeAnswer::NotHeld => free_in.push(Duration::ZERO),
                _ => {}
            }
        }
        free_in.sort_unstable();
        let quorum = majority(nodes.len());
        let free_in = free_in.get(quorum - 1).copied().filter(|free_in| *free_in < Duration::MAX);
        Self { label: longest.1, free_in }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(label: &str, millis: u64) -> NodeReport {
        let remaining = Some(Duration::from_millis(millis));
        NodeReport::new("n:1", NodeAnswer::Held { label: Some(label.into()), remaining })
    }

    fn report(answer: NodeAnswer) -> NodeReport {
        NodeReport::new("n:2", answer)
    }

    #[test]
    fn the_error_says_who_holds_it_and_when_a_majority_is_free() {
        let nodes = vec![held("api-7", 900), report(NodeAnswer::TimedOut), held("api-7", 800)];
        let error = LockError::contended(nodes);
        assert!(error.is_contended());
        assert_eq!(error.holder(), Some("api-7"));
        assert_eq!(error.retry_after(), Some(Duration::from_millis(900)));
        let text = error.to_string();
        assert!(text.starts_with("locked by api-7 for another 900.0ms (n:1: held"), "{text}");
        assert!(text.contains("n:2: timed out"), "{text}");
    }

    #[test]
    fn a_majority_is_free_when_the_last_but_the_slowest_minority_is() {
        let nodes = [held("a", 10), held("a", 500), held("a", 20)];
        assert_eq!(Holding::of(&nodes).free_in, Some(Duration::from_millis(20)));
        let split = [held("a", 10), report(NodeAnswer::Granted), held("b", 500)];
        assert_eq!(Holding::of(&split).free_in, Some(Duration::from_millis(10)));
        assert_eq!(Holding::of(&split).label.as_deref(), Some("b"));
    }

    #[test]
    fn the_time_until_a_majority_is_free_is_unknown_without_its_answers() {
        let for_ever = || report(NodeAnswer::Held { label: None, remaining: None });
        let silent = || report(NodeAnswer::TimedOut);
        let free = || report(NodeAnswer::NotHeld);
        let free_in = |nodes: [NodeReport; 3]| Holding::of(&nodes).free_in;
        assert_eq!(free_in([for_ever(), for_ever(), held("a", 9)]), None);
        assert_eq!(
            free_in([for_ever(), held("a", 7), held("a", 9)]),
            Some(Duration::from_millis(9))
        );
        assert_eq!(free_in([held("a", 9), silent(), silent()]), None);
        assert_eq!(free_in([free(), silent(), held("a", 9)]), Some(Duration::from_millis(9)));
        assert_eq!(free_in([free(), free(), for_ever()]), Some(Duration::ZERO));
    }

    #[test]
    fn a_retry_waits_for_the_silent_node_that_decides() {
        let nodes = || vec![report(NodeAnswer::NotHeld), report(NodeAnswer::Granted)];
        let open = [nodes(), vec![report(NodeAnswer::TimedOut)]].concat();
        let error = LockError::unavailable(open, Duration::from_secs(1));
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
        assert!(
            error.to_string().starts_with("no majority of the nodes confirmed it ("),
            "{error}"
        );
    }

    #[test]
    fn a_majority_votes_when_enough_are_out_of_quarantine_or_back() {
        let ready = |secs| report(NodeAnswer::Quarantined { ready_in: Duration::from_secs(secs) });
        let after = |nodes| LockError::unavailable(nodes, Duration::from_secs(1)).retry_after();
        let secs = |secs| Some(Duration::from_secs(secs));
        assert_eq!(after(vec![ready(8), ready(5), ready(9)]), secs(8));
        assert_eq!(after(vec![ready(8), ready(5), report(NodeAnswer::NotHeld)]), secs(5));
        assert_eq!(after(vec![ready(8), report(NodeAnswer::TimedOut), ready(9)]), secs(8));
        assert_eq!(after(vec![report(NodeAnswer::TimedOut)]), secs(1));
    }

    #[test]
    fn a_quarantine_is_told_apart_from_servers_that_are_down_and_from_closing() {
        let quarantined = || report(NodeAnswer::Quarantined { ready_in: Duration::from_secs(8) });
        let (down, voted) = (|| report(NodeAnswer::TimedOut), || report(NodeAnswer::NotHeld));
        let missing = || report(NodeAnswer::NoAnswer);
        let error = |nodes| LockError::unavailable(nodes, Duration::from_secs(1));
        for nodes in [
            vec![quarantined(), quarantined(), missing()],
            vec![quarantined(), down(), voted()],
            vec![quarantined(), down(), missing()],
        ] {
            let error = error(nodes);
            assert!(error.is_quarantined() && error.is_unavailable() && !error.is_closed());
            assert!(error.to_string().contains("votes so far: some are quarantined"), "{error}");
        }
        for nodes in [vec![quarantined(), down(), down()], vec![down(), down(), missing()]] {
            let error = error(nodes);
            assert!(!error.is_quarantined() && error.is_unavailable(), "{error}");
            assert!(error.to_string().contains("no majority of the nodes answered"), "{error}");
        }
        let closed = LockError::closed();
        assert!(closed.is_closed() && !closed.is_quarantined() && !closed.is_unavailable());
    }

    #[test]
    fn an_error_is_one_word_wide() {
        assert_eq!(size_of::<LockError>(), size_of::<usize>());
    }
}

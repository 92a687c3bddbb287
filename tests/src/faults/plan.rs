//! Which fault happens when, from a seed.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::Options;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A server is killed and comes back at once, without its data.
    Kill,
    /// A server loses its data.
    Flush,
    /// A server stands still for a while.
    Stop,
    /// A client stands still for a while.
    PauseClient,
    /// A client is killed, and another one takes its place.
    KillClient,
    /// Connections to a server break.
    Cut,
    /// What clients and a server send to each other is late for a while, in one direction.
    Delay,
    /// What clients send on the connections that they have arrives after a while only, and after
    /// what they send on new ones.
    Late,
    /// What a server answers is lost for a while, and then the connections break.
    DropReply,
    /// A server takes no new data for a while.
    Oom,
    /// A server forgets its scripts.
    Scripts,
    /// A server closes all its connections.
    ClientKill,
    /// A server becomes the replica of another one, takes over its data, and stands alone again.
    Promote,
    /// A server that writes to an append-only file is killed, loses the end of the file, and comes
    /// back with the rest.
    Torn,
    /// The user of the clients may not run scripts on a server for a while.
    Acl,
    /// A server holds all commands back for a while.
    PauseAll,
    /// A server holds commands that write back for a while.
    PauseWrites,
    /// One client after the other ends and is replaced by one of a new configuration.
    Epoch,
    /// The wall clock of a server is wrong by seconds for a while. Not among the faults unless asked
    /// for: a lock stands it only with `max_clock_skew`.
    Clock,
}

impl Kind {
    /// Whether a server loses what it knew of the locks: one whose clock is ahead drops them.
    #[must_use]
    pub fn loses_data(self) -> bool {
        matches!(self, Self::Kill | Self::Flush | Self::Promote | Self::Torn | Self::Clock)
    }

    /// Whether a lock is to stand it.
    #[must_use]
    pub fn is_promised(self) -> bool {
        self != Self::Clock
    }

    /// Whether those who lock are replaced by it, or have to wait for the time to live after it.
    pub(super) fn takes_a_short_ttl(self) -> bool {
        matches!(self, Self::KillClient | Self::Epoch)
    }

    fn is_of_a_client(self) -> bool {
        matches!(self, Self::PauseClient | Self::KillClient)
    }

    fn lasts(self) -> bool {
        matches!(
            self,
            Self::Stop
                | Self::PauseClient
                | Self::Delay
                | Self::DropReply
                | Self::Oom
                | Self::Torn
                | Self::Clock
                | Self::Acl
                | Self::PauseAll
                | Self::PauseWrites
        )
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// When it begins, from the start of the run.
    pub at: Duration,
    /// What happens.
    pub kind: Kind,
    /// The server that it happens to, or between which and its clients.
    pub node: usize,
    /// The client that it happens to. For a fault of the network: the only one whose connections
    /// have it, or all of them.
    pub client: Option<usize>,
    /// For how long, if it lasts at all.
    pub lasts: Duration,
    /// How late something is.
    pub delay: Duration,
    /// Whether a delay is on the way to the server, and not back.
    pub to_server: bool,
}

/// The faults of a run, in the order in which they begin.
#[derive(Debug)]
pub(super) struct Plan(pub(super) Vec<Fault>);

impl Plan {
    pub(super) fn of(options: &Options) -> Self {
        let mut planner = Planner::new(options);
        let mut faults = Vec::new();
        let mut at = Duration::ZERO;
        loop {
            at += options.every.mul_f64(0.5 + planner.random.f64());
            if at >= Duration::from_secs(options.seconds) {
                return Self(faults);
            }
            faults.extend(planner.fault(at));
        }
    }
}

/// Time between two changes of the configuration: every one puts all servers into quarantine.
const EPOCH: Duration = Duration::from_secs(10);

/// How often a server lost its data, one time soon after the other.
struct Losses {
    node: usize,
    first: Duration,
    last: Duration,
}

struct Planner<'a> {
    options: &'a Options,
    random: fastrand::Rng,
    /// Until when each server and each client has a fault already.
    nodes_until: Vec<Duration>,
    clients_until: Vec<Duration>,
    losses: Option<Losses>,
    /// When the configuration may change again.
    next_epoch: Duration,
}

impl<'a> Planner<'a> {
    fn new(options: &'a Options) -> Self {
        Self {
            options,
            random: fastrand::Rng::with_seed(options.seed),
            nodes_until: vec![Duration::ZERO; options.nodes],
            clients_until: vec![Duration::ZERO; options.clients],
            losses: None,
            next_epoch: Duration::ZERO,
        }
    }

    /// A fault that can begin now, if there is one.
    fn fault(&mut self, at: Duration) -> Option<Fault> {
        let mut kinds = self.options.kinds();
        self.random.shuffle(&mut kinds);
        kinds.into_iter().find_map(|kind| self.fault_of(kind, at))
    }

    fn fault_of(&mut self, kind: Kind, at: Duration) -> Option<Fault> {
        let ttl = *self.options.ttl;
        let most = ttl.min(Duration::from_secs(2));
        let lasts = if kind.lasts() { most.mul_f64(1.5 * self.random.f64()) } else { most / 4 };
        let any_client = self.random.usize(..self.options.clients);
        let client = (kind.is_of_a_client() || self.random.bool()).then_some(any_client);
        let delay = most.mul_f64(self.random.f64());
        let to_server = self.random.bool();
        let node = if kind == Kind::Epoch {
            if self.next_epoch > at {
                return None;
            }
            self.next_epoch = at + EPOCH;
            0
        } else if kind.is_of_a_client() {
            if self.clients_until[any_client] > at {
                return None;
            }
            self.clients_until[any_client] = at + lasts;
            0
        } else {
            let free: Vec<_> = (0..self.options.nodes)
                .filter(|node| self.nodes_until[*node] <= at)
                .filter(|node| !kind.loses_data() || self.may_lose(*node, at))
                .collect();
            let node = *self.random.choice(&free)?;
            self.nodes_until[node] = at + lasts;
            if kind.loses_data() {
                self.loses(node, at);
            }
            node
        };
        Some(Fault { at, kind, node, client, lasts, delay, to_server })
    }

    /// A server may lose its data again and again, but not for so long that it is never the turn
    /// of another one.
    fn may_lose(&self, node: usize, at: Duration) -> bool {
        let spacing = self.options.spacing();
        self.losses.as_ref().is_none_or(|losses| {
            at >= losses.last + spacing || node == losses.node && at < losses.first + spacing
        })
    }

    fn loses(&mut self, node: usize, at: Duration) {
        let spacing = self.options.spacing();
        match &mut self.losses {
            Some(losses) if at < losses.last + spacing => losses.last = at,
            losses => *losses = Some(Losses { node, first: at, last: at }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn options() -> Options {
        Options { seconds: 120, seed: 7, ..Options::new() }
    }

    fn millis(millis: u64) -> humantime::Duration {
        Duration::from_millis(millis).into()
    }

    #[test]
    fn a_seed_makes_the_same_plan_again_and_another_seed_another_one() {
        let plan = Plan::of(&options()).0;
        assert_eq!(plan, Plan::of(&options()).0);
        assert_ne!(plan, Plan::of(&Options { seed: 8, ..options() }).0);
    }

    #[test]
    fn every_kind_comes_about_as_often_as_it_is_told_to() {
        let plan = Plan::of(&options()).0;
        let kinds: BTreeSet<Kind> = plan.iter().map(|fault| fault.kind).collect();
        let promised = Kind::value_variants().iter().copied().filter(|kind| kind.is_promised());
        assert_eq!(kinds, promised.collect());
        assert!((270..330).contains(&plan.len()), "{} faults in 300 times 400 ms", plan.len());
        assert!(plan.is_sorted_by_key(|fault| fault.at));
    }

    #[test]
    fn only_what_was_asked_for_is_planned() {
        let only = vec![Kind::Kill, Kind::Stop];
        let plan = Plan::of(&Options { only, ..options() }).0;
        assert!(plan.iter().all(|fault| matches!(fault.kind, Kind::Kill | Kind::Stop)));
        assert!(plan.iter().any(|fault| fault.kind == Kind::Stop));
    }

    #[test]
    fn a_server_or_client_has_one_fault_at_a_time() {
        let mut plan = Plan::of(&Options { every: millis(50), ..options() }).0;
        // This one happens to all of them.
        plan.retain(|fault| fault.kind != Kind::Epoch);
        for (number, fault) in plan.iter().enumerate() {
            let same = |other: &&Fault| {
                other.kind.is_of_a_client() == fault.kind.is_of_a_client()
                    && if fault.kind.is_of_a_client() {
                        other.client == fault.client
                    } else {
                        other.node == fault.node
                    }
            };
            if let Some(next) = plan[number + 1..].iter().find(same) {
                assert!(next.at >= fault.at + fault.lasts, "{fault:?} and {next:?}");
            }
        }
    }

    #[test]
    fn a_clock_is_set_only_where_that_was_asked_for() {
        let only = vec![Kind::Clock];
        assert!(Plan::of(&options()).0.iter().all(|fault| fault.kind != Kind::Clock));
        assert!(!Plan::of(&Options { only, ..options() }).0.is_empty());
    }

    #[test]
    fn the_configuration_changes_every_ten_seconds_at_most() {
        let plan = Plan::of(&Options { every: millis(50), ..options() }).0;
        let changes: Vec<_> = plan.iter().filter(|fault| fault.kind == Kind::Epoch).collect();
        assert!(changes.len() > 5, "{} changes", changes.len());
        assert!(changes.windows(2).all(|pair| pair[1].at - pair[0].at >= EPOCH));
    }

    #[test]
    fn with_spacing_no_two_servers_lose_their_data_within_it() {
        let spaced = Options { spacing: Some(millis(700)), every: millis(50), ..options() };
        let losses: Vec<Fault> =
            Plan::of(&spaced).0.into_iter().filter(|fault| fault.kind.loses_data()).collect();
        assert!(losses.len() > 20, "{} losses", losses.len());
        let turns = losses.windows(2).filter(|pair| pair[0].node != pair[1].node).count();
        assert!(turns > 20, "it was the turn of another server {turns} times only");
        for pair in losses.windows(2) {
            let apart = pair[1].at - pair[0].at;
            assert!(pair[0].node == pair[1].node || apart >= Duration::from_millis(700));
        }
    }

    #[test]
    fn nobody_is_killed_where_all_would_have_to_wait_for_the_time_to_live() {
        let plan = Plan::of(&Options { ttl: millis(60_000), ..options() }).0;
        assert!(plan.iter().all(|fault| !fault.kind.takes_a_short_ttl()));
        assert!(plan.iter().all(|fault| fault.lasts <= Duration::from_secs(3)));
    }
}

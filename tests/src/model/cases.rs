//! What is searched, and what has to come out.

use std::fmt;

use serde::Serialize;

use super::clients::{ATTEMPTS, Clients};
use super::fence::Fence;
use super::lease::Lease;
use super::mutant::Mutant;
use super::search::{Findings, Protocol, exhaust, refute, witness};

/// What a case is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Subject {
    /// Tokens grow, whatever clocks, pauses and networks do.
    Fence,
    /// Clocks that drift, and retries.
    Lease,
    /// Servers that lose their data.
    Quarantine,
    /// Leases that are extended.
    Extension,
}

/// How much time a case takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effort {
    /// Seconds.
    Quick,
    /// Up to a few minutes.
    Normal,
    /// More, or all the memory there is.
    Long,
}

/// One search.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is about.
    pub subject: Subject,
    /// How much time it takes.
    pub effort: Effort,
    protocol: Either,
}

#[derive(Clone, Debug)]
enum Either {
    Fence(Fence),
    Lease(Lease),
}

/// What came out of a search.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What was searched.
    pub model: String,
    /// What is wrong with it.
    pub mutant: Option<String>,
    /// States with different futures.
    pub unique: usize,
    /// Steps taken.
    pub transitions: usize,
    /// Steps of the longest way that was followed.
    pub depth: usize,
    /// How long it took.
    pub seconds: f64,
    /// What it means.
    pub verdict: Verdict,
    /// What went wrong in the end, if anything did.
    pub fault: Option<&'static str>,
    /// How it went wrong.
    pub trace: Vec<String>,
}

/// What the outcome of a search means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every state was searched and none is bad.
    Holds,
    /// None of the states that were searched is bad.
    HoldsSoFar,
    /// A mistake was found out.
    Refuted,
    /// A state is bad, although there is no mistake.
    Violated,
    /// A mistake was not found out.
    Missed,
    /// Nothing happens that could go wrong.
    Vacuous,
}

impl Verdict {
    /// Whether it is as it must be.
    #[must_use]
    pub const fn is_good(self) -> bool {
        matches!(self, Self::Holds | Self::HoldsSoFar | Self::Refuted)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Holds => "holds",
            Self::HoldsSoFar => "holds so far",
            Self::Refuted => "refuted",
            Self::Violated => "VIOLATED",
            Self::Missed => "NOT REFUTED",
            Self::Vacuous => "VACUOUS",
        })
    }
}

impl Case {
    /// What is wrong with what it searches.
    #[must_use]
    pub const fn mutant(&self) -> Option<Mutant> {
        match &self.protocol {
            Either::Fence(fence) => fence.mutant,
            Either::Lease(lease) => lease.mutant,
        }
    }

    /// Searches up to `cap` transitions.
    #[must_use]
    pub fn run(&self, cap: usize) -> Outcome {
        let (verdict, findings) = match &self.protocol {
            Either::Fence(fence) => judge(fence, fence.mutant, cap),
            Either::Lease(lease) => judge(lease, lease.mutant, cap),
        };
        let found = findings.found.filter(|found| found.fault.is_some());
        Outcome {
            model: self.to_string(),
            mutant: self.mutant().map(|mutant| mutant.to_string()),
            unique: findings.unique,
            transitions: findings.transitions,
            depth: findings.depth,
            seconds: findings.elapsed.as_secs_f64(),
            verdict,
            fault: found.as_ref().and_then(|found| found.fault),
            trace: found.map(|found| found.trace).unwrap_or_default(),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.protocol {
            Either::Fence(fence) => write!(f, "fence {fence}"),
            Either::Lease(lease) => {
                let subject = format!("{:?}", self.subject).to_lowercase();
                write!(f, "{subject} {lease}")
            }
        }
    }
}

fn judge<P: Protocol>(protocol: &P, mutant: Option<Mutant>, cap: usize) -> (Verdict, Findings) {
    if mutant.is_some() {
        let findings = refute(protocol, cap);
        let verdict = if findings.found.is_some() { Verdict::Refuted } else { Verdict::Missed };
        return (verdict, findings);
    }
    let everything = witness(protocol, cap);
    if everything.found.is_none() {
        return (Verdict::Vacuous, everything);
    }
    let findings = exhaust(protocol, cap);
    let verdict = match (&findings.found, findings.exhausted) {
        (Some(_), _) => Verdict::Violated,
        (None, true) => Verdict::Holds,
        (None, false) => Verdict::HoldsSoFar,
    };
    (verdict, findings)
}

/// All cases, in the order in which they are told.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = fences();
    cases.extend(leases());
    cases.extend(quarantines());
    cases.extend(extensions());
    cases
}

fn fences() -> Vec<Case> {
    use Effort::{Long, Normal, Quick};
    let sound = Fence {
        clients: Clients(&[1, 1]),
        crashes: 0,
        mends: false,
        proposals: [0; ATTEMPTS],
        mutant: None,
    };
    let fence = |effort, clients, crashes| {
        case(Subject::Fence, effort, Fence { clients: Clients(clients), crashes, ..sound.clone() })
    };
    let wrong_clocks = |effort, clients, crashes, proposals| {
        let clients = Clients(clients);
        case(Subject::Fence, effort, Fence { clients, crashes, proposals, ..sound.clone() })
    };
    let broken = |mutant, clients, crashes| {
        let (clients, mutant) = (Clients(clients), Some(mutant));
        case(Subject::Fence, Quick, Fence { clients, crashes, mutant, ..sound.clone() })
    };
    let mended = |effort, clients, crashes, mutant| {
        let clients = Clients(clients);
        let fence = Fence { clients, crashes, mends: true, mutant, ..sound.clone() };
        case(Subject::Fence, effort, fence)
    };
    vec![
        fence(Quick, &[2, 1], 0),
        fence(Quick, &[2, 2], 0),
        fence(Quick, &[1, 1, 1], 0),
        wrong_clocks(Quick, &[2, 1], 0, [3, 3, 0, 0]),
        fence(Quick, &[1, 1], 1),
        fence(Quick, &[1, 1], 2),
        wrong_clocks(Quick, &[1, 1], 2, [3, 0, 0, 0]),
        fence(Quick, &[2, 1], 1),
        mended(Quick, &[1, 1], 1, None),
        broken(Mutant::NoConfirm, &[1, 1], 0),
        broken(Mutant::ConfirmWithoutOwner, &[2, 1], 0),
        broken(Mutant::UnknownIsZero, &[1, 1], 1),
        broken(Mutant::NoQuarantine, &[2, 1], 1),
        broken(Mutant::UncountedConfirm, &[2, 1], 0),
        broken(Mutant::ConfirmOfAll, &[2, 1], 1),
        broken(Mutant::UntoldIsLost, &[1, 1], 1),
        broken(Mutant::UnreadConfirm, &[2, 1], 1),
        mended(Quick, &[1, 1], 1, Some(Mutant::EarlyLesson)),
        mended(Normal, &[1, 1], 2, None),
        fence(Normal, &[3, 1], 0),
        fence(Normal, &[2, 1, 1], 0),
        fence(Normal, &[1, 1, 1, 1], 0),
        wrong_clocks(Normal, &[2, 1], 1, [3, 3, 0, 0]),
        fence(Normal, &[2, 1], 2),
        fence(Normal, &[1, 1, 1], 1),
        mended(Long, &[2, 1], 1, None),
        fence(Long, &[3, 1], 1),
        fence(Long, &[2, 2], 1),
        fence(Long, &[1, 1, 1], 2),
    ]
}

/// A lease of four ticks, of which a server may gain one and a client may miss one.
const DRIFTING: Lease = Lease {
    clients: Clients(&[1, 1]),
    ttl: 4,
    gain: 1,
    miss: 1,
    crashes: 0,
    extensions: 0,
    mutant: None,
};

fn leases() -> Vec<Case> {
    use Effort::{Long, Normal, Quick};
    let lease = |effort, clients, lease| {
        case(Subject::Lease, effort, Lease { clients: Clients(clients), ..lease })
    };
    let slower = Lease { ttl: 8, gain: 2, miss: 2, ..DRIFTING };
    let broken = |mutant| Lease { mutant: Some(mutant), ..DRIFTING };
    vec![
        lease(Quick, &[2, 1], DRIFTING),
        lease(Quick, &[1, 1, 1], DRIFTING),
        lease(Quick, &[1, 1], broken(Mutant::HalfMargin)),
        lease(Quick, &[2, 1], broken(Mutant::ReusedToken)),
        lease(Quick, &[1, 1], broken(Mutant::LeaseFromItsEnd)),
        lease(Normal, &[2, 2], DRIFTING),
        lease(Normal, &[2, 1], slower.clone()),
        lease(Long, &[1, 1, 1], slower),
    ]
}

fn quarantines() -> Vec<Case> {
    use Effort::{Long, Normal, Quick};
    let lease = |effort, clients, crashes, lease| {
        let lease = Lease { clients: Clients(clients), crashes, ..lease };
        case(Subject::Quarantine, effort, lease)
    };
    let exact = Lease { ttl: 3, gain: 0, miss: 0, ..DRIFTING };
    let broken = |mutant| Lease { mutant: Some(mutant), ..exact.clone() };
    vec![
        lease(Quick, &[2, 1], 1, exact.clone()),
        lease(Quick, &[2, 1], 2, exact.clone()),
        lease(Quick, &[1, 1], 1, DRIFTING),
        lease(Quick, &[1, 1], 2, DRIFTING),
        lease(Quick, &[1, 1], 1, broken(Mutant::NoQuarantine)),
        lease(Quick, &[1, 1], 1, broken(Mutant::ShortQuarantine)),
        lease(Normal, &[2, 1], 1, DRIFTING),
        lease(Long, &[2, 1], 2, DRIFTING),
    ]
}

fn extensions() -> Vec<Case> {
    use Effort::{Long, Normal, Quick};
    let lease = |effort, clients, extensions, crashes, lease| {
        let lease = Lease { clients: Clients(clients), extensions, crashes, ..lease };
        case(Subject::Extension, effort, lease)
    };
    let broken = |mutant| Lease { mutant: Some(mutant), ..DRIFTING };
    vec![
        lease(Quick, &[1, 1], 1, 0, DRIFTING),
        lease(Quick, &[1, 1], 2, 0, DRIFTING),
        lease(Quick, &[1, 1], 1, 1, DRIFTING),
        lease(Quick, &[1, 1], 1, 0, broken(Mutant::FailedExtendReleases)),
        lease(Quick, &[1, 1], 1, 0, broken(Mutant::ExtensionFromItsEnd)),
        lease(Normal, &[2, 1], 1, 0, DRIFTING),
        lease(Long, &[2, 1], 1, 1, DRIFTING),
    ]
}

impl From<Fence> for Either {
    fn from(fence: Fence) -> Self {
        Self::Fence(fence)
    }
}

impl From<Lease> for Either {
    fn from(lease: Lease) -> Self {
        Self::Lease(lease)
    }
}

fn case(subject: Subject, effort: Effort, protocol: impl Into<Either>) -> Case {
    Case { subject, effort, protocol: protocol.into() }
}

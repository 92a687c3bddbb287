//! Searches all states that a protocol can reach, and tells how it came to a bad one.

use std::fmt::Debug;
use std::hash::Hash;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};

/// A protocol among a few clients and servers, small enough to be searched.
pub trait Protocol: Clone + Send + Sync + 'static {
    /// Everything that matters for what can happen next.
    type State: Clone + Debug + Eq + Hash + Send + Sync + 'static;
    /// One thing that happens.
    type Step: Clone + Debug + PartialEq + Send + Sync + 'static;

    /// The state before anything happened.
    fn begin(&self) -> Self::State;

    /// What can happen next.
    fn steps(&self, state: &Self::State, steps: &mut Vec<Self::Step>);

    /// The state after `step`.
    fn take(&self, state: &Self::State, step: &Self::Step) -> Self::State;

    /// The one that stands for all states with the same future: they differ in the names of
    /// servers, or in what can have no effect any more.
    fn canonical(&self, state: Self::State) -> Self::State;

    /// What is wrong with this state.
    fn fault(&self, state: &Self::State) -> Option<&'static str>;

    /// Whether everything that this protocol is about has happened on the way to this state.
    fn is_witness(&self, state: &Self::State) -> bool;

    /// A step in words.
    fn tell(&self, before: &Self::State, step: &Self::Step) -> String;
}

/// What a search has seen.
#[derive(Clone, Debug)]
pub struct Findings {
    /// States with different futures.
    pub unique: usize,
    /// Steps taken, also those to states that were known.
    pub transitions: usize,
    /// Steps of the longest way that was followed.
    pub depth: usize,
    /// How long it took.
    pub elapsed: Duration,
    /// Whether there is nothing left to see.
    pub exhausted: bool,
    /// How it came to what was looked for.
    pub found: Option<Found>,
}

/// What was looked for, and how it comes about.
#[derive(Clone, Debug)]
pub struct Found {
    /// What is wrong in the end, if a fault was looked for.
    pub fault: Option<&'static str>,
    /// The steps in words.
    pub trace: Vec<String>,
}

/// Searches everything for a fault, with two threads and little memory, up to `cap` transitions.
#[must_use]
pub fn exhaust<P: Protocol>(protocol: &P, cap: usize) -> Findings {
    let begun = Instant::now();
    let searched = Searched { protocol: protocol.clone(), goal: Goal::Fault };
    let checker = searched.checker().threads(2).target_state_count(cap);
    findings(protocol, &checker.finish_when(HasDiscoveries::Any).spawn_dfs().join(), begun, cap)
}

/// Searches the nearest states first, so that a fault is told in as few steps as there can be.
#[must_use]
pub fn refute<P: Protocol>(protocol: &P, cap: usize) -> Findings {
    nearest(protocol, Goal::Fault, cap)
}

/// Searches for a state where everything has happened that the protocol is about. If there is
/// none, it means nothing that no fault was found.
#[must_use]
pub fn witness<P: Protocol>(protocol: &P, cap: usize) -> Findings {
    nearest(protocol, Goal::Witness, cap)
}

fn nearest<P: Protocol>(protocol: &P, goal: Goal, cap: usize) -> Findings {
    let begun = Instant::now();
    let searched = Searched { protocol: protocol.clone(), goal };
    let checker = searched.checker().target_state_count(cap);
    findings(protocol, &checker.finish_when(HasDiscoveries::Any).spawn_bfs().join(), begun, cap)
}

fn findings<P: Protocol>(
    protocol: &P,
    checker: &impl Checker<Searched<P>>,
    begun: Instant,
    cap: usize,
) -> Findings {
    let path = checker.discovery(PROPERTY);
    let transitions = checker.state_count();
    Findings {
        unique: checker.unique_state_count(),
        transitions,
        // A way of one state has no step.
        depth: checker.max_depth().saturating_sub(1),
        elapsed: begun.elapsed(),
        exhausted: path.is_none() && transitions < cap,
        found: path.map(|path| retell(protocol, &path.into_states())),
    }
}

/// Servers change their names from one canonical state to the next. In a story they keep them, so
/// the steps are found again from the beginning.
fn retell<P: Protocol>(protocol: &P, states: &[P::State]) -> Found {
    let mut state = protocol.begin();
    let mut trace = Vec::new();
    for wanted in &states[1..] {
        let mut steps = Vec::new();
        protocol.steps(&state, &mut steps);
        let (step, next) = steps
            .into_iter()
            .map(|step| (step.clone(), protocol.take(&state, &step)))
            .find(|(_, next)| protocol.canonical(next.clone()) == *wanted)
            .expect("what can happen does not depend on the names of servers");
        trace.push(protocol.tell(&state, &step));
        state = next;
    }
    Found { fault: protocol.fault(&state), trace }
}

const PROPERTY: &str = "not found";

#[derive(Clone, Copy)]
enum Goal {
    Fault,
    Witness,
}

#[derive(Clone)]
struct Searched<P> {
    protocol: P,
    goal: Goal,
}

impl<P: Protocol> Model for Searched<P> {
    type State = P::State;
    type Action = P::Step;

    fn init_states(&self) -> Vec<Self::State> {
        vec![self.protocol.canonical(self.protocol.begin())]
    }

    fn actions(&self, state: &Self::State, actions: &mut Vec<Self::Action>) {
        if self.protocol.fault(state).is_none() {
            self.protocol.steps(state, actions);
        }
    }

    fn next_state(&self, state: &Self::State, action: Self::Action) -> Option<Self::State> {
        Some(self.protocol.canonical(self.protocol.take(state, &action)))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(PROPERTY, |searched, state| match searched.goal {
            Goal::Fault => searched.protocol.fault(state).is_none(),
            Goal::Witness => !searched.protocol.is_witness(state),
        })]
    }
}

//! Fencing tokens over three servers, while locks expire at any moment, messages are late or lost,
//! and servers lose their data.
//!
//! No clock is in this model. A lock may be gone whenever it stands in somebody's way, so a server
//! grants every command to acquire that arrives; a command that is denied is one that never
//! arrives. An answer arrives with its command or never: a client that hears of it later decides
//! the same later. A client that gives up is one that does not go on.

mod state;
mod story;

use std::fmt;

pub use state::State;
use state::{Attempt, Confirm, Phase, Tally};

use super::clients::{ATTEMPTS, Clients, QUORUM, SERVERS, Set, contains};
use super::fence_rules::{Counter, FenceBasis, Step as Rule, after_grants, after_reads};
use super::mutant::Mutant;
use super::search::Protocol;

/// The protocol of the fence, and how much of it is searched.
#[derive(Clone, Debug)]
pub struct Fence {
    /// Who tries to lock the key.
    pub clients: Clients,
    /// How often a server loses its data.
    pub crashes: u8,
    /// Whether somebody asks all servers for their counters once, and teaches those that do not know
    /// theirs what the others remember.
    pub mends: bool,
    /// What each attempt wants the counters to be raised to: as wrong as wall clocks may be. The
    /// same for all attempts of a client.
    pub proposals: [u8; ATTEMPTS],
    /// What is wrong with it.
    pub mutant: Option<Mutant>,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The command to acquire arrives, and the client decides on the grants that it has `counted`.
    Acquire {
        /// Whose.
        attempt: usize,
        /// Where.
        server: usize,
        /// Nothing is decided yet if there are none.
        counted: Option<Set>,
    },
    /// The command to tell the counter arrives, and the client decides on what it has `counted`.
    Read {
        /// Whose.
        attempt: usize,
        /// Where.
        server: usize,
        /// Nothing is decided yet if there are none.
        counted: Option<Set>,
    },
    /// The command to take a token arrives.
    Confirm {
        /// Whose.
        attempt: usize,
        /// Where.
        server: usize,
    },
    /// A server tells its counter to whoever teaches.
    Tell {
        /// Which.
        server: usize,
    },
    /// A server that does not know its counter learns what the others have told.
    Learn {
        /// Which.
        server: usize,
    },
    /// A server loses its data.
    Crash {
        /// Which.
        server: usize,
    },
}

impl Protocol for Fence {
    type State = State;
    type Step = Step;

    fn begin(&self) -> State {
        State::begin()
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        for attempt in 0..self.clients.attempts() {
            for server in 0..SERVERS {
                self.acquire_steps(state, attempt, server, steps);
                self.read_steps(state, attempt, server, steps);
                if self.may_confirm(state, attempt, server) {
                    steps.push(Step::Confirm { attempt, server });
                }
            }
        }
        if self.mends {
            self.mending_steps(state, steps);
        }
        if state.crashes < self.crashes {
            steps.extend((0..SERVERS).map(|server| Step::Crash { server }));
        }
    }

    fn take(&self, state: &State, step: &Step) -> State {
        let mut state = state.clone();
        match *step {
            Step::Acquire { attempt, server, counted } => {
                self.acquire(&mut state, attempt, server, counted);
            }
            Step::Read { attempt, server, counted } => {
                state.end_quarantine(server);
                let told = state.servers[server].counter;
                state.servers[server].links[attempt].read = Some(told);
                if let Some(counted) = counted {
                    let rule = self.rule_of_reads(&state, attempt, counted);
                    self.follow(&mut state, attempt, rule);
                }
            }
            Step::Confirm { attempt, server } => state.take_token(attempt, server),
            Step::Tell { server } => {
                state.end_quarantine(server);
                state.servers[server].told = Some(state.servers[server].counter);
            }
            Step::Learn { server } => {
                let value = state.lesson().map_or(0, |value| value as u8);
                let here = &mut state.servers[server];
                here.counter = Tally { value: here.counter.value.max(value), known: true };
            }
            Step::Crash { server } => self.crash(&mut state, server),
        }
        state
    }

    fn canonical(&self, mut state: State) -> State {
        state.tidy(self.mutant != Some(Mutant::ConfirmWithoutOwner));
        state.servers.sort_unstable();
        state
    }

    fn fault(&self, state: &State) -> Option<&'static str> {
        state.fault
    }

    fn is_witness(&self, state: &State) -> bool {
        let all = self.clients.attempts();
        let returned = state.attempts_that(|phase| phase == Phase::Returned).count_ones();
        let by_clock = state.attempts.iter().any(|attempt| attempt.by_clock);
        returned as usize == all
            && state.crashes == self.crashes
            && (by_clock || self.crashes < QUORUM as u8)
    }

    fn tell(&self, before: &State, step: &Step) -> String {
        story::tell(self, before, step)
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.clients)?;
        if self.crashes > 0 {
            write!(f, ", crashes {}", self.crashes)?;
        }
        if self.proposals.iter().any(|proposal| *proposal > 0) {
            let proposals = &self.proposals[..self.clients.attempts()];
            write!(f, ", proposals {proposals:?}")?;
        }
        if self.mends {
            f.write_str(", mended")?;
        }
        Ok(())
    }
}

impl Fence {
    /// A client makes its attempts in turn, and clients that are alike begin in turn.
    fn may_begin(&self, state: &State, attempt: usize) -> bool {
        let begun = |attempt: usize| state.attempts[attempt].phase != Phase::Idle;
        match (self.clients.before(attempt), self.clients.twin(attempt)) {
            (Some(before), _) => begun(before),
            (None, Some(twin)) if self.proposals[twin] == self.proposals[attempt] => begun(twin),
            (None, _) => true,
        }
    }

    fn acquire_steps(&self, state: &State, attempt: usize, server: usize, steps: &mut Vec<Step>) {
        let phase = state.attempts[attempt].phase;
        let here = &state.servers[server];
        if here.links[attempt].acquired || phase == Phase::Idle && !self.may_begin(state, attempt) {
            return;
        }
        let ended = contains(here.quarantine, attempt);
        if ended || !matches!(phase, Phase::Idle | Phase::Asking) {
            steps.push(Step::Acquire { attempt, server, counted: None });
            return;
        }
        let granted = state.servers_where(attempt, |link| link.grant.is_some()) | 1 << server;
        let missing = state.servers_where(attempt, |link| !link.acquired).count_ones() - 1;
        if granted.count_ones() < QUORUM || missing > 0 {
            steps.push(Step::Acquire { attempt, server, counted: None });
        }
        let counted = subsets(granted, server).filter(|set| set.count_ones() >= QUORUM);
        steps.extend(counted.map(|set| Step::Acquire { attempt, server, counted: Some(set) }));
    }

    fn read_steps(&self, state: &State, attempt: usize, server: usize, steps: &mut Vec<Step>) {
        let here = &state.servers[server];
        if state.attempts[attempt].phase != Phase::Reading
            || here.links[attempt].read.is_some()
            || contains(here.quarantine, attempt)
        {
            return;
        }
        let mut told = state.clone();
        told.servers[server].links[attempt].read = Some(here.counter);
        let answered = told.servers_where(attempt, |link| link.read.is_some());
        if answered.count_ones() < SERVERS as u32 {
            steps.push(Step::Read { attempt, server, counted: None });
        }
        // Who is stuck does not go on.
        let counted = subsets(answered, server)
            .filter(|counted| self.rule_of_reads(&told, attempt, *counted) != Rule::Stuck);
        steps.extend(counted.map(|set| Step::Read { attempt, server, counted: Some(set) }));
    }

    fn rule_of_reads(&self, state: &State, attempt: usize, counted: Set) -> Rule {
        let grants = self.seen(state.told(attempt, Set::MAX, |link| link.grant));
        let reads = self.seen(state.told(attempt, counted, |link| link.read));
        let proposal = u64::from(self.proposals[attempt]);
        let rule = after_reads(SERVERS, &grants, &reads, proposal);
        let is_lost = self.mutant == Some(Mutant::UntoldIsLost) && reads.len() >= QUORUM as usize;
        match rule {
            Rule::Stuck if is_lost => {
                let granted = grants.iter().map(|grant| grant.value).max();
                let token = proposal.max(granted.unwrap_or_default());
                Rule::Confirm { token, basis: FenceBasis::Clock }
            }
            rule => rule,
        }
    }

    fn mending_steps(&self, state: &State, steps: &mut Vec<Step>) {
        let is_lost = |told: Option<Tally>| told.is_some_and(|told| !told.known);
        // Who remembers is asked when it is certain that the others vote again.
        let in_order = state.servers.iter().any(|server| is_lost(server.told));
        let may_tell = in_order || self.mutant == Some(Mutant::EarlyLesson);
        for (server, here) in state.servers.iter().enumerate() {
            if here.told.is_none() && (may_tell || !here.counter.known) {
                steps.push(Step::Tell { server });
            }
            let may_learn = is_lost(here.told) && !here.told_in_vain && !here.counter.known;
            if may_learn && state.lesson().is_some() {
                steps.push(Step::Learn { server });
            }
        }
    }

    fn may_confirm(&self, state: &State, attempt: usize, server: usize) -> bool {
        let here = &state.servers[server];
        here.links[attempt].confirm.is_on_its_way()
            && here.quarantine == 0
            && (here.holder == Some(attempt as u8)
                || self.mutant == Some(Mutant::ConfirmWithoutOwner))
    }

    fn acquire(&self, state: &mut State, attempt: usize, server: usize, counted: Option<Set>) {
        state.end_quarantine(server);
        if state.attempts[attempt].phase == Phase::Idle {
            if let Some(before) = self.clients.before(attempt) {
                state.attempts[before].give_up();
            }
            let after = state.attempts_that(|phase| phase == Phase::Returned);
            state.attempts[attempt] = Attempt { phase: Phase::Asking, after, ..Attempt::default() };
        }
        let here = &mut state.servers[server];
        here.counter.value = (here.counter.value + 1).max(self.proposals[attempt]);
        here.holder = Some(attempt as u8);
        here.links[attempt].acquired = true;
        if state.attempts[attempt].phase == Phase::Asking {
            here.links[attempt].grant = Some(here.counter);
        }
        if let Some(counted) = counted {
            for (index, other) in state.servers.iter_mut().enumerate() {
                if !contains(counted, index) {
                    other.links[attempt].grant = None;
                }
            }
            let grants = state.told(attempt, counted, |link| link.grant);
            let rule = match self.mutant {
                Some(Mutant::UnreadConfirm) => after_grants_unread(&self.seen(grants)),
                _ => after_grants(SERVERS, &self.seen(grants)),
            };
            self.follow(state, attempt, rule);
        }
    }

    /// The counters as the client takes them.
    fn seen(&self, mut counters: Vec<Counter>) -> Vec<Counter> {
        if self.mutant == Some(Mutant::UnknownIsZero) {
            counters.iter_mut().for_each(|counter| counter.known = true);
        }
        counters
    }

    fn follow(&self, state: &mut State, attempt: usize, rule: Rule) {
        match rule {
            Rule::Done(token) => state.give_token(attempt, token as u8),
            Rule::Confirm { token, .. } if self.mutant == Some(Mutant::NoConfirm) => {
                state.give_token(attempt, token as u8);
            }
            Rule::Confirm { token, basis } => {
                for server in &mut state.servers {
                    let link = &mut server.links[attempt];
                    link.confirm = match self.mutant {
                        _ if link.grant.is_some() => Confirm::Sent,
                        Some(Mutant::UncountedConfirm) => Confirm::Sent,
                        Some(Mutant::ConfirmOfAll) => Confirm::Aside,
                        _ => Confirm::None,
                    };
                }
                let attempt = &mut state.attempts[attempt];
                attempt.phase = Phase::Confirming;
                attempt.token = token as u8;
                attempt.by_clock = basis == FenceBasis::Clock;
            }
            Rule::Read => state.attempts[attempt].phase = Phase::Reading,
            Rule::Stuck => state.attempts[attempt].give_up(),
        }
    }

    fn crash(&self, state: &mut State, server: usize) {
        state.crashes += 1;
        let under_way = state.attempts_that(Phase::is_under_way);
        let here = &mut state.servers[server];
        here.counter = Tally::default();
        here.holder = None;
        here.told_in_vain = here.told.is_some();
        here.quarantine = if self.mutant == Some(Mutant::NoQuarantine) { 0 } else { under_way };
        let lost = state.servers.iter().filter(|server| !server.counter.known).count();
        if lost as u32 >= QUORUM {
            for attempt in &mut state.attempts {
                attempt.forgotten = attempt.phase != Phase::Idle;
            }
        }
    }
}

/// A rule that looks right: a majority that knows its counters is enough to decide, and a server
/// that does not know its own may confirm as well.
fn after_grants_unread(grants: &[Counter]) -> Rule {
    let known: Vec<Counter> = grants.iter().copied().filter(|grant| grant.known).collect();
    let token = grants.iter().map(|grant| grant.value).max().unwrap_or_default();
    match after_grants(SERVERS, &known) {
        Rule::Done(done) if done == token => Rule::Done(done),
        Rule::Read => Rule::Read,
        _ => Rule::Confirm { token, basis: FenceBasis::Majority },
    }
}

/// The subsets of `set` with `member` in them.
fn subsets(set: Set, member: usize) -> impl Iterator<Item = Set> {
    (0..1 << SERVERS).filter(move |subset| subset & !set == 0 && contains(*subset, member))
}

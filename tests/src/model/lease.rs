//! Leases over three servers: clocks run at different rates, messages are late or lost, and
//! servers lose their data and come back after a quarantine.
//!
//! Time passes in ticks for all at once. The clock of a server may gain some ticks while a key
//! lives, the clock of a client may miss some while a lease runs; the other way round would only
//! make a lock safer. The first command of an attempt arrives as soon as the attempt begins, and a
//! client hears of an answer at once: both give it the longest lease.

mod state;
mod story;

use std::fmt;

pub use state::State;
use state::{Extend, Phase, Stopwatch};

use super::clients::{Clients, QUORUM, Set, contains, set_of};
use super::mutant::Mutant;
use super::search::Protocol;

/// The protocol of leases, and how much of it is searched. Times are in ticks.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Who tries to lock the key.
    pub clients: Clients,
    /// How long a key lives.
    pub ttl: u8,
    /// How much the clock of a server may gain in that time.
    pub gain: u8,
    /// How much the clock of a client may miss in that time.
    pub miss: u8,
    /// How often a server loses its data.
    pub crashes: u8,
    /// How often each attempt that won may extend its lease.
    pub extensions: u8,
    /// What is wrong with it.
    pub mutant: Option<Mutant>,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A tick of time, which the clocks of these attempts' clients miss.
    Tick {
        /// Whose.
        missed: Set,
    },
    /// The clock of a server gains a tick.
    Gain {
        /// Whose.
        server: usize,
    },
    /// A server loses its data.
    Crash {
        /// Which.
        server: usize,
    },
    /// The command to acquire arrives where nobody has the key.
    Acquire {
        /// Whose.
        attempt: usize,
        /// Where.
        server: usize,
    },
    /// A client sends the commands to extend.
    SendExtend {
        /// For what.
        attempt: usize,
    },
    /// The command to extend arrives where the key is still ours.
    Extend {
        /// Whose.
        attempt: usize,
        /// Where.
        server: usize,
    },
    /// A client releases the lock, or gives up.
    End {
        /// What.
        attempt: usize,
    },
    /// The release arrives where its token is on the key.
    Release {
        /// Whose.
        attempt: usize,
        /// Where.
        server: usize,
    },
}

impl Protocol for Lease {
    type State = State;
    type Step = Step;

    fn begin(&self) -> State {
        State::begin()
    }

    fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        self.passing_of_time(state, steps);
        for attempt in 0..self.clients.attempts() {
            let phase = state.attempts[attempt].phase;
            if phase.is_under_way() {
                steps.push(Step::End { attempt });
            }
            let mine = &state.attempts[attempt];
            if phase == Phase::Holding
                && mine.extensions < self.extensions
                && mine.extension.is_none()
            {
                steps.push(Step::SendExtend { attempt });
            }
            for (server, here) in state.servers.iter().enumerate() {
                let link = &here.links[attempt];
                let is_free = here.holder.is_none() && !here.is_quarantined;
                if is_free && !link.acquired && self.may_arrive(state, attempt) {
                    steps.push(Step::Acquire { attempt, server });
                }
                if link.extend == Extend::Sent && self.is_holder(here.holder, attempt) {
                    steps.push(Step::Extend { attempt, server });
                }
                if link.release && self.is_holder(here.holder, attempt) {
                    steps.push(Step::Release { attempt, server });
                }
            }
        }
    }

    fn take(&self, state: &State, step: &Step) -> State {
        let mut state = state.clone();
        match *step {
            Step::Tick { missed } => self.tick(&mut state, missed),
            Step::Gain { server } => {
                state.servers[server].gained += 1;
                state.servers[server].tick();
            }
            Step::Crash { server } => {
                state.crashes += 1;
                let here = &mut state.servers[server];
                here.forget();
                here.wind(self.quarantine());
                here.is_quarantined = here.left > 0;
            }
            Step::Acquire { attempt, server } => self.acquire(&mut state, attempt, server),
            Step::SendExtend { attempt } => {
                state.attempts[attempt].extensions += 1;
                state.attempts[attempt].extension = Some(Stopwatch::default());
                for server in &mut state.servers {
                    server.links[attempt].extend = Extend::Sent;
                    server.links[attempt].release =
                        self.mutant == Some(Mutant::FailedExtendReleases);
                }
            }
            Step::Extend { attempt, server } => self.extend(&mut state, attempt, server),
            Step::End { attempt } => end(&mut state, attempt),
            Step::Release { attempt, server } => {
                state.servers[server].links[attempt].release = false;
                state.servers[server].forget();
            }
        }
        state
    }

    fn canonical(&self, mut state: State) -> State {
        if self.mutant != Some(Mutant::ReusedToken) {
            state.tidy();
        }
        state.servers.sort_unstable();
        state
    }

    fn fault(&self, state: &State) -> Option<&'static str> {
        (state.holding().count_ones() > 1).then_some("two clients hold the lock")
    }

    fn is_witness(&self, state: &State) -> bool {
        let last = self.clients.attempts() - 1;
        let began = state.attempts[..last].iter().all(|attempt| attempt.phase == Phase::Ended);
        began
            && state.attempts[last].phase == Phase::Holding
            && state.attempts[last].extensions == self.extensions
            && state.crashes == self.crashes
    }

    fn tell(&self, before: &State, step: &Step) -> String {
        story::tell(self, before, step)
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, ttl {}", self.clients, self.ttl)?;
        if self.gain + self.miss > 0 {
            write!(f, ", drift {}+{}", self.gain, self.miss)?;
        }
        if self.extensions > 0 {
            write!(f, ", extensions {}", self.extensions)?;
        }
        if self.crashes > 0 {
            write!(f, ", crashes {}", self.crashes)?;
        }
        Ok(())
    }
}

impl Lease {
    /// How long a client may rely on what it has won, by its own clock.
    fn validity(&self) -> u8 {
        let margin = self.gain + self.miss;
        self.ttl - if self.mutant == Some(Mutant::HalfMargin) { margin / 2 } else { margin }
    }

    /// For how long a server that lost its data does not vote, by its own clock.
    fn quarantine(&self) -> u8 {
        match self.mutant {
            Some(Mutant::NoQuarantine) => 0,
            Some(Mutant::ShortQuarantine) => self.ttl - 1,
            _ => self.ttl,
        }
    }

    fn passing_of_time(&self, state: &State, steps: &mut Vec<Step>) {
        let may_miss = set_of(self.clients.attempts(), |attempt| {
            let attempt = &state.attempts[attempt];
            attempt.phase.is_under_way() && attempt.lease.missed < self.miss
        });
        let missed = (0..=Set::MAX).filter(|missed| missed & !may_miss == 0);
        steps.extend(missed.map(|missed| Step::Tick { missed }));
        for (server, here) in state.servers.iter().enumerate() {
            if here.left > 0 && here.gained < self.gain {
                steps.push(Step::Gain { server });
            }
            if state.crashes < self.crashes {
                steps.push(Step::Crash { server });
            }
        }
    }

    fn tick(&self, state: &mut State, missed: Set) {
        for server in &mut state.servers {
            server.tick();
        }
        for index in 0..self.clients.attempts() {
            let attempt = &mut state.attempts[index];
            if !attempt.phase.is_under_way() {
                continue;
            }
            let is_missed = contains(missed, index);
            attempt.lease.tick(is_missed);
            if let Some(extension) = &mut attempt.extension {
                extension.tick(is_missed);
            }
            if attempt.lease.elapsed >= self.validity() {
                end(state, index);
            }
        }
    }

    fn may_arrive(&self, state: &State, attempt: usize) -> bool {
        if state.attempts[attempt].phase != Phase::Idle {
            return true;
        }
        match (self.clients.before(attempt), self.clients.twin(attempt)) {
            (Some(before), _) => state.attempts[before].phase == Phase::Ended,
            (None, Some(twin)) => state.attempts[twin].phase != Phase::Idle,
            (None, None) => true,
        }
    }

    /// Whether the token of `attempt` is on the key.
    fn is_holder(&self, holder: Option<u8>, attempt: usize) -> bool {
        let Some(holder) = holder.map(usize::from) else { return false };
        match self.mutant {
            Some(Mutant::ReusedToken) => {
                self.clients.client_of(holder) == self.clients.client_of(attempt)
            }
            _ => holder == attempt,
        }
    }

    fn acquire(&self, state: &mut State, attempt: usize, server: usize) {
        let here = &mut state.servers[server];
        here.holder = Some(attempt as u8);
        here.wind(self.ttl);
        here.links[attempt].acquired = true;
        let mine = &mut state.attempts[attempt];
        if mine.phase == Phase::Idle {
            mine.phase = Phase::Asking;
        }
        if mine.phase != Phase::Asking {
            return;
        }
        here.links[attempt].granted = true;
        if state.servers_where(attempt, |link| link.granted).count_ones() >= QUORUM {
            let mine = &mut state.attempts[attempt];
            mine.phase = Phase::Holding;
            if self.mutant == Some(Mutant::LeaseFromItsEnd) {
                mine.lease = Stopwatch::default();
            }
        }
    }

    fn extend(&self, state: &mut State, attempt: usize, server: usize) {
        state.servers[server].wind(self.ttl);
        state.servers[server].links[attempt].extend = Extend::Done;
        let done = state.servers_where(attempt, |link| link.extend == Extend::Done);
        let mine = &mut state.attempts[attempt];
        if mine.phase == Phase::Holding
            && done.count_ones() >= QUORUM
            && let Some(extension) = mine.extension.take()
        {
            mine.lease = match self.mutant {
                Some(Mutant::ExtensionFromItsEnd) => Stopwatch::default(),
                _ => extension,
            };
        }
    }
}

/// The client relies on nothing any more, and releases the lock everywhere.
fn end(state: &mut State, attempt: usize) {
    let extensions = state.attempts[attempt].extensions;
    state.attempts[attempt] =
        state::Attempt { phase: Phase::Ended, extensions, ..state::Attempt::default() };
    for server in &mut state.servers {
        server.links[attempt].release = true;
    }
}

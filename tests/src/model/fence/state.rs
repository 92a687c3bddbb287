//! What the fence model knows: three servers, and up to four attempts to lock one key.

use super::super::clients::{ATTEMPTS, QUORUM, SERVERS, Set, contains, members, set_of};
use super::super::fence_rules::{Counter, to_learn};

/// Everything that matters for what can happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) servers: [Server; SERVERS],
    pub(super) attempts: [Attempt; ATTEMPTS],
    pub(super) crashes: u8,
    pub(super) fault: Option<&'static str>,
}

/// One server, and what each attempt has to do with it. States that differ only in the order of
/// their servers are one: that is why the two are together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Server {
    pub(super) counter: Tally,
    /// The attempt that has the lock here, where it still matters.
    pub(super) holder: Option<u8>,
    /// Does not vote before these attempts have ended: they began before it lost its data.
    pub(super) quarantine: Set,
    /// What it has told to whoever teaches those that lost their counters.
    pub(super) told: Option<Tally>,
    /// It has lost its data again since: what it told is not what it would be taught for.
    pub(super) told_in_vain: bool,
    pub(super) links: [Link; ATTEMPTS],
}

/// A counter in one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Tally {
    pub(super) value: u8,
    pub(super) known: bool,
}

impl From<Tally> for Counter {
    fn from(tally: Tally) -> Self {
        match tally.known {
            true => Self::known(tally.value.into()),
            false => Self::unknown(tally.value.into(), 0),
        }
    }
}

/// What is between one attempt and one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Link {
    /// The command to acquire was executed. Until then it may be late, or lost.
    pub(super) acquired: bool,
    /// The grant, while the client may count it or has counted it.
    pub(super) grant: Option<Tally>,
    /// The answer to a read.
    pub(super) read: Option<Tally>,
    pub(super) confirm: Confirm,
}

/// What became of the command to take a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Confirm {
    /// Not sent, or without effect whenever it arrives.
    #[default]
    None,
    /// On its way.
    Sent,
    /// On its way to a server that is not counted.
    Aside,
    /// Executed, and it counts.
    Taken,
}

impl Confirm {
    pub(super) const fn is_on_its_way(self) -> bool {
        matches!(self, Self::Sent | Self::Aside)
    }
}

/// One attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    pub(super) phase: Phase,
    pub(super) token: u8,
    /// Only clocks say that this token is larger.
    pub(super) by_clock: bool,
    /// Attempts that had returned when this one began: its token has to be larger.
    pub(super) after: Set,
    /// A majority did not know its counters at some time since this attempt began, so that nobody
    /// remembers its token.
    pub(super) forgotten: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    #[default]
    Idle,
    Asking,
    Reading,
    Confirming,
    Returned,
    /// It gave up, or its validity ended first. Its commands may still arrive.
    Failed,
}

impl Attempt {
    pub(super) fn give_up(&mut self) {
        if self.phase.is_under_way() {
            self.phase = Phase::Failed;
        }
    }
}

impl Phase {
    pub(super) const fn is_under_way(self) -> bool {
        matches!(self, Self::Asking | Self::Reading | Self::Confirming)
    }
}

impl State {
    pub(super) fn begin() -> Self {
        let server = Server {
            counter: Tally { value: 0, known: true },
            holder: None,
            quarantine: 0,
            told: None,
            told_in_vain: false,
            links: [Link::default(); ATTEMPTS],
        };
        Self {
            servers: [server.clone(), server.clone(), server],
            attempts: [Attempt::default(); ATTEMPTS],
            crashes: 0,
            fault: None,
        }
    }

    /// Attempts in a phase for which `is` holds.
    pub(super) fn attempts_that(&self, is: impl Fn(Phase) -> bool) -> Set {
        set_of(ATTEMPTS, |attempt| is(self.attempts[attempt].phase))
    }

    /// Servers for whose link to `attempt` `is` holds.
    pub(super) fn servers_where(&self, attempt: usize, is: impl Fn(&Link) -> bool) -> Set {
        set_of(SERVERS, |server| is(&self.servers[server].links[attempt]))
    }

    /// What the servers in `of` have told to `attempt`.
    pub(super) fn told(
        &self,
        attempt: usize,
        of: Set,
        what: impl Fn(&Link) -> Option<Tally>,
    ) -> Vec<Counter> {
        let servers = members(of).filter_map(|server| self.servers.get(server));
        servers.filter_map(|server| what(&server.links[attempt])).map(Counter::from).collect()
    }

    /// What a server that lost its counter can be taught.
    pub(super) fn lesson(&self) -> Option<u64> {
        let told = self.servers.iter().filter_map(|server| server.told);
        to_learn(SERVERS, &told.map(Counter::from).collect::<Vec<_>>())
    }

    /// The server votes again: who began before it lost its data has returned by now or has failed.
    pub(super) fn end_quarantine(&mut self, server: usize) {
        for attempt in members(self.servers[server].quarantine) {
            self.attempts[attempt].give_up();
        }
        self.servers[server].quarantine = 0;
    }

    /// The server takes the token of `attempt`.
    pub(super) fn take_token(&mut self, attempt: usize, server: usize) {
        let token = self.attempts[attempt].token;
        let here = &mut self.servers[server];
        here.counter = Tally { value: here.counter.value.max(token), known: true };
        here.links[attempt].confirm = match here.links[attempt].confirm {
            Confirm::Aside => Confirm::None,
            _ => Confirm::Taken,
        };
        let taken = self.servers_where(attempt, |link| link.confirm == Confirm::Taken);
        if self.attempts[attempt].phase == Phase::Confirming && taken.count_ones() >= QUORUM {
            self.give_token(attempt, token);
        }
    }

    /// The attempt returns with its token, and the claim is checked.
    pub(super) fn give_token(&mut self, attempt: usize, token: u8) {
        let mine = &mut self.attempts[attempt];
        mine.phase = Phase::Returned;
        mine.token = token;
        let mine = *mine;
        let remembered = |other: &Attempt| other.phase == Phase::Returned && !other.forgotten;
        for (index, other) in self.attempts.iter().enumerate() {
            if index == attempt || mine.forgotten || !remembered(other) {
                continue;
            }
            if contains(mine.after, index) && token <= other.token {
                self.fault = Some("a later lock has a token that is not larger");
            } else if token == other.token {
                self.fault = Some("two locks have the same token");
            }
        }
    }

    /// Forgets what can have no effect any more, so that states that differ only in that are one.
    pub(super) fn tidy(&mut self, checks_owner: bool) {
        for index in 0..ATTEMPTS {
            self.drop_vain_confirms(index, checks_owner);
            let alive = self.servers_where(index, |link| {
                matches!(link.confirm, Confirm::Sent | Confirm::Taken)
            });
            let attempt = &mut self.attempts[index];
            if attempt.phase == Phase::Confirming && alive.count_ones() < QUORUM {
                attempt.phase = Phase::Failed;
            }
            self.drop_vain_confirms(index, checks_owner);
            self.forget_what_ended(index);
        }
        let under_way = self.attempts_that(Phase::is_under_way);
        for server in &mut self.servers {
            server.quarantine &= under_way;
            if let Some(holder) = server.holder {
                let link = &server.links[usize::from(holder)];
                if link.grant.is_none() && !link.confirm.is_on_its_way() {
                    server.holder = None;
                }
            }
        }
    }

    fn drop_vain_confirms(&mut self, index: usize, checks_owner: bool) {
        let attempt = self.attempts[index];
        for server in &mut self.servers {
            let link = &mut server.links[index];
            let arrives_in_vain = checks_owner
                && link.confirm.is_on_its_way()
                && link.acquired
                && server.holder != Some(index as u8);
            let changes_nothing = attempt.phase != Phase::Confirming
                && (link.confirm == Confirm::Taken
                    || server.counter.known && server.counter.value >= attempt.token);
            if arrives_in_vain || changes_nothing {
                link.confirm = Confirm::None;
            }
        }
    }

    fn forget_what_ended(&mut self, index: usize) {
        let asked = self.servers_where(index, |link| link.confirm.is_on_its_way()) != 0;
        let attempt = &mut self.attempts[index];
        match attempt.phase {
            Phase::Returned => {
                attempt.after = 0;
                if attempt.forgotten && !asked {
                    attempt.token = 0;
                }
            }
            Phase::Failed => {
                let token = if asked { attempt.token } else { 0 };
                *attempt = Attempt { phase: Phase::Failed, token, ..Attempt::default() };
            }
            Phase::Idle | Phase::Asking | Phase::Reading | Phase::Confirming => {}
        }
        if !matches!(attempt.phase, Phase::Asking | Phase::Reading) {
            for server in &mut self.servers {
                server.links[index].grant = None;
                server.links[index].read = None;
            }
        }
    }
}

//! What the lease model knows: three servers, their timers, and up to four attempts.

use super::super::clients::{ATTEMPTS, SERVERS, Set, set_of};

/// Everything that matters for what can happen next.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) servers: [Server; SERVERS],
    pub(super) attempts: [Attempt; ATTEMPTS],
    pub(super) crashes: u8,
}

/// One server, and what each attempt has to do with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Server {
    /// The attempt whose token is on the key.
    pub(super) holder: Option<u8>,
    /// Ticks of the server's clock until the key expires, or until the quarantine ends.
    pub(super) left: u8,
    /// Ticks that its clock has gained meanwhile.
    pub(super) gained: u8,
    pub(super) is_quarantined: bool,
    pub(super) links: [Link; ATTEMPTS],
}

/// What is between one attempt and one server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Link {
    /// The command to acquire was executed. Until then it may be late, or lost.
    pub(super) acquired: bool,
    pub(super) granted: bool,
    pub(super) extend: Extend,
    /// A release is on its way.
    pub(super) release: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Extend {
    #[default]
    None,
    Sent,
    Done,
}

/// One attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    pub(super) phase: Phase,
    /// Since the first command was sent, by the clock of the client.
    pub(super) lease: Stopwatch,
    /// Since the extension was sent.
    pub(super) extension: Option<Stopwatch>,
    pub(super) extensions: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) enum Phase {
    #[default]
    Idle,
    Asking,
    Holding,
    Ended,
}

impl Phase {
    pub(super) const fn is_under_way(self) -> bool {
        matches!(self, Self::Asking | Self::Holding)
    }
}

/// Ticks of a client's clock, and those that it has missed meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Stopwatch {
    pub(super) elapsed: u8,
    pub(super) missed: u8,
}

impl Stopwatch {
    pub(super) fn tick(&mut self, is_missed: bool) {
        if is_missed {
            self.missed += 1;
        } else {
            self.elapsed += 1;
        }
    }
}

impl Server {
    /// One tick of the server's own clock.
    pub(super) fn tick(&mut self) {
        if self.left > 1 {
            self.left -= 1;
        } else {
            self.forget();
        }
    }

    /// Starts the timer of a key or of a quarantine.
    pub(super) fn wind(&mut self, ticks: u8) {
        self.left = ticks;
        self.gained = 0;
    }

    /// Nothing is on the key any more, and nothing hinders to take it.
    pub(super) fn forget(&mut self) {
        self.holder = None;
        self.is_quarantined = false;
        self.wind(0);
    }
}

impl State {
    pub(super) fn begin() -> Self {
        Self {
            servers: [Server::default(), Server::default(), Server::default()],
            attempts: [Attempt::default(); ATTEMPTS],
            crashes: 0,
        }
    }

    /// Servers for whose link to `attempt` `is` holds.
    pub(super) fn servers_where(&self, attempt: usize, is: impl Fn(&Link) -> bool) -> Set {
        set_of(SERVERS, |server| is(&self.servers[server].links[attempt]))
    }

    pub(super) fn holding(&self) -> Set {
        set_of(ATTEMPTS, |attempt| self.attempts[attempt].phase == Phase::Holding)
    }

    /// Forgets what can have no effect any more, so that states that differ only in that are one.
    pub(super) fn tidy(&mut self) {
        for (index, attempt) in self.attempts.iter_mut().enumerate() {
            for server in &mut self.servers {
                let link = &mut server.links[index];
                if attempt.phase != Phase::Asking {
                    link.granted = false;
                }
                // What was acquired once is not acquired again: its token will not be back.
                if link.acquired && server.holder != Some(index as u8) {
                    link.release = false;
                    if link.extend == Extend::Sent || attempt.extension.is_none() {
                        link.extend = Extend::None;
                    }
                }
                if link.extend == Extend::Done && attempt.extension.is_none() {
                    link.extend = Extend::None;
                }
            }
        }
    }
}

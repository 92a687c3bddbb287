//! A client of simulated servers: what makes connections to them, and its mistakes.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::timeout;

use super::link::SimulatedLink;
use super::mutant::{Cheat, Mutant};
use super::server::{Content, Server};
use crate::config::Config;
use crate::node::connection::{CONNECT_DEADLINE, Cause};
use crate::node::dataset::Introduction;
use crate::node::lane::Lane;
use crate::node::last_chance::LastChance;
use crate::node::link::{Connector, LaneMistake};
use crate::node::mailbox::{Mailbox, Retry};
use crate::node::outage::Outage;
use crate::node::{Command, Node};

/// One client of a cluster: what its nodes have in common.
#[derive(Debug)]
pub(crate) struct Client {
    introduction: Option<Introduction>,
    cheat: Option<Cheat>,
}

impl Client {
    pub(crate) fn new(config: &Config, nodes: usize, mutant: Option<Mutant>) -> Self {
        let mut introduction = Introduction::new(config);
        if let (Some(introduction), Some(mutant)) = (&mut introduction, mutant) {
            introduction.quarantine_millis = mutant.quarantine(introduction.quarantine_millis);
        }
        Self { introduction, cheat: mutant.map(|mutant| Cheat::new(mutant, nodes)) }
    }

    pub(crate) fn introduction(&self) -> Option<&Introduction> {
        self.introduction.as_ref()
    }

    pub(super) fn cheat(&self) -> Option<&Cheat> {
        self.cheat.as_ref()
    }

    pub(super) fn mutant(&self) -> Option<Mutant> {
        self.cheat.as_ref().map(Cheat::mutant)
    }
}

/// A simulated server, as one client sees it.
#[derive(Debug)]
pub(crate) struct SimulatedNode {
    lane: Arc<Lane<Connections>>,
}

/// Connections of one client to one server.
#[derive(Debug)]
struct Connections {
    node: usize,
    server: Arc<Server>,
    client: Arc<Client>,
}

impl SimulatedNode {
    pub(crate) fn new(
        node: usize,
        server: &Arc<Server>,
        client: &Arc<Client>,
        config: &Config,
    ) -> Self {
        let (server, client) = (Arc::clone(server), Arc::clone(client));
        let retry = Retry { pause: config.reconnection_interval, for_at_most: config.quarantine() };
        let lane = Lane {
            mailbox: Mailbox::new(retry),
            outage: Arc::new(Outage::new(server.address().into())),
            address: server.address().into(),
            connector: Connections { node, server, client },
            deadline: config.node_deadline,
            was_connected: Arc::new(AtomicBool::new(false)),
            reconnection: config.reconnection_interval,
            abandoned: Mutex::default(),
            last_chance: LastChance::default(),
        };
        Self { lane: Arc::new(lane) }
    }

    /// The command to send instead, unless it was answered at once.
    fn cheated(&self, command: Command) -> Option<Command> {
        let Connections { node, client, .. } = &self.lane.connector;
        match client.cheat() {
            None => Some(command),
            Some(cheat) => cheat.before(*node, command),
        }
    }
}

impl Node for SimulatedNode {
    fn address(&self) -> &str {
        &self.lane.address
    }

    fn post(&self, command: Command) {
        if let Some(command) = self.cheated(command) {
            self.lane.post([command]);
        }
    }

    fn post_both(&self, first: Command, second: Command) {
        match (self.cheated(first), self.cheated(second)) {
            (Some(first), Some(second)) => self.lane.post([first, second]),
            (first, second) => {
                first.into_iter().chain(second).for_each(|one| self.lane.post([one]))
            }
        }
    }

    fn unsettled(&self) -> usize {
        self.lane.mailbox.unsettled()
    }

    fn settled(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.lane.mailbox.settled())
    }

    fn shut_down(&self) {
        self.lane.mailbox.close(Duration::ZERO);
    }
}

impl Drop for SimulatedNode {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Connector for Connections {
    type Link = SimulatedLink;

    async fn connect(&self) -> Result<SimulatedLink, Cause> {
        let mut link = SimulatedLink::open(self.node, &self.server, &self.client);
        match timeout(CONNECT_DEADLINE, link.greet(Content::Hello)).await {
            Ok(greeted) => greeted.map(|()| link),
            Err(_) => Err(Cause(format!("no connection within {CONNECT_DEADLINE:?}").into())),
        }
    }

    fn makes(&self, mistake: LaneMistake) -> bool {
        self.client.mutant() == Some(Mutant::Lane(mistake))
    }
}

//! The network between every client and every server: a proxy for each pair.

use futures_util::future::join_all;

use super::{Fault, Kind};
use crate::{Fleet, Proxy};

#[derive(Debug)]
pub(super) struct Network {
    /// By client, then by server.
    proxies: Vec<Vec<Proxy>>,
}

impl Network {
    pub(super) async fn start(fleet: &Fleet, clients: usize) -> Self {
        let of_a_client = || join_all(fleet.iter().map(Proxy::in_front_of));
        Self { proxies: join_all((0..clients).map(|_| of_a_client())).await }
    }

    /// Where a client finds the servers.
    pub(super) fn urls(&self, client: usize) -> Vec<String> {
        self.proxies[client].iter().map(Proxy::url).collect()
    }

    /// What a fault of the network touches.
    fn touched(&self, fault: &Fault) -> impl Iterator<Item = &Proxy> {
        let (node, only) = (fault.node, fault.client);
        let clients = self.proxies.iter().enumerate();
        clients
            .filter(move |(client, _)| only.is_none_or(|only| *client == only))
            .map(move |(_, proxies)| &proxies[node])
    }

    /// Begins a fault of the network.
    pub(super) async fn disturb(&self, fault: &Fault) {
        for proxy in self.touched(fault) {
            match fault.kind {
                Kind::Cut => proxy.cut().await,
                Kind::Late => proxy.hold_open_connections(),
                Kind::DropReply => proxy.drop_replies(),
                Kind::Delay if fault.to_server => proxy.delay_requests(fault.delay),
                Kind::Delay => proxy.delay_replies(fault.delay),
                other => unreachable!("{other:?} is no fault of the network"),
            }
        }
    }

    /// Ends it.
    pub(super) fn heal(&self, fault: &Fault) {
        self.touched(fault).for_each(Proxy::pass);
    }
}

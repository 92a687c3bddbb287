//! A connection to a simulated server: first in, first out.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::lane::Client;
use super::server::{Arrival, Content, Parcel, Server};
use crate::latch::Latch;
use crate::protocol::quorum::Vote;

/// The client's end of a connection. What was sent is on its way also when this is dropped, as
/// the bytes of a connection are that was given up.
#[derive(Debug)]
pub(super) struct Link {
    server: Arc<Server>,
    cuts: u64,
    broken: Arc<Latch>,
    sending: mpsc::UnboundedSender<(Parcel, Reply)>,
}

/// The other end is dropped without an answer when the connection breaks.
type Reply = oneshot::Sender<Vec<Vote>>;

impl Link {
    /// Begins a connection; the answer to the greeting says that it is there.
    pub(super) fn open(server: &Arc<Server>, client: &Arc<Client>) -> Self {
        let (sending, parcels) = mpsc::unbounded_channel();
        let cuts = server.cuts();
        let broken = Arc::new(Latch::default());
        let carrier = Carrier {
            server: Arc::clone(server),
            client: Arc::clone(client),
            cuts,
            broken: Arc::clone(&broken),
        };
        tokio::spawn(carrier.carry(parcels));
        Self { server: Arc::clone(server), cuts, broken, sending }
    }

    pub(super) fn send(&self, content: Content) -> oneshot::Receiver<Vec<Vote>> {
        let (reply, answer) = oneshot::channel();
        // Who no longer carries anything has dropped the other end: the answer says so.
        let _carried = self.sending.send((self.server.send(content, self.cuts), reply));
        answer
    }

    pub(super) fn broken(&self) -> &Arc<Latch> {
        &self.broken
    }
}

/// The task of a connection.
struct Carrier {
    server: Arc<Server>,
    client: Arc<Client>,
    cuts: u64,
    broken: Arc<Latch>,
}

impl Carrier {
    async fn carry(self, mut parcels: mpsc::UnboundedReceiver<(Parcel, Reply)>) {
        // Those who wait for a reply that is lost see nothing of it.
        let mut unanswered = Vec::new();
        loop {
            let next = tokio::select! {
                biased;
                () = self.server.cut_after(self.cuts) => break,
                next = parcels.recv() => next,
            };
            let Some((parcel, reply)) = next else { break };
            match parcel.arrive(self.client.introduction(), self.client.mutant()).await {
                Arrival::Executed(votes, delay) if delay.is_zero() => {
                    let _gone = reply.send(votes);
                }
                Arrival::Executed(votes, delay) => {
                    tokio::spawn(async move {
                        sleep(delay).await;
                        let _gone = reply.send(votes);
                    });
                }
                Arrival::Lost => unanswered.push(reply),
                Arrival::Cut => break,
            }
        }
        self.broken.raise();
    }
}

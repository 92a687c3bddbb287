//! A connection to a simulated server: first in, first out, in both directions.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};

use super::mutant::Mutant;
use super::node::Client;
use super::server::{Accepted, Arrival, Content, Parcel, Server};
use crate::node::Op;
use crate::node::call::Call;
use crate::node::connection::Cause;
use crate::node::dataset::Asked;
use crate::node::link::{ConnectionId, Dialect, LaneMistake, Link};
use crate::node::wire::{Reply, ScriptBy};

/// The client's end of a connection. What was sent is on its way also when this is dropped, as
/// the bytes of a connection are that was given up.
pub(super) struct SimulatedLink {
    node: usize,
    server: Arc<Server>,
    client: Arc<Client>,
    connection: Accepted,
    id: Option<ConnectionId>,
    sending: mpsc::UnboundedSender<Parcel>,
    arriving: mpsc::UnboundedReceiver<Answer>,
    /// Replies that are on their way, in order.
    on_the_way: VecDeque<Answer>,
    due: Pin<Box<Sleep>>,
}

/// A reply, and when it arrives; or the end of the connection.
#[derive(Debug)]
enum Answer {
    Replies(Instant, Vec<Reply>),
    Cut,
}

impl SimulatedLink {
    /// Begins a connection; the answer to the greeting says that it is there.
    pub(super) fn open(node: usize, server: &Arc<Server>, client: &Arc<Client>) -> Self {
        let (sending, parcels) = mpsc::unbounded_channel();
        let (answers, arriving) = mpsc::unbounded_channel();
        let connection = server.accept();
        let (server, client) = (Arc::clone(server), Arc::clone(client));
        let carrier =
            Carrier { server: Arc::clone(&server), client: Arc::clone(&client), connection };
        tokio::spawn(carrier.carry(parcels, answers));
        let id = server.id_of(connection);
        let due = Box::pin(sleep_until(Instant::now()));
        let on_the_way = VecDeque::new();
        Self { node, server, client, connection, id, sending, arriving, on_the_way, due }
    }

    pub(super) async fn greet(&mut self, greeting: Content) -> Result<(), Cause> {
        self.send(greeting);
        poll_fn(|cx| self.poll_answer(cx)).await.map(drop)
    }

    fn send(&self, content: Content) {
        // A connection that has ended carries nothing any more, as its replies tell.
        let _ended = self.sending.send(self.server.send(content, self.connection));
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Reply>, Cause>> {
        // A cut does not wait for the replies that are still on their way.
        while let Poll::Ready(answer) = self.arriving.poll_recv(cx) {
            match answer {
                Some(reply @ Answer::Replies(..)) => self.on_the_way.push_back(reply),
                Some(Answer::Cut) | None => {
                    return Poll::Ready(Err(Cause("the connection was cut".into())));
                }
            }
        }
        let Some(Answer::Replies(due, _)) = self.on_the_way.front() else { return Poll::Pending };
        if *due > Instant::now() {
            self.due.as_mut().reset(*due);
            ready!(self.due.as_mut().poll(cx));
        }
        match self.on_the_way.pop_front() {
            Some(Answer::Replies(_, replies)) => Poll::Ready(Ok(replies)),
            Some(Answer::Cut) | None => Poll::Pending,
        }
    }

    /// The operation, unless the client makes nothing void.
    fn releasing(&self, op: Op) -> Op {
        match op {
            Op::Void
                if self.client.mutant() == Some(Mutant::Lane(LaneMistake::ReleaseOvertakes)) =>
            {
                Op::Release
            }
            op => op,
        }
    }
}

impl Link for SimulatedLink {
    fn dialect(&self) -> Dialect {
        match self.client.introduction() {
            Some(_) => Dialect::Guarded,
            None => Dialect::Plain { native_delete: None },
        }
    }

    fn id(&self) -> Option<&ConnectionId> {
        self.id.as_ref()
    }

    fn write(&mut self, call: &Call, by: ScriptBy) {
        let asked: Vec<Asked> = call
            .commands()
            .map(|one| Asked {
                op: self.releasing(one.op),
                key: one.key.clone(),
                token: one.token.clone(),
            })
            .collect();
        self.send(match call {
            Call::Single(command) => match command.op {
                Op::Provision { dry } => Content::Provision { dry },
                _ => Content::Plain(asked),
            },
            Call::Succession(..) => Content::Plain(asked),
            Call::Releases(_) | Call::Reads(_) => Content::Script(asked, by),
            Call::Guarded(_) => Content::Guarded(asked, by),
            Call::PendingReleases(releases) => {
                let op = self.releasing(Op::Void);
                let release = releases.iter().map(|one| Asked {
                    op,
                    key: one.key.clone(),
                    token: one.token.clone(),
                });
                Content::Guarded(release.collect(), by)
            }
            Call::Kill(ConnectionId { client_id, .. }) => Content::Kill(*client_id),
        });
    }

    fn poll_replies(
        &mut self,
        cx: &mut Context<'_>,
        call: &Call,
        replies: &mut Vec<Reply>,
    ) -> Poll<Result<(), Cause>> {
        let mut answered = ready!(self.poll_answer(cx))?;
        if let Some(cheat) = self.client.cheat() {
            for (command, reply) in call.commands().zip(&mut answered) {
                if let Reply::Vote(vote) = reply {
                    *vote = cheat.after(self.node, command, vote.clone());
                }
            }
        }
        replies.extend(answered);
        Poll::Ready(Ok(()))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        match ready!(self.poll_answer(cx)) {
            Err(cause) => Poll::Ready(cause),
            Ok(_) => Poll::Ready(Cause("it answered without being asked".into())),
        }
    }
}

/// The task of a connection.
struct Carrier {
    server: Arc<Server>,
    client: Arc<Client>,
    connection: Accepted,
}

impl Carrier {
    async fn carry(
        self,
        mut parcels: mpsc::UnboundedReceiver<Parcel>,
        answers: mpsc::UnboundedSender<Answer>,
    ) {
        let (mut loses_requests, mut loses_replies) = (false, false);
        let mut arrives = Instant::now();
        loop {
            let next = tokio::select! {
                biased;
                () = self.server.cut(self.connection) => break,
                next = parcels.recv() => next,
            };
            let Some(parcel) = next else { break };
            if loses_requests {
                continue;
            }
            match parcel.arrive(self.client.introduction(), self.client.mutant()).await {
                Arrival::Executed(replies, delay) if !loses_replies => {
                    arrives = arrives.max(Instant::now() + delay);
                    let _gone = answers.send(Answer::Replies(arrives, replies));
                }
                Arrival::Executed(..) => {}
                Arrival::Unanswered => loses_replies = true,
                Arrival::Lost => loses_requests = true,
                Arrival::Cut => break,
            }
        }
        let _gone = answers.send(Answer::Cut);
    }
}

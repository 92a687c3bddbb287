//! The connection manager: bb8's view of a server, and the checks that come before a vote.
//!
//! A lane asks for a connection when it needs one and keeps it for as long as it lasts. Connecting
//! runs in the task of the lane, so it ends with the runtime of the lane and leaves nothing pending
//! in the pool.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bb8::{ManageConnection, Pool, PooledConnection, RunError};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::call::Call;
use super::connection::{CONNECT_DEADLINE, Cause, Connection};
use super::guarded::Guarding;
use super::link::{ConnectionId, Connector, Dialect, Link};
use super::resp::Frame;
use super::survey::{SECTIONS, Survey};
use super::wire::{
    self, EXTEND, GUARDED, NativeDelete, PREFLIGHT, READ, RELEASE, Reply, Script, ScriptBy,
};
use crate::config::{CheckPolicy, CheckedServer, Checks, ServerCheck};
use crate::key::Key;
use crate::panic::caught;
use crate::protocol::quorum::NodeAnswer;

/// What the scripts of the plain mode run, `@` for a key.
const PLAIN_TRIALS: [&str; 4] = ["GET @", "PTTL @", "PEXPIRE @ 1", "DEL @"];

/// What the script of the guarded mode runs.
const GUARDED_TRIALS: [&str; 12] = [
    "TIME",
    "INFO server",
    "EXISTS @",
    "HMGET @ run",
    "HDEL @ run",
    "GET @",
    "PTTL @",
    "PEXPIRE @ 1",
    "HSET @ run 0",
    "DEL @",
    "SET @ 0 NX PX 1",
    "DEL @",
];

/// Which run ids the servers of one `Redlock` answer with: two addresses that lead to one server
/// would count its vote twice.
#[derive(Debug, Default)]
pub(crate) struct Identities {
    by_address: Mutex<HashMap<Arc<str>, Arc<str>>>,
}

impl Identities {
    fn claim(&self, address: &Arc<str>, run_id: &Arc<str>) -> Result<(), String> {
        let mut by_address = self.by_address.lock();
        let twin = by_address.iter().find(|(other, id)| *other != address && *id == run_id);
        if let Some((other, _)) = twin {
            return Err(format!("it is the same server as {other}, name independent servers"));
        }
        by_address.insert(Arc::clone(address), Arc::clone(run_id));
        Ok(())
    }
}

/// Makes connections to one server.
#[derive(Debug)]
pub(super) struct Manager {
    pub(super) server: CheckedServer,
    pub(super) address: Arc<str>,
    pub(super) identities: Arc<Identities>,
    pub(super) key_prefix: Arc<[u8]>,
    /// In the guarded mode.
    pub(super) guarding: Option<Arc<Guarding>>,
    pub(super) checks: Checks,
    pub(super) told: Arc<Told>,
}

/// Warnings about one server that the log has already. It gets each once, and not with each
/// connection.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Vec<String>>);

impl Told {
    const MOST: usize = 16;

    fn is_new(&self, warning: &str) -> bool {
        let mut told = self.0.lock();
        let is_new = told.len() < Self::MOST && !told.iter().any(|earlier| earlier == warning);
        if is_new {
            told.push(warning.to_owned());
        }
        is_new
    }
}

/// A connection to a server that was found fit to vote.
#[derive(Debug)]
pub(super) struct Voter {
    connection: Connection,
    id: Option<ConnectionId>,
    dialect: Dialect,
    guarding: Option<Arc<Guarding>>,
    /// The lane has given it back, and it may have requests or replies on the way.
    used_up: bool,
}

impl ManageConnection for Manager {
    type Connection = Voter;
    type Error = Cause;

    async fn connect(&self) -> Result<Voter, Cause> {
        match timeout(CONNECT_DEADLINE, caught("connecting", self.set_up())).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(panicked)) => Err(Cause(panicked)),
            Err(_) => Err(Cause(format!("no connection within {CONNECT_DEADLINE:?}").into())),
        }
    }

    async fn is_valid(&self, voter: &mut Voter) -> Result<(), Cause> {
        voter.connection.requests().command(1).arg("PING");
        voter.connection.reply().await.map(drop)
    }

    fn has_broken(&self, voter: &mut Voter) -> bool {
        voter.used_up
    }
}

impl Manager {
    async fn set_up(&self) -> Result<Voter, Cause> {
        let mut connection = Connection::open(&self.server).await?;
        let trial_key = self.trial_key();
        let id = self.check(&mut connection, &trial_key).await?;
        let dialect = match &self.guarding {
            Some(_) => Dialect::Guarded,
            None => Dialect::Plain {
                native_delete: self.find_native_delete(&mut connection, &trial_key).await?,
            },
        };
        let guarding = self.guarding.clone();
        Ok(Voter { connection, id, dialect, guarding, used_up: false })
    }

    /// A key to try rights on. Its random end makes it new, so that a trial can neither meet nor
    /// delete anything that it did not create.
    fn trial_key(&self) -> Key {
        let random = fastrand::u128(..);
        Key::internal(&self.key_prefix, &format!("preflight:{random:032x}"))
    }

    /// Finds out whether the server has a compare-and-delete of its own that this user may call.
    async fn find_native_delete(
        &self,
        connection: &mut Connection,
        trial_key: &Key,
    ) -> Result<Option<NativeDelete>, Cause> {
        let offered = [NativeDelete::Delex, NativeDelete::Delifeq];
        let requests = connection.requests();
        requests.command(4).arg("COMMAND").arg("INFO").arg("DELEX").arg("DELIFEQ");
        let known = match connection.reply().await? {
            Frame::Array(known) => known.exactly(),
            _not_allowed => None,
        };
        let known = known.unwrap_or([Frame::Nil; 2]).map(|known| matches!(known, Frame::Array(_)));
        for (native, known) in offered.into_iter().zip(known) {
            if known {
                native.encode(connection.requests(), trial_key.as_bytes(), "none");
                if connection.reply().await? == Frame::Integer(0) {
                    return Ok(Some(native));
                }
            }
        }
        Ok(None)
    }

    /// Asks the server what it is, loads the scripts, and tries the rights they need.
    async fn check(
        &self,
        connection: &mut Connection,
        trial_key: &Key,
    ) -> Result<Option<ConnectionId>, Cause> {
        let (scripts, trials): (&[&Script], &[&str]) = match self.guarding {
            Some(_) => (&[&GUARDED, &RELEASE, &READ], &GUARDED_TRIALS),
            None => (&[&RELEASE, &EXTEND, &READ], &PLAIN_TRIALS),
        };
        let requests = connection.requests();
        for section in SECTIONS {
            requests.command(2).arg("INFO").arg(section);
        }
        requests.command(2).arg("CLIENT").arg("ID");
        let mut trial = wire::invoke(requests, &PREFLIGHT, ScriptBy::Source, (1, trials.len()));
        trial.arg(trial_key.as_bytes());
        for command in trials {
            trial.arg(command);
        }
        drop(trial);
        // Most calls name a script by its hash, which is a right of its own.
        wire::invoke(requests, &PREFLIGHT, ScriptBy::Hash, (1, 0)).arg(trial_key.as_bytes());
        for script in scripts {
            requests.command(3).arg("SCRIPT").arg("LOAD").arg(script.source);
        }

        let mut survey = Survey::default();
        for _ in SECTIONS {
            survey.add(&connection.reply().await?);
        }
        let client_id = match connection.reply().await? {
            Frame::Integer(client_id) => Some(client_id),
            _not_allowed => None,
        };
        for (check, objection) in survey.objections() {
            self.object(check, objection)?;
        }
        for _ in ["EVAL", "EVALSHA"] {
            if let Frame::Error(error) = connection.reply().await?
                && !error.starts_with(b"NOSCRIPT")
            {
                let text = format!("it refuses what locks need: {}", wire::describe(error));
                return Err(Cause(text.into()));
            }
        }
        for _ in scripts {
            connection.reply().await?;
        }
        let Some(run_id) = survey.run_id() else { return Ok(None) };
        if let Err(objection) = self.identities.claim(&self.address, &run_id) {
            self.object(ServerCheck::Identity, objection)?;
        }
        Ok(client_id.map(|client_id| ConnectionId { run_id, client_id }))
    }

    fn object(&self, check: ServerCheck, objection: String) -> Result<(), Cause> {
        match self.checks.policy(check) {
            CheckPolicy::Refuse => return Err(Cause(objection.into())),
            CheckPolicy::Warn if self.told.is_new(&objection) => {
                tracing::warn!(node = %self.address, ?check, objection, "server check failed");
            }
            CheckPolicy::Warn | CheckPolicy::Ignore => {}
        }
        Ok(())
    }
}

/// The connections of all lanes of a server.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    pool: Pool<Manager>,
    address: Arc<str>,
    told: Arc<Told>,
    exchanging: Arc<Mutex<()>>,
}

impl Connections {
    pub(super) fn new(manager: Manager, pool_size: usize) -> Self {
        let (address, told) = (Arc::clone(&manager.address), Arc::clone(&manager.told));
        let pool = Pool::builder()
            .max_size(u32::try_from(pool_size).unwrap_or(u32::MAX))
            .test_on_check_out(false)
            .max_lifetime(None)
            .idle_timeout(None)
            .retry_connection(false)
            .build_unchecked(manager);
        Self { pool, address, told, exchanging: Arc::default() }
    }
}

impl Connector for Connections {
    type Link = Pooled;

    fn could_not_kill(&self, refusals: &[Reply]) {
        for refusal in refusals {
            if let Reply::Vote(vote) = refusal
                && let NodeAnswer::Refused(cause) = &vote.answer
                && self.told.is_new(cause)
            {
                tracing::warn!(
                    node = %self.address, %cause,
                    "connections that were lost can't be closed; what they had in flight may stay \
                     locked for its time to live"
                );
            }
        }
    }

    async fn connect(&self) -> Result<Pooled, Cause> {
        // A pool that is asked for a connection it does not have connects in a task of its own,
        // which may outlive the caller's runtime, or not. So the pool is given one first.
        let voter = self.pool.dedicated_connection().await?;
        // In one piece: another lane must not take this connection, which ends with this runtime.
        let _exchanging = self.exchanging.lock();
        if self.pool.add(voter).is_err() {
            return Err(Cause("the pool is full".into()));
        }
        match self.pool.get_owned().now_or_never() {
            Some(Ok(pooled)) => Ok(Pooled(pooled)),
            Some(Err(RunError::User(cause))) => Err(cause),
            Some(Err(RunError::TimedOut)) | None => Err(Cause("the pool has no connection".into())),
        }
    }
}

/// A connection that a lane has taken from the pool.
pub(super) struct Pooled(PooledConnection<'static, Manager>);

impl Drop for Pooled {
    fn drop(&mut self) {
        self.0.used_up = true;
    }
}

impl Link for Pooled {
    fn dialect(&self) -> Dialect {
        self.0.dialect
    }

    fn id(&self) -> Option<&ConnectionId> {
        self.0.id.as_ref()
    }

    fn write(&mut self, call: &Call, by: ScriptBy) {
        let Voter { connection, dialect, guarding, .. } = &mut *self.0;
        wire::encode_call(connection.requests(), call, by, *dialect, guarding.as_deref());
    }

    fn poll_replies(
        &mut self,
        cx: &mut Context<'_>,
        call: &Call,
        replies: &mut Vec<Reply>,
    ) -> Poll<Result<(), Cause>> {
        let connection = &mut self.0.connection;
        loop {
            ready!(connection.poll_reply(cx))?;
            match connection.take_reply() {
                Frame::Push(_) => {}
                reply => {
                    wire::classify_call(call, reply, replies);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        let connection = &mut self.0.connection;
        loop {
            if let Err(cause) = ready!(connection.poll_reply(cx)) {
                return Poll::Ready(cause);
            }
            if !matches!(connection.take_reply(), Frame::Push(_)) {
                return Poll::Ready(Cause("it answered without being asked".into()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::Barrier;
    use std::thread;

    use tokio::runtime::Builder;

    use super::*;
    use crate::config::Config;

    /// The address of a server on a thread that answers OK to each command.
    fn server_that_accepts() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                socket.set_nodelay(true).unwrap();
                thread::spawn(move || {
                    for line in BufReader::new(socket.try_clone().unwrap()).split(b'\n') {
                        let is_command = line.is_ok_and(|line| line.starts_with(b"*"));
                        if is_command && socket.write_all(b"+OK\r\n").is_err() {
                            return;
                        }
                    }
                });
            }
        });
        url
    }

    #[test]
    fn lanes_on_two_runtimes_that_connect_at_once_each_keep_the_connection_they_made() {
        let config = Config::servers([server_that_accepts()]).build().unwrap();
        let server = config.groups[0].servers()[0].clone();
        let manager = Manager {
            address: server.address().into(),
            server,
            identities: Arc::default(),
            key_prefix: Arc::from([]),
            guarding: None,
            checks: config.checks,
            told: Arc::default(),
        };
        let connections = Connections::new(manager, 2);
        let both = Barrier::new(2);
        let answered = |ends_first: bool| -> usize {
            let rounds = (0..500).map(|_| {
                let runtime = Builder::new_current_thread().enable_all().build().unwrap();
                both.wait();
                let mut pooled = runtime.block_on(connections.connect()).unwrap();
                both.wait();
                if ends_first {
                    drop(runtime);
                    both.wait();
                    return 0;
                }
                both.wait();
                let connection = &mut pooled.0.connection;
                connection.requests().command(1).arg("PING");
                usize::from(runtime.block_on(connection.reply()).is_ok())
            });
            rounds.sum()
        };
        thread::scope(|scope| {
            scope.spawn(|| answered(true));
            assert_eq!(answered(false), 500);
        });
    }

    #[test]
    fn one_run_id_behind_two_addresses_is_refused_and_a_restart_is_not() {
        let identities = Identities::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a:1".into(), "b:1".into());
        identities.claim(&a, &"run-1".into()).unwrap();
        let refused = identities.claim(&b, &"run-1".into()).unwrap_err();
        assert!(refused.contains("same server as a:1"), "{refused}");
        identities.claim(&a, &"run-2".into()).unwrap();
        identities.claim(&b, &"run-1".into()).unwrap();
    }
}

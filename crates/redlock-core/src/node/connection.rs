//! The connection manager: bb8's view of a server that heals.
//!
//! bb8-redis' own manager never calls a connection broken, tests each checkout with a round trip,
//! and hides why a server can't be reached. This one is told by the connection itself that it
//! broke, asks the server who it is before it may vote, and keeps the real cause.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bb8_redis::bb8::{ErrorSink, ManageConnection};
use bb8_redis::redis::aio::MultiplexedConnection;
use bb8_redis::redis::{
    AsyncConnectionConfig, ErrorKind, Pipeline, PushInfo, PushKind, RedisError, RedisResult,
    ServerErrorKind, Value, cmd,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::guarded::Guarding;
use super::survey::{SECTIONS, Survey};
use super::wire::{EXTEND, GUARDED, NativeDelete, PREFLIGHT, RELEASE, Script, describe};
use crate::config::{Access, CheckPolicy, CheckedServer, Checks, ServerCheck};
use crate::latch::Latch;
use crate::panic::caught;

/// How long setting up a connection may take: TCP, TLS, authentication and the questions asked.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

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

/// Why a server can't vote, in words for its operator.
#[derive(Clone, Debug)]
pub(super) struct Cause(pub(super) Arc<str>);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

impl From<RedisError> for Cause {
    fn from(error: RedisError) -> Self {
        let text = match (error.kind(), error.code()) {
            (ErrorKind::AuthenticationFailed, _) | (_, Some("WRONGPASS" | "NOAUTH")) => {
                format!("authentication failed, check username and password ({error})")
            }
            // What the parser found is several lines of whatever the other side sent.
            (ErrorKind::Parse, _) => "its answer is not the Redis protocol".into(),
            (ErrorKind::RESP3NotSupported, _) | (_, Some("NOPROTO")) => old_server(&error),
            // Redis 4 quotes it in another way than the client library knows.
            _ if error.detail().is_some_and(|text| text.starts_with("unknown command 'HELLO'")) => {
                old_server(&error)
            }
            _ => error.to_string(),
        };
        Self(text.into())
    }
}

fn old_server(error: &RedisError) -> String {
    format!("it does not speak RESP3, Redis 6 or later is needed ({error})")
}

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

/// Tells one connection of a server from all others that it ever had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConnectionId {
    run_id: Arc<str>,
    client_id: i64,
}

/// An authenticated connection.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) redis: MultiplexedConnection,
    /// Raised when the connection breaks.
    pub(super) broken: Arc<Latch>,
    /// The task of a TLS connection ends with the last clone. The driver owns the others.
    _task: Arc<JoinSet<()>>,
}

/// An authenticated connection to a server that was found fit to vote.
#[derive(Debug)]
pub(super) struct Connection {
    link: Link,
    /// `None` where the user may not ask: then nothing can be said about old connections.
    id: Option<ConnectionId>,
    dialect: Dialect,
}

/// How the server is talked to.
#[derive(Debug)]
pub(super) enum Dialect {
    Guarded(Arc<Guarding>),
    Plain { native_delete: Option<NativeDelete> },
}

impl Connection {
    pub(super) fn dialect(&self) -> &Dialect {
        &self.dialect
    }

    pub(super) fn broken(&self) -> &Arc<Latch> {
        &self.link.broken
    }

    pub(super) fn id(&self) -> Option<&ConnectionId> {
        self.id.as_ref()
    }

    /// Sends a pipeline of `count` commands; errors of single commands are among the values.
    pub(super) fn send(
        &self,
        pipeline: Pipeline,
        count: usize,
    ) -> impl Future<Output = RedisResult<Vec<Value>>> + Send + use<> {
        let mut redis = self.link.redis.clone();
        async move { redis.send_packed_commands(&pipeline, 0, count).await }
    }

    /// Makes sure that the server executes nothing more of connections that were given up. One
    /// of an earlier run of the server is dead already, and its number may be somebody else's.
    pub(super) async fn silence(&self, suspects: &[ConnectionId]) -> Result<(), Cause> {
        let Some(own) = &self.id else { return Ok(()) };
        let mut redis = self.link.redis.clone();
        for suspect in suspects.iter().filter(|suspect| suspect.run_id == own.run_id) {
            let mut kill = cmd("CLIENT");
            kill.arg("KILL").arg("ID").arg(suspect.client_id);
            match redis.send_packed_command(&kill).await? {
                Value::ServerError(error) => tracing::warn!(
                    "a lost connection could not be closed ({}); what it had in flight may stay \
                     locked for its time to live",
                    describe(&error)
                ),
                _closed_or_gone => {}
            }
        }
        Ok(())
    }
}

/// Makes connections to one server.
#[derive(Debug)]
pub(super) struct Manager {
    pub(super) server: CheckedServer,
    pub(super) address: Arc<str>,
    pub(super) identities: Arc<Identities>,
    /// A key under the configured prefix that nobody locks.
    pub(super) preflight_key: Vec<u8>,
    /// In the guarded mode.
    pub(super) guarding: Option<Arc<Guarding>>,
    pub(super) checks: Checks,
}

impl ManageConnection for Manager {
    type Connection = Connection;
    type Error = Cause;

    async fn connect(&self) -> Result<Connection, Cause> {
        // The pool would never hear of a panic, and would count the connection as on its way forever.
        match timeout(CONNECT_DEADLINE, caught("connecting", self.set_up())).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(panicked)) => Err(Cause(panicked)),
            Err(_) => Err(Cause(format!("no connection within {CONNECT_DEADLINE:?}").into())),
        }
    }

    async fn is_valid(&self, connection: &mut Connection) -> Result<(), Cause> {
        cmd("PING").exec_async(&mut connection.link.redis).await.map_err(Cause::from)
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.link.broken.is_raised()
    }
}

/// Opens a connection and logs in. Pushes of the server go to `told`.
pub(super) async fn open(
    server: &CheckedServer,
    told: impl Fn(&PushInfo) + Send + Sync + 'static,
) -> RedisResult<Link> {
    let broken = Arc::new(Latch::default());
    let breaks = Arc::clone(&broken);
    let on_push = move |push: PushInfo| {
        if push.kind == PushKind::Disconnection {
            breaks.raise();
        } else {
            told(&push);
        }
        Ok::<(), ()>(())
    };
    // Whoever sends something has a deadline for it; one here as well would only hide it.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_push_sender(on_push);
    let mut task = JoinSet::new();
    let redis = match server.access() {
        Access::Plain(client) => {
            client.get_multiplexed_async_connection_with_config(&config).await?
        }
        Access::Tls(tls, login) => {
            let stream = tls.connect().await?;
            let (redis, driver) =
                MultiplexedConnection::new_with_config(login, stream, config).await?;
            let breaks = Arc::clone(&broken);
            task.spawn(async move {
                let ended = caught("the task of a TLS connection", driver).await;
                breaks.raise();
                if let Err(panicked) = ended {
                    tracing::error!(cause = %panicked, "connection lost");
                }
            });
            redis
        }
    };
    Ok(Link { redis, broken, _task: Arc::new(task) })
}

impl Manager {
    async fn set_up(&self) -> Result<Connection, Cause> {
        let mut link = open(&self.server, |_| {}).await?;
        let id = self.check(&mut link.redis).await?;
        let dialect = match &self.guarding {
            Some(guarding) => Dialect::Guarded(Arc::clone(guarding)),
            None => {
                Dialect::Plain { native_delete: self.find_native_delete(&mut link.redis).await? }
            }
        };
        Ok(Connection { link, id, dialect })
    }

    /// Finds out whether the server has a compare-and-delete of its own that this user may call.
    async fn find_native_delete(
        &self,
        redis: &mut MultiplexedConnection,
    ) -> Result<Option<NativeDelete>, Cause> {
        let mut known = cmd("COMMAND");
        known.arg("INFO").arg("DELEX").arg("DELIFEQ");
        let known = match redis.send_packed_command(&known).await? {
            Value::Array(known) => known,
            _not_allowed => return Ok(None),
        };
        let offered = [NativeDelete::Delex, NativeDelete::Delifeq];
        for (native, details) in offered.into_iter().zip(known) {
            if matches!(details, Value::Array(_)) {
                let mut trial = Pipeline::new();
                native.encode(&mut trial, &self.preflight_key, "none");
                let replies = redis.send_packed_commands(&trial, 0, 1).await?;
                if replies == [Value::Int(0)] {
                    return Ok(Some(native));
                }
            }
        }
        Ok(None)
    }

    /// Asks the server what it is, loads the scripts, and tries the rights they need.
    async fn check(
        &self,
        redis: &mut MultiplexedConnection,
    ) -> Result<Option<ConnectionId>, Cause> {
        let (scripts, trials): (&[&Script], &[&str]) = match self.guarding {
            Some(_) => (&[&GUARDED, &RELEASE], &GUARDED_TRIALS),
            None => (&[&RELEASE, &EXTEND], &PLAIN_TRIALS),
        };
        let mut questions = Pipeline::with_capacity(SECTIONS.len() + scripts.len() + 3);
        for section in SECTIONS {
            questions.cmd("INFO").arg(section);
        }
        questions.cmd("CLIENT").arg("ID");
        let trial = questions.cmd("EVAL").arg(PREFLIGHT.source);
        trial.arg(1).arg(&self.preflight_key).arg(trials);
        // What counts is the right to name a script by its hash.
        let by_hash = questions.cmd("EVALSHA").arg(PREFLIGHT.hash());
        by_hash.arg(1).arg(&self.preflight_key);
        for script in scripts {
            questions.cmd("SCRIPT").arg("LOAD").arg(script.source);
        }
        let count = SECTIONS.len() + 3 + scripts.len();
        let answers = redis.send_packed_commands(&questions, 0, count).await?;
        let Some((sections, [client_id, trial, by_hash, ..])) =
            answers.split_at_checked(SECTIONS.len())
        else {
            return Err(Cause("its answer is not the Redis protocol".into()));
        };
        let survey = Survey::new(sections);
        for (check, objection) in survey.objections() {
            self.object(check, objection)?;
        }
        for answer in [trial, by_hash] {
            if let Value::ServerError(error) = answer
                && error.kind() != Some(ServerErrorKind::NoScript)
            {
                let text = format!("it refuses what locks need: {}", describe(error));
                return Err(Cause(text.into()));
            }
        }
        let Some(run_id) = survey.run_id() else { return Ok(None) };
        if let Err(objection) = self.identities.claim(&self.address, &run_id) {
            self.object(ServerCheck::Identity, objection)?;
        }
        Ok(match client_id {
            Value::Int(client_id) => Some(ConnectionId { run_id, client_id: *client_id }),
            _ => None,
        })
    }

    fn object(&self, check: ServerCheck, objection: String) -> Result<(), Cause> {
        match self.checks.policy(check) {
            CheckPolicy::Refuse => return Err(Cause(objection.into())),
            CheckPolicy::Warn => {
                tracing::warn!(node = %self.address, ?check, objection, "server check failed");
            }
            CheckPolicy::Ignore => {}
        }
        Ok(())
    }
}

/// Keeps the causes that bb8 would turn into "timed out".
#[derive(Clone, Debug)]
pub(super) struct Causes(watch::Sender<Option<Cause>>);

impl Causes {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Cause>> {
        self.0.subscribe()
    }
}

impl ErrorSink<Cause> for Causes {
    fn sink(&self, cause: Cause) {
        self.0.send_replace(Some(cause));
    }

    fn boxed_clone(&self) -> Box<dyn ErrorSink<Cause>> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

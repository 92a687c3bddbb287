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
    AsyncConnectionConfig, Client, ErrorKind, Pipeline, PushInfo, PushKind, RedisError,
    RedisResult, ServerErrorKind, Value, cmd,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::timeout;

use super::wire::{EXTEND, NativeDelete, PREFLIGHT, RELEASE, describe};
use crate::latch::Latch;

/// How long setting up a connection may take: TCP, TLS, authentication and the questions asked.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

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
    fn claim(&self, address: &Arc<str>, run_id: &Arc<str>) -> Result<(), Cause> {
        let mut by_address = self.by_address.lock();
        let twin = by_address.iter().find(|(other, id)| *other != address && *id == run_id);
        if let Some((other, _)) = twin {
            let text = format!("it is the same server as {other}, name independent servers");
            return Err(Cause(text.into()));
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

/// An authenticated connection to a server that was found fit to vote.
#[derive(Debug)]
pub(super) struct Connection {
    redis: MultiplexedConnection,
    broken: Arc<Latch>,
    /// `None` where the user may not ask: then nothing can be said about old connections.
    id: Option<ConnectionId>,
    native_delete: Option<NativeDelete>,
}

impl Connection {
    pub(super) fn native_delete(&self) -> Option<NativeDelete> {
        self.native_delete
    }

    pub(super) fn broken(&self) -> &Arc<Latch> {
        &self.broken
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
        let mut redis = self.redis.clone();
        async move { redis.send_packed_commands(&pipeline, 0, count).await }
    }

    /// Makes sure that the server executes nothing more of connections that were given up. One
    /// of an earlier run of the server is dead already, and its number may be somebody else's.
    pub(super) async fn silence(&self, suspects: &[ConnectionId]) -> Result<(), Cause> {
        let Some(own) = &self.id else { return Ok(()) };
        let mut redis = self.redis.clone();
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
    pub(super) client: Client,
    pub(super) address: Arc<str>,
    pub(super) identities: Arc<Identities>,
    /// A key under the configured prefix that nobody locks.
    pub(super) preflight_key: Vec<u8>,
}

impl ManageConnection for Manager {
    type Connection = Connection;
    type Error = Cause;

    async fn connect(&self) -> Result<Connection, Cause> {
        match timeout(CONNECT_DEADLINE, self.set_up()).await {
            Ok(connected) => connected,
            Err(_) => Err(Cause(format!("no connection within {CONNECT_DEADLINE:?}").into())),
        }
    }

    async fn is_valid(&self, connection: &mut Connection) -> Result<(), Cause> {
        cmd("PING").exec_async(&mut connection.redis).await.map_err(Cause::from)
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.broken.is_raised()
    }
}

impl Manager {
    async fn set_up(&self) -> Result<Connection, Cause> {
        let broken = Arc::new(Latch::default());
        let on_push = {
            let broken = Arc::clone(&broken);
            move |push: PushInfo| {
                if push.kind == PushKind::Disconnection {
                    broken.raise();
                }
                Ok::<(), ()>(())
            }
        };
        // The deadline of a batch is the lane's; one here as well would only hide it.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_push_sender(on_push);
        let mut redis = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let id = self.check(&mut redis).await?;
        let native_delete = self.find_native_delete(&mut redis).await?;
        Ok(Connection { redis, broken, id, native_delete })
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
        let mut questions = Pipeline::with_capacity(7);
        questions.cmd("INFO").arg("server");
        questions.cmd("INFO").arg("replication");
        questions.cmd("CLIENT").arg("ID");
        for script in [&RELEASE, &EXTEND] {
            questions.cmd("SCRIPT").arg("LOAD").arg(script.source);
        }
        let preflight = questions.cmd("EVAL").arg(PREFLIGHT.source);
        preflight.arg(1).arg(&self.preflight_key);
        // Without the right to load scripts the hash is unknown, which is no harm.
        let by_hash = questions.cmd("EVALSHA").arg(RELEASE.hash());
        by_hash.arg(1).arg(&self.preflight_key).arg("");
        let answers = redis.send_packed_commands(&questions, 0, 7).await?;
        let [server, replication, client_id, _, _, preflight, by_hash] = answers.as_slice() else {
            return Err(Cause("its answer is not the Redis protocol".into()));
        };
        // Without the right to ask (+info) these checks are skipped: locks work all the same.
        match info_field(replication, "role:").as_deref() {
            None | Some("master") => {}
            Some(role) => {
                let text = format!("its role is {role}; name an independent primary");
                return Err(Cause(text.into()));
            }
        }
        match info_field(server, "redis_mode:").as_deref() {
            None | Some("standalone") => {}
            Some(mode) => {
                let text = format!("it runs in {mode} mode; name a standalone server");
                return Err(Cause(text.into()));
            }
        }
        for answer in [preflight, by_hash] {
            if let Value::ServerError(error) = answer
                && error.kind() != Some(ServerErrorKind::NoScript)
            {
                let text = format!("it refuses what locks need: {}", describe(error));
                return Err(Cause(text.into()));
            }
        }
        let Some(run_id) = info_field(server, "run_id:") else { return Ok(None) };
        self.identities.claim(&self.address, &run_id)?;
        Ok(match client_id {
            Value::Int(client_id) => Some(ConnectionId { run_id, client_id: *client_id }),
            _ => None,
        })
    }
}

fn info_field(info: &Value, name: &str) -> Option<Arc<str>> {
    let text = match info {
        Value::BulkString(bytes) => str::from_utf8(bytes).ok()?,
        Value::VerbatimString { text, .. } => text,
        _ => return None,
    };
    text.lines().find_map(|line| line.strip_prefix(name)).map(|value| Arc::from(value.trim()))
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
    fn an_info_field_is_found_among_others() {
        let info = Value::BulkString(b"# Server\r\nredis_mode:standalone\r\nrun_id:abc\r\n".into());
        assert_eq!(info_field(&info, "run_id:").as_deref(), Some("abc"));
        assert_eq!(info_field(&info, "role:"), None);
        assert_eq!(info_field(&Value::Nil, "role:"), None);
    }

    #[test]
    fn one_run_id_behind_two_addresses_is_refused_and_a_restart_is_not() {
        let identities = Identities::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a:1".into(), "b:1".into());
        identities.claim(&a, &"run-1".into()).unwrap();
        let refused = identities.claim(&b, &"run-1".into()).unwrap_err().to_string();
        assert!(refused.contains("same server as a:1"), "{refused}");
        identities.claim(&a, &"run-2".into()).unwrap();
        identities.claim(&b, &"run-1".into()).unwrap();
    }
}

//! Looking into a server, past whatever password or ACL the test gave it.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, FromRedisValue, RedisResult, TlsCertificates, cmd,
};
use redlock_core::Key;

use super::{Address, Admin, RedisServer, ServerOptions};

/// The harness's own user: the tests may do to the default user what they like.
pub(super) const ACL: &str = "redlock-harness on >redlock-harness ~* &* +@all";
const CREDENTIALS: &str = "redlock-harness:redlock-harness";

/// Long enough for a busy machine. A server that is known not to answer is not asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the server is asked and told, as a user who may do everything.
impl RedisServer {
    /// A connection that may do everything, with a time-out of 30 s.
    pub async fn connection(&self) -> MultiplexedConnection {
        connect(&self.options, &self.address).await.expect("the server accepts the harness")
    }

    /// The names of all keys of database 0, sorted; expired ones are not among them, nor is what
    /// the guarded mode keeps besides locks.
    pub async fn keys(&self) -> Vec<String> {
        self.try_keys().await.unwrap_or_else(|error| panic!("KEYS: {error}"))
    }

    pub(crate) async fn try_keys(&self) -> RedisResult<Vec<String>> {
        let mut keys: Vec<String> = self.try_ask(cmd("KEYS").arg("*")).await?;
        keys.retain(|key| !key.contains(Key::RESERVED));
        keys.sort();
        Ok(keys)
    }

    /// The value of a key.
    pub async fn get(&self, key: &str) -> Option<String> {
        self.ask(cmd("GET").arg(key)).await
    }

    /// How long a key has to live: `None` if there is none, [`Duration::MAX`] if it never expires.
    pub async fn pttl(&self, key: &str) -> Option<Duration> {
        match self.ask::<i64>(cmd("PTTL").arg(key)).await {
            -2 => None,
            left => Some(u64::try_from(left).map_or(Duration::MAX, Duration::from_millis)),
        }
    }

    /// Sets a key as somebody else would.
    pub async fn set_foreign(&self, key: &str, value: &str, ttl: Duration) {
        let millis = u64::try_from(ttl.as_millis()).expect("a sensible time");
        self.ask::<()>(cmd("SET").arg(key).arg(value).arg("PX").arg(millis)).await;
    }

    /// Removes a key.
    pub async fn delete(&self, key: &str) {
        self.ask::<i64>(cmd("DEL").arg(key)).await;
    }

    /// How often each command was called, by its lower-case name, subcommands as `config|get`.
    /// Commands called by scripts count too.
    pub async fn command_stats(&self) -> BTreeMap<String, u64> {
        self.try_command_stats().await.unwrap_or_else(|error| panic!("INFO: {error}"))
    }

    pub(crate) async fn try_command_stats(&self) -> RedisResult<BTreeMap<String, u64>> {
        let info: String = self.try_ask(cmd("INFO").arg("commandstats")).await?;
        Ok(info
            .lines()
            .filter_map(|line| {
                let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
                Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
            })
            .collect())
    }

    /// How many times the server read from a connection: one read may bring many commands.
    /// Asking for it costs one read itself.
    pub async fn reads_processed(&self) -> u64 {
        let info: String = self.ask(cmd("INFO").arg("stats")).await;
        let field = info.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
        field.expect("Redis 6 or newer").trim().parse().expect("a number")
    }

    /// The bytes that the server has allocated.
    pub async fn used_memory(&self) -> u64 {
        let info: String = self.ask(cmd("INFO").arg("memory")).await;
        let field = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        field.expect("a Redis server").trim().parse().expect("a number")
    }

    /// Sets all counters back to zero.
    pub async fn config_resetstat(&self) {
        self.ask::<()>(cmd("CONFIG").arg("RESETSTAT")).await;
    }

    /// Changes a setting while the server runs.
    pub async fn config_set(&self, name: &str, value: &str) {
        self.ask::<()>(cmd("CONFIG").arg("SET").arg(name).arg(value)).await;
    }

    /// Forgets all scripts, as a restart or a failover would.
    pub async fn flush_scripts(&self) {
        self.ask::<()>(cmd("SCRIPT").arg("FLUSH")).await;
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> T {
        let answer = self.try_ask(command).await;
        answer.unwrap_or_else(|error| panic!("the Redis server on port {}: {error}", self.port()))
    }

    /// One connection serves all questions, so that looking changes the counters little.
    pub(crate) async fn try_ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        if !self.is_running() {
            let problem = (redis::ErrorKind::Io, "the server is killed or paused");
            return Err(problem.into());
        }
        let kept = self.state.lock().admin.clone();
        if let Some(Admin(mut connection)) = kept {
            match command.query_async(&mut connection).await {
                // It ended: the test ran CLIENT KILL, or came back with another runtime.
                Err(error) if error.is_io_error() && !error.is_timeout() => {}
                answer => return answer,
            }
        }
        let mut connection = connect(&self.options, &self.address).await?;
        let answer = command.query_async(&mut connection).await;
        self.state.lock().admin = Some(Admin(connection));
        answer
    }
}

pub(super) async fn connect(
    options: &ServerOptions,
    address: &Address,
) -> RedisResult<MultiplexedConnection> {
    let client = match &address.certificates {
        Some(certificates) if options.is_tls_only() => {
            let port = address.tls_port.unwrap_or_default();
            let trust = TlsCertificates {
                client_tls: None,
                root_cert: Some(certificates.ca_pem().as_bytes().to_vec()),
            };
            Client::build_with_tls(format!("rediss://{CREDENTIALS}@127.0.0.1:{port}/"), trust)?
        }
        _ => Client::open(format!("redis://{CREDENTIALS}@127.0.0.1:{}/", address.port))?,
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Whose answer it is: the port may belong to another server.
pub(super) async fn process_id(connection: &mut MultiplexedConnection) -> RedisResult<u32> {
    let info: String = cmd("INFO").arg("server").query_async(connection).await?;
    let field = info.lines().find_map(|line| line.strip_prefix("process_id:"));
    Ok(field.and_then(|pid| pid.trim().parse().ok()).unwrap_or_default())
}

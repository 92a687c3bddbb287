//! A configuration read from a file. No error may repeat what stands where a password could be.

mod shape;

use std::time::Duration;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess};

use self::shape::{Discreet, Flag, List, Number, Secret, discreet};
use super::server::Server;
use super::{CheckPolicy, Config, ConfigBuilder, ConfigError, Group, Safety, ServerCheck, WakeUp};
use crate::ring::RingScheme;

/// The names of the settings in a file. Whatever is left out has the builder's default.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "the settings of a lock service")]
struct Settings {
    servers: Option<List<ServerSetting>>,
    cluster: Option<List<GroupSetting>>,
    pool_size: Option<usize>,
    drift_factor: Option<f64>,
    max_retry: Option<u32>,
    #[serde(default, with = "humantime_serde")]
    retry_interval_base: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    retry_interval_max: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    reconnection_interval_base: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    reconnection_interval_max: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    ttl: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    node_deadline: Option<Duration>,
    key_prefix: Option<String>,
    label: Option<String>,
    ring: Option<RingSetting>,
    max_waiters: Option<usize>,
    safety: Option<SafetySetting>,
    #[serde(default, with = "humantime_serde")]
    max_ttl: Option<Duration>,
    epoch: Option<u32>,
    fleet: Option<String>,
    durable: Option<bool>,
    wake_up: Option<WakeUpSetting>,
    #[serde(default, with = "humantime_serde")]
    max_clock_skew: Option<Duration>,
    checks: Option<ChecksSetting>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum RingSetting {
    Xxh3,
    Ketama,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum SafetySetting {
    Guarded,
    Plain,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum WakeUpSetting {
    Push,
    Poll,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "a policy for each check")]
struct ChecksSetting {
    role: Option<PolicySetting>,
    identity: Option<PolicySetting>,
    mode: Option<PolicySetting>,
    eviction: Option<PolicySetting>,
    version: Option<PolicySetting>,
    persistence: Option<PolicySetting>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum PolicySetting {
    Refuse,
    Warn,
    Ignore,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "a server's fields")]
struct ServerFields {
    host: Secret,
    port: Option<Number<u16>>,
    ssl: Option<Flag>,
    username: Option<Secret>,
    auth: Option<Secret>,
    database: Option<Number<u32>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, expecting = "a group's fields")]
struct GroupFields {
    name: String,
    servers: List<ServerSetting>,
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Settings::deserialize(deserializer)?.build().map_err(D::Error::custom)
    }
}

impl Settings {
    fn build(self) -> Result<Config, ConfigError> {
        let mut builder = match (self.servers, self.cluster) {
            (Some(List(servers)), None) => Config::servers(servers.into_iter().map(|s| s.0)),
            (None, Some(List(groups))) => Config::cluster(groups.into_iter().map(|g| g.0)),
            (None, None) => {
                let fix = "give a list of servers, or a cluster of such lists";
                return Err(ConfigError::new("servers", "(not given)", fix));
            }
            (Some(_), Some(_)) => {
                let fix = "give either servers or cluster: the servers of a cluster stand in it";
                return Err(ConfigError::new("cluster", "(given with servers)", fix));
            }
        };
        let retry = (self.retry_interval_base, self.retry_interval_max);
        let reconnection = (self.reconnection_interval_base, self.reconnection_interval_max);
        builder.retry_interval = builder.retry_interval.or(retry);
        builder.reconnection_interval = builder.reconnection_interval.or(reconnection);
        builder = set(builder, self.ttl, ConfigBuilder::ttl);
        builder = set(builder, self.pool_size, ConfigBuilder::pool_size);
        builder = set(builder, self.drift_factor, ConfigBuilder::drift_factor);
        builder = set(builder, self.max_retry, ConfigBuilder::max_retry);
        builder = set(builder, self.node_deadline, ConfigBuilder::node_deadline);
        builder = set(builder, self.key_prefix, ConfigBuilder::key_prefix);
        builder = set(builder, self.label, ConfigBuilder::label);
        builder = set(builder, self.max_waiters, ConfigBuilder::max_waiters);
        builder = set(builder, self.max_ttl, ConfigBuilder::max_ttl);
        builder = set(builder, self.epoch, ConfigBuilder::epoch);
        builder = set(builder, self.fleet, ConfigBuilder::fleet);
        builder = set(builder, self.durable, ConfigBuilder::durable);
        builder = set(builder, self.max_clock_skew, ConfigBuilder::max_clock_skew);
        let safety = self.safety.map(|safety| match safety {
            SafetySetting::Guarded => Safety::Guarded,
            SafetySetting::Plain => Safety::Plain,
        });
        builder = set(builder, safety, ConfigBuilder::safety);
        let wake_up = self.wake_up.map(|wake_up| match wake_up {
            WakeUpSetting::Push => WakeUp::Push,
            WakeUpSetting::Poll => WakeUp::Poll,
        });
        builder = set(builder, wake_up, ConfigBuilder::wake_up);
        builder = set(builder, self.checks, |builder, checks| checks.apply(builder));
        let ring = self.ring.map(|ring| match ring {
            RingSetting::Xxh3 => RingScheme::Xxh3,
            RingSetting::Ketama => RingScheme::Ketama,
        });
        set(builder, ring, ConfigBuilder::ring).build()
    }
}

impl ChecksSetting {
    fn apply(self, builder: ConfigBuilder) -> ConfigBuilder {
        let policies = [
            (ServerCheck::Role, self.role),
            (ServerCheck::Identity, self.identity),
            (ServerCheck::Mode, self.mode),
            (ServerCheck::Eviction, self.eviction),
            (ServerCheck::Version, self.version),
            (ServerCheck::Persistence, self.persistence),
        ];
        policies.into_iter().fold(builder, |builder, (check, policy)| {
            set(builder, policy, |builder, policy| {
                let policy = match policy {
                    PolicySetting::Refuse => CheckPolicy::Refuse,
                    PolicySetting::Warn => CheckPolicy::Warn,
                    PolicySetting::Ignore => CheckPolicy::Ignore,
                };
                builder.check(check, policy)
            })
        })
    }
}

fn set<T>(
    builder: ConfigBuilder,
    value: Option<T>,
    setter: impl FnOnce(ConfigBuilder, T) -> ConfigBuilder,
) -> ConfigBuilder {
    match value {
        Some(value) => setter(builder, value),
        None => builder,
    }
}

impl super::Backoff {
    /// With the limits that were given.
    fn or(self, (base, cap): (Option<Duration>, Option<Duration>)) -> Self {
        Self { base: base.unwrap_or(self.base), cap: cap.unwrap_or(self.cap) }
    }
}

impl From<ServerFields> for Server {
    fn from(fields: ServerFields) -> Self {
        let mut server = Self::new(fields.host.0);
        if let Some(Number(port)) = fields.port {
            server = server.port(port);
        }
        if let Some(Secret(username)) = fields.username {
            server = server.username(username);
        }
        if let Some(Secret(password)) = fields.auth {
            server = server.auth(password);
        }
        if let Some(Flag(ssl)) = fields.ssl {
            server = server.ssl(ssl);
        }
        match fields.database {
            Some(Number(database)) => server.database(database),
            None => server,
        }
    }
}

/// `"redis://…"` or `{ host = … }`.
struct ServerSetting(Server);

/// `[…]` or `{ name = …, servers = […] }`.
struct GroupSetting(Group);

impl<'de> Deserialize<'de> for ServerSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        discreet(deserializer, "the URL of a server in quotes, or its fields in braces")
    }
}

impl Discreet for ServerSetting {
    fn text(text: &str) -> Option<Self> {
        Some(Self(text.into()))
    }

    fn fields<'de, A: MapAccess<'de>>(fields: A) -> Result<Option<Self>, A::Error> {
        let fields = ServerFields::deserialize(MapAccessDeserializer::new(fields))?;
        Ok(Some(Self(fields.into())))
    }
}

impl<'de> Deserialize<'de> for GroupSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        discreet(deserializer, "a list of servers in brackets, or a name and servers in braces")
    }
}

impl Discreet for GroupSetting {
    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Option<Self>, A::Error> {
        let servers = Vec::<ServerSetting>::deserialize(SeqAccessDeserializer::new(list))?;
        Ok(Some(Self(servers.into_iter().map(|server| server.0).collect::<Vec<_>>().into())))
    }

    fn fields<'de, A: MapAccess<'de>>(fields: A) -> Result<Option<Self>, A::Error> {
        let GroupFields { name, servers } =
            GroupFields::deserialize(MapAccessDeserializer::new(fields))?;
        Ok(Some(Self(Group::named(name, servers.0.into_iter().map(|server| server.0)))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Access;

    fn read(json: &str) -> Result<Config, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_clock_skew_is_read_as_any_duration() {
        let config = read(r#"{ "servers": ["redis://a"], "max_clock_skew": "40ms" }"#).unwrap();
        assert_eq!(config.max_clock_skew(), Some(Duration::from_millis(40)));
        let refused = read(r#"{ "servers": ["redis://a"], "max_clock_skew": "0ms" }"#).unwrap_err();
        assert!(refused.starts_with("max_clock_skew = 0ns: no two clocks"), "{refused}");
    }

    #[test]
    fn every_setting_has_its_name() {
        let config = read(
            r#"{
                "servers": ["redis://a"],
                "pool_size": 2, "drift_factor": 0.02, "max_retry": 5,
                "retry_interval_base": "30ms", "retry_interval_max": "1s",
                "reconnection_interval_base": "40ms", "reconnection_interval_max": "2s",
                "ttl": "1m 30s", "node_deadline": "20ms", "key_prefix": "app:",
                "label": "me", "ring": "ketama", "max_waiters": 7,
                "safety": "plain", "max_ttl": "2m", "epoch": 3, "fleet": "eu", "durable": true,
                "wake_up": "poll",
                "checks": { "eviction": "warn", "persistence": "refuse" }
            }"#,
        )
        .unwrap();
        let millis = Duration::from_millis;
        assert_eq!(config.pool_size(), 2);
        assert!((config.drift_factor() - 0.02).abs() < f64::EPSILON);
        assert_eq!(config.max_retry(), 5);
        assert_eq!(config.retry_interval(), (millis(30), millis(1000)));
        assert_eq!(config.reconnection_interval(), (millis(40), millis(2000)));
        assert_eq!(config.ttl(), millis(90_000));
        assert_eq!(config.node_deadline(), millis(20));
        assert_eq!(config.key_prefix(), b"app:");
        assert_eq!(config.label(), "me");
        assert_eq!(config.ring(), RingScheme::Ketama);
        assert_eq!(config.max_waiters(), 7);
        assert_eq!((config.safety(), config.max_ttl()), (Safety::Plain, millis(120_000)));
        assert_eq!((config.epoch, config.fleet.as_deref(), config.durable), (3, Some("eu"), true));
        assert_eq!(config.wake_up, WakeUp::Poll);
        assert_eq!(config.checks.policy(ServerCheck::Eviction), CheckPolicy::Warn);
        assert_eq!(config.checks.policy(ServerCheck::Persistence), CheckPolicy::Refuse);
        assert_eq!(config.checks.policy(ServerCheck::Role), CheckPolicy::Refuse);
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let config = read(r#"{ "servers": ["redis://a"], "retry_interval_max": "60ms" }"#).unwrap();
        let default = Config::servers(["redis://a"]).label(config.label());
        let default = default.retry_interval(Duration::from_millis(50), Duration::from_millis(60));
        let default = default.build().unwrap();
        assert_eq!(config.ttl(), default.ttl());
        assert_eq!(config.retry_interval(), default.retry_interval());
        assert_eq!(config.node_deadline(), default.node_deadline());
    }

    #[test]
    fn servers_are_urls_or_fields() {
        let config = read(
            r#"{ "servers": [
                "redis://a/1", { "host": "b" },
                { "host": "c", "port": 7, "ssl": true, "username": "u", "auth": "p", "database": 2 }
            ] }"#,
        )
        .unwrap();
        assert_eq!(config.addresses(), [["a:6379/1", "b:6379/0", "c:7/2"]]);
        let Access::Tls(_, login) = config.groups[0].servers()[2].access() else {
            panic!("no TLS")
        };
        assert_eq!((login.username(), login.password()), (Some("u"), Some("p")));
    }

    #[test]
    fn a_cluster_has_groups_with_names_or_without() {
        let config = read(
            r#"{ "cluster": [["redis://a"], { "name": "us", "servers": [{ "host": "b" }] }] }"#,
        )
        .unwrap();
        assert_eq!(config.addresses(), [["a:6379/0"], ["b:6379/0"]]);
        assert_eq!(config.groups[0].name(), "a:6379/0");
        assert_eq!(config.groups[1].name(), "us");
    }

    #[test]
    fn what_the_builder_refuses_is_refused_in_its_words() {
        for (json, error) in [
            (r#"{}"#, "servers = (not given): give a list of servers"),
            (r#"{ "servers": ["redis://a"], "cluster": [] }"#, "cluster = (given with servers)"),
            (r#"{ "servers": ["redis://a", "redis://b"] }"#, "servers = 2 servers: an even number"),
            (r#"{ "servers": ["redis://u:s3cret@a/x"] }"#, "servers[0] = redis://u:***@a/x: "),
            (r#"{ "servers": ["redis://a"], "ttl": "1ms" }"#, "ttl = 1ms: nothing would be left"),
            (r#"{ "cluster": [[{ "host": "" }]] }"#, "cluster[0].servers[0] = : it is not a host"),
        ] {
            let refused = read(json).unwrap_err();
            assert!(refused.starts_with(error), "{refused}");
        }
    }

    #[test]
    fn unknown_fields_and_shapes_are_refused_without_repeating_secrets() {
        for (json, error) in [
            (r#"{ "servers": ["redis://a"], "tll": "1s" }"#, "unknown field `tll`"),
            (
                r#"{ "servers": [{ "host": "a", "password": "s3cret" }] }"#,
                "unknown field `password`",
            ),
            (r#"{ "cluster": [{ "name": "a", "server": [] }] }"#, "unknown field `server`"),
            (r#"{ "servers": "redis://:s3cret@a" }"#, "expected a list"),
            (r#"{ "cluster": "redis://:s3cret@a" }"#, "expected a list"),
            (r#"{ "cluster": ["redis://:s3cret@a"] }"#, "expected a list of servers"),
            (r#"{ "servers": [["redis://:s3cret@a"]] }"#, "expected the URL of a server"),
            (r#"{ "servers": [{ "host": "a", "auth": 7373 }] }"#, "expected a text in quotes"),
            (r#"{ "servers": [{ "host": "a", "port": "s3cret" }] }"#, "expected a number"),
            (r#"{ "servers": [{ "host": "a", "port": 737373 }] }"#, "expected a number"),
            (r#"{ "servers": [{ "host": "a", "database": "s3cret" }] }"#, "expected a number"),
            (r#"{ "servers": [{ "host": "a", "ssl": "s3cret" }] }"#, "expected true or false"),
            (r#"{ "servers": [7373] }"#, "expected the URL of a server"),
            (r#"{ "servers": [-7373] }"#, "expected the URL of a server"),
            (r#"{ "servers": [73.73] }"#, "expected the URL of a server"),
            (r#"{ "servers": [true] }"#, "expected the URL of a server"),
            (r#"{ "servers": ["redis://a"], "ring": "md5" }"#, "`xxh3` or `ketama`"),
        ] {
            let refused = read(json).unwrap_err();
            assert!(refused.contains(error), "{refused}");
            for secret in ["s3cret", "7373", "73.73"] {
                assert!(!refused.contains(secret), "{refused}");
            }
        }
    }
}

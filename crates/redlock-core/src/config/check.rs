//! What a setting must be, each with the words that say how to mend it.

use std::collections::HashMap;
use std::time::Duration;

use super::drift::Drift;
use super::{Backoff, CheckedGroup, ConfigError, Group, Safety};
use crate::key::{Key, may_become_reserved};
use crate::token::{MAX_LABEL_LEN, is_label};

const MAX_SERVERS: usize = 63;
const MAX_PREFIX_LEN: usize = 256;

/// The longest time to live: a lock that is to be held for years is not a lease.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Where the servers were named, for errors about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Servers,
    Cluster,
    Environment,
    Memory,
}

impl Place {
    fn all(self) -> &'static str {
        match self {
            Self::Servers | Self::Memory => "servers",
            Self::Cluster => "cluster",
            Self::Environment => super::SERVERS_VARIABLE,
        }
    }

    fn group(self, group: usize) -> String {
        match self {
            Self::Servers | Self::Memory => self.all().into(),
            Self::Cluster | Self::Environment => format!("{}[{group}]", self.all()),
        }
    }

    fn server(self, group: usize, server: usize) -> String {
        match self {
            Self::Servers | Self::Memory => format!("servers[{server}]"),
            Self::Cluster => format!("cluster[{group}].servers[{server}]"),
            Self::Environment => format!("{}[{group}][{server}]", self.all()),
        }
    }
}

/// Servers and groups that can be locked on: an odd number each, none of them twice.
pub(super) fn check_groups(
    place: Place,
    groups: &[Group],
) -> Result<Vec<CheckedGroup>, ConfigError> {
    if groups.is_empty() {
        let fix = "there is no group of servers: name at least one";
        return Err(ConfigError::new(place.all(), "(empty)", fix));
    }
    let mut names = HashMap::new();
    let mut places = HashMap::new();
    let mut checked = Vec::with_capacity(groups.len());
    for (at, group) in groups.iter().enumerate() {
        let mut servers = Vec::with_capacity(group.servers().len());
        for (server_at, server) in group.servers().iter().enumerate() {
            let field = place.server(at, server_at);
            servers.push(server.check().map_err(|error| error.of(&field))?);
            if let Some(first) = places.insert(server.identity(), field.clone()) {
                let fix = format!(
                    "it is the same server as {first}, also if the database differs, and one \
                     server has one vote: name another server"
                );
                return Err(ConfigError::new(field, server.address(), fix));
            }
        }
        check_count(&place.group(at), group.servers().len())?;
        let field = format!("{}.name", place.group(at));
        if group.name().is_empty() {
            let fix = "it decides which keys the group owns: give it a name";
            return Err(ConfigError::new(field, "(empty)", fix));
        }
        if let Some(first) = names.insert(group.name(), at) {
            let fix = format!(
                "{} has the same name, and it decides which keys a group owns: give each \
                 group its own",
                place.group(first)
            );
            return Err(ConfigError::new(field, group.name().escape_debug(), fix));
        }
        checked.push(CheckedGroup::new(group.name(), servers));
    }
    Ok(checked)
}

/// Whether `label` can be part of a token.
pub(crate) fn check_label(label: &str) -> Result<(), ConfigError> {
    if is_label(label) {
        return Ok(());
    }
    let fix = format!("use 1 to {MAX_LABEL_LEN} visible ASCII characters other than a colon");
    let start: String = label.chars().take(MAX_LABEL_LEN).collect();
    let value = format!("\"{}\" ({} bytes)", start.escape_debug(), label.len());
    Err(ConfigError::new("label", value, fix))
}

pub(super) fn check_key_prefix(prefix: &str) -> Result<(), ConfigError> {
    let error = |value: String, fix| Err(ConfigError::new("key_prefix", value, fix));
    let len = prefix.len();
    if len > MAX_PREFIX_LEN {
        return error(
            format!("{len} bytes"),
            format!("shorten it to at most {MAX_PREFIX_LEN} bytes"),
        );
    }
    if may_become_reserved(prefix.as_bytes()) {
        let fix = format!(
            "it contains {0}, or ends in its beginning, and {0} is reserved for what the library \
             itself keeps on the servers: leave that out, or end the prefix in a colon",
            Key::RESERVED
        );
        return error(format!("\"{}\"", prefix.escape_debug()), fix);
    }
    Ok(())
}

/// The TTL as the servers count it, if it outlives the drift and two node deadlines.
pub(super) fn usable_ttl(
    ttl: Duration,
    drift: Drift,
    node_deadline: Duration,
) -> Result<Duration, ConfigError> {
    let whole = whole_millis(ttl);
    let error = |fix: String| Err(ConfigError::new("ttl", format!("{ttl:?}"), fix));
    if whole.is_zero() {
        return error("the servers count in milliseconds: set at least 1ms".into());
    }
    if ttl > MAX_TTL {
        return error(format!("a lease of more than {MAX_TTL:?}, a year, never ends: set less"));
    }
    let drifted = drift.of(whole);
    if whole <= drifted.saturating_add(node_deadline.saturating_mul(2)) {
        let fixed = drift.fixed().saturating_add(node_deadline.saturating_mul(2));
        let least = fixed.as_secs_f64() / (1.0 - drift.factor) * 1000.0;
        let longer = match least < MAX_TTL.as_secs_f64() * 1000.0 {
            true => format!("a ttl of at least {}ms, or ", least.floor() + 1.0),
            false => String::new(),
        };
        let or_else = match drift.max_skew.is_zero() {
            true if drift.factor > 0.5 => "a smaller drift_factor",
            true => "a shorter node_deadline",
            false => "a smaller max_clock_skew, which counts four times",
        };
        return error(format!(
            "nothing would be left of it after the drift of the clocks, {drifted:?}, and two node \
             deadlines of {node_deadline:?}: set {longer}{or_else}"
        ));
    }
    Ok(whole)
}

pub(super) fn check_max_ttl(max_ttl: Duration, ttl: Duration) -> Result<(), ConfigError> {
    let error = |fix: String| Err(ConfigError::new("max_ttl", format!("{max_ttl:?}"), fix));
    if max_ttl < ttl {
        return error(format!(
            "no lock may last longer, and the ttl is {ttl:?}: set at least that"
        ));
    }
    if max_ttl > MAX_TTL {
        return error(format!("more than {MAX_TTL:?}, a year, is no lease: set less"));
    }
    Ok(())
}

pub(super) fn check_max_clock_skew(skew: Duration, safety: Safety) -> Result<(), ConfigError> {
    let error = |fix: &str| Err(ConfigError::new("max_clock_skew", format!("{skew:?}"), fix));
    if safety != Safety::Guarded {
        return error("only the guarded mode looks at the servers' clocks: set safety to it");
    }
    if skew < Duration::from_millis(1) {
        return error(
            "no two clocks agree so well, and commands take time: set at least 1ms, such as 50ms",
        );
    }
    Ok(())
}

pub(super) fn check_node_deadline(deadline: Duration, ttl: Duration) -> Result<(), ConfigError> {
    let error = |fix: String| Err(ConfigError::new("node_deadline", format!("{deadline:?}"), fix));
    if deadline < Duration::from_millis(1) {
        return error(
            "no server answers in so little time: set at least a few milliseconds".into(),
        );
    }
    if deadline >= ttl / 2 && !ttl.is_zero() {
        return error(format!(
            "one silent server could use up the lease: set less than half of the ttl, {ttl:?}"
        ));
    }
    Ok(())
}

pub(super) fn check_interval(field: &str, interval: Backoff) -> Result<(), ConfigError> {
    let value = format!("{:?} to {:?}", interval.base, interval.cap);
    if interval.base < Duration::from_millis(1) {
        let fix = "without a pause the servers are flooded: set a base of at least 1ms";
        return Err(ConfigError::new(field, value, fix));
    }
    if interval.base > interval.cap {
        let fix = "the first pause is longer than the longest: set a base up to the cap";
        return Err(ConfigError::new(field, value, fix));
    }
    if interval.cap > MAX_TTL {
        let fix = "a pause of more than a year never ends: set a smaller cap";
        return Err(ConfigError::new(field, value, fix));
    }
    Ok(())
}

fn check_count(field: &str, servers: usize) -> Result<(), ConfigError> {
    let error = |fix: String| Err(ConfigError::new(field, format!("{servers} servers"), fix));
    if servers == 0 {
        return error(
            "there is nothing to lock on: name one server, or better three or five".into(),
        );
    }
    if servers > MAX_SERVERS {
        return error(format!(
            "a lock asks all of them: name at most {MAX_SERVERS}, and use groups to spread keys"
        ));
    }
    if servers.is_multiple_of(2) {
        return error(format!(
            "an even number tolerates no more failures than one fewer: name {} or {}",
            servers - 1,
            servers + 1
        ));
    }
    Ok(())
}

pub(super) fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

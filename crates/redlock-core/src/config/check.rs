//! What a setting must be, each with the words that say how to mend it.

use std::time::Duration;

use super::drift::{CLOCK_PRECISION, Drift};
use super::{Backoff, ConfigError};
use crate::token::{MAX_LABEL_LEN, is_label};

const MAX_SERVERS: usize = 63;

/// The longest time to live: a lock that is to be held for years is not a lease.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 60 * 60);

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
        let fixed = CLOCK_PRECISION.saturating_add(node_deadline.saturating_mul(2));
        let least = fixed.as_secs_f64() / (1.0 - drift.0) * 1000.0;
        let advice = format!("set a ttl of at least {}ms", least.floor() + 1.0);
        return error(format!(
            "nothing would be left of it after the drift of the clocks, {drifted:?}, and two node \
             deadlines of {node_deadline:?}: {advice}, or a shorter node_deadline"
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

pub(super) fn check_node_deadline(deadline: Duration, ttl: Duration) -> Result<(), ConfigError> {
    let error = |fix: String| Err(ConfigError::new("node_deadline", format!("{deadline:?}"), fix));
    if deadline.is_zero() {
        return error("no server answers in no time: set at least a few milliseconds".into());
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
    if interval.base.is_zero() {
        let fix = "without a pause the servers are flooded: set a base of at least 1ms";
        return Err(ConfigError::new(field, value, fix));
    }
    if interval.base > interval.cap {
        let fix = "the first pause is longer than the longest: set a base up to the cap";
        return Err(ConfigError::new(field, value, fix));
    }
    Ok(())
}

pub(super) fn check_count(field: &str, servers: usize) -> Result<(), ConfigError> {
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

//! What a server says of itself, and what speaks against its vote.

use std::sync::Arc;

use super::resp::Frame;
use crate::config::ServerCheck;

/// The sections of INFO that are asked for.
pub(super) const SECTIONS: [&str; 4] = ["server", "replication", "memory", "persistence"];

/// The oldest server that everything was tested on.
const OLDEST: (u32, u32) = (6, 2);

/// What a server answered to INFO. What it did not say, or the user may not ask, is not held
/// against it.
#[derive(Debug, Default)]
pub(super) struct Survey {
    lines: String,
}

impl Survey {
    /// Adds a section.
    pub(super) fn add(&mut self, section: &Frame<'_>) {
        if let Frame::Bulk(text) = section {
            self.lines.push_str(&String::from_utf8_lossy(text));
            self.lines.push('\n');
        }
    }

    /// Tells one run of a server from all others.
    pub(super) fn run_id(&self) -> Option<Arc<str>> {
        self.field("run_id").map(Arc::from)
    }

    /// What speaks against the server, in words for its operator. Whether it is another one under
    /// a second name is for those to say who know the others.
    pub(super) fn objections(&self) -> Vec<(ServerCheck, String)> {
        let all = [
            (ServerCheck::Role, self.role()),
            (ServerCheck::Mode, self.mode()),
            (ServerCheck::Eviction, self.eviction()),
            (ServerCheck::Version, self.version()),
            (ServerCheck::Persistence, self.persistence()),
        ];
        all.into_iter().filter_map(|(check, text)| text.map(|text| (check, text))).collect()
    }

    fn role(&self) -> Option<String> {
        let role = self.field("role").filter(|role| *role != "master")?;
        Some(format!("its role is {role}; name an independent primary"))
    }

    fn mode(&self) -> Option<String> {
        // Valkey calls the field `server_mode`, unless `extended-redis-compatibility` is on.
        let mode = self.field("redis_mode").or_else(|| self.field("server_mode"))?;
        if mode == "standalone" {
            return None;
        }
        Some(format!("it runs in {mode} mode; name a standalone server"))
    }

    fn eviction(&self) -> Option<String> {
        self.field("maxmemory").filter(|bytes| *bytes != "0")?;
        let policy = self.field("maxmemory_policy").filter(|policy| *policy != "noeviction")?;
        Some(format!(
            "it evicts keys when it is full (maxmemory-policy {policy}), locks among them; set \
             maxmemory-policy noeviction"
        ))
    }

    fn version(&self) -> Option<String> {
        if self.field("valkey_version").is_some() {
            return None;
        }
        let version = self.field("redis_version")?;
        let mut numbers = version.split('.').map_while(|number| number.parse().ok());
        let old = (numbers.next()?, numbers.next()?) < OLDEST;
        let (major, minor) = OLDEST;
        old.then(|| format!("it is version {version}; use {major}.{minor} or later"))
    }

    fn persistence(&self) -> Option<String> {
        self.field("aof_enabled").filter(|enabled| *enabled == "0")?;
        Some("it writes no append-only file; set appendonly yes".into())
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.lines.lines().filter_map(|line| line.split_once(':'));
        fields.find(|(field, _)| *field == name).map(|(_, value)| value.trim())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(text: &str) -> Survey {
        let mut survey = Survey::default();
        survey.add(&Frame::Nil);
        survey.add(&Frame::Bulk(text.as_bytes()));
        survey
    }

    fn objection(text: &str) -> Option<ServerCheck> {
        let objections = survey(text).objections();
        assert!(objections.len() <= 1, "{objections:?}");
        objections.first().map(|(check, _)| *check)
    }

    #[test]
    fn a_field_is_found_among_others() {
        let survey = survey("# Server\r\nredis_mode:standalone\r\nrun_id:abc\r\n");
        assert_eq!(survey.run_id().as_deref(), Some("abc"));
        assert_eq!(survey.field("run"), None);
        assert!(survey.objections().is_empty());
    }

    #[test]
    fn a_server_that_says_nothing_has_nothing_against_it() {
        let mut silent = Survey::default();
        silent.add(&Frame::Nil);
        silent.add(&Frame::Integer(3));
        assert!(silent.objections().is_empty());
    }

    #[test]
    fn each_objection_is_to_what_was_said() {
        for (text, check) in [
            ("role:slave", Some(ServerCheck::Role)),
            ("role:master", None),
            ("redis_mode:cluster", Some(ServerCheck::Mode)),
            ("redis_mode:sentinel", Some(ServerCheck::Mode)),
            ("redis_mode:standalone", None),
            ("server_mode:cluster", Some(ServerCheck::Mode)),
            ("server_mode:sentinel", Some(ServerCheck::Mode)),
            ("server_mode:standalone", None),
            ("maxmemory:1000\r\nmaxmemory_policy:allkeys-lru", Some(ServerCheck::Eviction)),
            ("maxmemory:1000\r\nmaxmemory_policy:noeviction", None),
            ("maxmemory:0\r\nmaxmemory_policy:allkeys-lru", None),
            ("redis_version:6.0.16", Some(ServerCheck::Version)),
            ("redis_version:6.2.0", None),
            ("redis_version:7.0.15", None),
            ("redis_version:10.0", None),
            ("redis_version:5.9\r\nvalkey_version:8.0.1", None),
            ("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2", None),
            ("redis_version:8.2.3", None),
            ("redis_version:unstable", None),
            ("aof_enabled:0", Some(ServerCheck::Persistence)),
            ("aof_enabled:1", None),
        ] {
            assert_eq!(objection(text), check, "{text}");
        }
    }
}

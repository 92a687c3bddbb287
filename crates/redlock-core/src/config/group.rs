//! Servers that decide about their share of the keys.

use super::server::{CheckedServer, Server};

/// An odd number of independent servers that own a share of the keys.
///
/// It is made from a list of servers, or named:
///
/// ```
/// use redlock_core::{Config, Group};
///
/// let config = Config::cluster([
///     Group::named("eu", ["redis://eu-1", "redis://eu-2", "redis://eu-3"]),
///     Group::named("us", ["redis://us-1", "redis://us-2", "redis://us-3"]),
/// ])
/// .build()?;
/// # Ok::<(), redlock_core::ConfigError>(())
/// ```
///
/// The name decides which keys the group owns (see [`RingScheme`](crate::RingScheme)). A group
/// without one is named after the sorted addresses of its servers, so that replacing a server
/// moves keys to other groups: name groups to be able to replace their servers.
#[derive(Clone, Debug)]
pub struct Group {
    name: String,
    servers: Vec<Server>,
}

impl Group {
    /// A group that keeps its keys when its servers are replaced.
    #[must_use]
    pub fn named(name: impl Into<String>, servers: impl IntoIterator<Item: Into<Server>>) -> Self {
        Self { name: name.into(), servers: servers.into_iter().map(Into::into).collect() }
    }

    pub(crate) fn unnamed(servers: Vec<Server>) -> Self {
        let mut addresses: Vec<_> = servers.iter().map(Server::address).collect();
        addresses.sort_unstable();
        Self { name: addresses.join(","), servers }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn servers(&self) -> &[Server] {
        &self.servers
    }
}

/// A group whose servers were checked.
#[derive(Clone, Debug)]
pub(crate) struct CheckedGroup {
    name: String,
    servers: Vec<CheckedServer>,
}

impl CheckedGroup {
    pub(super) fn new(name: &str, servers: Vec<CheckedServer>) -> Self {
        Self { name: name.into(), servers }
    }

    /// What the ring knows the group by.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn servers(&self) -> &[CheckedServer] {
        &self.servers
    }
}

impl<S: Into<Server>> From<Vec<S>> for Group {
    fn from(servers: Vec<S>) -> Self {
        Self::unnamed(servers.into_iter().map(Into::into).collect())
    }
}

impl<S: Into<Server>, const N: usize> From<[S; N]> for Group {
    fn from(servers: [S; N]) -> Self {
        Self::unnamed(servers.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unnamed_group_is_named_after_its_servers_in_any_order() {
        let group = Group::from(["redis://u:s3cret@b/1", "redis://a", "redis://C:7"]);
        assert_eq!(group.name(), "a:6379/0,b:6379/1,c:7/0");
        let other = Group::from(vec!["redis://c:7", "redis://b/1", "redis://a"]);
        assert_eq!(other.name(), group.name());
        assert_eq!(Group::named("eu", ["redis://a"]).name(), "eu");
    }
}

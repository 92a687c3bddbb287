//! Where a server is and how to log in.

#[cfg_attr(not(feature = "tls-no-provider"), path = "server/no_tls.rs")]
mod tls;
mod url;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redis::io::tcp::TcpSettings;
use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo,
};

use self::tls::Tls;
use self::url::masked;
use super::error::ConfigError;

const DEFAULT_PORT: u16 = 6379;

/// One Redis or Valkey server.
///
/// It is made from a URL or by fields:
///
/// ```
/// use redlock_core::Server;
///
/// let server = Server::from("rediss://locker:p%40ss@redis-1.internal:6380/2");
/// let same = Server::new("redis-1.internal")
///     .port(6380)
///     .ssl(true)
///     .username("locker")
///     .auth("p@ss")
///     .database(2);
/// ```
///
/// | URL | what it is |
/// |---|---|
/// | `redis://[[user]:password@]host[:port][/database]` | TCP |
/// | `rediss://…` | TLS; the certificate is always verified |
/// | `redis+unix:///path/to/socket[?db=…&user=…&pass=…]`, `unix://…` | a Unix domain socket |
///
/// TLS is the feature `tls`, which is on by default. It uses the crypto provider of rustls that the
/// application installed, else `ring`.
///
/// `valkey://`, `valkeys://` and `valkey+unix://` mean the same. The port is 6379 and the database
/// 0 if not given. In user and password, `@ : / ? # %` are written as `%40 %3A %2F %3F %23 %25`.
///
/// What is wrong with it is reported by [`ConfigBuilder::build`](crate::ConfigBuilder::build).
/// `Debug` hides the password.
#[derive(Clone)]
pub struct Server {
    endpoint: Endpoint,
    username: Option<Arc<str>>,
    password: Option<Arc<str>>,
    database: u32,
    tls_ca: Option<Arc<[u8]>>,
    fault: Option<Fault>,
}

#[derive(Clone)]
enum Endpoint {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

/// What was wrong first, kept until the configuration is built. Neither text has a password.
#[derive(Clone)]
struct Fault {
    value: String,
    fix: String,
}

impl Server {
    /// The server on a host name or IP address, without TLS, port 6379, database 0.
    #[must_use]
    pub fn new(host: impl Into<String>) -> Self {
        let host = host.into();
        match checked_host(&host) {
            Ok(host) => Self::at(Endpoint::Tcp { host, port: DEFAULT_PORT, tls: false }),
            Err(fix) => Self::unusable(Fault::new(masked(&host), fix)),
        }
    }

    /// The server that listens on a Unix domain socket, database 0.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let fault = unix_fault(&path).map(|fix| Fault::new(path.display(), fix));
        Self { fault, ..Self::at(Endpoint::Unix(path)) }
    }

    /// The TCP port, 1 to 65535; 6379 unless set.
    #[must_use]
    pub fn port(mut self, number: u16) -> Self {
        match &mut self.endpoint {
            Endpoint::Tcp { port, .. } => *port = number,
            Endpoint::Unix(path) => {
                let value = format!("{} with port {number}", path.display());
                self.refuse(value, "a Unix domain socket has no port: leave it out");
            }
        }
        if number == 0 {
            self.refuse(self.address(), "nothing listens on port 0: give the server's port");
        }
        self
    }

    /// Whether to use TLS; off unless set or in a `rediss://` URL.
    #[must_use]
    pub fn ssl(mut self, ssl: bool) -> Self {
        match &mut self.endpoint {
            Endpoint::Tcp { tls, .. } => *tls = ssl,
            Endpoint::Unix(path) if ssl => {
                let value = format!("{} with TLS", path.display());
                self.refuse(value, "there is no TLS on a Unix domain socket: leave it out");
            }
            Endpoint::Unix(_) => {}
        }
        self
    }

    /// The name of the ACL user, which goes with a [password](Self::auth); the server's default user
    /// unless set, or if empty.
    #[must_use]
    pub fn username(mut self, username: impl Into<String>) -> Self {
        self.username = non_empty(username.into());
        self
    }

    /// The password; none unless set, or if empty.
    #[must_use]
    pub fn auth(mut self, password: impl Into<String>) -> Self {
        self.password = non_empty(password.into());
        self
    }

    /// The number of the database; 0 unless set.
    #[must_use]
    pub fn database(mut self, database: u32) -> Self {
        self.database = database;
        self
    }

    /// The certificates of the authorities to trust, in PEM, instead of those that the system
    /// trusts. Switches TLS on.
    #[must_use]
    pub fn tls_ca(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.tls_ca = Some(pem.into().into());
        self.ssl(true)
    }

    /// `host:port/database` or `unix:/path/database`, for reports.
    pub(crate) fn address(&self) -> String {
        format!("{}/{}", self.identity(), self.database)
    }

    /// What is the same for two databases of one server: a majority of them is one server.
    pub(crate) fn identity(&self) -> String {
        match &self.endpoint {
            Endpoint::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Endpoint::Tcp { host, port, .. } => format!("{host}:{port}"),
            Endpoint::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    /// How to connect and log in, without TLS.
    fn connection_info(&self) -> Result<ConnectionInfo, ConfigError> {
        if let Some(Fault { value, fix }) = &self.fault {
            return Err(ConfigError::new("servers", value, fix));
        }
        if self.username.is_some() && self.password.is_none() {
            return Err(
                self.error("a user logs in with a password: give it, or leave the user out")
            );
        }
        let address = match &self.endpoint {
            Endpoint::Tcp { host, port, .. } => ConnectionAddr::Tcp(host.clone(), *port),
            Endpoint::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        let mut login = RedisConnectionInfo::default()
            .set_db(self.database.into())
            .set_protocol(ProtocolVersion::RESP3)
            .set_skip_set_lib_name();
        if let Some(username) = &self.username {
            login = login.set_username(username);
        }
        if let Some(password) = &self.password {
            login = login.set_password(password);
        }
        let info =
            address.into_connection_info().map_err(|error| self.error(&error.to_string()))?;
        let tcp = TcpSettings::default().set_nodelay(true);
        Ok(info.set_redis_settings(login).set_tcp_settings(tcp))
    }

    /// The server as nodes use it, or what is wrong with it.
    pub(crate) fn check(&self) -> Result<CheckedServer, ConfigError> {
        let info = self.connection_info()?;
        let access = match &self.endpoint {
            Endpoint::Tcp { host, port, tls: true } => {
                let tls = Tls::new(host, *port, self.tls_ca.as_deref());
                let tls = tls.map_err(|fix| self.error(&fix))?;
                Access::Tls(Arc::new(tls), info.redis_settings().clone())
            }
            _ if self.tls_ca.is_some() => {
                return Err(self.error("tls_ca is of no use without TLS: leave out ssl(false)"));
            }
            _ => Access::Plain(Client::open(info).map_err(|error| self.error(&error.to_string()))?),
        };
        Ok(CheckedServer { address: self.address(), access })
    }

    fn at(endpoint: Endpoint) -> Self {
        Self { endpoint, username: None, password: None, database: 0, tls_ca: None, fault: None }
    }

    /// What was given is not kept: it may have a password in the place of the host.
    fn unusable(fault: Fault) -> Self {
        let endpoint = Endpoint::Tcp { host: "unusable".into(), port: DEFAULT_PORT, tls: false };
        Self { fault: Some(fault), ..Self::at(endpoint) }
    }

    fn refuse(&mut self, value: impl fmt::Display, fix: &str) {
        if self.fault.is_none() {
            self.fault = Some(Fault::new(value, fix));
        }
    }

    fn error(&self, fix: &str) -> ConfigError {
        ConfigError::new("servers", self.address(), fix)
    }
}

impl Fault {
    fn new(value: impl fmt::Display, fix: impl Into<String>) -> Self {
        Self { value: value.to_string(), fix: fix.into() }
    }
}

impl From<&Self> for Server {
    fn from(server: &Self) -> Self {
        server.clone()
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(Fault { value, fix }) = &self.fault {
            return f.debug_struct("Server").field("value", value).field("fix", fix).finish();
        }
        f.debug_struct("Server")
            .field("address", &self.address())
            .field("tls", &matches!(self.endpoint, Endpoint::Tcp { tls: true, .. }))
            .field("username", &self.username)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("tls_ca", &self.tls_ca.is_some())
            .finish()
    }
}

/// A server that can be connected to, as far as one can say without trying.
#[derive(Clone)]
pub(crate) struct CheckedServer {
    address: String,
    access: Access,
}

/// What opens a connection; it has opened none yet.
#[derive(Clone)]
pub(crate) enum Access {
    /// TCP or a Unix domain socket.
    Plain(Client),
    Tls(Arc<Tls>, RedisConnectionInfo),
}

impl CheckedServer {
    /// `host:port/database` or `unix:/path/database`, for reports.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn access(&self) -> &Access {
        &self.access
    }
}

impl fmt::Debug for CheckedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

/// The host as it is compared: DNS knows no case, and addresses have one spelling.
fn checked_host(host: &str) -> Result<String, String> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<Ipv6Addr>().map(IpAddr::V6).or_else(|_| host.parse()) {
        if address.is_unspecified() {
            return Err("this is where a server listens, not where it is: give its address".into());
        }
        return Ok(address.to_string());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(
            "it is not a host: give a name or an IP address alone here, or a whole URL to \
                    Server::from"
                .into(),
        );
    }
    Ok(name.to_ascii_lowercase())
}

fn unix_fault(path: &Path) -> Option<&'static str> {
    if cfg!(not(unix)) {
        Some("this system has no Unix domain sockets: give a host")
    } else if path.file_name().is_none() {
        Some("it is not the path of a socket: write /path/to/socket")
    } else {
        None
    }
}

fn non_empty(text: String) -> Option<Arc<str>> {
    if text.is_empty() { None } else { Some(text.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn info(server: impl Into<Server>) -> ConnectionInfo {
        server.into().connection_info().unwrap()
    }

    pub(super) fn refusal(server: impl Into<Server>) -> String {
        let server = server.into();
        let Err(error) = server.check() else { panic!("not refused: {server:?}") };
        assert_eq!(error.field(), "servers");
        for shown in [error.to_string(), format!("{error:?}"), format!("{server:?}")] {
            assert!(!shown.contains("s3cret"), "{shown}");
        }
        error.to_string()
    }

    fn assert_same(server: impl Into<Server>, other: impl Into<Server>) {
        let (server, other) = (server.into(), other.into());
        assert_eq!(server.address(), other.address());
        assert_eq!(format!("{server:?}"), format!("{other:?}"));
        assert_eq!(format!("{:?}", info(&server)), format!("{:?}", info(&other)));
        let password = |server| info(server).redis_settings().password().map(str::to_owned);
        assert_eq!(password(&server), password(&other));
    }

    #[test]
    fn a_url_says_the_same_as_fields() {
        let plain = Server::new("redis-1.internal");
        assert_same("redis://redis-1.internal", plain.clone());
        assert_same("redis://REDIS-1.Internal.:6379/", plain.clone());
        assert_same("valkey://redis-1.internal:6379/0", plain);
        assert_same(
            "rediss://lock%40er:p%40s%2Fs%3F%23%25+@10.0.0.1:6380/2",
            Server::new("10.0.0.1")
                .port(6380)
                .ssl(true)
                .username("lock@er")
                .auth("p@s/s?#%+")
                .database(2),
        );
        assert_same("valkeys://:pass@h", Server::new("h").ssl(true).auth("pass"));
        assert_same("redis://[2001:DB8:0::1]:7000", Server::new("2001:db8::1").port(7000));
        assert_same("redis://[::1]", Server::new("[::1]"));
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_has_a_path_and_a_database() {
        let unix = Server::unix("/run/my redis.sock").database(3).username("u").auth("p@ss");
        for scheme in ["unix", "redis+unix", "valkey+unix"] {
            let url = format!("{scheme}:///run/my%20redis.sock?db=3&user=u&pass=p%40ss");
            assert_same(url, unix.clone());
        }
        assert_eq!(unix.address(), "unix:/run/my redis.sock/3");
        assert!(unix.check().is_ok());
    }

    #[test]
    fn connections_speak_resp3_without_delay() {
        let info = info("redis://h");
        assert_eq!(info.redis_settings().protocol(), ProtocolVersion::RESP3);
        assert!(info.redis_settings().skip_set_lib_name());
        assert!(info.tcp_settings().nodelay());
    }

    #[test]
    fn tls_is_always_verified() {
        assert!(matches!(Server::from("rediss://h").check().unwrap().access, Access::Tls(..)));
        let fix = refusal("rediss://h/#insecure");
        assert!(fix.contains("leave out"), "{fix}");
    }

    #[test]
    fn addresses_have_no_password_and_tell_databases_apart() {
        let address = |url: &str| Server::from(url).address();
        assert_eq!(address("redis://u:s3cret@H:7000/2"), "h:7000/2");
        assert_eq!(address("redis://[::1]"), "[::1]:6379/0");
        let identity = |url: &str| Server::from(url).identity();
        assert_eq!(identity("redis://H/1"), identity("rediss://u:p@h:6379/2"));
        assert_ne!(identity("redis://h:1"), identity("redis://h:2"));
    }

    #[test]
    fn debug_hides_the_password() {
        let server = Server::from("rediss://locker:s3cret@h/1").tls_ca("s3cret");
        let shown = format!("{server:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        assert!(shown.contains("h:6379/1") && shown.contains("locker"), "{shown}");
        let checked = Server::from("redis://locker:s3cret@h/1").check().unwrap();
        assert_eq!(format!("{checked:?}"), "h:6379/1");
    }

    #[test]
    fn what_is_wrong_is_said_with_value_and_fix() {
        for (url, value, fix) in [
            ("", " = :", "redis://host:6379"),
            ("localhost:6379", "localhost:6379", "redis://host:6379"),
            ("10.0.0.1", "10.0.0.1", "redis://host:6379"),
            ("http://h", "http://***", "redis://host:6379"),
            ("redis://", "redis://", "no host"),
            ("redis:///0", "redis:///0", "no host"),
            ("redis://0.0.0.0", "redis://0.0.0.0", "give its address"),
            ("redis://[::]", "redis://[::]", "give its address"),
            ("redis://h\u{e4}", "redis://h\u{e4}", "not a host"),
            ("redis://h:0", "h:0", "port 0"),
            ("redis://h:99999", "redis://h:99999", "port"),
            ("redis://h/one", "redis://h/one", "the database is a number"),
            ("redis://h/-1", "redis://h/-1", "the database is a number"),
            ("redis://h/99999999999", "redis://h/", "the database is a number"),
            ("redis://h?db=1", "redis://h***", "leave out"),
            ("redis://user@h", "h:6379", "with a password"),
            ("redis://u:%ff@h", "redis://u:***@h", "UTF-8"),
            ("unix://run/redis.sock", "unix://run/redis.sock", "three slashes"),
            ("unix:///", "/", "the path of a socket"),
            ("unix:///s?db=x", "unix:///s***", "the database is a number"),
            ("unix:///s?password=x", "unix:///s***", "only db, user and pass"),
        ] {
            let error = refusal(url);
            assert!(error.starts_with("servers = "), "{url}: {error}");
            assert!(error.contains(value), "{url}: {error}");
            assert!(error.contains(fix), "{url}: {error}");
        }
        for (server, fix) in [
            (Server::new(""), "not a host"),
            (Server::new("redis://h"), "not a host"),
            (Server::new("u:s3cret@h"), "not a host"),
            (Server::new("::"), "give its address"),
            (Server::new("h").port(0), "port 0"),
            (Server::new("h").tls_ca("not PEM"), "in PEM"),
            (
                Server::new("h")
                    .tls_ca("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"),
                "in PEM",
            ),
            (Server::new("h").tls_ca("-----BEGIN CERTIFICATE-----").ssl(false), "without TLS"),
            (Server::unix(""), "the path of a socket"),
            (Server::unix("/s").port(1), "no port"),
            (Server::unix("/s").ssl(true), "no TLS"),
            (Server::unix("/s").tls_ca("x"), "no TLS"),
        ] {
            let error = refusal(server);
            assert!(error.contains(fix), "{error}");
        }
    }

    #[test]
    fn a_private_authority_replaces_those_of_the_system() {
        let server = Server::new("h").tls_ca(CA);
        for (server, own) in [(server, true), (Server::new("h").ssl(true), false)] {
            let Access::Tls(tls, _) = server.check().unwrap().access else { panic!("no TLS") };
            assert_eq!(tls.trusts_the_system(), !own);
        }
    }

    #[test]
    fn the_first_fault_is_the_one_that_is_reported() {
        let error = refusal(Server::new("a b").port(0));
        assert!(error.contains("a b"), "{error}");
    }

    /// Self-signed, made for this test; nobody has its key.
    const CA: &str = "\
-----BEGIN CERTIFICATE-----
MIIBhTCCASugAwIBAgIUCHLW3qZgSd3fmxfMHYPGk/Y6RPMwCgYIKoZIzj0EAwIw
FzEVMBMGA1UEAwwMcmVkbG9jayB0ZXN0MCAXDTI2MTEyMzA5NTE0MVoYDzIxMjYx
MDMwMDk1MTQxWjAXMRUwEwYDVQQDDAxyZWRsb2NrIHRlc3QwWTATBgcqhkjOPQIB
BggqhkjOPQMBBwNCAAScPqsEjuFfvlX3HBxiQoDepWGQgoHLP92TUhVewmV4ULFu
y4XyOZPTOOFpHiOjJNSKPdQom5PA05ImVqQMryzto1MwUTAdBgNVHQ4EFgQU12xA
2t4DDkZZ2nT519R4mFs9j7AwHwYDVR0jBBgwFoAU12xA2t4DDkZZ2nT519R4mFs9
j7AwDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiEA0hJimfuwPjY+
Zl0egV5YQUCwDTbBSQI8DvjVkOGBp3ECIHRDVGWK/wG01YZO+D0gEYX0jhas2V2k
tiA0jo4h2kpU
-----END CERTIFICATE-----
";
}

//! The hosts under which the service answers: a protection against DNS rebinding.
//!
//! A foreign page can point its own name at this machine. For the browser its requests are of the same
//! origin then, and the check for cross-site requests lets them pass. Their `Host` is still the foreign
//! name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::problem::Problem;

/// The number of characters of a refused host that its problem repeats.
const SHOWN: usize = 80;

/// The hosts under which the service answers, on any port.
///
/// Names of this machine (`localhost`, `127.0.0.1`, `[::1]`) always belong to them.
///
/// ```
/// use std::net::Ipv4Addr;
///
/// use payments::Hosts;
///
/// let hosts = Hosts::of(Ipv4Addr::LOCALHOST.into()).and("pay.example, 192.0.2.7")?;
/// assert!(hosts.allow("localhost:3000") && hosts.allow("Pay.example"));
/// assert!(!hosts.allow("evil.example"));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug)]
pub struct Hosts {
    /// `None` allows all.
    allowed: Option<Vec<Host>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// An unspecified address stands for all addresses of the machine.
    Ip(IpAddr),
    Name(String),
}

impl Hosts {
    /// Allows the address that the service listens on. If it is unspecified (`0.0.0.0`), every IP address
    /// is allowed: DNS rebinding needs a name.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self { allowed: Some(vec![Host::Ip(address.to_canonical())]) }
    }

    /// Allows a comma-separated list of `more` hosts, each without a port. `*` allows all.
    ///
    /// # Errors
    ///
    /// The entry of the list that is not a host.
    pub fn and(mut self, more: &str) -> Result<Self, String> {
        for entry in more.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            if entry == "*" {
                return Ok(Self { allowed: None });
            }
            let host = match entry.parse::<Ipv6Addr>() {
                Ok(address) => Some(Host::Ip(IpAddr::V6(address).to_canonical())),
                Err(_) => Host::parse(entry).filter(|(_, port)| !port).map(|(host, _)| host),
            };
            let not_one = || format!("`{entry}` is not a host without a scheme and a port");
            let host = host.ok_or_else(not_one)?;
            self.allowed.get_or_insert_default().push(host);
        }
        Ok(self)
    }

    /// Whether this value of a `Host` header is allowed.
    #[must_use]
    pub fn allow(&self, host: &str) -> bool {
        let Some(allowed) = &self.allowed else { return true };
        let Some((host, _)) = Host::parse(host) else { return false };
        let this_machine = match &host {
            Host::Ip(address) => {
                let all = |allowed: &Host| matches!(allowed, Host::Ip(ip) if ip.is_unspecified());
                address.is_loopback() || allowed.iter().any(all)
            }
            Host::Name(name) => name == "localhost" || name.ends_with(".localhost"),
        };
        this_machine || allowed.contains(&host)
    }
}

/// Only this machine.
impl Default for Hosts {
    fn default() -> Self {
        Self::of(Ipv4Addr::LOCALHOST.into())
    }
}

impl Host {
    /// Reads a host, and whether it has a port.
    fn parse(text: &str) -> Option<(Self, bool)> {
        let authority: Authority = text.parse().ok().filter(|_| !text.contains('@'))?;
        let name = authority.host();
        let port = name.len() < text.len();
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        if let Some(address) = address {
            let address = IpAddr::V6(address.parse().ok()?);
            return Some((Self::Ip(address.to_canonical()), port));
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match name.parse::<Ipv4Addr>() {
            Ok(address) => Some((Self::Ip(address.into()), port)),
            Err(_) if name.is_empty() => None,
            Err(_) => Some((Self::Name(name), port)),
        }
    }
}

/// Answers 421 to a request for a host that is not allowed. Browsers send one with each request.
pub(crate) async fn check(
    State(hosts): State<Arc<Hosts>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers().get_all(HOST).iter();
    let mut named: Vec<String> =
        headers.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned()).collect();
    named.extend(request.uri().authority().map(Authority::to_string));
    let Some(refused) = named.iter().find(|host| !hosts.allow(host)) else {
        return next.run(request).await;
    };
    let shown: String = refused.chars().take(SHOWN).collect();
    let detail = format!(
        "this service does not answer as `{shown}`: use localhost, or add the host to PAYMENTS_HOSTS"
    );
    Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).into_response()
}

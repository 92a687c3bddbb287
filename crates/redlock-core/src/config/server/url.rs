//! A server as a URL, and what may be shown of one that is none.

use ::url::Url;
use redis::IntoConnectionInfo;

use super::{DEFAULT_PORT, Endpoint, Fault, Server, checked_host, non_empty};

const SCHEMES: [&str; 7] =
    ["redis", "rediss", "valkey", "valkeys", "unix", "redis+unix", "valkey+unix"];
const URL_FIX: &str = "write redis://host:6379/0, rediss:// for TLS or redis+unix:///path, \
                       and percent-encode @ : / ? # % in the password";

impl From<&str> for Server {
    fn from(url: &str) -> Self {
        Self::parse(url.trim()).unwrap_or_else(|fix| Self::unusable(Fault::new(masked(url), fix)))
    }
}

impl From<String> for Server {
    fn from(url: String) -> Self {
        Self::from(url.as_str())
    }
}

impl From<&String> for Server {
    fn from(url: &String) -> Self {
        Self::from(url.as_str())
    }
}

impl Server {
    fn parse(text: &str) -> Result<Self, String> {
        let mut url =
            Url::parse(text).map_err(|error| format!("it is not a URL ({error}): {URL_FIX}"))?;
        let tls = match url.scheme() {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            "unix" | "redis+unix" | "valkey+unix" => return Self::parse_unix(&url),
            _ => return Err(URL_FIX.into()),
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = checked_host(host.ok_or("it has no host: write redis://host:6379")?)?;
        if url.query().is_some() || url.fragment().is_some() {
            return Err("nothing may follow the database: leave out what begins with ? or #, \
                        and write ? and # in a password as %3F and %23"
                .into());
        }
        let database = match url.path().strip_prefix('/').unwrap_or_default() {
            "" => 0,
            number => parse_database(number)?,
        };
        let port = url.port().unwrap_or(DEFAULT_PORT);
        // The login reads the same with every scheme, and the client library knows TLS in some builds.
        url.set_scheme("redis").map_err(|()| URL_FIX)?;
        let info = url.into_connection_info().map_err(|error| error.to_string())?;
        let login = info.redis_settings();
        Ok(Self {
            username: login.username().and_then(|name| non_empty(name.into())),
            password: login.password().and_then(|password| non_empty(password.into())),
            ..Self::at(Endpoint::Tcp { host, port: DEFAULT_PORT, tls })
                .database(database)
                .port(port)
        })
    }

    #[cfg(unix)]
    fn parse_unix(url: &Url) -> Result<Self, String> {
        const FIX: &str = "write redis+unix:///path/to/socket, with three slashes";
        if url.host().is_some() || url.fragment().is_some() {
            return Err(FIX.into());
        }
        let path = url.to_file_path().map_err(|()| FIX)?;
        let mut server = Self::unix(path);
        for (name, value) in url.query_pairs() {
            server = match &*name {
                "db" => server.database(parse_database(&value)?),
                "user" => server.username(value),
                "pass" => server.auth(value),
                _ => return Err("after ? only db, user and pass are known".into()),
            };
        }
        Ok(server)
    }

    #[cfg(not(unix))]
    fn parse_unix(_: &Url) -> Result<Self, String> {
        Err("this system has no Unix domain sockets: write redis://host:6379".into())
    }
}

fn parse_database(number: &str) -> Result<u32, String> {
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let database = if is_number { number.parse().ok() } else { None };
    database.ok_or_else(|| {
        "the database is a number: write redis://host:6379/0 or redis+unix:///path?db=0, \
         and / in a password as %2F"
            .into()
    })
}

/// What may be shown of a text that should have been the URL of a server. It hides too much rather
/// than too little: where a password ends is unclear if its special characters are not encoded.
pub(super) fn masked(url: &str) -> String {
    const HIDDEN: &str = "***";
    const SHOWN_LEN: usize = 120;
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) if SCHEMES.contains(&scheme) => (format!("{scheme}://"), rest),
        Some((scheme, _)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            return format!("{scheme}://{HIDDEN}");
        }
        Some(_) => return HIDDEN.into(),
        None => (String::new(), url),
    };
    let (place, has_tail) = match rest.split_once(['?', '#']) {
        Some((place, _)) => (place, true),
        None => (rest, false),
    };
    let shown = match rest.rsplit_once('@') {
        Some((login, _)) if login.contains(['/', '?', '#']) => HIDDEN.into(),
        Some((login, _)) => {
            let user = login.split_once(':').map_or(String::new(), |(user, _)| format!("{user}:"));
            let place = place.rsplit_once('@').map_or("", |(_, place)| place);
            format!("{user}{HIDDEN}@{place}")
        }
        // Perhaps a password whose host was forgotten.
        None => match place.split_once(':') {
            Some((host, tail)) if !host.contains(['/', '[']) && !is_port(host, tail) => {
                format!("{host}:{HIDDEN}")
            }
            _ => place.into(),
        },
    };
    let tail = if has_tail && shown != HIDDEN { HIDDEN } else { "" };
    let shown: String = format!("{scheme}{shown}{tail}").escape_debug().collect();
    if shown.chars().count() > SHOWN_LEN {
        shown.chars().take(SHOWN_LEN).chain(['…']).collect()
    } else {
        shown
    }
}

/// Whether `tail` is a port and perhaps a database, and certainly no password.
fn is_port(host: &str, tail: &str) -> bool {
    let (port, database) = tail.split_once('/').unwrap_or((tail, ""));
    let is_number = |text: &str| text.len() <= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    !host.is_empty() && is_number(port) && is_number(database)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{info, refusal};
    use super::*;

    #[test]
    fn passwords_are_hidden_however_broken_the_url_is() {
        for url in [
            "redis://u:s3cret@h:port",
            "redis://u:x/s3cret@h",
            "redis://u:x#s3cret@h",
            "redis://u:x?s3cret@h",
            "redis://u:x@s3cret@h/x",
            "redis://s3cret@h/x",
            "redis://u:s3cret",
            "redis://:s3cret",
            "redis://:1/s3cret",
            "http://u:s3cret@h",
            "u:s3cret@h",
            "u:s3cret",
            ":s3cret",
            "redis://h?password=s3cret",
            "redis://h?password=a@s3cret",
            "unix:///s?pass=s3cret&x=1",
            "unix:///s?pass=x@s3cret&x=1",
            "unix://u:s3cret@/s",
            "redis://h/0#s3cret",
            "redis://u:s3cret@h h",
            "u:s3cret://h",
            "u://s3cret",
        ] {
            refusal(url);
        }
    }

    proptest! {
        #[test]
        fn no_password_is_ever_shown(
            scheme in "(redis://|rediss://|http://|unix://|)",
            user in "[a-z]{0,3}",
            before in "[!-?A-~]{0,4}",
            after in "[!-~]{0,4}",
            rest in "(@h|@h:0|@h/x|@h:x|@h?x|@|)",
        ) {
            let url = format!("{scheme}{user}:{before}s3cret{after}{rest}");
            let server = Server::from(&url);
            let shown = match server.check() {
                Ok(_) => format!("{server:?} {}", server.address()),
                Err(error) => format!("{server:?} {error} {error:?}"),
            };
            prop_assert!(!shown.contains("s3cret"), "{} shown as {}", url, shown);
        }

        #[test]
        fn any_encoded_password_is_understood(password in "\\PC{1,20}") {
            let encoded: String =
                password.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let info = info(format!("redis://u:{encoded}@h"));
            prop_assert_eq!(info.redis_settings().password(), Some(&*password));
        }
    }
}

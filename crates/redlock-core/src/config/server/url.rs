//! A server as a URL, and what may be shown of one that is none.

use ::url::{Url, form_urlencoded};
use percent_encoding::percent_decode_str;

use super::{DEFAULT_PORT, Endpoint, Fault, Server, checked_host, non_empty};

const SCHEMES: [&str; 7] =
    ["redis", "rediss", "valkey", "valkeys", "unix", "redis+unix", "valkey+unix"];
const FOREIGN_SCHEMES: [&str; 4] = ["http", "https", "tcp", "tls"];
const URL_FIX: &str = "write redis://host:6379/0, rediss:// for TLS or redis+unix:///path, \
                       and percent-encode @ : / ? # % in the password";

impl From<&str> for Server {
    fn from(url: &str) -> Self {
        let url = url.trim();
        if url.is_empty() {
            let fix = "this entry is empty: write redis://host:6379/0, or leave it out";
            return Self::unusable(Fault::new("(empty)", fix));
        }
        Self::parse(url).unwrap_or_else(|fix| Self::unusable(Fault::new(masked(url), fix)))
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
        let url =
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
        let password = url.password().map_or(Ok(String::new()), decoded)?;
        Ok(Self {
            username: non_empty(decoded(url.username())?),
            password: non_empty(password),
            ..Self::at(Endpoint::Tcp { host, port: DEFAULT_PORT, tls })
                .database(database)
                .port(port)
        })
    }

    #[cfg(unix)]
    fn parse_unix(url: &Url) -> Result<Self, String> {
        const FIX: &str = "write redis+unix:///path/to/socket, with three slashes";
        if !url.has_authority() || url.host().is_some() || url.fragment().is_some() {
            return Err(FIX.into());
        }
        let path = url.to_file_path().map_err(|()| FIX)?;
        let mut server = Self::unix(path);
        // A form would have a space for each +, and the other kinds of URLs have not.
        let query = url.query().unwrap_or_default().replace('+', "%2B");
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if value.contains(char::REPLACEMENT_CHARACTER) {
                return Err("user and password are not UTF-8: percent-encode their bytes".into());
            }
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

fn decoded(login: &str) -> Result<String, String> {
    let decoded = percent_decode_str(login).decode_utf8();
    let decoded = decoded.map_err(|_| "user and password are no UTF-8 when they are decoded")?;
    Ok(decoded.into_owned())
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

/// What may be shown of a text that should have been the URL of a server: the scheme. A password may
/// stand anywhere else, as nobody can tell where it ends if its special characters are not encoded.
fn masked(url: &str) -> String {
    const HIDDEN: &str = "***";
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    match scheme.filter(|scheme| SCHEMES.contains(scheme) || FOREIGN_SCHEMES.contains(scheme)) {
        Some(scheme) => format!("{scheme}://{HIDDEN}"),
        None => HIDDEN.into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{checked, refusal};
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
            "unix:/s3cret",
            "unix:s3cret",
            "redis://h?password=a@s3cret",
            "unix:///s?pass=s3cret&x=1",
            "unix:///s?pass=x@s3cret&x=1",
            "unix://u:s3cret@/s",
            "redis://h/0#s3cret",
            "redis://u:s3cret@h h",
            "u:s3cret://h",
            "u://s3cret",
            "s3cret",
            "s3cret://h",
            "s3cret/0",
            "redis://s3cret h",
            "redis://s3cret/one",
            "redis://s3cret@h/one",
            "unix:///s3cret?x=1",
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
        fn no_password_in_the_place_of_the_user_or_of_the_url_is_ever_shown(
            scheme in "(redis://|rediss://|valkey://|)",
            before in "[!-~]{0,4}",
            after in "[!-~]{0,4}",
            rest in "(@h|@h:0|@h/x|@h:x|@h?x|@)",
        ) {
            let secret = format!("{before}s3cret{after}");
            let server = Server::from(format!("{scheme}{secret}{rest}"));
            let shown = match server.check() {
                Ok(checked) => format!("{server:?} {checked:?}"),
                Err(error) => format!("{server:?} {error} {error:?}"),
            };
            prop_assert!(!shown.contains("s3cret"), "{} shown as {}", secret, shown);
            let bare = refusal(&secret);
            prop_assert!(!bare.contains("s3cret"), "{} shown as {}", secret, bare);
        }

        #[test]
        fn any_encoded_password_is_understood(password in "\\PC{1,20}") {
            let encoded: String =
                password.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let checked = checked(format!("redis://u:{encoded}@h"));
            prop_assert_eq!(checked.password.as_deref(), Some(&*password));
        }
    }
}

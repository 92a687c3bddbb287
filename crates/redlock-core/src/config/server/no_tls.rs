//! TLS in a build without it: a server that needs it is refused by the configuration.

use std::io;

use tokio::net::TcpStream;

#[derive(Debug)]
pub(crate) enum Tls {}

impl Tls {
    pub(super) fn new(_: &str, _: u16, _: Option<&[u8]>) -> Result<Self, String> {
        Err("this build has no TLS: enable the feature tls of redlock-core".into())
    }

    #[cfg(test)]
    pub(super) fn trusts_the_system(&self) -> bool {
        match *self {}
    }

    pub(crate) async fn connect(&self) -> io::Result<TcpStream> {
        match *self {}
    }
}

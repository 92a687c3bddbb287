//! The stream of bytes to a server: TCP, TLS or a Unix domain socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::select_ok;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::config::{CheckedServer, Endpoint};

/// An open connection on which nothing was said so far.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    #[cfg(unix)]
    Unix(UnixStream),
}

impl Stream {
    /// Connects, with TLS where it is configured.
    pub(super) async fn open(server: &CheckedServer) -> io::Result<Self> {
        match (&server.endpoint, &server.tls) {
            (Endpoint::Tcp { host, port, .. }, None) => Ok(Self::Tcp(tcp(host, *port).await?)),
            (Endpoint::Tcp { host, port, .. }, Some(tls)) => {
                let config = tls.config().map_err(io::Error::other)?;
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                let tcp = tcp(host, *port).await?;
                let stream = TlsConnector::from(config).connect(name, tcp).await?;
                Ok(Self::Tls(Box::new(stream)))
            }
            #[cfg(unix)]
            (Endpoint::Unix(path), _) => Ok(Self::Unix(UnixStream::connect(path).await?)),
            #[cfg(not(unix))]
            (Endpoint::Unix(_), _) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Of several addresses of a host, the first that accepts a connection is taken.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = lookup_host((host, port)).await?;
    let connecting: Vec<_> =
        addresses.map(|address| Box::pin(TcpStream::connect(address))).collect();
    if connecting.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    }
    let (stream, _others) = select_ok(connecting).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

macro_rules! each {
    ($stream:expr, $inner:ident => $work:expr) => {
        match $stream.get_mut() {
            Stream::Tcp($inner) => $work,
            Stream::Tls($inner) => $work,
            #[cfg(unix)]
            Stream::Unix($inner) => $work,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

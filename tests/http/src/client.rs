//! Clients that do what a well-kept library would not: they stop in the middle of a byte.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How long an answer may take: longer than the service waits for a lock and then charges.
const PATIENCE: Duration = Duration::from_secs(30);

/// One charge that is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Charge {
    pub(crate) name: String,
    pub(crate) account: String,
}

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Plain,
    /// The connection ends somewhere in the request, or after it.
    Abort,
    PanicBefore,
    PanicAfter,
    /// The handler takes longer than a lock lasts: it is renewed, or lost.
    Long,
    /// The body comes in drops.
    SlowBody,
    /// It comes in drops, and not all of it.
    SlowAbort,
    Http2,
    /// The stream is reset, and not the connection.
    Http2Reset,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Abort => "abort",
            Self::PanicBefore => "panic-before",
            Self::PanicAfter => "panic-after",
            Self::Long => "long",
            Self::SlowBody => "slow-body",
            Self::SlowAbort => "slow-abort",
            Self::Http2 => "http2",
            Self::Http2Reset => "http2-reset",
        }
    }
}

const BODY: &str =
    "{\"amount_cents\":100,\"note\":\"what is said here is of no interest to anybody\"}";

/// Sends a request; the status of the answer, or `None` if it was left in the middle.
pub(crate) async fn send(port: u16, charge: &Charge, kind: Kind) -> io::Result<Option<u16>> {
    let sending = async {
        match kind {
            Kind::Http2 | Kind::Http2Reset => http2(port, charge, kind).await,
            _ => http1(port, charge, kind).await,
        }
    };
    timeout(PATIENCE, sending).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

async fn http1(port: u16, charge: &Charge, kind: Kind) -> io::Result<Option<u16>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let head = format!(
        "POST /charges HTTP/1.1\r\nhost: charges\r\nidempotency-key: {}\r\nx-account: {}\r\n\
         x-plan: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        charge.name,
        charge.account,
        kind.name(),
        BODY.len()
    );
    match kind {
        Kind::Abort => {
            let request = head + BODY;
            let sent = fastrand::usize(..=request.len());
            stream.write_all(&request.as_bytes()[..sent]).await?;
            // It may or may not have been read, and the handler may have begun.
            sleep(Duration::from_micros(fastrand::u64(..6_000))).await;
            abort(stream);
            return Ok(None);
        }
        Kind::SlowBody | Kind::SlowAbort => {
            stream.write_all(head.as_bytes()).await?;
            let drops = BODY.as_bytes().chunks(8).collect::<Vec<_>>();
            let sent = match kind {
                Kind::SlowAbort => fastrand::usize(..drops.len()),
                _ => drops.len(),
            };
            for drop in &drops[..sent] {
                sleep(Duration::from_millis(fastrand::u64(..8))).await;
                stream.write_all(drop).await?;
            }
            if kind == Kind::SlowAbort {
                abort(stream);
                return Ok(None);
            }
        }
        _ => stream.write_all((head + BODY).as_bytes()).await?,
    }
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    status_of(&answer).map(Some).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Ends the connection with a FIN, or with an RST.
fn abort(stream: TcpStream) {
    if fastrand::bool() {
        let _no_lingering = stream.set_zero_linger();
    }
    drop(stream);
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let line = answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

async fn http2(port: u16, charge: &Charge, kind: Kind) -> io::Result<Option<u16>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let (client, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let exchanged = exchange(client, port, charge, kind).await;
    if kind == Kind::Http2 || exchanged.is_err() {
        connection.abort();
    }
    exchanged.map_err(io::Error::other)
}

async fn exchange(
    client: h2::client::SendRequest<Bytes>,
    port: u16,
    charge: &Charge,
    kind: Kind,
) -> Result<Option<u16>, h2::Error> {
    let request = http::Request::post(format!("http://127.0.0.1:{port}/charges"))
        .header("idempotency-key", &charge.name)
        .header("x-account", &charge.account)
        .header("x-plan", kind.name())
        .body(())
        .unwrap_or_default();
    let mut client = client.ready().await?;
    let (answer, mut body) = client.send_request(request, false)?;
    let is_left = kind == Kind::Http2Reset;
    body.send_data(Bytes::from_static(BODY.as_bytes()), !(is_left && fastrand::bool()))?;
    if is_left {
        sleep(Duration::from_micros(fastrand::u64(..6_000))).await;
        body.send_reset(h2::Reason::CANCEL);
        return Ok(None);
    }
    Ok(Some(answer.await?.status().as_u16()))
}

/// How many handlers run for an account.
pub(crate) async fn running(port: u16, account: &str) -> io::Result<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request =
        format!("GET /running/{account} HTTP/1.1\r\nhost: charges\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let body = answer.rsplit("\r\n").next().and_then(|body| body.parse().ok());
    body.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

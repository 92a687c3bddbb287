//! A connection to a server: a stream, a buffer for requests and one for replies.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::resp::{Frame, Malformed, Requests, Scan};
use super::stream::Stream;
use crate::config::CheckedServer;

/// The deadline for setting up a connection: TCP, TLS, authentication and the checks.
pub(crate) const CONNECT_DEADLINE: Duration = Duration::from_secs(1);

/// The buffer for replies, unless one reply needs more.
const READ_SIZE: usize = 16 << 10;

/// Why a server can't vote, in words for its operator.
#[derive(Clone, Debug)]
pub(super) struct Cause(pub(super) Arc<str>);

impl Cause {
    /// The error that a server answered while a connection was set up.
    pub(super) fn refused(error: &[u8]) -> Self {
        let text = String::from_utf8_lossy(error);
        let text = match text.split(' ').next() {
            Some("WRONGPASS" | "NOAUTH") => {
                format!(
                    "authentication failed, check username and password; in a URL a password has \
                     a colon in front ({text})"
                )
            }
            Some("NOPROTO") => old_server(&text),
            _ if text.to_ascii_lowercase().contains("unknown command 'hello'")
                || text.contains("unknown command `HELLO`") =>
            {
                old_server(&text)
            }
            _ => text.into_owned(),
        };
        Self(text.into())
    }
}

fn old_server(error: &str) -> String {
    format!("it does not speak RESP3, Redis 6 or later is needed ({error})")
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}

impl From<io::Error> for Cause {
    fn from(error: io::Error) -> Self {
        Self(error.to_string().into())
    }
}

impl From<Malformed> for Cause {
    fn from(malformed: Malformed) -> Self {
        Self(malformed.to_string().into())
    }
}

/// A connection on which the user is logged in.
#[derive(Debug)]
pub(super) struct Connection<S = Stream> {
    stream: S,
    requests: Requests,
    /// The stream may hold back bytes that were written to it.
    is_unflushed: bool,
    /// What was read is between the two.
    input: Vec<u8>,
    begin: usize,
    end: usize,
    scan: Scan,
    /// The length of a reply that is complete.
    complete: Option<usize>,
}

impl Connection {
    /// Connects, logs in and selects the database.
    pub(super) async fn open(server: &CheckedServer) -> Result<Self, Cause> {
        let mut connection = Self::over(Stream::open(server).await?);
        connection.log_in(server).await?;
        Ok(connection)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn over(stream: S) -> Self {
        Self {
            stream,
            requests: Requests::default(),
            is_unflushed: false,
            input: vec![0; READ_SIZE],
            begin: 0,
            end: 0,
            scan: Scan::default(),
            complete: None,
        }
    }

    async fn log_in(&mut self, server: &CheckedServer) -> Result<(), Cause> {
        let requests = &mut self.requests;
        match &server.password {
            None => {
                requests.command(2).arg("HELLO").arg("3");
            }
            Some(password) => {
                let user = server.username.as_deref().unwrap_or("default");
                let mut hello = requests.command(5);
                hello.arg("HELLO").arg("3").arg("AUTH").arg(user).arg(&**password);
            }
        }
        let database = server.database;
        if database > 0 {
            requests.command(2).arg("SELECT").number(database);
        }
        if let Frame::Error(error) = self.reply().await? {
            return Err(Cause::refused(error));
        }
        if database > 0
            && let Frame::Error(error) = self.reply().await?
        {
            let text = String::from_utf8_lossy(error);
            return Err(Cause(format!("database {database} can't be selected ({text})").into()));
        }
        Ok(())
    }

    /// Requests that are written here leave with the next poll.
    pub(super) fn requests(&mut self) -> &mut Requests {
        &mut self.requests
    }

    /// The next reply. Pushes are skipped.
    pub(super) async fn reply(&mut self) -> Result<Frame<'_>, Cause> {
        poll_fn(|cx| self.poll_reply(cx)).await?;
        while self.input.get(self.begin) == Some(&b'>') {
            self.take_reply();
            poll_fn(|cx| self.poll_reply(cx)).await?;
        }
        Ok(self.take_reply())
    }

    /// Sends what was written; ready when a whole reply is there to be [taken](Self::take_reply).
    pub(super) fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        if self.complete.is_some() {
            return Poll::Ready(Ok(()));
        }
        // A server that reads nothing may still answer what it has read.
        let sending = self.poll_send(cx)?;
        loop {
            let unread = self.input.get(self.begin..self.end).unwrap_or_default();
            self.complete = self.scan.end(unread)?;
            if self.complete.is_some() {
                return Poll::Ready(Ok(()));
            }
            match self.poll_read(cx)? {
                Poll::Ready(()) => {}
                Poll::Pending => {
                    let _wakes_up = sending;
                    return Poll::Pending;
                }
            }
        }
    }

    /// The reply for which [`poll_reply`](Self::poll_reply) was ready.
    pub(super) fn take_reply(&mut self) -> Frame<'_> {
        let len = self.complete.take().unwrap_or_default();
        let begin = self.begin;
        self.begin += len;
        self.scan = Scan::default();
        let mut reply = self.input.get(begin..self.begin).unwrap_or_default();
        Frame::take(&mut reply)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        while !self.requests.unsent().is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, self.requests.unsent()))?;
            if sent == 0 {
                return Poll::Ready(Err(closed()));
            }
            self.requests.advance(sent);
            self.is_unflushed = true;
        }
        if self.is_unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        self.make_room();
        let mut room = ReadBuf::new(&mut self.input[self.end..]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room))?;
        match room.filled().len() {
            0 => Poll::Ready(Err(closed())),
            read => {
                self.end += read;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// The buffer grows with what has arrived, never with what was announced.
    fn make_room(&mut self) {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
            if self.input.len() > READ_SIZE {
                self.input = vec![0; READ_SIZE];
            }
        } else if self.end == self.input.len() {
            if self.begin > 0 {
                self.input.copy_within(self.begin..self.end, 0);
                (self.begin, self.end) = (0, self.end - self.begin);
            }
            if self.end == self.input.len() {
                self.input.resize(2 * self.end, 0);
            }
        }
    }
}

fn closed() -> Cause {
    Cause("the server closed the connection".into())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter, DuplexStream, duplex};

    use super::*;

    #[tokio::test]
    async fn a_flush_that_the_server_holds_up_goes_on_when_it_reads_again() {
        // As rustls does, the writer accepts bytes that it can't send yet.
        let (client, mut server) = duplex(64);
        let mut connection = Connection::over(BufWriter::with_capacity(4096, client));
        let value = vec![b'x'; 1000];
        connection.requests().command(2).arg("ECHO").arg(&value);
        let mut waits = Box::pin(connection.reply());
        assert!((&mut waits).now_or_never().is_none());
        let reads = async {
            let mut request = Vec::new();
            while !request.ends_with(b"xx\r\n") {
                server.read_buf(&mut request).await.unwrap();
            }
            server.write_all(b"+done\r\n").await.unwrap();
            request.len()
        };
        let both = async { tokio::join!(waits, reads) };
        let (reply, sent) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
        assert_eq!(reply.unwrap(), Frame::Simple(b"done"));
        assert!(sent > value.len());
    }

    #[tokio::test]
    async fn pushes_between_replies_are_skipped() {
        let (client, mut server): (DuplexStream, _) = duplex(4096);
        let mut connection = Connection::over(client);
        let push = b">2\r\n+invalidate\r\n*1\r\n+key\r\n";
        let said: [&[u8]; 5] = [push, b":1\r\n", push, push, b":2\r\n"];
        server.write_all(&said.concat()).await.unwrap();
        for number in [1, 2] {
            assert_eq!(connection.reply().await.unwrap(), Frame::Integer(number));
        }
    }
}

//! The server's side of the Redis protocol: what the client library does not offer.

use std::io;

use redis::{Value, VerbatimFormat};

/// The answer to a [`Command`](super::Command).
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// `+OK`
    Ok,
    /// No value.
    Nil,
    /// A number.
    Int(i64),
    /// A short text, without a line break.
    Simple(String),
    /// A value.
    Bulk(String),
    /// An error, the code first: `LOADING Redis is loading the dataset in memory`.
    Error(String),
    /// Several answers in one.
    Array(Vec<Self>),
    /// Exactly these bytes, valid or not.
    Raw(Vec<u8>),
    /// These bytes again and again, for as long as the client stays connected.
    Endless(Vec<u8>),
    /// Only [`FakeServer::in_front_of`](super::FakeServer::in_front_of): what the real server answers to this other command.
    Run(Vec<String>),
    /// No answer; the connection stays open.
    Silence,
    /// No answer; the connection is closed.
    Close,
}

/// The words of a command.
pub(super) fn words(request: Value) -> io::Result<Vec<String>> {
    let Value::Array(words) = request else { return Err(unexpected(&request)) };
    let word = |word| match word {
        Value::BulkString(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        other => Err(unexpected(&other)),
    };
    words.into_iter().map(word).collect()
}

/// [`Reply::Run`] without a server behind, and those that say nothing, write nothing.
pub(super) fn write_reply(reply: &Reply, out: &mut Vec<u8>) {
    match reply {
        Reply::Ok => out.extend(b"+OK\r\n"),
        Reply::Nil => out.extend(b"$-1\r\n"),
        Reply::Int(number) => line(out, ':', number),
        Reply::Simple(text) => line(out, '+', text),
        Reply::Bulk(text) => bulk(out, text.as_bytes()),
        Reply::Error(text) => line(out, '-', text),
        Reply::Array(replies) => {
            line(out, '*', replies.len());
            replies.iter().for_each(|reply| write_reply(reply, out));
        }
        Reply::Raw(bytes) => out.extend(bytes),
        Reply::Endless(_) | Reply::Run(_) | Reply::Silence | Reply::Close => {}
    }
}

/// Writes what the real server answered.
pub(super) fn write_value(value: &Value, out: &mut Vec<u8>) -> io::Result<()> {
    match value {
        Value::Nil => out.extend(b"$-1\r\n"),
        Value::Okay => out.extend(b"+OK\r\n"),
        Value::Int(number) => line(out, ':', number),
        Value::SimpleString(text) => line(out, '+', text),
        Value::BulkString(bytes) => bulk(out, bytes),
        Value::VerbatimString { format, text } => {
            let format = match format {
                VerbatimFormat::Markdown => "mkd",
                VerbatimFormat::Unknown(format) => format,
                _ => "txt",
            };
            bulk_as(out, '=', format!("{format}:{text}").as_bytes());
        }
        Value::Boolean(yes) => line(out, '#', if *yes { 't' } else { 'f' }),
        Value::Double(number) => line(out, ',', number),
        Value::ServerError(error) => {
            line(
                out,
                '-',
                format_args!("{} {}", error.code(), error.details().unwrap_or_default()),
            );
        }
        Value::Array(values) | Value::Set(values) => {
            line(out, if matches!(value, Value::Set(_)) { '~' } else { '*' }, values.len());
            values.iter().try_for_each(|value| write_value(value, out))?;
        }
        Value::Map(pairs) => {
            line(out, '%', pairs.len());
            for (key, value) in pairs {
                write_value(key, out)?;
                write_value(value, out)?;
            }
        }
        other => return Err(unexpected(other)),
    }
    Ok(())
}

fn line(out: &mut Vec<u8>, kind: char, rest: impl std::fmt::Display) {
    out.extend(format!("{kind}{rest}\r\n").as_bytes());
}

fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    bulk_as(out, '$', bytes);
}

fn bulk_as(out: &mut Vec<u8>, kind: char, bytes: &[u8]) {
    line(out, kind, bytes.len());
    out.extend(bytes);
    out.extend(b"\r\n");
}

fn unexpected(value: &Value) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{value:?} is not expected here"))
}

//! Servers that are far away: whatever goes to them or comes from them is late by the same time.
//!
//! The timers of tokio count milliseconds, and here half of one matters: so the kernel's are used.
//! The connections have a thread of their own and do not stand in the way of what is measured.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use redlock_tests::Fleet;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::scenario::Result;

/// Ends with all its connections when it is dropped.
#[derive(Debug)]
pub(crate) struct Distance {
    urls: Vec<String>,
    runtime: Option<Runtime>,
}

impl Distance {
    /// A way to each server that takes `one_way` in each direction.
    pub(crate) async fn to(fleet: &Fleet, one_way: Duration) -> Result<Self> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut distance = Self { urls: Vec::new(), runtime: None };
        for server in fleet {
            let there = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
            let here = runtime.spawn(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).await??;
            distance.urls.push(format!("redis://{}/", here.local_addr()?));
            runtime.spawn(accept(here, there, one_way));
        }
        distance.runtime = Some(runtime);
        Ok(distance)
    }

    pub(crate) fn urls(&self) -> &[String] {
        &self.urls
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(here: TcpListener, there: SocketAddr, one_way: Duration) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = here.accept().await?;
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            let server = TcpStream::connect(there).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::try_join!(
                carry(from_client, to_server, one_way),
                carry(from_server, to_client, one_way)
            )
        });
    }
}

/// One direction of a connection, until it ends.
async fn carry(
    mut source: impl AsyncRead + Unpin,
    mut target: impl AsyncWrite + Unpin,
    delay: Duration,
) -> io::Result<()> {
    let (sender, mut under_way) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = source.read(&mut buffer).await?;
            let due = Instant::now() + delay;
            if length == 0 || sender.send((due, buffer[..length].to_vec())).is_err() {
                return Ok(());
            }
        }
    };
    let write = async {
        let timer = Timer::new()?;
        while let Some((due, bytes)) = under_way.recv().await {
            timer.sleep_until(due).await?;
            target.write_all(&bytes).await?;
        }
        target.shutdown().await
    };
    tokio::try_join!(read, write).map(|((), ())| ())
}

/// Sleeps to the microsecond.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(deprecated, reason = "its successor is unsafe, for owners that close early")]
        Ok(Self(AsyncFd::new(timer)?))
    }

    async fn sleep_until(&self, due: Instant) -> io::Result<()> {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let never_again = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Timespec::try_from(left).map_err(io::Error::other)?;
        let alarm = Itimerspec { it_interval: never_again, it_value: once };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &alarm)?;
        let read = |timer: &OwnedFd| Ok(rustix::io::read(timer, &mut [0; 8])?);
        self.0.async_io(tokio::io::Interest::READABLE, read).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_timer_never_ends_early() {
        let timer = Timer::new().unwrap();
        for _ in 0..50 {
            let due = Instant::now() + Duration::from_micros(500);
            timer.sleep_until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
    }
}

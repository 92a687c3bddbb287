//! How those who wait learn that a key is free.

/// How a request that waits for another process learns that the key may be free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WakeUp {
    /// The default. The servers tell: while somebody waits for another process, and for a minute
    /// after, there is one more connection to a server, on which it pushes what becomes of the key
    /// (`CLIENT TRACKING`). It also tells of a lock that ran out, or was released by another
    /// library. One request of a process is told at a time. It asks from time to time as well, as
    /// with [`Poll`](Self::Poll): what is not told costs time only, and so does a server that does
    /// not do this.
    #[default]
    Push,
    /// Nobody tells: a request asks again after the pauses of
    /// [`retry_interval`](crate::ConfigBuilder::retry_interval). Better where dozens of processes
    /// wait for one key all the time: each of them is told of every release, and asks.
    Poll,
}

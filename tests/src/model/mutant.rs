//! Mistakes that somebody could make, and some that were made.

use std::fmt;

/// A deliberate mistake in a protocol. A model that does not find it out is worth nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mutant {
    /// What the largest grant says is the token, without a majority that keeps it.
    #[value(name = "M1")]
    NoConfirm,
    /// A server takes a token also when the lock is no longer ours.
    #[value(name = "M2")]
    ConfirmWithoutOwner,
    /// A server that lost its counter counts as one that has always counted.
    #[value(name = "M3")]
    UnknownIsZero,
    /// A server that lost its data votes at once.
    #[value(name = "M4")]
    NoQuarantine,
    /// The quarantine ends one tick early.
    #[value(name = "M5")]
    ShortQuarantine,
    /// The margin covers the drift of one side only.
    #[value(name = "M6")]
    HalfMargin,
    /// All attempts of a client have the same token on the key.
    #[value(name = "M7")]
    ReusedToken,
    /// A lease counts from when it was won, not from before it was asked for.
    #[value(name = "M11")]
    LeaseFromItsEnd,
    /// An extension that fails releases the lock, while the old lease still runs.
    #[value(name = "M12")]
    FailedExtendReleases,
    /// Confirmations count from servers whose grants were not counted.
    #[value(name = "M16")]
    UncountedConfirm,
    /// All servers are asked to confirm, but only those whose grants were counted count.
    #[value(name = "M17")]
    ConfirmOfAll,
    /// A counter that nobody told counts as lost.
    #[value(name = "M18")]
    UntoldIsLost,
    /// With a majority that knows its counters, a server that does not may confirm unread.
    #[value(name = "M19")]
    UnreadConfirm,
    /// An extension counts from when it was confirmed, not from before it was asked for.
    #[value(name = "M20")]
    ExtensionFromItsEnd,
    /// A server is taught what others had told before its quarantine ended.
    #[value(name = "M21")]
    EarlyLesson,
}

impl Mutant {
    /// What it is called for short.
    #[must_use]
    pub const fn number(self) -> &'static str {
        self.described().0
    }

    const fn described(self) -> (&'static str, &'static str) {
        match self {
            Self::NoConfirm => ("M1", "no confirm"),
            Self::ConfirmWithoutOwner => ("M2", "confirm without owner check"),
            Self::UnknownIsZero => ("M3", "unknown counters taken as zero"),
            Self::NoQuarantine => ("M4", "no quarantine"),
            Self::ShortQuarantine => ("M5", "quarantine of ttl - 1"),
            Self::HalfMargin => ("M6", "margin halved"),
            Self::ReusedToken => ("M7", "token reused by the next attempt"),
            Self::LeaseFromItsEnd => ("M11", "lease from when it was won"),
            Self::FailedExtendReleases => ("M12", "failed extension releases"),
            Self::UncountedConfirm => ("M16", "confirmations of uncounted servers"),
            Self::ConfirmOfAll => ("M17", "confirm sent to uncounted servers"),
            Self::UntoldIsLost => ("M18", "untold counters taken as lost"),
            Self::UnreadConfirm => ("M19", "unknown counters confirm unread"),
            Self::ExtensionFromItsEnd => ("M20", "extension from when confirmed"),
            Self::EarlyLesson => ("M21", "taught what was told too early"),
        }
    }
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, words) = self.described();
        write!(f, "{number} {words}")
    }
}

//! Mistakes that a run must be able to find.

use std::str::FromStr;

use redlock_core::testing::{LaneMistake, Mutant};

/// What clients, or all that they share, do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mistake {
    /// M1: a fencing token counts without a majority having confirmed it.
    NoConfirm,
    /// M2: a server takes a fencing token also from who does not hold the lock any more.
    ConfirmByAnybody,
    /// M3: a counter that was lost is taken for one that counts from zero.
    UnknownIsZero,
    /// M4: a server that lost its data votes at once.
    NoQuarantine,
    /// M5: it votes after half of the time for which a lock may last.
    ShortQuarantine,
    /// M6: half of the margin for clocks that run at different rates.
    HalfDrift,
    /// M7: all attempts on a key have the same token.
    OneToken,
    /// M8: a lock that was not won is released only where it is known to be set.
    ReleaseGrantedOnly,
    /// M9: after a reconnect, a release overtakes its acquisition: earlier connections are not
    /// killed, and tokens in doubt are not made void.
    ReleaseOvertakes,
    /// M10: half of the servers count as a majority.
    HalfQuorum,
    /// M11: the validity counts from the end of the attempt.
    ValidFromTheEnd,
    /// M12: a failed extension releases the lock.
    FailedExtendReleases,
    /// M13: extending a key that is gone sets it again.
    ExtendRecreates,
    /// M14: a majority counts also if it comes after the end of the validity.
    LateMajority,
    /// M15: two of the servers are one, under two names: they lose their data together.
    OneServerTwice,
    /// M16: a batch without an answer in time is given up, and its connection is kept.
    IgnoresMissingAnswer,
    /// M17: the replies of one batch count for the next one as well.
    CountsTwice,
    /// M18: releases whose connection broke are never sent.
    ForgetsReleases,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::NoConfirm,
        Self::ConfirmByAnybody,
        Self::UnknownIsZero,
        Self::NoQuarantine,
        Self::ShortQuarantine,
        Self::HalfDrift,
        Self::OneToken,
        Self::ReleaseGrantedOnly,
        Self::ReleaseOvertakes,
        Self::HalfQuorum,
        Self::ValidFromTheEnd,
        Self::FailedExtendReleases,
        Self::ExtendRecreates,
        Self::LateMajority,
        Self::OneServerTwice,
        Self::IgnoresMissingAnswer,
        Self::CountsTwice,
        Self::ForgetsReleases,
    ];

    /// The name on the command line: `m1` to `m18`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoConfirm => "m1",
            Self::ConfirmByAnybody => "m2",
            Self::UnknownIsZero => "m3",
            Self::NoQuarantine => "m4",
            Self::ShortQuarantine => "m5",
            Self::HalfDrift => "m6",
            Self::OneToken => "m7",
            Self::ReleaseGrantedOnly => "m8",
            Self::ReleaseOvertakes => "m9",
            Self::HalfQuorum => "m10",
            Self::ValidFromTheEnd => "m11",
            Self::FailedExtendReleases => "m12",
            Self::ExtendRecreates => "m13",
            Self::LateMajority => "m14",
            Self::OneServerTwice => "m15",
            Self::IgnoresMissingAnswer => "m16",
            Self::CountsTwice => "m17",
            Self::ForgetsReleases => "m18",
        }
    }

    /// The mistake of the library's own clients, if it is one of theirs.
    pub(super) const fn mutant(self) -> Option<Mutant> {
        Some(match self {
            Self::NoConfirm => Mutant::NoConfirm,
            Self::ConfirmByAnybody => Mutant::ConfirmByAnybody,
            Self::UnknownIsZero => Mutant::UnknownIsZero,
            Self::NoQuarantine => Mutant::NoQuarantine,
            Self::ShortQuarantine => Mutant::ShortQuarantine,
            Self::OneToken => Mutant::OneToken,
            Self::ReleaseGrantedOnly => Mutant::ReleaseGrantedOnly,
            Self::ReleaseOvertakes => Mutant::Lane(LaneMistake::ReleaseOvertakes),
            Self::IgnoresMissingAnswer => Mutant::Lane(LaneMistake::IgnoresMissingAnswer),
            Self::CountsTwice => Mutant::Lane(LaneMistake::CountsTwice),
            Self::ForgetsReleases => Mutant::Lane(LaneMistake::ForgetsReleases),
            Self::HalfQuorum => Mutant::HalfQuorum,
            Self::ExtendRecreates => Mutant::ExtendRecreates,
            Self::HalfDrift
            | Self::ValidFromTheEnd
            | Self::FailedExtendReleases
            | Self::LateMajority
            | Self::OneServerTwice => return None,
        })
    }
}

impl FromStr for Mistake {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mistake| mistake.name() == name);
        found.ok_or_else(|| format!("no mistake is called {name}: they are m1 to m18"))
    }
}

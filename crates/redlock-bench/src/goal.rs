//! What is wanted of a figure, and whether it was seen.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// One figure, and what it should be.
#[derive(Clone, Debug)]
pub(crate) struct Goal {
    name: String,
    wanted: Bound,
    seen: f64,
    exact: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    /// A figure that depends on the machine, such as a ratio of times.
    pub(crate) fn new(name: impl Into<String>, wanted: Bound, seen: f64) -> Self {
        Self { name: name.into(), wanted, seen, exact: false }
    }

    /// A figure that does not, such as a number of commands: to miss it at all is a fault.
    pub(crate) fn exact(name: impl Into<String>, wanted: Bound, seen: f64) -> Self {
        Self { exact: true, ..Self::new(name, wanted, seen) }
    }

    pub(crate) fn is_met(&self) -> bool {
        self.wanted.holds(self.seen, 1.0)
    }

    /// Missed in a way that no noise explains: less than half of what is wanted, more than twice.
    pub(crate) fn is_far_off(&self) -> bool {
        !self.wanted.holds(self.seen, if self.exact { 1.0 } else { 2.0 })
    }
}

impl Bound {
    /// A figure that is no number is out of every bound.
    fn holds(self, seen: f64, leniency: f64) -> bool {
        match self {
            Self::AtLeast(least) => seen >= least / leniency,
            Self::AtMost(most) => seen <= most * leniency,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.is_met(), self.is_far_off()) {
            (true, _) => "met",
            (false, false) => "not met",
            (false, true) => "FAR OFF",
        };
        let wanted = self.wanted.to_string();
        write!(f, "{verdict:>8}  {wanted:<14} {:>10.2}  {}", self.seen, self.name)
    }
}

impl Serialize for Goal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut goal = serializer.serialize_struct("Goal", 4)?;
        goal.serialize_field("name", &self.name)?;
        goal.serialize_field("wanted", &self.wanted.to_string())?;
        goal.serialize_field("seen", &self.seen)?;
        goal.serialize_field("met", &self.is_met())?;
        goal.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_far_off_below_half_of_its_goal() {
        let ratio = |seen| Goal::new("rate", Bound::AtLeast(2.0), seen);
        assert!(ratio(2.0).is_met());
        assert!(!ratio(1.9).is_met() && !ratio(1.0).is_far_off());
        assert!(ratio(0.9).is_far_off());
        let time = |seen| Goal::new("latency", Bound::AtMost(2.0), seen);
        assert!(time(2.0).is_met());
        assert!(!time(4.0).is_met() && !time(4.0).is_far_off());
        assert!(time(4.1).is_far_off());
    }

    #[test]
    fn an_exact_counter_is_never_nearly_right() {
        assert!(!Goal::exact("orphans", Bound::AtMost(0.0), 0.0).is_far_off());
        assert!(Goal::exact("orphans", Bound::AtMost(0.0), 1.0).is_far_off());
        assert!(Goal::exact("commands", Bound::AtMost(12.0), 12.01).is_far_off());
    }

    #[test]
    fn what_was_not_seen_is_not_met() {
        for wanted in [Bound::AtLeast(1.0), Bound::AtMost(1.0)] {
            assert!(Goal::new("nothing", wanted, f64::NAN).is_far_off());
        }
    }
}

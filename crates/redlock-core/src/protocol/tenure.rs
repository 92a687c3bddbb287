//! One tenure of a key: from the moment it was won until it is released or lost.

use std::fmt;
use std::time::Duration;

use crate::clock::Moment;

/// Why a lease ended before it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LostReason {
    /// Its validity ran out without a majority having confirmed an extension in time.
    Expired,
    /// A majority of the nodes said that the key is not, or no longer, ours.
    TakenOver,
    /// It was renewed for as long as `max_hold` allows.
    MaxHold,
    /// The [`Redlock`](crate::Redlock) was closed.
    Closed,
}

impl fmt::Display for LostReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "its validity ran out",
            Self::TakenOver => "a majority of the nodes said that it is not ours",
            Self::MaxHold => "it was held for as long as max_hold allows",
            Self::Closed => "the lock service was closed",
        })
    }
}

/// How a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LeaseState {
    /// It is valid, and the servers agreed when they were last asked.
    Held,
    /// It is still valid, but the last extension was not confirmed by a majority: unless a later
    /// one is, it will be lost at the end of its validity. Bring to an end what can't be undone.
    Jeopardy,
    /// It is not valid any more.
    Lost(LostReason),
    /// It was released, or handed over to another process, while it was valid.
    Released,
}

/// What a lease keeps to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) ttl: Duration,
    /// Share of the TTL between the last confirmed majority and the next renewal; `None`: no
    /// renewal.
    pub(crate) renew_after: Option<f64>,
    /// Nothing is renewed beyond this moment, nor valid.
    pub(crate) hold_until: Moment,
}

impl Terms {
    fn renewal_after(&self, confirmed: Moment) -> Moment {
        self.renew_after.map_or(Moment::NEVER, |share| confirmed + self.ttl.mul_f64(share))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Held,
    Lost(LostReason),
    /// Released while it was held.
    Ended,
}

/// What is due now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Ask every node to extend the key to this TTL.
    Renewal(Duration),
    /// The lease has just been lost: tell everybody.
    Loss(LostReason),
    Nothing,
}

/// An extension under way. The servers keep to the one that was sent last.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extension {
    number: u64,
    sent: Moment,
    ttl: Duration,
    /// When the lease ends if this is confirmed.
    end: Moment,
}

/// The state of one lease.
///
/// The end of its validity moves only when a majority confirmed it, counts from before the
/// confirming command was sent, and is judged by the caller's clock alone.
#[derive(Debug)]
pub(crate) struct Tenure {
    terms: Terms,
    state: State,
    released: bool,
    valid_until: Moment,
    renewal_due: Moment,
    extensions: u64,
    /// The last extension to be answered was not confirmed.
    in_jeopardy: bool,
}

impl Tenure {
    /// A tenure won by an attempt that started at `confirmed` and is valid until `valid_until`.
    pub(crate) fn new(terms: Terms, confirmed: Moment, valid_until: Moment) -> Self {
        Self {
            terms,
            state: State::Held,
            released: false,
            valid_until: valid_until.min(terms.hold_until),
            renewal_due: terms.renewal_after(confirmed),
            extensions: 0,
            in_jeopardy: false,
        }
    }

    pub(crate) fn remaining(&self, now: Moment) -> Duration {
        match self.state {
            State::Held => self.valid_until.since(now),
            State::Lost(_) | State::Ended => Duration::ZERO,
        }
    }

    /// Why the lease is lost at `now`, whether or not anybody has noticed so far.
    pub(crate) fn lost(&self, now: Moment) -> Option<LostReason> {
        match self.state {
            State::Lost(reason) => Some(reason),
            State::Held if now >= self.valid_until => Some(self.reason_of_the_end()),
            State::Held | State::Ended => None,
        }
    }

    pub(crate) fn state(&self, now: Moment) -> LeaseState {
        match (self.lost(now), self.state) {
            (Some(reason), _) => LeaseState::Lost(reason),
            (None, State::Ended) => LeaseState::Released,
            (None, _) if self.in_jeopardy => LeaseState::Jeopardy,
            (None, _) => LeaseState::Held,
        }
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released
    }

    /// When [`due`](Self::due) is to be asked next.
    pub(crate) fn next_timer(&self) -> Option<Moment> {
        (self.state == State::Held).then(|| self.renewal_due.min(self.valid_until))
    }

    /// What is due at `now`.
    pub(crate) fn due(&mut self, now: Moment) -> Due {
        if self.state != State::Held {
            return Due::Nothing;
        }
        if now >= self.valid_until {
            let reason = self.reason_of_the_end();
            self.state = State::Lost(reason);
            return Due::Loss(reason);
        }
        if now < self.renewal_due {
            return Due::Nothing;
        }
        self.renewal_due = Moment::NEVER;
        if self.valid_until >= self.terms.hold_until {
            return Due::Nothing;
        }
        Due::Renewal(self.terms.ttl)
    }

    /// Notes that an extension to `ttl` is about to be sent at `sent`. From here on the servers
    /// may keep the key for that long only, so a shorter TTL counts at once, confirmed or not.
    pub(crate) fn extending(&mut self, sent: Moment, ttl: Duration, drift: Duration) -> Extension {
        let end = (sent + ttl.saturating_sub(drift)).min(self.terms.hold_until);
        self.valid_until = self.valid_until.min(end);
        self.extensions += 1;
        Extension { number: self.extensions, sent, ttl, end }
    }

    /// Notes that a majority confirmed an extension. What is confirmed after the end of the
    /// validity comes too late, whatever the servers say, and one that was overtaken by a later
    /// extension says nothing about how long the servers keep the key now. `true` if that ended a
    /// jeopardy.
    pub(crate) fn extended(&mut self, extension: Extension, now: Moment) -> bool {
        let Extension { number, sent, ttl, end } = extension;
        if self.state != State::Held || now >= self.valid_until || number != self.extensions {
            return false;
        }
        self.terms.ttl = ttl;
        self.valid_until = end;
        self.renewal_due = self.terms.renewal_after(sent);
        std::mem::take(&mut self.in_jeopardy)
    }

    /// Notes that an extension failed without a majority against us: the old end stands (H14),
    /// and a renewing lease tries again soon.
    pub(crate) fn not_extended(&mut self, now: Moment) {
        self.in_jeopardy = true;
        if let Some(share) = self.terms.renew_after {
            self.renewal_due = now + self.terms.ttl.mul_f64(share / 4.0);
        }
    }

    /// Ends a held lease; `false` if it had ended already.
    pub(crate) fn lose(&mut self, reason: LostReason) -> bool {
        let held = self.state == State::Held;
        if held {
            self.state = State::Lost(reason);
        }
        held
    }

    /// Ends the tenure for good; no renewal is due afterwards. What was lost before stays lost:
    /// those who hold a lease are still to be told why.
    pub(crate) fn release(&mut self) {
        self.released = true;
        if self.state == State::Held {
            self.state = State::Ended;
        }
    }

    fn reason_of_the_end(&self) -> LostReason {
        if self.valid_until >= self.terms.hold_until {
            LostReason::MaxHold
        } else {
            LostReason::Expired
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Moment = Moment::from_origin(Duration::from_secs(1_000));

    fn at(millis: u64) -> Moment {
        START + Duration::from_millis(millis)
    }

    fn renewing(hold_until: Moment) -> Tenure {
        let terms = Terms { ttl: Duration::from_millis(1_000), renew_after: Some(0.3), hold_until };
        Tenure::new(terms, START, at(990))
    }

    const TTL: Duration = Duration::from_millis(1_000);
    const DRIFT: Duration = Duration::from_millis(10);

    #[test]
    fn a_lease_is_held_until_the_end_of_its_validity_and_no_longer() {
        let tenure = renewing(Moment::NEVER);
        assert_eq!(tenure.remaining(at(989)), Duration::from_millis(1));
        assert_eq!(tenure.lost(at(989)), None);
        assert_eq!(tenure.remaining(at(990)), Duration::ZERO);
        assert_eq!(tenure.lost(at(990)), Some(LostReason::Expired));
    }

    #[test]
    fn what_is_lost_once_is_lost_for_the_first_reason() {
        let mut tenure = renewing(Moment::NEVER);
        assert!(tenure.lose(LostReason::TakenOver));
        assert!(!tenure.lose(LostReason::Closed));
        assert_eq!(tenure.lost(at(1)), Some(LostReason::TakenOver));
    }

    #[test]
    fn every_loss_says_why() {
        let reasons = ["validity ran out", "not ours", "max_hold", "closed"];
        let lost =
            [LostReason::Expired, LostReason::TakenOver, LostReason::MaxHold, LostReason::Closed];
        for (lost, reason) in lost.into_iter().zip(reasons) {
            assert!(lost.to_string().contains(reason), "{lost}");
        }
    }

    #[test]
    fn another_ttl_has_its_own_drift_and_its_own_renewal() {
        for ttl in [200, 5_000] {
            let (ttl, drift) = (Duration::from_millis(ttl), Duration::from_millis(ttl / 50));
            let mut tenure = renewing(Moment::NEVER);
            let extension = tenure.extending(at(100), ttl, drift);
            tenure.extended(extension, at(110));
            assert_eq!(tenure.valid_until, at(100) + (ttl - drift));
            assert_eq!(tenure.next_timer(), Some(at(100) + ttl * 3 / 10));
            assert_eq!(tenure.due(at(100) + ttl * 3 / 10), Due::Renewal(ttl));
        }
    }

    #[test]
    fn a_renewal_is_due_a_third_into_the_ttl_and_moves_the_end_from_when_it_was_sent() {
        let mut tenure = renewing(Moment::NEVER);
        assert_eq!(tenure.due(at(299)), Due::Nothing);
        assert_eq!(tenure.due(at(300)), Due::Renewal(TTL));
        assert_eq!(tenure.due(at(301)), Due::Nothing);
        let extension = tenure.extending(at(300), TTL, DRIFT);
        tenure.extended(extension, at(350));
        assert_eq!(tenure.valid_until, at(1_290));
        assert_eq!(tenure.next_timer(), Some(at(600)));
    }

    #[test]
    fn a_failed_renewal_keeps_the_old_end_and_is_tried_again_before_it() {
        let mut tenure = renewing(Moment::NEVER);
        assert_ne!(tenure.due(at(300)), Due::Nothing);
        tenure.extending(at(300), TTL, DRIFT);
        tenure.not_extended(at(400));
        assert_eq!(tenure.valid_until, at(990));
        assert_eq!(tenure.next_timer(), Some(at(475)));
    }

    #[test]
    fn a_confirmation_after_the_end_comes_too_late() {
        let mut tenure = renewing(Moment::NEVER);
        let extension = tenure.extending(at(300), TTL, DRIFT);
        tenure.extended(extension, at(990));
        assert_eq!(tenure.lost(at(990)), Some(LostReason::Expired));
        assert_eq!(tenure.due(at(990)), Due::Loss(LostReason::Expired));
        tenure.extended(extension, at(985));
        assert_eq!(tenure.lost(at(990)), Some(LostReason::Expired));
    }

    #[test]
    fn an_unanswered_renewal_does_not_keep_the_loss_from_being_due() {
        let mut tenure = renewing(Moment::NEVER);
        assert_ne!(tenure.due(at(300)), Due::Nothing);
        assert_eq!(tenure.next_timer(), Some(at(990)));
        assert_eq!(tenure.due(at(990)), Due::Loss(LostReason::Expired));
        assert_eq!(tenure.next_timer(), None);
    }

    #[test]
    fn a_shorter_extension_counts_from_the_moment_it_is_sent() {
        let mut tenure = renewing(Moment::NEVER);
        tenure.extending(at(100), Duration::from_millis(200), DRIFT);
        assert_eq!(tenure.valid_until, at(290));
        tenure.not_extended(at(110));
        assert_eq!(tenure.lost(at(290)), Some(LostReason::Expired));
    }

    #[test]
    fn the_confirmation_of_an_overtaken_extension_does_not_lengthen_a_shorter_one() {
        let mut tenure = renewing(Moment::NEVER);
        let long = tenure.extending(at(100), TTL, DRIFT);
        let short = tenure.extending(at(101), Duration::from_millis(200), DRIFT);
        tenure.extended(long, at(102));
        assert_eq!(tenure.valid_until, at(291));
        tenure.extended(short, at(103));
        assert_eq!(tenure.valid_until, at(291));
    }

    #[test]
    fn max_hold_bounds_the_validity_and_ends_renewal() {
        let mut tenure = renewing(at(1_200));
        assert_ne!(tenure.due(at(300)), Due::Nothing);
        let extension = tenure.extending(at(300), TTL, DRIFT);
        tenure.extended(extension, at(310));
        assert_eq!(tenure.valid_until, at(1_200));
        assert_eq!(tenure.due(at(600)), Due::Nothing);
        assert_eq!(tenure.next_timer(), Some(at(1_200)));
        assert_eq!(tenure.due(at(1_200)), Due::Loss(LostReason::MaxHold));
    }

    #[test]
    fn a_failed_extension_is_jeopardy_until_one_is_confirmed_or_the_lease_is_lost() {
        let mut tenure = renewing(Moment::NEVER);
        assert_eq!(tenure.state(at(0)), LeaseState::Held);
        let _failed = tenure.extending(at(300), TTL, DRIFT);
        tenure.not_extended(at(310));
        assert_eq!(tenure.state(at(310)), LeaseState::Jeopardy);
        let confirmed = tenure.extending(at(400), TTL, DRIFT);
        assert!(tenure.extended(confirmed, at(410)));
        assert_eq!(tenure.state(at(410)), LeaseState::Held);
        let confirmed = tenure.extending(at(500), TTL, DRIFT);
        assert!(!tenure.extended(confirmed, at(510)));
        tenure.not_extended(at(800));
        assert_eq!(tenure.state(at(1_490)), LeaseState::Lost(LostReason::Expired));
        tenure.release();
        assert_eq!(tenure.state(at(1_400)), LeaseState::Released);
    }

    #[test]
    fn a_released_tenure_is_not_lost_and_has_nothing_due() {
        let mut tenure = renewing(Moment::NEVER);
        assert!(!tenure.is_released());
        tenure.release();
        assert!(tenure.is_released());
        assert_eq!(tenure.due(at(5_000)), Due::Nothing);
        assert_eq!(tenure.lost(at(5_000)), None);
        assert_eq!(tenure.remaining(at(1)), Duration::ZERO);
        assert!(!tenure.lose(LostReason::TakenOver));
    }
}

//! Which carrier an agent's session should be on: the best that gets through, and always looking for a better one.
//!
//! A machine beside [`crate::uplink`], stepped in the same way. The uplink keeps one session up; the ladder says when to
//! dial a second one on other carriers while the first still serves, so that the caller can move over without a gap:
//! upwards every now and then, and on any carrier as soon as the session is in doubt.

use crate::uplink::{Die, Moment};
use core::time::Duration;

/// A carrier, as the ladder sees it: better ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// QUIC: no stream waits for another's losses.
    Quic,
    /// TLS over TCP.
    Tls,
    /// The same in a WebSocket.
    WebSocket,
}

/// Some of the rungs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rungs(u8);

impl Rungs {
    /// All there are.
    pub const ALL: Self = Self(0b111);

    /// This one alone.
    pub const fn only(rung: Rung) -> Self {
        Self(1 << rung as u8)
    }
    /// These, and of them only the better ones than `rung`.
    pub const fn above(self, rung: Rung) -> Self {
        Self(self.0 & ((1 << rung as u8) - 1))
    }
    /// Whether `rung` is one of them.
    pub const fn contains(self, rung: Rung) -> bool {
        self.0 & (1 << rung as u8) != 0
    }
    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// The best first.
    pub fn iter(self) -> impl Iterator<Item = Rung> {
        [Rung::Quic, Rung::Tls, Rung::WebSocket].into_iter().filter(move |rung| self.contains(*rung))
    }
}

/// How eager the ladder is.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Longest pause before the first look upwards; at least half of it. It doubles with each look that came to nothing
    /// and each session that did not last.
    pub first_pause: Duration,
    /// Bound of the pause.
    pub longest_pause: Duration,
    /// Longest second dial.
    pub attempt: Duration,
    /// A session that lasted this long has shown that its carrier works.
    pub steady: Duration,
}
impl Default for Policy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(20),
            longest_pause: Duration::from_secs(600),
            attempt: Duration::from_secs(25),
            steady: Duration::from_secs(60),
        }
    }
}
impl Policy {
    fn pause(&self, misses: u32, die: Die) -> Duration {
        let doubled = self.first_pause.saturating_mul(1u32.checked_shl(misses).unwrap_or(u32::MAX));
        let longest = doubled.min(self.longest_pause);
        longest / 2 + die.share(longest / 2)
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time passed; sent at [`Ladder::wake_at`] or at any other time.
    Tick,
    /// A session stands on this rung, whoever dialled it. What stood before is retired.
    Stands(Rung),
    /// The session is gone, and the uplink dials anew.
    Fell,
    /// The session has not answered for a while, and may yet.
    Doubt,
    /// The second dial came to nothing.
    Failed,
}

/// What the caller is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Dial a second session, on one of these.
    Dial(Rungs),
    /// Stop the second dial. News of it is ignored from here on.
    Abandon,
}

/// The ladder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ladder {
    /// No session.
    Down {
        /// Looks and moves that came to nothing, in a row.
        misses: u32,
    },
    /// A session, and no second dial.
    Standing {
        /// What carries it.
        rung: Rung,
        /// Since when.
        since: Moment,
        /// When to look upwards; `None` at the top.
        next: Option<Moment>,
        /// See [`Ladder::Down`].
        misses: u32,
    },
    /// A session, and a second dial under way.
    Trying {
        /// What carries the session.
        rung: Rung,
        /// Since when.
        since: Moment,
        /// When the dial is given up.
        until: Moment,
        /// See [`Ladder::Down`].
        misses: u32,
    },
}

impl Ladder {
    /// Before the first session.
    pub const fn new() -> Self {
        Self::Down { misses: 0 }
    }

    /// When a tick is due; `None` while there is nothing to wait for.
    pub const fn wake_at(&self) -> Option<Moment> {
        match self {
            Self::Down { .. } => None,
            Self::Standing { next, .. } => *next,
            Self::Trying { until, .. } => Some(*until),
        }
    }

    /// One step. `allowed`: the rungs that may be used at all.
    #[must_use]
    pub fn step(self, event: Event, now: Moment, policy: &Policy, allowed: Rungs, die: Die) -> (Self, Option<Effect>) {
        let stand = |rung, since, misses| {
            let next = (!allowed.above(rung).is_empty()).then(|| now + policy.pause(misses, die));
            Self::Standing { rung, since, next, misses }
        };
        let down = |since: Moment, misses: u32| {
            let lasted = policy.steady <= now.saturating_sub(since);
            Self::Down { misses: if lasted { 0 } else { misses.saturating_add(1) } }
        };
        match (self, event) {
            (
                Self::Down { misses } | Self::Standing { misses, .. } | Self::Trying { misses, .. },
                Event::Stands(rung),
            ) => (stand(rung, now, misses), None),
            (Self::Standing { rung, since, next: Some(next), misses }, Event::Tick) if next <= now => (
                Self::Trying { rung, since, until: now + policy.attempt, misses },
                Some(Effect::Dial(allowed.above(rung))),
            ),
            // On the same rung too: a box on the way that has forgotten this connection lets a new one through.
            (Self::Standing { rung, since, misses, .. }, Event::Doubt) if !allowed.is_empty() => {
                (Self::Trying { rung, since, until: now + policy.attempt, misses }, Some(Effect::Dial(allowed)))
            }
            (Self::Trying { rung, since, misses, .. }, Event::Failed) => {
                (stand(rung, since, misses.saturating_add(1)), None)
            }
            (Self::Trying { rung, since, until, misses }, Event::Tick) if until <= now => {
                (stand(rung, since, misses.saturating_add(1)), Some(Effect::Abandon))
            }
            (Self::Standing { since, misses, .. }, Event::Fell) => (down(since, misses), None),
            (Self::Trying { since, misses, .. }, Event::Fell) => (down(since, misses), Some(Effect::Abandon)),
            (unmoved, _) => (unmoved, None),
        }
    }
}

impl Default for Ladder {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const DIE: Die = Die(u32::MAX);

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Tick),
            2 => (0usize..3).prop_map(|n| Event::Stands(Rungs::ALL.iter().nth(n).unwrap())),
            1 => Just(Event::Fell),
            1 => Just(Event::Doubt),
            2 => Just(Event::Failed),
        ]
    }

    proptest! {
        /// Over any events and pauses: one second dial at a time, only on rungs that are allowed and not in use, only
        /// while a session stands, and below the top always a next look within the longest pause.
        #[test]
        fn one_second_dial_and_never_resigned(
            steps in prop::collection::vec((any_event(), 0u64..900, any::<u32>()), 0..200),
            allowed in 0u8..8,
        ) {
            let (policy, allowed) = (Policy::default(), Rungs(allowed));
            let (mut ladder, mut now, mut open, mut stands) = (Ladder::new(), Duration::ZERO, false, None);
            for (event, pause, die) in steps {
                now += secs(pause);
                match event {
                    Event::Stands(rung) => (stands, open) = (Some(rung), false),
                    Event::Failed => open = false,
                    _ => {}
                }
                let effect;
                (ladder, effect) = ladder.step(event, now, &policy, allowed, Die(die));
                match effect {
                    Some(Effect::Dial(rungs)) => {
                        prop_assert!(!open && !rungs.is_empty());
                        prop_assert!(rungs.iter().all(|rung| allowed.contains(rung)));
                        prop_assert!(event == Event::Doubt || rungs.iter().all(|rung| Some(rung) < stands));
                        prop_assert!(stands.is_some());
                        open = true;
                    }
                    Some(Effect::Abandon) => {
                        prop_assert!(open);
                        open = false;
                    }
                    None => {}
                }
                if event == Event::Fell {
                    stands = None;
                }
                prop_assert_eq!(open, matches!(ladder, Ladder::Trying { .. }));
                let better = stands.is_some_and(|rung| !allowed.above(rung).is_empty());
                prop_assert_eq!(ladder.wake_at().is_some(), open || better);
                prop_assert!(ladder.wake_at().is_none_or(|at| at <= now + policy.longest_pause));
            }
        }
    }

    #[test]
    fn f15_a_better_carrier_is_looked_for_ever_less_often_and_never_not() {
        let policy = Policy::default();
        let (mut ladder, _) = Ladder::new().step(Event::Stands(Rung::WebSocket), secs(0), &policy, Rungs::ALL, DIE);
        let mut pauses = Vec::new();
        let mut now = secs(0);
        for _ in 0..8 {
            let due = ladder.wake_at().unwrap();
            pauses.push((due - now).as_secs());
            let effect;
            (ladder, effect) = ladder.step(Event::Tick, due, &policy, Rungs::ALL, DIE);
            assert_eq!(effect, Some(Effect::Dial(Rungs::ALL.above(Rung::WebSocket))));
            (ladder, _) = ladder.step(Event::Failed, due, &policy, Rungs::ALL, DIE);
            now = due;
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 600, 600, 600]);
        (ladder, _) = ladder.step(Event::Stands(Rung::Quic), now, &policy, Rungs::ALL, DIE);
        assert_eq!(ladder.wake_at(), None, "there is nothing above QUIC");
    }

    #[test]
    fn a_session_in_doubt_gets_a_second_beside_it() {
        let policy = Policy::default();
        let (ladder, _) = Ladder::new().step(Event::Stands(Rung::Quic), secs(0), &policy, Rungs::ALL, DIE);
        let (ladder, effect) = ladder.step(Event::Doubt, secs(9), &policy, Rungs::ALL, DIE);
        assert_eq!(effect, Some(Effect::Dial(Rungs::ALL)));
        assert_eq!(ladder.clone().step(Event::Doubt, secs(10), &policy, Rungs::ALL, DIE).1, None, "one dial is enough");
        assert_eq!(ladder.clone().step(Event::Fell, secs(10), &policy, Rungs::ALL, DIE).1, Some(Effect::Abandon));
        assert_eq!(ladder.step(Event::Tick, secs(60), &policy, Rungs::ALL, DIE).1, Some(Effect::Abandon));
        let only = Rungs::only(Rung::Quic);
        let (ladder, _) = Ladder::new().step(Event::Stands(Rung::Quic), secs(0), &policy, only, DIE);
        let (_, effect) = ladder.step(Event::Doubt, secs(9), &policy, only, DIE);
        assert_eq!(effect, Some(Effect::Dial(only)), "a new connection may get through where the old one does not");
    }

    #[test]
    fn a_carrier_that_does_not_last_is_tried_less_often() {
        let policy = Policy::default();
        let pause = |lasted: u64| {
            let (ladder, _) = Ladder::new().step(Event::Stands(Rung::Quic), secs(0), &policy, Rungs::ALL, DIE);
            let (ladder, _) = ladder.step(Event::Fell, secs(lasted), &policy, Rungs::ALL, DIE);
            let (ladder, _) = ladder.step(Event::Stands(Rung::Tls), secs(lasted), &policy, Rungs::ALL, DIE);
            ladder.wake_at().unwrap() - secs(lasted)
        };
        assert_eq!((pause(60), pause(10)), (policy.first_pause, 2 * policy.first_pause));
    }
}

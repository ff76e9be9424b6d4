//! An agent's link to its hub, without the socket: when to dial, when to give up, how long to rest.
//!
//! Time comes in as `now`, measured from any fixed moment; the die that spreads a fleet's dials out is rolled by the
//! caller. Each state carries the one instant at which it ends, so the link cannot get stuck.

use core::time::Duration;

/// A moment, as the time that passed since one that the caller fixed. Never goes back.
pub type Moment = Duration;

/// A uniformly random number, rolled anew for each step.
#[derive(Debug, Clone, Copy)]
pub struct Die(pub u32);
impl Die {
    /// A share of `longest`, from nothing to all of it.
    pub(crate) fn share(self, longest: Duration) -> Duration {
        longest.mul_f64(f64::from(self.0) / f64::from(u32::MAX))
    }
}

/// How patient the link is.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Pause before each attempt, at least: no tight loop, whatever the die says.
    pub shortest_pause: Duration,
    /// Longest random pause after the first failure. It doubles with each further one.
    pub first_pause: Duration,
    /// Bound of the random pause.
    pub longest_pause: Duration,
    /// Bound of the pause that a hub may ask for.
    pub longest_told: Duration,
    /// Longest attempt, from the dial to the hub's welcome.
    pub attempt: Duration,
    /// A session that lasted this long has shown that the link works: failures before it are forgotten.
    pub steady: Duration,
    /// A session on which nothing was heard for this long is lost.
    pub silence: Duration,
}
impl Default for Policy {
    /// Full jitter over 0.5 s doubling to 20 s: a fleet that lost its hub is back within 30 s of its return.
    fn default() -> Self {
        Self {
            shortest_pause: Duration::from_millis(50),
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(20),
            longest_told: Duration::from_secs(300),
            attempt: Duration::from_secs(25),
            steady: Duration::from_secs(30),
            silence: Duration::from_secs(30),
        }
    }
}
impl Policy {
    /// The pause after the `failures`th failure in a row, at least what the hub asked for.
    pub fn pause(&self, failures: u32, told: Option<Duration>, die: Die) -> Duration {
        let doubled = self.first_pause.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        let random = die.share(doubled.min(self.longest_pause)).max(self.shortest_pause.min(self.longest_pause));
        told.unwrap_or_default().min(self.longest_told) + random
    }

    /// No state outlasts this.
    pub fn longest_wait(&self) -> Duration {
        (self.longest_told + self.longest_pause).max(self.attempt).max(self.silence)
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Time passed; sent at [`Uplink::wake_at`] or at any other time.
    Tick,
    /// The dial came to a session: connected, greeted, welcomed.
    Welcomed,
    /// The dial came to nothing.
    Failed {
        /// The pause that the hub asked for.
        retry_after: Option<Duration>,
    },
    /// Anything was heard on the session.
    Heard,
    /// The session ended.
    Lost {
        /// The pause that the hub asked for.
        retry_after: Option<Duration>,
    },
}

/// What the caller is to do. At most one dial and one session are ever open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Dial and greet.
    Dial,
    /// Stop the dial under way: its time is over. News of it is ignored from here on.
    Abandon,
    /// Close the session: nothing was heard for too long. News of it is ignored from here on.
    Hangup,
}

/// The link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uplink {
    /// Waits before the next attempt.
    Resting {
        /// When to dial.
        until: Moment,
        /// Failures in a row.
        failures: u32,
    },
    /// An attempt is under way: dial, handshake, greeting.
    Dialing {
        /// When it is given up.
        until: Moment,
        /// Failures in a row before it.
        failures: u32,
    },
    /// A session stands.
    Up {
        /// When it counts as lost unless something is heard.
        quiet_until: Moment,
        /// When it began.
        since: Moment,
        /// Failures in a row before it; kept until the session has lasted.
        failures: u32,
    },
}

impl Uplink {
    /// A link that dials at its first tick.
    pub fn new(now: Moment) -> Self {
        Self::Resting { until: now, failures: 0 }
    }

    /// When this state ends by itself: a tick is due then.
    pub fn wake_at(&self) -> Moment {
        match self {
            Self::Resting { until, .. } | Self::Dialing { until, .. } => *until,
            Self::Up { quiet_until, .. } => *quiet_until,
        }
    }

    /// Whether a session stands.
    pub fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }

    /// Failed attempts in a row, for a log line or a metric.
    pub fn failures(&self) -> u32 {
        match self {
            Self::Resting { failures, .. } | Self::Dialing { failures, .. } | Self::Up { failures, .. } => *failures,
        }
    }

    /// One step. `self` is taken by value: a state that was left cannot be used again.
    #[must_use]
    pub fn step(self, event: Event, now: Moment, policy: &Policy, die: Die) -> (Self, Option<Effect>) {
        let rest = |failures: u32, told| {
            let failures = failures.saturating_add(1);
            Self::Resting { until: now + policy.pause(failures, told, die), failures }
        };
        // What a session that began at `since` has left of earlier failures.
        let kept = |since: Moment, failures| if now.saturating_sub(since) >= policy.steady { 0 } else { failures };
        match (self, event) {
            (Self::Resting { until, failures }, Event::Tick) if until <= now => {
                (Self::Dialing { until: now + policy.attempt, failures }, Some(Effect::Dial))
            }
            (Self::Dialing { until, failures }, Event::Tick) if until <= now => {
                (rest(failures, None), Some(Effect::Abandon))
            }
            (Self::Dialing { failures, .. }, Event::Failed { retry_after }) => (rest(failures, retry_after), None),
            (Self::Dialing { failures, .. }, Event::Welcomed) => {
                (Self::Up { quiet_until: now + policy.silence, since: now, failures }, None)
            }
            (Self::Up { since, failures, .. }, Event::Heard) => {
                (Self::Up { quiet_until: now + policy.silence, since, failures: kept(since, failures) }, None)
            }
            (Self::Up { quiet_until, since, failures }, Event::Tick) if quiet_until <= now => {
                (rest(kept(since, failures), None), Some(Effect::Hangup))
            }
            (Self::Up { since, failures, .. }, Event::Lost { retry_after }) => {
                (rest(kept(since, failures), retry_after), None)
            }
            (unmoved, _) => (unmoved, None), // too early, or news of an attempt already given up
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = Event> {
        let told = || proptest::option::of((0u64..10_000_000).prop_map(Duration::from_millis));
        prop_oneof![
            4 => Just(Event::Tick),
            1 => Just(Event::Welcomed),
            1 => told().prop_map(|retry_after| Event::Failed { retry_after }),
            1 => Just(Event::Heard),
            1 => told().prop_map(|retry_after| Event::Lost { retry_after }),
        ]
    }

    proptest! {
        /// Over any events and pauses: never a second dial or session while one is open, no dial before its time,
        /// and an end to every state within the policy's longest wait.
        #[test]
        fn one_dial_at_a_time_and_never_stuck(
            steps in prop::collection::vec((any_event(), 0u64..60_000, any::<u32>()), 0..200),
        ) {
            let policy = Policy::default();
            let (mut link, mut now, mut open) = (Uplink::new(Duration::ZERO), Duration::ZERO, false);
            for (event, pause, die) in steps {
                now += Duration::from_millis(pause);
                let (before, due) = (link.clone(), link.wake_at());
                let effect;
                (link, effect) = link.step(event, now, &policy, Die(die));
                match effect {
                    Some(Effect::Dial) => {
                        prop_assert!(!open && due <= now);
                        open = true;
                    }
                    Some(Effect::Abandon | Effect::Hangup) => {
                        prop_assert!(open);
                        open = false;
                    }
                    None => {}
                }
                let left = matches!(link, Uplink::Resting { .. }) && !matches!(before, Uplink::Resting { .. });
                if left {
                    open = false;
                    prop_assert!(link.wake_at() >= now + policy.shortest_pause);
                }
                prop_assert_eq!(open, !matches!(link, Uplink::Resting { .. }));
                prop_assert!(link.wake_at() <= now + policy.longest_wait());
            }
        }

        /// A pause that the hub asked for is kept to, up to the bound.
        #[test]
        fn told_pauses_are_honoured(told in 0u64..400, die in any::<u32>(), failures in 0u32..100) {
            let (policy, told) = (Policy::default(), Duration::from_secs(told));
            let dialing = Uplink::Dialing { until: Duration::from_secs(5), failures };
            let event = Event::Failed { retry_after: Some(told) };
            let (link, effect) = dialing.step(event, Duration::from_secs(1), &policy, Die(die));
            prop_assert_eq!(effect, None);
            prop_assert!(link.wake_at() >= Duration::from_secs(1) + told.min(policy.longest_told));
        }
    }

    #[test]
    fn pauses_spread_and_double_up_to_the_bound() {
        let policy = Policy::default();
        let longest = |failures| policy.pause(failures, None, Die(u32::MAX));
        assert_eq!([1, 2, 3].map(longest), [500, 1000, 2000].map(Duration::from_millis));
        assert_eq!(longest(40), policy.longest_pause);
        assert_eq!(longest(u32::MAX), policy.longest_pause);
        assert_eq!(policy.pause(9, None, Die(0)), policy.shortest_pause);
    }

    #[test]
    fn a_session_that_falls_at_once_is_one_more_failure() {
        let (policy, die) = (Policy::default(), Die(7));
        let up = Uplink::Up { quiet_until: Duration::from_secs(30), since: Duration::ZERO, failures: 3 };
        let lost = Event::Lost { retry_after: None };
        assert_eq!(up.clone().step(lost, Duration::from_secs(1), &policy, die).0.failures(), 4);
        assert_eq!(up.step(lost, policy.steady, &policy, die).0.failures(), 1);
    }
}

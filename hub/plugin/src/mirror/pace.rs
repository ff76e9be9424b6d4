//! How often a mirror tells of itself: at once while there is news now and then, and steadily where it never ends, as of a
//! cluster that comes and goes, or of an object that somebody else changes back each time.

use crate::limits::{TELL, TELL_AT_ONCE, TELL_STEADILY};
use std::time::Duration;
use tokio::time::Instant;

/// See the module.
pub(super) struct Pace {
    /// What has been told of late, [`TELL_STEADILY`] for each, less the time since.
    debt: Duration,
    at: Instant,
}

impl Pace {
    pub fn new(now: Instant) -> Self {
        Self { debt: Duration::ZERO, at: now }
    }

    /// Something was told `now`: when the next may be.
    pub fn told(&mut self, now: Instant) -> Instant {
        self.debt = self.debt.saturating_sub(now.saturating_duration_since(self.at)) + TELL_STEADILY;
        self.at = now;
        now + self.debt.saturating_sub(TELL_STEADILY * TELL_AT_ONCE).max(TELL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_now_and_then_is_told_at_once_and_news_without_end_steadily() {
        let begun = Instant::now();
        let (mut pace, mut now) = (Pace::new(begun), begun);
        let mut waits = |now: &mut Instant, count: u32| -> Vec<Duration> {
            let one = |_| {
                let next = pace.told(*now);
                next - std::mem::replace(now, next)
            };
            (0..count).map(one).collect()
        };
        assert!(waits(&mut now, TELL_AT_ONCE).iter().all(|wait| *wait == TELL));
        let on = waits(&mut now, 1000);
        assert!(on.iter().rev().take(900).all(|wait| *wait == TELL_STEADILY), "{on:?}");
        // After a rest it is as at the beginning.
        now += TELL_STEADILY * TELL_AT_ONCE;
        assert!(waits(&mut now, TELL_AT_ONCE - 1).iter().all(|wait| *wait == TELL));
    }
}

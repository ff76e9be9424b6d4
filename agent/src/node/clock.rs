//! The hub's clock, as its last welcome said and this host's own steady clock has counted since.

use std::{
    sync::{Mutex, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Less than this is not told apart from the way of a message, in milliseconds.
const NOISE: u64 = 2_000;

/// What the hub's clock says.
#[derive(Debug, Default)]
pub struct HubClock(Mutex<Option<(Instant, u64)>>);

impl HubClock {
    /// The hub has just said that it is `ms` milliseconds since 1970.
    pub fn note(&self, ms: u64) {
        if ms > 0 {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), ms));
        }
    }

    /// How far this host's clock is before the hub's, in whole seconds' milliseconds. `None`: no hub has said so yet.
    pub fn skew_ms(&self) -> Option<i64> {
        let (at, hub) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        skew(ours, u128::from(hub) + at.elapsed().as_millis())
    }
}

fn skew(ours: u128, hub: u128) -> Option<i64> {
    let seconds = ours.abs_diff(hub) / 1000;
    let ms = i64::try_from(seconds).ok()?.checked_mul(1000)?;
    Some(match (ms.unsigned_abs() < NOISE, ours < hub) {
        (true, _) => 0,
        (false, true) => -ms,
        (false, false) => ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_differs_is_told_and_noise_is_not() {
        assert_eq!(HubClock::default().skew_ms(), None);
        assert_eq!(skew(10_900, 10_000), Some(0));
        assert_eq!(skew(17_300, 10_000), Some(7000));
        assert_eq!(skew(10_000, 17_300), Some(-7000));
        let clock = HubClock::default();
        clock.note(1000);
        assert!(clock.skew_ms() > Some(1_000_000_000_000), "1970 is long ago");
    }
}

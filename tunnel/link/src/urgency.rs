//! Which streams go first: those that carry little. Nobody has to say what a stream is for.

use moorline_proto::header::Class;
use tokio::time::Instant;

/// Bytes that a stream may send at once before it counts as bulk: more than people type, consoles print and small
/// answers have, less than anything that takes long.
const BURST: u64 = 256 << 10;
/// Bytes a second that are forgiven, so that a console that is open for hours stays what it is.
const FORGIVEN: u64 = 64 << 10;

/// What one direction of a stream has sent lately.
#[derive(Debug)]
pub(crate) struct Urgency {
    /// What its opener calls it.
    own: Class,
    is_bulk: bool,
    lately: u64,
    at: Option<Instant>,
}

impl Urgency {
    pub fn new(own: Class) -> Self {
        Self { own, is_bulk: own == Class::Bulk, lately: 0, at: None }
    }

    /// So many bytes were sent; the stream's new class, if it changes.
    pub fn wrote(&mut self, bytes: usize, now: Instant) -> Option<Class> {
        if self.own == Class::Bulk {
            return None;
        }
        let passed = now.saturating_duration_since(*self.at.get_or_insert(now)).as_millis();
        // Counted in whole milliseconds: what has not yet passed is not lost.
        if passed > 0 {
            let forgiven = u64::try_from(passed).unwrap_or(u64::MAX).saturating_mul(FORGIVEN) / 1000;
            self.lately = self.lately.saturating_sub(forgiven);
            self.at = Some(now);
        }
        self.lately = self.lately.saturating_add(bytes as u64).min(2 * BURST);
        let is_bulk = if self.is_bulk { BURST / 2 < self.lately } else { BURST < self.lately };
        (is_bulk != self.is_bulk).then(|| {
            self.is_bulk = is_bulk;
            if is_bulk { Class::Bulk } else { self.own }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_moves_much_is_bulk_until_it_has_rested() {
        let (mut urgency, begin) = (Urgency::new(Class::Interactive), Instant::now());
        let at = |ms| begin + Duration::from_millis(ms);
        assert_eq!(urgency.wrote(100 << 10, at(0)), None);
        assert_eq!(urgency.wrote(200 << 10, at(10)), Some(Class::Bulk));
        assert_eq!(urgency.wrote(1 << 20, at(20)), None, "it is bulk already");
        assert_eq!(urgency.wrote(10, at(1000)), None, "a moment is no rest");
        assert_eq!(urgency.wrote(10, at(9000)), Some(Class::Interactive));
    }

    #[test]
    fn a_console_stays_what_it_is() {
        let (mut urgency, begin) = (Urgency::new(Class::Watch), Instant::now());
        for second in 0..3600 {
            assert_eq!(urgency.wrote(32 << 10, begin + Duration::from_secs(second)), None);
        }
        let mut bulk = Urgency::new(Class::Bulk);
        assert_eq!(bulk.wrote(10, begin), None, "what is called bulk stays bulk");
    }
}

//! How long the path takes there and back.

use core::time::Duration;

/// How long a short round trip is believed in. Linux keeps the least of a connection as long (`tcp_min_rtt_wlen`).
const MEMORY: Duration = Duration::from_secs(300);

/// The round trips that were measured lately. The newest contains what waits in queues on the way, most of all our own; the
/// least is the path's.
#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    newest: Option<Duration>,
    /// The least of the time before `turned`, and of the time since.
    least: [Option<Duration>; 2],
    turned: Duration,
}

impl RoundTrip {
    pub(super) fn measured(&mut self, rtt: Duration, now: Duration) {
        self.newest = Some(rtt);
        let [_, since] = self.least;
        if self.turned + MEMORY / 2 <= now {
            self.turned = now;
            self.least = [since, Some(rtt)];
        } else {
            self.least[1] = Some(since.map_or(rtt, |least| least.min(rtt)));
        }
    }

    pub(super) const fn newest(&self) -> Option<Duration> {
        self.newest
    }

    /// The least of the last minutes.
    pub(super) fn least(&self) -> Option<Duration> {
        self.least.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_is_forgotten_when_the_path_has_changed_for_good() {
        let (ms, mut rtt) = (Duration::from_millis, RoundTrip::default());
        assert_eq!(rtt.least(), None);
        rtt.measured(ms(20), Duration::ZERO);
        for seconds in (15..=405).step_by(15) {
            rtt.measured(ms(80), Duration::from_secs(seconds));
            let long_ago = Duration::from_secs(seconds) >= MEMORY;
            assert_eq!(rtt.least(), Some(if long_ago { ms(80) } else { ms(20) }), "after {seconds} s");
            assert_eq!(rtt.newest(), Some(ms(80)));
        }
    }
}

//! One line on the terminal that tells how it goes.

use super::tunnel::Tunnels;
use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How often the line is drawn.
const EVERY: Duration = Duration::from_millis(500);

/// There is a line now, which other words must not run into.
static DRAWN: AtomicBool = AtomicBool::new(false);

/// Draws for ever, on a terminal.
pub async fn show(tunnels: Arc<Tunnels>, cluster: String, forwards: usize) {
    if !std::io::stderr().is_terminal() {
        return std::future::pending().await;
    }
    let mut traffic = Traffic { bytes: tunnels.stats.bytes(), at: Instant::now() };
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    timer.tick().await; // the first is at once
    loop {
        timer.tick().await;
        let state = if tunnels.stats.trouble().is_some() { "in trouble" } else { "up" };
        let open = tunnels.stats.open.load(Ordering::Relaxed);
        let passed = traffic.told(tunnels.stats.bytes(), Instant::now());
        let text = format!("{cluster}: {state}, {forwards} forwarded, {open} open, {passed}");
        let mut err = std::io::stderr().lock();
        let _ = write!(err, "\r\x1b[K{text}").and_then(|()| err.flush());
        DRAWN.store(true, Ordering::Relaxed);
    }
}

/// What has passed, and how fast since the last look.
struct Traffic {
    /// From the cluster, to it.
    bytes: (u64, u64),
    at: Instant,
}

impl Traffic {
    fn told(&mut self, bytes: (u64, u64), now: Instant) -> String {
        let took = now.saturating_duration_since(self.at).as_millis().max(1);
        let rate = |now: u64, before: u64| {
            let each = u128::from(now.saturating_sub(before)) * 1000 / took;
            size(u64::try_from(each).unwrap_or(u64::MAX))
        };
        let ((from, to), before) = (bytes, self.bytes);
        let text = format!(
            "received {} ({}/s), sent {} ({}/s)",
            size(from),
            rate(from, before.0),
            size(to),
            rate(to, before.1)
        );
        *self = Self { bytes, at: now };
        text
    }
}

/// Words that do not run into the line.
pub fn above(words: &str) {
    let mut err = std::io::stderr().lock();
    let start = if DRAWN.load(Ordering::Relaxed) { "\r\x1b[K" } else { "" };
    let _ = writeln!(err, "{start}{words}");
}

/// Bytes, for people.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_what_passed_since_the_last_look_however_long_ago_that_was() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let mut traffic = Traffic { bytes: (0, 0), at: begin };
        assert_eq!(traffic.told((1 << 20, 0), at(500)), "received 1.0 MiB (2.0 MiB/s), sent 0 B (0 B/s)");
        // A busy machine looks late: what passed is not more for that.
        assert_eq!(traffic.told((5 << 20, 512), at(4500)), "received 5.0 MiB (1.0 MiB/s), sent 512 B (128 B/s)");
        assert_eq!(traffic.told((5 << 20, 512), at(4500)), "received 5.0 MiB (0 B/s), sent 512 B (0 B/s)");
        assert_eq!(traffic.told((0, 0), at(5000)), "received 0 B (0 B/s), sent 0 B (0 B/s)");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(
            [0, 1023, 1536, 5 << 20, 3 << 30, 2 << 40].map(size),
            ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB"]
        );
    }
}

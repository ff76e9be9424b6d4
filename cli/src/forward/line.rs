//! One line on the terminal that tells how it goes.

use super::tunnel::Tunnels;
use std::{
    io::{IsTerminal, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
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
    let mut before = tunnels.stats.bytes();
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let now = tunnels.stats.bytes();
        let rate = |now: u64, before: u64| size((now - before) * 1000 / EVERY.as_millis() as u64);
        let state = if tunnels.stats.trouble().is_some() { "in trouble" } else { "up" };
        let open = tunnels.stats.open.load(Ordering::Relaxed);
        let text = format!(
            "{cluster}: {state}, {forwards} forwarded, {open} open, received {} ({}/s), sent {} ({}/s)",
            size(now.0),
            rate(now.0, before.0),
            size(now.1),
            rate(now.1, before.1),
        );
        before = now;
        let mut err = std::io::stderr().lock();
        let _ = write!(err, "\r\x1b[K{text}").and_then(|()| err.flush());
        DRAWN.store(true, Ordering::Relaxed);
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
    fn sizes_read_well() {
        assert_eq!(
            [0, 1023, 1536, 5 << 20, 3 << 30, 2 << 40].map(size),
            ["0 B", "1023 B", "1.5 KiB", "5.0 MiB", "3.0 GiB", "2.0 TiB"]
        );
    }
}

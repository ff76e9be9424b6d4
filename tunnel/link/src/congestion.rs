//! How much a QUIC connection may have in flight on links that lose packets for other reasons than that they are full.
//!
//! A model of the path instead of a reaction to loss, after BBR (draft-ietf-ccwg-bbr): the highest rate at which packets
//! were delivered lately, times the shortest round trip, is what the path holds. The window is a quarter more than that,
//! so that it keeps asking for more and leaves a short queue; up to twice that while round trips are longer although nothing
//! of ours waits: somebody else's queue stands there, and whoever is modest gets nothing, or the path is restless. Loss alone is no reason to slow down unless it grows with what is sent: what
//! is lost while less is sent than the path holds is noise.
//!
//! quinn paces by window and smoothed round trip, so the window is all that is decided here.

mod samples;
#[cfg(test)]
mod sim;

use quinn::congestion::{Controller, ControllerFactory};
use quinn_proto::RttEstimator;
use samples::{Peak, Samples};
use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

/// Packets in flight at first. Google's servers begin with as many.
const FIRST: u64 = 32;
/// Packets that may always be in flight: fewer, and losses are found by timers alone.
const LEAST: u64 = 4;
/// What is sent and acknowledged in one go, at the rate of the path: hosts bundle packets to save work. Packets of so many
/// bursts may be in flight beside what the path holds, or a path of a few microseconds would run dry between them.
const BURST: Duration = Duration::from_millis(1);
/// Largest such burst, in bytes: what a system call takes.
const BURST_MOST: f64 = 65536.0;
/// See [`BURST`].
const BURSTS: f64 = 3.0;
/// Windows grow no further, in bytes: no path of ours holds more.
const MOST: u64 = 64 << 20;
/// How long a shortest round trip is believed.
const RTT_LIFE: Duration = Duration::from_secs(10);
/// Round trips that differ by less are the same.
const SAME_RTT: Duration = Duration::from_millis(1);
/// Rounds of a cycle between two looks for more: at least, and random ones on top, so that flows do not march in step.
const CRUISE: u64 = 4;
/// See [`CRUISE`].
const CRUISE_RANDOM: u64 = 4;
/// Window in shares of what the path holds, with nobody else on it.
const ALONE: f64 = 1.25;
/// The same at most: beside somebody whose queue stands, and where round trips are restless.
const BESIDE: f64 = 2.0;
/// A look for more.
const UP: f64 = 1.25;
/// So little that one's own queue drains.
const DOWN: f64 = 0.9;
/// Loss in a round that needs no explanation.
const LOSS: f64 = 0.02;
/// What is left of the window after a round that lost more than noise.
const BACK_OFF: f64 = 0.8;
/// Noise that is made up for by sending more.
const NOISE_MOST: f64 = 0.3;
/// How often one packet more may go out while nothing is acknowledged. Probes (RFC 9002 §6.2) come twice as late each time:
/// by themselves they find a path that was away for ten seconds up to ten seconds after it has come back.
const KNOCK: Duration = Duration::from_secs(1);
/// Such packets at most.
const KNOCKS: u64 = 32;

/// Makes a [`Model`] for each path.
#[derive(Debug, Clone, Default)]
pub(crate) struct ModelConfig;

impl ControllerFactory for ModelConfig {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Model::new(now, current_mtu.into()))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Doubles until the path is full.
    Startup,
    /// Looks for more.
    Up,
    /// Lets the queue drain, and sees whose it was.
    Down,
    /// In between, until this round.
    Cruise(u64),
}

/// The state of one path.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    mtu: u64,
    samples: Samples,
    /// Bytes a second.
    rate: Peak,
    shortest: Duration,
    shortest_at: Instant,
    phase: Phase,
    phase_since: u64,
    /// The shortest round trip of this round.
    of_round: Duration,
    /// The same since the phase began.
    of_phase: Duration,
    /// Startup: the best rate so far, and rounds in which it did not grow.
    best: f64,
    flat: u32,
    /// How much longer round trips are than the shortest while nothing of ours waits: others' queues, and restlessness.
    stretch: f64,
    /// Sum and number of round trips since it was begun to measure that.
    quiet: (Duration, u32),
    /// Share of packets that is lost whatever is sent.
    noise: f64,
    lost: u64,
    delivered: u64,
    /// What losses leave of the window.
    ceiling: f64,
    window: u64,
    acked: u64,
    limited: bool,
    dice: u64,
    /// Since when what was sent has been waiting for the next acknowledgement.
    unheard: Option<Instant>,
}

impl Model {
    fn new(now: Instant, mtu: u64) -> Self {
        Self {
            mtu,
            samples: Samples::new(now),
            rate: Peak::default(),
            shortest: Duration::MAX,
            shortest_at: now,
            phase: Phase::Startup,
            phase_since: 0,
            of_round: Duration::MAX,
            of_phase: Duration::MAX,
            best: 0.0,
            flat: 0,
            stretch: 1.0,
            quiet: (Duration::ZERO, 0),
            noise: 0.0,
            lost: 0,
            delivered: 0,
            ceiling: f64::INFINITY,
            window: FIRST * mtu,
            acked: 0,
            limited: true,
            dice: 0x9e37_79b9_7f4a_7c15,
            unheard: None,
        }
    }

    /// Bytes that the path holds; `None` before the first sample.
    fn holds(&self) -> Option<f64> {
        let rate = self.rate.get();
        (rate > 0.0 && self.shortest < Duration::MAX).then_some(rate * self.shortest.as_secs_f64())
    }

    fn enter(&mut self, phase: Phase) {
        (self.phase, self.phase_since, self.of_phase) = (phase, self.samples.round(), Duration::MAX);
    }

    /// Whether the round trips of late speak of a queue.
    fn queued(&self, shortest_seen: Duration) -> bool {
        shortest_seen < Duration::MAX && self.shortest.mul_f64(1.15) + Duration::from_millis(3) < shortest_seen
    }

    /// A round trip has passed since the last call.
    fn round(&mut self, now: Instant) {
        let round = self.samples.round();
        let total = (self.lost + self.delivered).max(1);
        let loss = self.lost as f64 / total as f64;
        let measured = total >= 8 * self.mtu;
        let queued = self.queued(self.of_round);
        let too_much = measured && self.lost >= 3 * self.mtu && loss > LOSS + 2.0 * self.noise;
        if too_much && (queued || self.phase != Phase::Cruise(0)) {
            let floor = self.holds().map_or(0.0, |holds| holds * 0.7);
            self.ceiling = (self.window as f64 * BACK_OFF).max(floor);
        }
        let age = round.saturating_sub(self.phase_since);
        if self.phase == Phase::Down && age == 1 {
            self.quiet = (Duration::ZERO, 0); // what was on its way is in by now
        }
        match self.phase {
            Phase::Startup => {
                let rate = self.rate.get();
                if self.best * 1.25 <= rate {
                    (self.best, self.flat) = (rate, 0);
                } else if !self.limited {
                    self.flat += 1;
                }
                if self.flat >= 3 || (queued && self.best > 0.0 && age >= 2) || (too_much && queued) {
                    self.enter(Phase::Down);
                }
            }
            Phase::Up if age >= 1 => {
                if !too_much {
                    self.ceiling *= UP;
                }
                self.enter(Phase::Down);
            }
            Phase::Down if age >= 2 => {
                if let (sum, count @ 1..) = self.quiet {
                    let mean = sum.as_secs_f64() / f64::from(count);
                    self.stretch = mean / self.shortest.as_secs_f64().max(1e-6);
                }
                if measured && !self.queued(self.of_phase) {
                    self.noise += (loss.min(NOISE_MOST) - self.noise) * 0.5;
                }
                if RTT_LIFE < now.saturating_duration_since(self.shortest_at) && self.of_phase < Duration::MAX {
                    // Nothing as short came for long, although the queue was let drain: the path has become longer.
                    (self.shortest, self.shortest_at) = (self.of_phase, now);
                }
                self.dice = self.dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                self.enter(Phase::Cruise(round + CRUISE + (self.dice >> 33) % CRUISE_RANDOM));
            }
            Phase::Cruise(until) if until <= round => self.enter(Phase::Up),
            _ => {}
        }
        (self.lost, self.delivered, self.of_round) = (0, 0, Duration::MAX);
    }

    /// Packets beside the window that a silent path is asked with. quinn tells no time here, so this looks at the clock.
    fn knocks(&self) -> u64 {
        let silent = self.unheard.map_or(Duration::ZERO, |since| since.elapsed());
        (silent.as_secs() / KNOCK.as_secs()).min(KNOCKS)
    }

    fn gain(&self, now: Instant) -> f64 {
        let base = (ALONE * self.stretch.max(1.0)).min(BESIDE) / (1.0 - self.noise);
        match self.phase {
            Phase::Startup => 2.9,
            Phase::Up => base * UP,
            // When the shortest round trip is old, all of one's own queue has to go for a new one.
            Phase::Down if RTT_LIFE < now.saturating_duration_since(self.shortest_at) => 0.5,
            Phase::Down => DOWN,
            Phase::Cruise(_) => base,
        }
    }

    fn set_window(&mut self, now: Instant) {
        let least = (LEAST * self.mtu) as f64;
        let acked = std::mem::take(&mut self.acked) as f64;
        let window = self.window as f64;
        let Some(holds) = self.holds() else {
            self.window = (window + acked).min(MOST as f64) as u64;
            return;
        };
        let burst = (self.rate.get() * BURST.as_secs_f64()).clamp(self.mtu as f64, BURST_MOST);
        let target = holds * self.gain(now) + BURSTS * burst;
        let next = if self.phase == Phase::Startup {
            if self.limited { window } else { (window + acked).min(target.max(window)) }
        } else {
            target.min(window + acked)
        };
        if self.ceiling > 4.0 * target {
            self.ceiling = f64::INFINITY;
        }
        self.window = next.min(self.ceiling).clamp(least, MOST as f64) as u64;
    }
}

impl Controller for Model {
    fn on_sent(&mut self, now: Instant, _bytes: u64, _last_packet_number: u64) {
        self.samples.sent(now, self.limited);
        self.unheard.get_or_insert(now);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, _app_limited: bool, _rtt: &RttEstimator) {
        self.acked += bytes;
        self.delivered += bytes;
        self.samples.acked(sent, bytes);
        let rtt = now.saturating_duration_since(sent);
        self.of_round = self.of_round.min(rtt);
        self.of_phase = self.of_phase.min(rtt);
        self.quiet = (self.quiet.0.saturating_add(rtt), self.quiet.1.saturating_add(1));
        if rtt <= self.shortest.saturating_add(SAME_RTT) {
            (self.shortest, self.shortest_at) = (self.shortest.min(rtt), now);
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, _largest: Option<u64>) {
        // Less in flight than permitted: what is measured is the application, not the path.
        self.unheard = (in_flight > 0).then_some(now);
        self.limited = app_limited && in_flight + self.acked < self.window * 3 / 4;
        let shortest = if self.shortest == Duration::MAX { Duration::ZERO } else { self.shortest };
        let Some(sample) = self.samples.end(now, shortest) else { return };
        if let Some(rate) = sample.rate
            && (!sample.limited || self.rate.get() <= rate)
        {
            self.rate.add(self.samples.round(), rate);
        }
        if sample.new_round {
            self.round(now);
        }
        self.set_window(now);
    }

    fn on_congestion_event(&mut self, now: Instant, _sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.lost += lost_bytes;
        if is_persistent_congestion {
            // For several round trips nothing came through: what was known of the path is void.
            let (mtu, noise) = (self.mtu, self.noise);
            let unheard = self.unheard;
            *self = Self { samples: self.samples.clone(), noise, window: LEAST * mtu, unheard, ..Self::new(now, mtu) };
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu.into();
        self.window = self.window.max(LEAST * self.mtu);
    }

    fn window(&self) -> u64 {
        self.window + self.mtu * self.knocks()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        FIRST * self.mtu
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MTU: u64 = 1200;

    /// A window after nothing was heard for so long of one packet.
    fn after(silence: Duration) -> (Model, u64) {
        let sent = Instant::now().checked_sub(silence).unwrap();
        let mut model = Model::new(sent, MTU);
        let before = model.window();
        model.on_sent(sent, MTU, 0);
        let more = model.window() - before;
        (model, more)
    }

    #[test]
    fn a_silent_path_is_asked_each_second_whatever_is_in_flight() {
        assert_eq!(after(Duration::from_millis(500)).1, 0);
        assert_eq!(after(Duration::from_millis(3500)).1, 3 * MTU);
        assert_eq!(after(Duration::from_secs(300)).1, KNOCKS * MTU);
    }

    #[test]
    fn a_path_that_answers_or_owes_nothing_is_asked_no_more() {
        for in_flight in [0, 5 * MTU] {
            let (mut model, _) = after(Duration::from_secs(5));
            let before = model.window;
            model.on_end_acks(Instant::now(), in_flight, true, Some(0));
            assert_eq!(model.window(), before, "{in_flight} in flight");
        }
    }
}

//! One direction of a link: what becomes of each packet, and when it arrives. No clock, no sockets.

use super::packet::{Packet, UDP};
use std::time::Duration;

/// What a direction does to packets. Made by saying what is wrong with it: `Road::clear().delay(ms(25)).loss(0.01)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Road {
    delay: Duration,
    jitter: Duration,
    loss: f64,
    burst: Option<(f64, f64)>,
    reordered: f64,
    duplicated: f64,
    flipped: f64,
    rate: Option<u64>,
    queue: usize,
    largest: usize,
    udp: bool,
    tcp: bool,
    open: bool,
}

/// Bytes that wait in front of a slow link, unless said otherwise.
const QUEUE: usize = 1 << 20;

impl Road {
    /// Nothing is wrong with it.
    pub fn clear() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            burst: None,
            reordered: 0.0,
            duplicated: 0.0,
            flipped: 0.0,
            rate: None,
            queue: QUEUE,
            largest: usize::MAX,
            udp: true,
            tcp: true,
            open: true,
        }
    }
    /// Each packet takes so long.
    pub fn delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }
    /// Up to so much longer, anew for each packet. Their order stays.
    pub fn jitter(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }
    /// The share of packets that is lost, each by itself.
    pub fn loss(self, loss: f64) -> Self {
        Self { loss, ..self }
    }
    /// Loss in bursts: the chance that one begins with a packet, and that it ends with one (Gilbert's model).
    pub fn bursts(self, begin: f64, end: f64) -> Self {
        Self { burst: Some((begin, end)), ..self }
    }
    /// The share of packets that overtakes the others: it skips the delay.
    pub fn reorder(self, reordered: f64) -> Self {
        Self { reordered, ..self }
    }
    /// The share of packets that arrives twice.
    pub fn duplicate(self, duplicated: f64) -> Self {
        Self { duplicated, ..self }
    }
    /// The share of packets of which one bit is turned.
    pub fn flip(self, flipped: f64) -> Self {
        Self { flipped, ..self }
    }
    /// Bits a second, and bytes that wait in front of it.
    pub fn rate(self, rate: u64, queue: usize) -> Self {
        Self { rate: Some(rate), queue, ..self }
    }
    /// Larger packets vanish without a word: a black hole for path MTU discovery.
    pub fn largest(self, largest: usize) -> Self {
        Self { largest, ..self }
    }
    /// UDP vanishes.
    pub fn without_udp(self) -> Self {
        Self { udp: false, ..self }
    }
    /// TCP vanishes.
    pub fn without_tcp(self) -> Self {
        Self { tcp: false, ..self }
    }
    /// Everything vanishes.
    pub fn cut(self) -> Self {
        Self { open: false, ..self }
    }
}

/// Dice of a scene: the same seed, the same throws (SplitMix64).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice with a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A share between nothing and all.
    pub fn share(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1u64 << 53) as f64
    }
    fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.share() < share
    }
}

/// What is on its way in one direction.
#[derive(Debug)]
pub struct Traffic {
    dice: Dice,
    in_burst: bool,
    /// When the last byte that was let in has left the queue.
    busy_until: Duration,
    /// No packet that keeps its place arrives before the one in front of it.
    last: Duration,
    /// Packets that were dropped, and that went through.
    pub dropped: u64,
    /// See [`Traffic::dropped`].
    pub passed: u64,
}

impl Traffic {
    /// An empty road.
    pub fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            in_burst: false,
            busy_until: Duration::ZERO,
            last: Duration::ZERO,
            dropped: 0,
            passed: 0,
        }
    }

    /// One packet at `now`: when it arrives, as often as it does.
    pub fn admit(&mut self, road: &Road, packet: &mut Vec<u8>, now: Duration) -> Vec<Duration> {
        let arrivals = self.arrivals(road, packet, now);
        *(if arrivals.is_empty() { &mut self.dropped } else { &mut self.passed }) += 1;
        arrivals
    }

    fn arrivals(&mut self, road: &Road, packet: &mut Vec<u8>, now: Duration) -> Vec<Duration> {
        if let Some((begin, end)) = road.burst {
            self.in_burst = if self.in_burst { !self.dice.chance(end) } else { self.dice.chance(begin) };
        }
        let lost = self.dice.chance(road.loss) || (road.burst.is_some() && self.in_burst);
        let length = packet.len();
        let seen = Packet::of(packet);
        let closed = seen.as_ref().is_some_and(|seen| if seen.protocol() == UDP { !road.udp } else { !road.tcp });
        // The kernel's own chatter on a new device (IPv6 neighbours) is no traffic of the scene.
        if seen.is_none() || !road.open || closed || lost || road.largest < length {
            return Vec::new();
        }
        if let Some(mut seen) = seen
            && self.dice.chance(road.flipped)
        {
            let at = self.dice.roll() as usize;
            seen.flip(at);
        }
        let mut leaves = now;
        if let Some(rate) = road.rate {
            let waits = self.busy_until.saturating_sub(now);
            let queued = waits.as_secs_f64() * rate as f64 / 8.0;
            if queued + length as f64 > road.queue as f64 {
                return Vec::new();
            }
            leaves = self.busy_until.max(now) + Duration::from_secs_f64(length as f64 * 8.0 / rate as f64);
            self.busy_until = leaves;
        }
        let mut arrivals = Vec::with_capacity(2);
        if self.dice.chance(road.reordered) {
            arrivals.push(leaves);
        } else {
            let at = (leaves + road.delay + road.jitter.mul_f64(self.dice.share())).max(self.last);
            self.last = at;
            arrivals.push(at);
        }
        if self.dice.chance(road.duplicated) {
            arrivals.push(leaves + road.delay);
        }
        arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn packet(size: usize) -> Vec<u8> {
        let mut packet = vec![0; size];
        packet[0] = 0x45;
        packet[9] = UDP;
        packet
    }

    fn drive(road: &Road, count: u64, every: Duration, size: usize) -> Vec<(u64, Duration)> {
        let mut traffic = Traffic::new(7);
        let sent = (0..count).map(|n| (n, every.mul_f64(n as f64)));
        sent.flat_map(|(n, at)| traffic.admit(road, &mut packet(size), at).into_iter().map(move |due| (n, due)))
            .collect()
    }

    #[test]
    fn a_share_is_lost_and_the_same_share_again() {
        let road = Road::clear().loss(0.1).delay(MS(25));
        let first = drive(&road, 10_000, MS(1), 100);
        assert!((8_800..9_200).contains(&first.len()), "{}", first.len());
        assert_eq!(first, drive(&road, 10_000, MS(1), 100));
    }

    #[test]
    fn bursts_are_lost_together() {
        let arrived = drive(&Road::clear().bursts(0.01, 0.2), 10_000, MS(1), 100);
        let gaps: Vec<_> = arrived.windows(2).map(|two| two[1].0 - two[0].0 - 1).filter(|gap| *gap > 0).collect();
        let mean = gaps.iter().sum::<u64>() as f64 / gaps.len() as f64;
        assert!((4.0..6.0).contains(&mean), "a burst has {mean} packets");
    }

    #[test]
    fn a_rate_is_kept_and_a_full_queue_drops() {
        // 1,000 bytes each ms are 8 Mbit/s; through 4 Mbit/s half of it goes, and never more than a queue waits.
        let arrived = drive(&Road::clear().rate(4_000_000, 10_000), 1_000, MS(1), 1_000);
        assert!((500..=511).contains(&arrived.len()), "{}", arrived.len());
        assert!(arrived.iter().all(|(n, due)| *due <= MS(*n) + MS(20)));
    }

    #[test]
    fn jitter_keeps_the_order_and_reordering_does_not() {
        let ordered = |road: &Road| drive(road, 1_000, MS(1), 100).windows(2).all(|two| two[0].1 <= two[1].1);
        assert!(ordered(&Road::clear().delay(MS(30)).jitter(MS(20))));
        assert!(!ordered(&Road::clear().delay(MS(30)).reorder(0.25)));
    }

    #[test]
    fn what_is_closed_does_not_pass() {
        for road in [Road::clear().cut(), Road::clear().without_udp(), Road::clear().largest(99)] {
            assert_eq!(drive(&road, 10, MS(1), 100), []);
        }
        assert_eq!(drive(&Road::clear().without_tcp().duplicate(1.0), 10, MS(1), 100).len(), 20);
    }
}

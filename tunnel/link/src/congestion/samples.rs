//! How fast packets were delivered: between the sending of one and its acknowledgement, what else arrived, and in what
//! time (draft-cheng-iccrg-delivery-rate-estimation).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Moments of sending that are remembered: what is in flight at 10 Gbit/s and 100 ms, in bursts of ten packets.
const MOMENTS: usize = 8192;
/// Rounds for which the highest rate is believed: more than a whole cycle.
const ROUNDS: u64 = 12;

/// What was so when packets were sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    at: Instant,
    /// Bytes delivered by then, and when the last of them were.
    delivered: u64,
    delivered_at: Instant,
    /// When the last of them had been sent.
    first_sent: Instant,
    limited: bool,
}

/// What an acknowledgement tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Bytes a second; `None`: over too short a time to tell.
    pub rate: Option<f64>,
    /// The sender had little to send.
    pub limited: bool,
    /// Everything that was in flight when the last round began is acknowledged or lost.
    pub new_round: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Samples {
    sent: VecDeque<Sent>,
    delivered: u64,
    delivered_at: Instant,
    first_sent: Instant,
    /// Of the packets acknowledged now, the one that was sent last.
    newest: Option<Sent>,
    round: u64,
    round_ends: u64,
}

impl Samples {
    pub(super) fn new(now: Instant) -> Self {
        let sent = VecDeque::new();
        Self { sent, delivered: 0, delivered_at: now, first_sent: now, newest: None, round: 0, round_ends: 0 }
    }

    pub(super) fn round(&self) -> u64 {
        self.round
    }

    pub(super) fn sent(&mut self, now: Instant, limited: bool) {
        if self.sent.back().is_some_and(|last| last.at == now) {
            return; // one burst
        }
        if self.sent.is_empty() {
            // Nothing was in flight: the time before does not count.
            (self.first_sent, self.delivered_at) = (now, now);
        }
        if MOMENTS <= self.sent.len() {
            self.sent.pop_front();
        }
        let (delivered, delivered_at, first_sent) = (self.delivered, self.delivered_at, self.first_sent);
        self.sent.push_back(Sent { at: now, delivered, delivered_at, first_sent, limited });
    }

    pub(super) fn acked(&mut self, sent: Instant, bytes: u64) {
        self.delivered += bytes;
        let at = self.sent.partition_point(|moment| moment.at <= sent);
        let moment = at.checked_sub(1).and_then(|at| self.sent.get(at)).copied();
        if let Some(moment) = moment
            && self.newest.is_none_or(|newest| newest.at < moment.at)
        {
            self.newest = Some(moment);
        }
    }

    /// The acknowledgements that came together are through.
    pub(super) fn end(&mut self, now: Instant, shortest: Duration) -> Option<Sample> {
        let newest = self.newest.take()?;
        let sending = newest.at.saturating_duration_since(newest.first_sent);
        let arriving = now.saturating_duration_since(newest.delivered_at);
        let time = sending.max(arriving);
        let rate = (shortest <= time && !time.is_zero())
            .then(|| self.delivered.saturating_sub(newest.delivered) as f64 / time.as_secs_f64());
        let new_round = self.round_ends <= newest.delivered;
        if new_round {
            self.round += 1;
            self.round_ends = self.delivered;
        }
        (self.first_sent, self.delivered_at) = (newest.at, now);
        // What was sent two round trips before this is acknowledged or lost by now.
        let old = now.saturating_duration_since(newest.at) * 2;
        while self.sent.front().is_some_and(|moment| old < newest.at.saturating_duration_since(moment.at)) {
            self.sent.pop_front();
        }
        if self.sent.back().is_some_and(|last| last.at <= newest.at) {
            self.sent.clear(); // nothing is in flight any more
        }
        Some(Sample { rate, limited: newest.limited, new_round })
    }
}

/// The highest of the rates of the last [`ROUNDS`].
#[derive(Debug, Clone, Default)]
pub(super) struct Peak(VecDeque<(u64, f64)>);

impl Peak {
    pub(super) fn get(&self) -> f64 {
        self.0.front().map_or(0.0, |(_, rate)| *rate)
    }

    /// Rates fall from front to back: each is the highest of those after it.
    pub(super) fn add(&mut self, round: u64, rate: f64) {
        while self.0.back().is_some_and(|(_, last)| *last <= rate) {
            self.0.pop_back();
        }
        self.0.push_back((round, rate));
        while self.0.front().is_some_and(|(of, _)| of + ROUNDS < round) {
            self.0.pop_front();
        }
    }
}

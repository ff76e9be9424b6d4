//! Which cluster takes a connection to an imported service: a pure choice, and the memory of what failed.

use super::limits;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// One cluster that exports the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    /// An agent of it holds a session that takes streams.
    pub connected: bool,
    /// The last connections reached the service, and its agent answers.
    pub healthy: bool,
    /// Round trip to its agent.
    pub rtt: Duration,
    /// Connections that are open to the service by this hub.
    pub open: usize,
}

/// A die for one client and this export, always the same. The highest one's cluster is the client's, so that a cluster that
/// comes or goes moves none but its own (rendezvous hashing).
pub(super) fn of_client(client: &str, export: &str) -> u32 {
    let hash = Sha256::new().chain_update(client).chain_update([0]).chain_update(export).finalize();
    hash.first_chunk().map_or(0, |first| u32::from_be_bytes(*first))
}

/// In which order to try. The healthy ones that are near share the load by open connections, `dice` between equals; then
/// the healthy ones that are farther, nearest first; then those that failed lately; at last those without a session, for
/// their answer tells best what is wrong.
pub(super) fn order(all: &[Way], dice: impl Fn(usize) -> u32) -> Vec<usize> {
    let healthy = |way: &&Way| way.connected && way.healthy;
    let nearest = all.iter().filter(healthy).map(|way| way.rtt).min().unwrap_or_default();
    let near = (nearest * 2).max(nearest + limits::NEAR);
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_cached_key(|&at| {
        let Some(way) = all.get(at) else { return (4, 0, Duration::ZERO, 0) };
        match (way.connected, way.healthy) {
            (true, true) if way.rtt <= near => (0, way.open, Duration::ZERO, dice(at)),
            (true, true) => (1, 0, way.rtt, 0),
            (true, false) => (2, 0, way.rtt, 0),
            (false, _) => (3, 0, Duration::ZERO, 0),
        }
    });
    order
}

/// How a service is that a cluster exports, as far as connections tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// There was none yet.
    Never,
    /// The last one got through.
    Well,
    /// It did not.
    Ill {
        /// One word.
        reason: String,
        /// For people.
        message: String,
    },
}

#[derive(Debug, Clone)]
struct State {
    seen: Seen,
    /// Failures in a row.
    failures: u32,
    /// Until then others are preferred.
    until: Instant,
    open: usize,
}

/// What is known of exports by their name. Bounded by the number of exports: [`Memory::keep`] forgets the others.
#[derive(Debug, Default)]
pub(super) struct Memory(HashMap<String, State>);

impl Memory {
    fn of(&mut self, export: &str, now: Instant) -> &mut State {
        let fresh = || State { seen: Seen::Never, failures: 0, until: now, open: 0 };
        self.0.entry(export.to_owned()).or_insert_with(fresh)
    }

    /// A connection got through. Whether that is news.
    pub fn well(&mut self, export: &str, now: Instant) -> bool {
        let state = self.of(export, now);
        let news = state.seen != Seen::Well;
        (state.seen, state.failures, state.until) = (Seen::Well, 0, now);
        news
    }

    /// One did not: others are preferred for a while, which grows. Whether that is news.
    pub fn ill(&mut self, export: &str, reason: &str, message: &str, now: Instant) -> bool {
        let state = self.of(export, now);
        let pause = limits::ILL.0 * 2_u32.saturating_pow(state.failures.min(16));
        state.failures = state.failures.saturating_add(1);
        state.until = now + pause.min(limits::ILL.1);
        let news = !matches!(&state.seen, Seen::Ill { reason: old, .. } if old == reason);
        state.seen = Seen::Ill { reason: reason.to_owned(), message: message.to_owned() };
        news
    }

    /// Whether it is not worse than others, and how many connections are open.
    pub fn look(&self, export: &str, now: Instant) -> (bool, usize) {
        self.0
            .get(export)
            .map_or((true, 0), |state| (!matches!(state.seen, Seen::Ill { .. }) || state.until <= now, state.open))
    }

    /// How it is.
    pub fn seen(&self, export: &str) -> Seen {
        self.0.get(export).map_or(Seen::Never, |state| state.seen.clone())
    }

    /// One more is open.
    pub fn opened(&mut self, export: &str, now: Instant) {
        self.of(export, now).open += 1;
    }

    /// One less.
    pub fn closed(&mut self, export: &str) {
        if let Some(state) = self.0.get_mut(export) {
            state.open = state.open.saturating_sub(1);
        }
    }

    /// Forgets all others.
    pub fn keep(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|export, _| exists(export));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(rtt: u64, open: usize) -> Way {
        Way { connected: true, healthy: true, rtt: Duration::from_millis(rtt), open }
    }
    fn ordered(all: &[Way]) -> Vec<usize> {
        order(all, |at| u32::try_from(at).unwrap_or_default())
    }

    #[test]
    fn near_ones_share_the_load_and_far_ones_wait() {
        assert_eq!(ordered(&[way(10, 5), way(15, 1), way(200, 0)]), [1, 0, 2]);
        assert_eq!(ordered(&[way(300, 0), way(200, 9), way(10, 50)]), [2, 1, 0]);
        assert_eq!(order(&[way(1, 0), way(1, 0)], |at| [2, 1][at]), [1, 0], "the dice between equals");
    }

    #[test]
    fn a_client_keeps_its_cluster_when_another_one_goes_and_clients_are_spread() {
        let first = |client: &str, exports: &[&str]| {
            let all: Vec<Way> = exports.iter().map(|_| way(1, 0)).collect();
            exports[order(&all, |at| of_client(client, exports[at]))[0]].to_owned()
        };
        let mut of_each = HashMap::<String, usize>::new();
        for n in 0..300 {
            let client = format!("10.0.{}.{}", n / 100, n % 100);
            let one = first(&client, &["a", "b", "c"]);
            assert!(one == "c" || first(&client, &["a", "b"]) == one, "{client} was moved from {one}");
            *of_each.entry(one).or_default() += 1;
        }
        assert!(of_each.len() == 3 && of_each.values().all(|n| *n > 50), "{of_each:?}");
    }

    #[test]
    fn what_failed_comes_after_what_works_and_what_is_away_at_last() {
        let ill = Way { healthy: false, ..way(1, 0) };
        let away = Way { connected: false, ..way(0, 0) };
        assert_eq!(ordered(&[away, ill, way(500, 9)]), [2, 1, 0]);
        assert_eq!(ordered(&[away, ill]), [1, 0]);
        assert!(ordered(&[]).is_empty());
    }

    #[test]
    fn failures_are_remembered_ever_longer_and_forgotten_by_a_success() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        assert_eq!((memory.look("x", now), memory.seen("x")), ((true, 0), Seen::Never));
        assert!(memory.ill("x", "NoEndpoints", "none", now));
        assert!(!memory.ill("x", "NoEndpoints", "none", now), "no news");
        assert_eq!(memory.look("x", now + limits::ILL.0), (false, 0), "twice as long");
        assert_eq!(memory.look("x", now + limits::ILL.0 * 2), (true, 0), "then it is tried again");
        for _ in 0..40 {
            memory.ill("x", "NoEndpoints", "none", now);
        }
        assert!(memory.look("x", now + limits::ILL.1).0);
        assert!(memory.well("x", now) && !memory.well("x", now));
        memory.opened("x", now);
        assert_eq!((memory.look("x", now), memory.seen("x")), ((true, 1), Seen::Well));
        memory.keep(|_| false);
        memory.closed("x");
        assert!(memory.0.is_empty());
    }
}

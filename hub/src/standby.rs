//! Node agents that stand by for a cluster's cluster agents: how many hold a session, and when they take over.

use crate::sessions::{Entry, Registry};
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// A node agent that holds a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing<'a> {
    /// Where its node is, if Kubernetes says so.
    pub zone: Option<&'a str>,
    /// Streams run on it.
    pub busy: bool,
}

/// What becomes of one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// It stands by too.
    Stand,
    /// It stands by in the place of this one, which is not the only one of its zone.
    Instead(usize),
    /// There are enough.
    Park,
}

/// Whether one more node agent, in `zone`, gets a session where at most `most` shall have one. `coming` have been
/// promised a place and are not among `standing` yet.
pub(crate) fn place(standing: &[Standing<'_>], coming: usize, zone: Option<&str>, most: usize) -> Place {
    if standing.len() + coming < most {
        return Place::Stand;
    }
    // The loss of one zone must not take all of them: a zone without one is worth more than a second of another.
    let mut zones: HashMap<Option<&str>, usize> = HashMap::new();
    for one in standing {
        *zones.entry(one.zone).or_default() += 1;
    }
    if zone.is_none() || zones.contains_key(&zone) || coming > 0 {
        return Place::Park;
    }
    let crowd = |one: &Standing<'_>| zones.get(&one.zone).copied().unwrap_or_default();
    let idle = standing.iter().enumerate().filter(|(_, one)| !one.busy && crowd(one) > 1);
    idle.max_by_key(|(_, one)| crowd(one)).map_or(Place::Park, |(at, _)| Place::Instead(at))
}

/// Probes a cluster agent for as long as node agents stand by for it, and notes in [`Entry::doubt`] whether it answers.
/// A session whose network is gone is dead only after its silence; until then streams on it would wait in vain.
/// `changed` is called when the note turns. Never ends.
///
/// # Cancel safety
/// Safe.
pub(crate) async fn watch(
    entry: &Arc<Entry>,
    registry: &Registry,
    (every, patience): (Duration, Duration),
    changed: impl Fn(),
) {
    if entry.node {
        return std::future::pending().await;
    }
    loop {
        sleep(every).await;
        if !registry.has_node(&entry.cluster) {
            continue;
        }
        let ping = entry.session.ping();
        tokio::pin!(ping);
        let patience = patience + 3 * entry.session.rtt();
        if timeout(patience, &mut ping).await.is_ok() {
            continue;
        }
        entry.doubt.store(true, Ordering::Relaxed);
        tracing::warn!(
            cluster = entry.cluster,
            agent = entry.agent,
            after = ?patience,
            "the cluster agent does not answer; node agents take its new streams"
        );
        changed();
        if ping.await.is_err() {
            return std::future::pending().await; // the session is over: its owner sees that
        }
        entry.doubt.store(false, Ordering::Relaxed);
        tracing::info!(cluster = entry.cluster, agent = entry.agent, "the cluster agent answers again");
        changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(zone: &str) -> Standing<'_> {
        Standing { zone: (!zone.is_empty()).then_some(zone), busy: false }
    }

    #[test]
    fn a_few_stand_by_and_the_others_are_parked() {
        assert_eq!(place(&[], 0, None, 2), Place::Stand);
        assert_eq!(place(&[at("")], 0, None, 2), Place::Stand);
        assert_eq!(place(&[at("")], 1, None, 2), Place::Park, "a promised place is a place");
        assert_eq!(place(&[at(""), at("")], 0, None, 2), Place::Park);
        assert_eq!(place(&[], 0, Some("a"), 0), Place::Park);
    }

    #[test]
    fn a_zone_without_one_goes_before_a_second_of_another() {
        let two = [at("a"), at("a"), at("b")];
        assert_eq!(place(&two, 0, Some("c"), 3), Place::Instead(1));
        assert_eq!(place(&two, 0, Some("b"), 3), Place::Park);
        assert_eq!(place(&[at("a"), at("b"), at("c")], 0, Some("d"), 3), Place::Park);
        let mut busy = two;
        busy[1].busy = true;
        assert_eq!(place(&busy, 0, Some("c"), 3), Place::Instead(0), "never one that works");
        assert_eq!(place(&two, 1, Some("c"), 3), Place::Park, "one that comes may be of that zone");
    }
}

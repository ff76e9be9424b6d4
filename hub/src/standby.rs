//! Node agents that stand by for a cluster's cluster agents: how many hold a session, and when they take over.

use crate::sessions::{Entry, Registry};
use moorline_proto::code::CloseCode;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, sleep, timeout};

/// How long a node agent that was called may take to come, and how long one that came rests before it is parked again.
pub(crate) const CALLED: Duration = Duration::from_secs(120);
/// Node agents that are called at a time.
pub(crate) const CALLS: usize = 1024;

/// Parked node agents of a cluster that are let in at a time for a new certificate. Each stays for about [`CALLED`], and
/// has a fifth of its certificate's life to come: with a life of a day, those of thousands of nodes.
pub(crate) const RENEWING: usize = 32;

/// Whether a parked node agent, whose certificate is good `from` when `until` when, is let in for a new one: certificates
/// are renewed in sessions, and it would be locked out for good once its own has expired. Agents ask at two thirds of a
/// life, give or take a tenth: after that it asks at once.
pub(crate) fn is_due((from, until): (SystemTime, SystemTime), now: SystemTime) -> bool {
    let life = until.duration_since(from).unwrap_or_default();
    from + life.mul_f64(0.8) <= now
}

/// Parked node agents that somebody asked for, by name, each until when.
#[derive(Debug, Default)]
pub(crate) struct Called(HashMap<String, Instant>);

impl Called {
    /// Calls one: it is let in when it asks next. Nothing happens where too many are called already.
    pub fn call(&mut self, agent: &str, now: Instant) {
        self.0.retain(|_, until| now < *until);
        if self.0.len() < CALLS || self.0.contains_key(agent) {
            self.0.insert(agent.to_owned(), now + CALLED);
        }
    }

    /// Whether it was called.
    pub fn wants(&self, agent: &str, now: Instant) -> bool {
        self.0.get(agent).is_some_and(|until| now < *until)
    }
}

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

/// Probes a cluster agent for as long as node agents stand by for it, and a node agent for as long as it stands in and
/// others could in its place: a node may be lost with all that is on it. Notes in [`Entry::doubt`] whether it answers. A session whose network is gone is dead only after its silence; until then streams on it would wait in vain.
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
    let mut company = entry.company.subscribe();
    loop {
        // Nothing ticks for a cluster without node agents, most of a fleet may have none; nor for those that only stand by.
        company.mark_unchanged();
        if !registry.counts_on(entry) {
            let _ = company.changed().await; // the sender is the entry's own
            continue;
        }
        sleep(every).await;
        let ping = entry.session.ping();
        tokio::pin!(ping);
        let patience = patience + 3 * entry.session.rtt();
        if timeout(patience, &mut ping).await.is_ok() {
            continue;
        }
        entry.doubt.send_replace(true);
        tracing::warn!(
            cluster = entry.cluster,
            agent = entry.agent,
            after = ?patience,
            "the agent does not answer; node agents take its new streams"
        );
        registry.turned(entry);
        changed();
        if ping.await.is_err() {
            return std::future::pending().await; // the session is over: its owner sees that
        }
        entry.doubt.send_replace(false);
        registry.turned(entry);
        tracing::info!(cluster = entry.cluster, agent = entry.agent, "the agent answers again");
        changed();
    }
}

/// Parks a node agent that came because it was called, once nothing has run on it for [`CALLED`]. Never ends for others.
///
/// # Cancel safety
/// Safe.
pub(crate) async fn park_again(entry: &Arc<Entry>) {
    if !entry.called {
        return std::future::pending().await;
    }
    let mut quiet = Duration::ZERO;
    while quiet < CALLED {
        sleep(CALLED / 8).await;
        quiet = if entry.session.open_streams() == 0 { quiet + CALLED / 8 } else { Duration::ZERO };
    }
    entry.session.close(CloseCode::Parked, "nobody asks for this node any more");
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_in_the_last_fifth_of_its_life() {
        let (from, hour) = (SystemTime::UNIX_EPOCH, Duration::from_secs(3600));
        let of = |now| is_due((from, from + 24 * hour), from + now);
        assert!(!of(hour) && !of(19 * hour) && of(20 * hour) && of(25 * hour));
    }

    #[test]
    fn who_is_called_is_wanted_for_a_while() {
        let (mut called, now) = (Called::default(), Instant::now());
        assert!(!called.wants("edge1.n1", now));
        called.call("edge1.n1", now);
        assert!(called.wants("edge1.n1", now) && !called.wants("edge1.n1", now + CALLED));
        for n in 0..2 * CALLS {
            called.call(&format!("edge1.x{n}"), now);
        }
        assert_eq!(called.0.len(), CALLS);
        called.call("edge1.n2", now + CALLED);
        assert_eq!(called.0.len(), 1, "room again");
    }

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

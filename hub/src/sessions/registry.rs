//! Who holds what: the sessions that were let in, and the places that others were promised.

use crate::{
    pki::Origin,
    rate::RateLimit,
    route::Candidate,
    standby::{self, Called, Place, Standing},
};
use moorline_link::Session;
use moorline_proto::id::InstanceId;
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Instant, SystemTime},
};

/// Letters shown of what an agent says of itself.
const SHOWN: usize = 64;
/// Letters shown of why it is on no better carrier.
const SHOWN_WHY: usize = 256;
/// The fact that tells it.
const WHY: &str = "carrierReason";
/// The fact that is `0` of a node agent that carries nothing of users'.
pub(super) const STANDS_IN: &str = "standIn";

/// One session that was let in.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The session.
    pub session: Session,
    /// Name of its `Agent` object.
    pub agent: String,
    /// Its cluster.
    pub cluster: String,
    /// A node agent's.
    pub node: bool,
    /// It has not answered its last probe.
    pub doubt: tokio::sync::watch::Sender<bool>,
    /// When the newest sign of life was asked for that came.
    pub pulse: tokio::sync::Mutex<Option<Instant>>,
    /// Somebody of its cluster has come or gone, answers again or does not: who carries what may be another now.
    pub company: tokio::sync::watch::Sender<()>,
    /// A node agent that holds a session because somebody asked for it, or for a new certificate.
    pub called: bool,
    /// Which run of the agent.
    pub instance: InstanceId,
    /// Since when.
    pub since: SystemTime,
    /// Since when its cluster has had a session without a break; set as it comes.
    pub(super) unbroken: OnceLock<SystemTime>,
    /// What the agent said of itself; changes with `Facts`.
    pub facts: Mutex<Vec<(String, String)>>,
    /// Its software.
    pub software: String,
    /// SHA-256 of the key that it proved to hold or has a certificate for, in hex.
    pub(super) key: Mutex<String>,
    /// Control messages that cost something.
    pub(super) control: RateLimit<()>,
    /// Of which authority its certificate was when it came: `sha256:…`.
    pub authority: String,
    /// The same, and the key that it is for.
    pub origin: Origin,
    /// When its certificate ends; later after a renewal.
    pub(super) expires: tokio::sync::watch::Sender<SystemTime>,
}

impl Entry {
    /// Since when its cluster has had a session without a break.
    pub fn unbroken(&self) -> SystemTime {
        self.unbroken.get().copied().unwrap_or(self.since)
    }
    pub fn candidate(&self) -> Candidate {
        Candidate {
            node: self.node,
            draining: self.session.is_draining(),
            doubt: *self.doubt.borrow(),
            open: self.session.open_streams(),
            rtt: self.session.rtt(),
        }
    }
    /// Carries what users ask for. A node agent may be there for its node alone, as its cluster's owner says.
    pub fn carries(&self) -> bool {
        !self.node || self.fact(STANDS_IN).is_none_or(|says| says != "0")
    }
    /// A node agent that could take what a cluster agent leaves.
    fn stands_by(&self) -> bool {
        self.node && self.carries()
    }
    pub fn certificate_expires(&self) -> SystemTime {
        *self.expires.borrow()
    }
    pub fn fact(&self, key: &str) -> Option<String> {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.iter().find(|(k, _)| k == key).map(|(_, v)| plain(v))
    }
    /// Why it is on no better carrier, in the agent's words.
    pub fn why(&self) -> Option<String> {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        let why = facts.iter().find(|(k, _)| k == WHY).map(|(_, v)| plain_up_to(v, SHOWN_WHY));
        why.filter(|why| !why.is_empty())
    }
}

#[derive(Debug, Default)]
struct Table {
    clusters: HashMap<String, Vec<Arc<Entry>>>,
    count: usize,
    /// Agents whose greeting is being judged: two at once would not see each other.
    judged: HashSet<String>,
    /// Node agents of a cluster that were promised a place and have no session yet.
    coming: HashMap<String, usize>,
    /// Parked node agents that somebody asked for.
    called: Called,
}

/// All sessions. No I/O happens under its lock.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    table: Mutex<Table>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sessions of a cluster.
    pub fn of_cluster(&self, cluster: &str) -> Vec<Arc<Entry>> {
        self.lock().clusters.get(cluster).cloned().unwrap_or_default()
    }

    /// Those of a cluster that carry what users ask for.
    pub fn carriers(&self, cluster: &str) -> Vec<Arc<Entry>> {
        let mut all = self.of_cluster(cluster);
        all.retain(|entry| entry.carries());
        all
    }

    /// The sessions of one agent.
    pub fn of_agent(&self, cluster: &str, agent: &str) -> Vec<Arc<Entry>> {
        let table = self.lock();
        let all = table.clusters.get(cluster).into_iter().flatten();
        all.filter(|entry| entry.agent == agent).cloned().collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.lock().clusters.values().flatten().cloned().collect()
    }

    /// Whether it has to be known that this one lives: streams come to it, and a node agent could take them. To a node agent
    /// they come while no cluster agent answers.
    pub fn counts_on(&self, entry: &Arc<Entry>) -> bool {
        let table = self.lock();
        let all = table.clusters.get(&entry.cluster).into_iter().flatten();
        let mut others = all.filter(|other| !Arc::ptr_eq(other, entry) && !other.session.is_draining());
        let carries = !entry.node || !others.clone().any(|other| !other.node && !*other.doubt.borrow());
        entry.carries() && carries && others.any(|other| other.stands_by())
    }

    /// Whether somebody else could take what this one carries, while node agents stand by: else nobody asks whether it
    /// lives.
    pub fn has_other(&self, entry: &Arc<Entry>) -> bool {
        let usable = |other: &Arc<Entry>| {
            !Arc::ptr_eq(other, entry) && !other.session.is_draining() && !*other.doubt.borrow() && other.carries()
        };
        let table = self.lock();
        let all = table.clusters.get(&entry.cluster);
        all.is_some_and(|all| all.iter().any(|e| e.stands_by()) && all.iter().any(usable))
    }

    /// Lets a parked node agent in when it asks next.
    pub fn call(&self, agent: &str) {
        self.lock().called.call(agent, tokio::time::Instant::now());
    }

    pub(super) fn is_called(&self, agent: &str) -> bool {
        self.lock().called.wants(agent, tokio::time::Instant::now())
    }

    /// Whether a node agent of a cluster that has no place is let in for a new certificate.
    /// `behind`: the authority is another since it got the one that it has.
    pub(super) fn renews(&self, cluster: &str, cert: &[u8], behind: bool) -> bool {
        let called =
            |table: &Table| table.clusters.get(cluster).map_or(0, |all| all.iter().filter(|e| e.called).count());
        (behind || standby::is_due(validity(cert), SystemTime::now())) && called(&self.lock()) < standby::RENEWING
    }

    /// A place for one more node agent of a cluster, if it is to have one; and whom it replaces.
    pub(super) fn place(
        &self,
        cluster: &str,
        zone: Option<&str>,
        most: usize,
    ) -> Option<(Coming<'_>, Option<Arc<Entry>>)> {
        let mut table = self.lock();
        let coming = table.coming.get(cluster).copied().unwrap_or_default();
        let nodes = table.clusters.get(cluster).into_iter().flatten();
        let nodes: Vec<Arc<Entry>> =
            nodes.filter(|e| e.stands_by() && !e.called && !e.session.is_draining()).cloned().collect();
        let zones: Vec<Option<String>> = nodes.iter().map(|entry| entry.fact("zone")).collect();
        let standing = nodes.iter().zip(&zones);
        let standing: Vec<Standing<'_>> = standing
            .map(|(entry, zone)| Standing { zone: zone.as_deref(), busy: entry.session.open_streams() > 0 })
            .collect();
        let replaced = match standby::place(&standing, coming, zone, most) {
            Place::Stand => None,
            Place::Instead(at) => Some(nodes.get(at).cloned()?),
            Place::Park => return None,
        };
        *table.coming.entry(cluster.to_owned()).or_default() += 1;
        Some((Coming(self, cluster.to_owned()), replaced))
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.lock().count
    }

    /// How many there are, and how many of one cluster.
    pub(super) fn count(&self, cluster: &str) -> (usize, usize) {
        let table = self.lock();
        (table.count, table.clusters.get(cluster).map_or(0, Vec::len))
    }

    pub(super) fn insert(&self, entry: Arc<Entry>) {
        let mut table = self.lock();
        table.count += 1;
        let all = table.clusters.entry(entry.cluster.clone()).or_default();
        let _ =
            entry.unbroken.set(all.iter().find(|other| other.carries()).map_or(entry.since, |other| other.unbroken())); // it comes once
        all.push(entry);
        for one in all.iter() {
            one.company.send_replace(());
        }
    }

    /// Tells the other sessions of its cluster that this one answers again, or does not.
    pub fn turned(&self, entry: &Arc<Entry>) {
        let table = self.lock();
        for other in table.clusters.get(&entry.cluster).into_iter().flatten() {
            if !Arc::ptr_eq(other, entry) {
                other.company.send_replace(());
            }
        }
    }

    pub(super) fn remove(&self, entry: &Arc<Entry>) {
        let mut table = self.lock();
        if let Some(list) = table.clusters.get_mut(&entry.cluster) {
            let before = list.len();
            list.retain(|other| !Arc::ptr_eq(other, entry));
            for other in list.iter() {
                other.company.send_replace(());
            }
            let gone = before - list.len();
            if list.is_empty() {
                table.clusters.remove(&entry.cluster);
            }
            table.count -= gone;
        }
    }
}

/// An agent's name while its greeting is judged.
pub(super) struct Judging<'a>(&'a Registry, String);
impl<'a> Judging<'a> {
    pub(super) fn begin(registry: &'a Registry, agent: &str) -> Option<Self> {
        registry.lock().judged.insert(agent.to_owned()).then(|| Self(registry, agent.to_owned()))
    }
}
impl Drop for Judging<'_> {
    fn drop(&mut self) {
        self.0.lock().judged.remove(&self.1);
    }
}

/// A place that a node agent was promised.
pub(super) struct Coming<'a>(&'a Registry, String);
impl Drop for Coming<'_> {
    fn drop(&mut self) {
        let mut table = self.0.lock();
        if let Some(coming) = table.coming.get_mut(&self.1) {
            *coming -= 1;
            if *coming == 0 {
                table.coming.remove(&self.1);
            }
        }
    }
}

/// What an agent says of itself, fit to be shown in somebody's terminal.
pub(super) fn plain(text: &str) -> String {
    plain_up_to(text, SHOWN)
}

fn plain_up_to(text: &str, most: usize) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(most).collect()
}

/// From when to when a certificate is good; one that cannot be read has ended.
pub(super) fn validity(cert: &[u8]) -> (SystemTime, SystemTime) {
    x509_parser::parse_x509_certificate(cert).map_or((SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH), |(_, cert)| {
        let validity = cert.validity();
        (validity.not_before.to_datetime().into(), validity.not_after.to_datetime().into())
    })
}

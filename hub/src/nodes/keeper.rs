//! Writes `Node` objects: when something changed, each at most once in [`PAUSE`].

use super::{NodeSpec, NodeStatus, REPORTING, report};
use crate::{
    kinds::{AgentRole, AgentSpec},
    metrics::Metrics,
    records::{RecordError, Records},
    sessions::Registry,
};
use moorline_apiserver::Object;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// Shortest time between two writes of one node: what changes all the time is written so often and no more.
const PAUSE: Duration = Duration::from_secs(5);
/// How often it is looked who is silent.
const SWEEP: Duration = Duration::from_secs(20);
/// A node whose agent has had no session, and not asked for one, for so long is silent. Parked agents ask each minute.
const SILENT: Duration = Duration::from_secs(180);
/// How often it is looked which certificates have come close to their end.
const DAILY: Duration = Duration::from_secs(3600);
/// Attempts against writers of the same object.
const TRIES: u32 = 5;

/// What one agent said, until it is written.
struct Told {
    facts: Vec<(String, String)>,
    skew: Option<i64>,
}

/// One node agent.
struct Heard {
    /// Last word of it.
    at: Instant,
    told: Option<Told>,
    written: Option<Instant>,
    /// It is known to be silent.
    silent: bool,
}

/// Takes note of what node agents say. Bounded by their number: each has one entry, and loses it with its object.
pub(crate) struct Keeper {
    heard: Mutex<HashMap<String, Heard>>,
    wake: Notify,
    registry: Arc<Registry>,
    records: Records,
    metrics: Metrics,
}

impl Keeper {
    pub fn new(registry: Arc<Registry>, records: Records, metrics: Metrics) -> Self {
        Self { heard: Mutex::default(), wake: Notify::new(), registry, records, metrics }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node agent, whose identity was checked, said this. `clock`: its clock at that moment, if it said so, in
    /// milliseconds since 1970.
    pub fn heard(&self, agent: &str, facts: &[(String, String)], clock: Option<u64>) {
        let ours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let skew =
            clock.filter(|ms| *ms > 0).and_then(|ms| i64::try_from(i128::from(ms) - ours.as_millis() as i128).ok());
        let told = Some(Told { facts: facts.to_vec(), skew });
        let mut all = self.lock();
        match all.get_mut(agent) {
            Some(known) => (known.at, known.told) = (Instant::now(), told),
            None => {
                drop(all.insert(agent.to_owned(), Heard { at: Instant::now(), told, written: None, silent: false }))
            }
        }
        self.wake.notify_one();
    }

    /// Writes until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        // What was there before the hub was has its time to come back.
        for node in self.records.list::<NodeSpec>().unwrap_or_default() {
            let fresh = Heard { at: Instant::now(), told: None, written: None, silent: false };
            self.lock().entry(node.metadata.name).or_insert(fresh);
        }
        let (mut sweep, mut daily) = (Instant::now() + SWEEP, Instant::now() + DAILY);
        loop {
            let next = self.next_write().unwrap_or(sweep).min(sweep);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep_until(next) => {}
                () = self.wake.notified() => {}
            }
            let mut failed = false;
            for (agent, told) in self.due() {
                let written = self.note(self.write(&agent, &told).await);
                self.metrics.node_reports.with_label_values(&[if written { "written" } else { "failed" }]).inc();
                if !written {
                    failed = true;
                    self.again(&agent, told);
                }
            }
            if sweep <= Instant::now() {
                sweep = Instant::now() + SWEEP;
                for agent in self.fallen_silent() {
                    failed |= !self.note(self.write_silence(&agent).await);
                }
            }
            if daily <= Instant::now() {
                daily = Instant::now() + DAILY;
                failed |= !self.note(self.write_ends().await);
            }
            if failed {
                sleep(PAUSE).await;
            }
        }
    }

    fn note(&self, result: Result<(), RecordError>) -> bool {
        if let Err(error) = &result {
            tracing::warn!("a node was not written: {error}");
        }
        result.is_ok()
    }

    /// What was not written is tried again, unless there is newer news.
    fn again(&self, agent: &str, told: Told) {
        if let Some(heard) = self.lock().get_mut(agent) {
            heard.told.get_or_insert(told);
        }
    }

    /// When the next of those that wait may be written.
    fn next_write(&self) -> Option<Instant> {
        let all = self.lock();
        let waiting = all.values().filter(|heard| heard.told.is_some());
        waiting.map(|heard| heard.written.map_or_else(Instant::now, |at| at + PAUSE)).min()
    }

    fn due(&self) -> Vec<(String, Told)> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (agent, heard) in self.lock().iter_mut() {
            if heard.written.is_none_or(|at| at + PAUSE <= now)
                && let Some(told) = heard.told.take()
            {
                (heard.written, heard.silent) = (Some(now), false);
                due.push((agent.clone(), told));
            }
        }
        due
    }

    /// Agents that have just been silent for too long. Those whose object is gone are forgotten.
    fn fallen_silent(&self) -> Vec<String> {
        let old = |heard: &Heard| !heard.silent && heard.told.is_none() && SILENT <= heard.at.elapsed();
        let quiet: Vec<String> = self.lock().iter().filter(|(_, h)| old(h)).map(|(agent, _)| agent.clone()).collect();
        let mut silent = Vec::new();
        for agent in quiet {
            let cluster = agent.split_once('.').map_or(agent.as_str(), |(cluster, _)| cluster);
            let gone = matches!(self.records.get::<AgentSpec>(&agent), Ok(None));
            let connected = !self.registry.of_agent(cluster, &agent).is_empty();
            let mut all = self.lock();
            if gone {
                all.remove(&agent);
            } else if let Some(heard) = all.get_mut(&agent) {
                match connected {
                    true => heard.at = Instant::now(),
                    false => {
                        heard.silent = true;
                        silent.push(agent);
                    }
                }
            }
        }
        silent
    }

    async fn write(&self, agent: &str, told: &Told) -> Result<(), RecordError> {
        let Some(owner) = self.records.get::<AgentSpec>(agent)? else { return Ok(()) };
        if owner.spec.role != AgentRole::Node {
            return Ok(());
        }
        let spec = NodeSpec {
            cluster: owner.spec.cluster.clone(),
            agent: owner.spec.name.clone(),
            node: report::node_name(&told.facts),
        };
        let labels = report::labels(&spec.cluster, &told.facts);
        for _ in 0..TRIES {
            let found = match self.records.get::<NodeSpec>(agent)? {
                Some(mut node) => {
                    // Labels of somebody else's stay; the node's own follow the node.
                    let mut all = node.metadata.labels.clone();
                    all.retain(|name, _| !name.starts_with("node-role.kubernetes.io/"));
                    all.extend(labels.clone());
                    // An API server that is down has not renamed the node.
                    let spec = if spec.node.is_empty() { node.spec.clone() } else { spec.clone() };
                    if node.spec == spec && node.metadata.labels == all {
                        Ok(node)
                    } else {
                        (node.spec, node.metadata.labels) = (spec, all);
                        self.records.update(&node).await
                    }
                }
                None => {
                    let mut node = Object::<NodeSpec>::new(agent, spec.clone());
                    node.metadata.labels.clone_from(&labels);
                    node.metadata.owner_references = vec![owner.owner_reference()];
                    self.records.create(&node).await
                }
            };
            let mut node = match found {
                Err(RecordError::Conflict | RecordError::NotFound) => continue,
                found => found?,
            };
            let before = node.status.clone().unwrap_or_default();
            let status = report::status(&told.facts, told.skew, &before, SystemTime::now());
            if status == before {
                return Ok(());
            }
            node.status = Some(status);
            match self.records.update_status(&node).await {
                Err(RecordError::Conflict | RecordError::NotFound) => {}
                other => return other.map(drop),
            }
        }
        Err(RecordError::Conflict)
    }

    async fn write_silence(&self, agent: &str) -> Result<(), RecordError> {
        let Some(node) = self.records.get::<NodeSpec>(agent)? else { return Ok(()) };
        let reporting =
            node.status.iter().flat_map(|s| &s.conditions).any(|c| c.r#type == REPORTING && c.status == "True");
        if !reporting {
            return Ok(());
        }
        tracing::warn!(agent, "nothing is heard of this node any more");
        self.change(node, |status| report::silent(status, SystemTime::now())).await
    }

    async fn write_ends(&self) -> Result<(), RecordError> {
        for node in self.records.list::<NodeSpec>()? {
            self.change(node, |status| report::expiring(status, SystemTime::now())).await?;
        }
        Ok(())
    }

    async fn change(
        &self,
        mut node: Object<NodeSpec>,
        change: impl FnOnce(&mut NodeStatus),
    ) -> Result<(), RecordError> {
        let before = node.status.clone();
        change(node.status.get_or_insert_default());
        if node.status == before {
            return Ok(());
        }
        match self.records.update_status(&node).await {
            // Who wrote meanwhile knows better.
            Ok(_) | Err(RecordError::Conflict | RecordError::NotFound) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

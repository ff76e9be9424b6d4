//! Brings plans to nodes, and what nodes tell of them into their objects.

use super::{
    Files, NodePlanSpec, NodePlanStatus, NodeProgress,
    holders::{Due, Holders},
    rollout::decide,
};
use crate::{
    ask::ask,
    kinds::AgentSpec,
    metrics::Metrics,
    nodes::NodeSpec,
    pki::Authority,
    records::{RecordError, Records},
    sessions::{Entry, Registry},
    signing::now,
};
use http::{Method, StatusCode};
use moorline_apiserver::Object;
use moorline_authz::plan::{self, Phase, Plan, Progress};
use moorline_proto::header::Target;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How often plans that are under way are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often the probes of plans that are done are asked for.
const PROBES: Duration = Duration::from_secs(15);
/// Longest question to an agent, a file aside.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest delivery of a file.
const DELIVERY: Duration = Duration::from_secs(120);
/// Largest answer of an agent, in bytes.
const ANSWER: usize = 1 << 20;
/// How long a signed plan may be begun, in seconds.
const LIFE: u64 = 600;
/// Letters of output in one object, over all nodes and steps.
const OUTPUT: usize = 256 << 10;
/// Nodes that are asked at a time.
const AT_ONCE: usize = 64;
/// Attempts against writers of the same object.
const TRIES: u32 = 5;

/// What a node's agent said.
enum Said {
    Progress(Progress),
    Refused(String),
    /// Nothing that changes anything; it is asked again.
    Nothing,
}

/// Drives plans.
pub(crate) struct Driver {
    pub registry: Arc<Registry>,
    pub records: Records,
    pub authority: Arc<Authority>,
    pub files: Arc<Files>,
    pub metrics: Metrics,
}

impl Driver {
    /// Drives until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let this = Arc::new(self);
        let mut probed: HashMap<String, Instant> = HashMap::new();
        let mut holders = Holders::default();
        // Beside the loop: plans go on while an agent takes its time to hear of another's end.
        let mut telling = JoinSet::<(String, Vec<String>)>::new();
        while stop.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let plans = match this.records.list::<NodePlanSpec>() {
                Ok(plans) => plans,
                Err(error) => {
                    tracing::warn!("plans cannot be read: {error}");
                    continue;
                }
            };
            for plan in &plans {
                let status = plan.status.clone().unwrap_or_default();
                holders.note(plan, &status.nodes);
                let over = matches!(status.phase.as_str(), "Succeeded" | "Failed")
                    && status.observed_generation == plan.metadata.generation.unwrap_or_default();
                if over {
                    let due = probed.get(&plan.metadata.uid).is_none_or(|at| PROBES <= at.elapsed());
                    if plan.spec.probes.is_empty() || !due {
                        continue;
                    }
                    probed.insert(plan.metadata.uid.clone(), Instant::now());
                }
                let done = stop.run_until_cancelled(this.turn(plan, &mut holders)).await;
                if let Some(Err(error)) = done {
                    tracing::warn!(plan = plan.metadata.name, "a plan's status was not written: {error}");
                }
            }
            let gone = |uid: &String| !plans.iter().any(|plan| plan.metadata.uid == *uid);
            probed.retain(|uid, _| !gone(uid));
            while let Some(told) = telling.try_join_next() {
                let (agent, uids) = told.unwrap_or_default();
                uids.iter().for_each(|uid| holders.told(uid, &agent));
            }
            let has_session = |agent: &str| this.session(agent).is_some();
            // What cannot be read is not gone.
            let exists = |agent: &str| !matches!(this.records.get::<AgentSpec>(agent), Ok(None));
            let room = AT_ONCE.saturating_sub(telling.len());
            let Due { tell, call } = holders.due(|uid| !gone(uid), (has_session, exists), room, Instant::now());
            call.iter().for_each(|agent| this.registry.call(agent)); // parked, or away: let in when they ask
            for (agent, uids) in tell {
                if let Some(session) = this.session(&agent) {
                    telling.spawn(async move { (agent, forget(&session, uids).await) });
                }
            }
        }
    }

    fn session(&self, agent: &str) -> Option<Arc<Entry>> {
        let cluster = agent.split_once('.').map_or(agent, |(cluster, _)| cluster);
        let all = self.registry.of_agent(cluster, agent);
        all.into_iter().filter(|entry| entry.node && !entry.session.is_draining()).max_by_key(|entry| entry.since)
    }

    /// Agents of the nodes that a plan is for, by name.
    fn targets(&self, spec: &NodePlanSpec) -> Result<Vec<String>, RecordError> {
        let mut targets = Vec::new();
        for node in self.records.list::<NodeSpec>()? {
            let named =
                spec.nodes.iter().any(|name| *name == node.spec.agent || (*name == node.spec.node && !name.is_empty()));
            let labels = &node.metadata.labels;
            let selected = !spec.node_selector.is_empty()
                && spec.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value));
            if node.spec.cluster == spec.cluster && (named || selected) {
                targets.push(node.spec.agent);
            }
        }
        targets.sort();
        Ok(targets)
    }

    /// Asks, decides, begins, and writes what has changed.
    async fn turn(self: &Arc<Self>, object: &Object<NodePlanSpec>, holders: &mut Holders) -> Result<(), RecordError> {
        let generation = object.metadata.generation.unwrap_or_default();
        let before = object.status.clone().unwrap_or_default();
        let fresh = before.observed_generation != generation;
        let mut nodes: Vec<NodeProgress> = Vec::new();
        let targets = self.targets(&object.spec)?;
        for agent in targets {
            // A plan that has changed is handed out anew: an agent that has done the same before says so.
            let known = before.nodes.iter().find(|node| node.agent == agent && !fresh).cloned();
            nodes.push(known.unwrap_or_else(|| NodeProgress { agent, ..NodeProgress::default() }));
        }
        // A node that has gone away while it was at it stays in the list: nobody knows how far it came.
        let left = before.nodes.iter().filter(|old| !fresh && old.sent && !nodes.iter().any(|n| n.agent == old.agent));
        nodes.extend(left.cloned().collect::<Vec<_>>());
        let asked: Vec<usize> = (0..nodes.len())
            .filter(|at| {
                nodes
                    .get(*at)
                    .is_some_and(|n| n.sent && (!n.progress.phase.is_over() || !object.spec.probes.is_empty()))
            })
            .collect();
        self.ask_all(object, &mut nodes, &asked, None).await;
        let decision = decide(&object.spec, &nodes);
        self.ask_all(object, &mut nodes, &decision.begin, Some(holders)).await;
        let decision = decide(&object.spec, &nodes);
        let count = |wanted: fn(Phase) -> bool| {
            u32::try_from(nodes.iter().filter(|n| wanted(n.progress.phase)).count()).unwrap_or(u32::MAX)
        };
        let mut status = NodePlanStatus {
            phase: decision.phase.to_owned(),
            message: decision.message,
            observed_generation: generation,
            total: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
            done: count(|phase| phase == Phase::Succeeded),
            failed: count(|phase| matches!(phase, Phase::Failed | Phase::Refused)),
            nodes,
        };
        bound(&mut status);
        if status == before {
            return Ok(());
        }
        if status.phase != before.phase {
            let (plan, cluster) = (&object.metadata.name, &object.spec.cluster);
            tracing::info!(plan, cluster, phase = status.phase, message = status.message, "a plan goes on");
        }
        self.write(object, status).await
    }

    async fn write(&self, object: &Object<NodePlanSpec>, status: NodePlanStatus) -> Result<(), RecordError> {
        for _ in 0..TRIES {
            let Some(mut now) = self.records.get::<NodePlanSpec>(&object.metadata.name)? else { return Ok(()) };
            if now.metadata.uid != object.metadata.uid || now.metadata.generation != object.metadata.generation {
                return Ok(()); // it is another plan by now
            }
            now.status = Some(status.clone());
            match self.records.update_status(&now).await {
                Err(RecordError::Conflict) => {}
                Err(RecordError::NotFound) => return Ok(()),
                other => return other.map(drop),
            }
        }
        Err(RecordError::Conflict)
    }

    /// Asks these nodes how far they are, or hands them the plan, and notes whom.
    async fn ask_all(
        self: &Arc<Self>,
        object: &Object<NodePlanSpec>,
        nodes: &mut [NodeProgress],
        which: &[usize],
        mut hand_to: Option<&mut Holders>,
    ) {
        let mut under_way = JoinSet::new();
        let mut answers = Vec::new();
        for at in which.iter().copied() {
            let Some(node) = nodes.get(at) else { continue };
            let agent = format!("{}.{}", object.spec.cluster, node.agent);
            let Some(session) = self.session(&agent) else {
                self.registry.call(&agent); // it is parked, or away: it is let in when it asks
                continue;
            };
            if AT_ONCE <= under_way.len()
                && let Some(Ok(answer)) = under_way.join_next().await
            {
                answers.push(answer);
            }
            let (this, uid, begin) = (Arc::clone(self), object.metadata.uid.clone(), hand_to.is_some());
            let sealed = if begin { self.sealed(object, &node.agent) } else { None };
            if let (Some(holders), Some(_)) = (&mut hand_to, &sealed) {
                holders.add(&uid, [agent]); // whatever it answers: answers get lost, and the plan may be gone by then
            }
            under_way.spawn(async move {
                let said = match (begin, sealed) {
                    (true, Some(sealed)) => this.hand_over(&session, sealed).await,
                    (true, None) => Said::Nothing,
                    (false, _) => this.how_far(&session, &uid).await,
                };
                (at, said)
            });
        }
        while let Some(answer) = under_way.join_next().await {
            answers.extend(answer.ok());
        }
        for (at, said) in answers {
            let Some(node) = nodes.get_mut(at) else { continue };
            match said {
                Said::Progress(progress) => (node.sent, node.progress) = (true, progress),
                Said::Refused(message) => {
                    node.progress = Progress { phase: Phase::Refused, message, ..Progress::default() };
                }
                Said::Nothing => {}
            }
        }
    }

    fn sealed(&self, object: &Object<NodePlanSpec>, agent: &str) -> Option<Vec<u8>> {
        let spec = &object.spec;
        let issued = now();
        let plan = Plan {
            name: object.metadata.name.clone(),
            uid: object.metadata.uid.clone(),
            cluster: spec.cluster.clone(),
            agent: agent.to_owned(),
            issued,
            expires: issued + LIFE,
            drain_seconds: spec.strategy.drain_seconds,
            steps: spec.steps.clone(),
            probes: spec.probes.clone(),
            run: spec.run.clone(),
        };
        let sealed = plan::seal(&plan, |message| self.authority.sign(message));
        sealed.map_err(|error| tracing::error!("no plan was signed: {error}")).ok()
    }

    async fn hand_over(&self, session: &Entry, sealed: Vec<u8>) -> Said {
        let asked = timeout(PATIENCE, ask(session, Target::Node, (Method::PUT, "/plan"), sealed, ANSWER)).await;
        let said = read(asked);
        let label = match &said {
            Said::Progress(_) => "taken",
            Said::Refused(_) => "refused",
            Said::Nothing => "failed",
        };
        self.metrics.plans.with_label_values(&[label]).inc();
        said
    }

    async fn how_far(&self, session: &Entry, uid: &str) -> Said {
        let path = format!("/plan/{uid}");
        let asked = timeout(PATIENCE, ask(session, Target::Node, (Method::GET, &path), Vec::new(), ANSWER)).await;
        if let Ok(Ok((StatusCode::NOT_FOUND, _))) = &asked {
            let message = "the agent has lost the plan, and with it how far it was: change spec.run to do it again";
            return Said::Progress(Progress {
                phase: Phase::Failed,
                message: message.to_owned(),
                ..Progress::default()
            });
        }
        let said = read(asked);
        if let Said::Progress(progress) = &said {
            for sha256 in progress.needs.iter().take(1) {
                self.deliver(session, sha256).await;
            }
        }
        said
    }

    async fn deliver(&self, session: &Entry, sha256: &str) {
        let Some(bytes) = self.files.get(sha256) else {
            tracing::warn!(agent = session.agent, sha256, "a plan waits for a file that this hub does not have");
            return;
        };
        let path = format!("/file/{sha256}");
        let sent = timeout(DELIVERY, ask(session, Target::Node, (Method::PUT, &path), bytes, ANSWER)).await;
        match sent {
            Ok(Ok((StatusCode::OK, _))) => {}
            Ok(Ok((code, _))) => tracing::warn!(agent = session.agent, sha256, %code, "a file was not taken"),
            Ok(Err(why)) => tracing::debug!(agent = session.agent, "a file was not delivered: {why}"),
            Err(_) => tracing::warn!(agent = session.agent, sha256, "a file was not delivered in time"),
        }
    }
}

/// Tells an agent to forget plans that are gone, and gives those that it was told of.
async fn forget(session: &Entry, uids: Vec<String>) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    let mut told = Vec::new();
    for uid in uids {
        let path = format!("/plan/{uid}");
        let ask = ask(session, Target::Node, (Method::DELETE, &path), Vec::new(), ANSWER);
        // Whatever it answers, it has heard it.
        let Ok(Ok(_)) = timeout_at(until, ask).await else { break };
        told.push(uid);
    }
    told
}

fn read(asked: Result<Result<(StatusCode, Vec<u8>), String>, tokio::time::error::Elapsed>) -> Said {
    let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(512).collect();
    match asked {
        Ok(Ok((StatusCode::OK, answer))) => match serde_json::from_slice::<Progress>(&answer) {
            Ok(progress) => Said::Progress(clean(progress)),
            Err(_) => Said::Nothing,
        },
        Ok(Ok((StatusCode::TOO_MANY_REQUESTS, _))) => Said::Nothing,
        Ok(Ok((_, answer))) => Said::Refused(words(&answer)),
        // An agent that is too old for plans says so; a session that is gone is another matter.
        Ok(Err(why)) if why.contains("refused") || why.contains("unknown_target") => Said::Refused(why),
        Ok(Err(_)) | Err(_) => Said::Nothing,
    }
}

/// What an agent says, fit for an object and a terminal.
fn clean(mut progress: Progress) -> Progress {
    let plain = |text: &mut String, most: usize| {
        *text = text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).take(most).collect();
    };
    plain(&mut progress.checksum, 64);
    plain(&mut progress.message, 512);
    progress.steps.truncate(plan::STEPS);
    for step in &mut progress.steps {
        plain(&mut step.name, 63);
        plain(&mut step.message, 512);
        plain(&mut step.output, 4096);
    }
    progress.probes.truncate(plan::PROBES);
    for probe in &mut progress.probes {
        plain(&mut probe.name, 63);
        plain(&mut probe.message, 512);
    }
    progress.needs.truncate(1);
    progress.needs.iter_mut().for_each(|need| plain(need, 64));
    progress
}

/// Cuts outputs so that a plan for many nodes stays an object of bearable size: each keeps its end.
fn bound(status: &mut NodePlanStatus) {
    let steps: usize = status.nodes.iter().map(|node| node.progress.steps.len()).sum();
    let most = OUTPUT / steps.max(1);
    for step in status.nodes.iter_mut().flat_map(|node| &mut node.progress.steps) {
        let surplus = step.output.chars().count().saturating_sub(most);
        if 0 < surplus {
            step.output = step.output.chars().skip(surplus).collect();
        }
    }
}

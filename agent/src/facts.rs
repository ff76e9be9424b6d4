//! What the hub shows about a cluster and its agent.

use crate::{
    limits,
    node::facts::{NodeLooker, NodeObject, one_line},
    policy::PolicyFile,
    upstream::ApiServer,
};
use http::Request;
use moorline_proxy::body;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Facts, key to value.
pub type Facts = Vec<(String, String)>;

/// Looks facts up.
pub struct Looker {
    /// The cluster's API server.
    pub upstream: Arc<ApiServer>,
    /// The Kubernetes node that this agent is on, if it stands for one.
    pub node: Option<String>,
    /// It keeps what the cluster's own endpoint needs.
    pub endpoint: bool,
    /// Looks at the node; a node agent's.
    pub local: Option<NodeLooker>,
    /// The owner's word on what a node agent is for.
    pub policy: Arc<PolicyFile>,
    /// What the API server said last.
    pub known: Mutex<Known>,
}

/// What the API server said last: while it is down it has lost neither its version nor its nodes.
#[derive(Debug, Default)]
pub struct Known {
    version: Option<(Instant, String)>,
    node: Option<NodeObject>,
}

/// `GET /version`
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    git_version: String,
}

/// Why something of the API server's is not known.
struct Trouble {
    /// It answered, only not with that.
    answered: bool,
    cause: String,
}

/// What the hub is told, and told again when it changes.
pub struct Telling {
    facts: watch::Receiver<Facts>,
    /// Why no better carrier is in use.
    why: watch::Receiver<String>,
}

impl Telling {
    /// To be told at once, and with each change.
    pub fn new(mut facts: watch::Receiver<Facts>, why: watch::Receiver<String>) -> Self {
        facts.mark_changed();
        Self { facts, why }
    }

    /// All that is to be told now. Never ends once nobody looks any more.
    ///
    /// # Cancel safety
    /// Safe: a change that was not taken comes again.
    pub async fn changed(&mut self) -> Facts {
        let changed = tokio::select! {
            changed = self.facts.changed() => changed,
            changed = self.why.changed() => changed,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
        let mut now = self.facts.borrow_and_update().clone();
        let why = self.why.borrow_and_update();
        if !why.is_empty() {
            now.push(("carrierReason".to_owned(), one_line(&why, limits::WHY)));
        }
        now
    }
}

impl Looker {
    /// Looks now.
    ///
    /// `told` is the trouble with the API server that the log already has; none is written twice in a row.
    pub async fn look(&self, told: &mut Option<String>) -> Facts {
        let mut facts = vec![
            ("os".to_owned(), std::env::consts::OS.to_owned()),
            ("arch".to_owned(), std::env::consts::ARCH.to_owned()),
            ("agentVersion".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ];
        if self.endpoint {
            facts.push(("endpoint".to_owned(), "1".to_owned()));
        }
        let asked = self.ask().await;
        if let Some(local) = &self.local {
            let silent = asked.as_ref().err().filter(|trouble| !trouble.answered);
            let said = silent.map_or_else(|| "ok".to_owned(), |trouble| one_line(&trouble.cause, limits::NODE_CAUSE));
            facts.push(("node.api".to_owned(), said));
            local.facts(&mut facts).await;
            if self.policy.current().stands_in().is_err() {
                facts.push(("standIn".to_owned(), "0".to_owned()));
            }
        }
        self.tell(&mut facts);
        match asked {
            Ok(()) => *told = None,
            Err(Trouble { cause, .. }) if told.as_ref() != Some(&cause) => {
                tracing::warn!(%cause, "the cluster's API server does not answer as it should; trying again");
                *told = Some(cause);
            }
            Err(_) => {}
        }
        facts
    }

    /// Asks the API server for its version, seldom, and for the node.
    async fn ask(&self) -> Result<(), Trouble> {
        let fresh = |at: &Instant| at.elapsed() < limits::FACTS;
        let known = self.known().version.as_ref().is_some_and(|(at, _)| fresh(at));
        if !known || self.node.is_none() {
            let version: Version = self.get("/version").await?;
            self.known().version = Some((Instant::now(), one_line(&version.git_version, limits::FACT)));
        }
        if let Some(node) = &self.node {
            let object: NodeObject = self.get(&format!("/api/v1/nodes/{node}")).await?;
            self.known().node = Some(object);
        }
        Ok(())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of cluster and node.
    fn tell(&self, facts: &mut Facts) {
        let known = self.known();
        if let Some((_, version)) = &known.version {
            facts.push(("kubernetesVersion".to_owned(), version.clone()));
        }
        if let Some(node) = &self.node {
            facts.push(("node".to_owned(), one_line(node, limits::FACT)));
        }
        if let Some(node) = &known.node {
            node.facts(facts);
        }
    }

    /// What the API server says at `path`; or, in words, why that is not known.
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        let silent = |cause: String| Trouble { answered: false, cause };
        let request = Request::get(path).body(body::empty()).map_err(|e| silent(e.to_string()))?;
        let (status, answer) = self.upstream.own(request).await.map_err(|e| silent(e.to_string()))?;
        if !status.is_success() {
            let cause = format!("the API server answers {status} to {path}; does it take the agent's credential?");
            return Err(Trouble { answered: status.is_client_error(), cause });
        }
        serde_json::from_slice(&answer).map_err(|e| Trouble { answered: true, cause: format!("{path}: {e}") })
    }

    /// Looks again and again, and tells what changed. Never ends.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn watch(&self, facts: &watch::Sender<Facts>, mut told: Option<String>) {
        loop {
            let now = self.look(&mut told).await;
            let known = publish(facts, now, self.local.is_some());
            tokio::time::sleep(self.pause(known)).await;
        }
    }

    fn pause(&self, known: bool) -> Duration {
        match (&self.local, known) {
            (Some(_), _) => limits::NODE_FACTS,
            (None, true) => limits::FACTS,
            (None, false) => limits::UPSTREAM_IDLE,
        }
    }
}

/// Tells what was seen, if that is news; returns whether the API server was heard. `of_node`: it is told of a node too while
/// the API server says nothing; of a cluster nothing is told then.
fn publish(facts: &watch::Sender<Facts>, now: Facts, of_node: bool) -> bool {
    let known = now.iter().any(|(key, _)| key == "kubernetesVersion");
    facts.send_if_modified(|old| {
        let changed = *old != now && (known || old.is_empty() || of_node);
        if changed {
            *old = now;
        }
        changed
    });
    known
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(all: &[(&str, &str)]) -> Facts {
        all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_has_not_changed_is_not_told_again() {
        let (tell, mut told) = watch::channel(Facts::new());
        let mut is_news = |now: &[(&str, &str)], of_node| {
            publish(&tell, facts(now), of_node);
            let news = told.has_changed().unwrap();
            told.mark_unchanged();
            news
        };
        let well = [("kubernetesVersion", "v1.34.1"), ("node.ready", "ok")];
        assert!(is_news(&well, true));
        assert!(!is_news(&well, true), "the same again");
        let ill = [("kubernetesVersion", "v1.34.1"), ("node.ready", "False: KubeletNotReady")];
        assert!(is_news(&ill, true));
        assert!(is_news(&[("node.api", "no answer")], true), "a node whose API server is away is told of");
        assert!(is_news(&well, false));
        assert!(!is_news(&[("os", "linux")], false), "a cluster whose API server is away has not changed");
    }
}

//! Runs agents of imported clusters, on threads of their own: they carry requests of users, which must not wait for what
//! else this plugin does.

use moorline_agent::{
    AgentRole, Config, Preference, UpstreamConfig,
    metrics::Metrics,
    rejoin::TokenSource,
    state::StateDir,
    upstream::{ApiServer, GivenKubeconfig},
};
use moorline_plugin::{Home, PluginError};
use std::{
    future::pending,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Name of such an agent within its cluster.
pub(crate) const NAME: &str = "import";
/// Threads for all of them.
const THREADS: usize = 2;
/// How often an API server is asked whether it is there.
const LOOK: Duration = Duration::from_secs(30);
/// How long an agent that stopped rests before it is started again.
const REST: Duration = Duration::from_secs(10);
/// How long one may take to end its streams.
const GRACE: Duration = Duration::from_secs(5);
/// Longest version text, in letters.
const VERSION: usize = 64;

fn other(error: impl std::fmt::Display) -> PluginError {
    PluginError::Other(error.to_string())
}

/// The threads. None until the first agent.
#[derive(Debug, Default)]
pub(crate) struct Threads(Mutex<Option<Runtime>>);

impl Threads {
    fn handle(&self) -> Result<Handle, PluginError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = all.as_ref() {
            return Ok(runtime.handle().clone());
        }
        let made = Builder::new_multi_thread().worker_threads(THREADS).thread_name("imports").enable_all().build();
        let made = made.map_err(other)?;
        let handle = made.handle().clone();
        *all = Some(made);
        Ok(handle)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let runtime = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(runtime) = runtime {
            runtime.shutdown_background();
        }
    }
}

/// What an agent is started with.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub cluster: String,
    /// Its own folder.
    pub dir: PathBuf,
    pub home: Arc<Home>,
    pub kubeconfig: GivenKubeconfig,
    /// The edge policy's text.
    pub policy: String,
    /// Where it gets tokens: to join at first, and again once its identity has expired while it ran.
    pub tokens: TokenSource,
}

/// How an agent is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// Why it does not run.
    pub stopped: Option<String>,
    /// The API server's version, or why it does not answer. `None`: it has not been asked.
    pub server: Option<Result<String, String>>,
}

/// An agent. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Running {
    pub state: watch::Receiver<State>,
    stop: CancellationToken,
    task: Option<AbortOnDropHandle<()>>,
}

impl Running {
    /// Lets open streams end for a while, then cuts them.
    pub async fn end(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            let _ = tokio::time::timeout(GRACE, task).await;
        }
    }
}

/// Whether a folder has the identity of an agent that joined, and whose time is not over: with one that ended while the hub
/// did not run, nobody would be let in ever again.
pub(crate) fn has_joined(dir: &Path) -> Result<bool, PluginError> {
    let state = StateDir::open(dir).map_err(other)?;
    let key = state.key().map_err(other)?;
    let Ok(Some(kept)) = state.membership(&key) else { return Ok(false) };
    Ok(kept.validity().is_ok_and(|(_, until)| SystemTime::now() < until))
}

impl Plan {
    fn config(&self) -> Result<Config, PluginError> {
        // The folder may have been taken away with an identity that was lost.
        StateDir::open(&self.dir).map_err(other)?;
        let policy = self.dir.join("policy.yaml");
        std::fs::write(&policy, &self.policy).map_err(other)?;
        Ok(Config {
            hub: self.home.address.to_string().parse().map_err(other)?,
            token: None,
            tokens: Some(self.tokens.clone()),
            name: Some(NAME.parse().map_err(other)?),
            cluster: Some(self.cluster.parse().map_err(other)?),
            role: AgentRole::Cluster,
            node_name: None,
            shell_root: "/".into(),
            node: moorline_agent::node::Settings::default(),
            state_dir: self.dir.clone(),
            state_secret: None,
            upstream: UpstreamConfig::Given(self.kubeconfig.clone()),
            policy_file: Some(policy),
            imports_address: None,
            endpoint: None,
            carrier: Preference::Tls,
            http_addr: None,
        })
    }

    /// Starts it on `threads`.
    pub fn start(self, threads: &Threads) -> Result<Running, PluginError> {
        let (config, stop) = (self.config()?, CancellationToken::new());
        let (tell, state) = watch::channel(State::default());
        let (ending, cluster) = (stop.clone(), self.cluster.clone());
        let work = async move {
            let asks = ask(config.upstream.clone(), tell.clone());
            tokio::select! {
                () = serve(config, cluster, &tell, &ending) => {}
                () = asks => {}
            }
        };
        let task = AbortOnDropHandle::new(threads.handle()?.spawn(work));
        Ok(Running { state, stop, task: Some(task) })
    }
}

/// Runs the agent, again and again.
async fn serve(config: Config, cluster: String, tell: &watch::Sender<State>, stop: &CancellationToken) {
    loop {
        tell.send_modify(|state| state.stopped = None);
        // Its counters are nobody's: those of the hub count the same requests.
        let ended = moorline_agent::run(config.clone(), stop.clone(), &prometheus::Registry::new()).await;
        if stop.is_cancelled() {
            return;
        }
        let why = ended.err().map_or_else(|| "it ended by itself".to_owned(), |error| error.to_string());
        tracing::warn!(cluster, "the agent of an imported cluster is started again: {why}");
        tell.send_modify(|state| state.stopped = Some(why));
        if stop.run_until_cancelled(tokio::time::sleep(REST)).await.is_none() {
            return;
        }
    }
}

/// Asks the API server whether it is there. Never ends.
async fn ask(config: UpstreamConfig, tell: watch::Sender<State>) {
    let counters = Metrics::new(&prometheus::Registry::new());
    let Ok(counters) = counters else { return pending().await };
    let server = match ApiServer::new(config, counters).await {
        Ok(server) => server,
        Err(error) => {
            tell.send_modify(|state| state.server = Some(Err(error.to_string())));
            return pending().await;
        }
    };
    let looks = async {
        loop {
            let now = version(&server).await;
            tell.send_if_modified(|state| {
                let new = state.server.as_ref() != Some(&now);
                state.server = Some(now);
                new
            });
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        () = looks => {}
        () = server.maintain() => {}
    }
}

async fn version(server: &ApiServer) -> Result<String, String> {
    let request = http::Request::get("/version").body(moorline_proxy::body::empty()).map_err(|e| e.to_string())?;
    let (status, body) = server.own(request).await.map_err(|e| e.to_string())?;
    if !status.is_success() {
        return Err(format!("the API server answers {status}: is the kubeconfig's credential still good?"));
    }
    let answer: serde_json::Value = serde_json::from_slice(&body).map_err(|_| "it is no API server".to_owned())?;
    let version = answer["gitVersion"].as_str().ok_or_else(|| "it is no API server".to_owned())?;
    Ok(version.chars().filter(|c| !c.is_control()).take(VERSION).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use moorline_agent::membership::Membership;

    #[test]
    fn an_identity_whose_time_is_over_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_joined(dir.path()).unwrap(), "nobody has");
        for (until, lives) in [(4000, true), (2001, false)] {
            let state = StateDir::open(dir.path()).unwrap();
            let key = state.key().unwrap();
            let mut leaf = rcgen::CertificateParams::default();
            leaf.not_before = rcgen::date_time_ymd(2000, 1, 1);
            leaf.not_after = rcgen::date_time_ymd(until, 1, 1);
            let id = "spiffe://example/cluster/c1/agent/import";
            leaf.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().unwrap())];
            let chain = vec![leaf.self_signed(&key).unwrap().der().clone()];
            let membership = Membership {
                cluster: "c1".parse().unwrap(),
                name: NAME.parse().unwrap(),
                role: AgentRole::Cluster,
                trust_domain: "example".parse().unwrap(),
                bundle: chain.clone(),
                chain,
            };
            state.keep("hub:1", &membership).unwrap();
            assert_eq!(has_joined(dir.path()).unwrap(), lives, "until {until}");
        }
    }
}

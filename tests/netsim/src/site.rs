//! A whole agent, and an API server whose answer never ends.

use crate::{LONG, api, world::World};
use anyhow::Result;
use moorline_agent::{Config, Preference, UpstreamConfig};
use moorline_link::HubAddress;
use std::{fs, net::Ipv4Addr, path::Path, time::Duration};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// The agent's process, but in ours. Dropping it ends it.
pub struct Site {
    agent: Lone,
    _api: AbortOnDropHandle<()>,
}

/// An agent in this process, without what it leads to. Dropping it ends it.
pub(crate) struct Lone {
    registry: prometheus::Registry,
    _stop: tokio_util::sync::DropGuard,
    _task: AbortOnDropHandle<()>,
}

impl Lone {
    /// Runs an agent that keeps its state in `dir`, and joins first if it has a token.
    pub(crate) fn start(
        dir: &Path,
        kubeconfig: &Path,
        name: &str,
        at: HubAddress,
        carrier: Preference,
        token: Option<String>,
    ) -> Result<Self> {
        let config = Config {
            hub: at,
            token,
            tokens: None,
            name: Some(name.parse()?),
            cluster: None,
            role: moorline_agent::AgentRole::Cluster,
            node_name: None,
            node: moorline_agent::node::Settings::default(),
            shell_root: "/".into(),
            state_dir: dir.join("state"),
            upstream: UpstreamConfig::Kubeconfig { path: kubeconfig.to_owned(), context: None },
            policy_file: None,
            imports_address: None,
            carrier,
            state_secret: None,
            endpoint: None,
            http_addr: None,
        };
        let (registry, stop) = (prometheus::Registry::new(), CancellationToken::new());
        let run = {
            let (registry, stop) = (registry.clone(), stop.clone());
            async move {
                if let Err(error) = moorline_agent::run(config, stop, &registry).await {
                    eprintln!("the agent ended: {error}");
                }
            }
        };
        Ok(Self { registry, _stop: stop.drop_guard(), _task: AbortOnDropHandle::new(tokio::spawn(run)) })
    }
}

impl Site {
    /// Joins an agent named `name` to the world's cluster by way of `at`, and runs it.
    ///
    /// # Errors
    /// The site cannot be set up; what the agent meets later shows in its metrics.
    pub async fn start(world: &World, name: &str, at: HubAddress, carrier: Preference) -> Result<Self> {
        let token = world.admin.join_token().await?;
        Self::run(world, name, at, carrier, Some(token)).await
    }

    /// Runs an agent that has joined before.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn again(world: &World, name: &str, at: HubAddress, carrier: Preference) -> Result<Self> {
        Self::run(world, name, at, carrier, None).await
    }

    async fn run(
        world: &World,
        name: &str,
        at: HubAddress,
        carrier: Preference,
        token: Option<String>,
    ) -> Result<Self> {
        let dir = world.dir().join(name);
        fs::create_dir_all(&dir)?;
        let (kubeconfig, api) = api::serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?, &dir)?;
        let agent = Lone::start(&dir, &kubeconfig, name, at, carrier, token)?;
        Ok(Self { agent, _api: api })
    }

    /// What carries the agent's session, by its own metrics; `None` before there is one.
    pub fn carrier(&self) -> Option<String> {
        let families = self.agent.registry.gather();
        let family = families.iter().find(|family| family.name() == "moorline_agent_session_carrier")?;
        let on = family.get_metric().iter().find(|metric| metric.get_gauge().get_value() == 1.0)?;
        Some(on.get_label().first()?.value().to_owned())
    }

    /// Waits until that is `carrier`; how long it took.
    ///
    /// # Errors
    /// It is not in time.
    pub async fn moves_to(&self, carrier: &str) -> Result<Duration> {
        let begin = tokio::time::Instant::now();
        let moved = async {
            while self.carrier().as_deref() != Some(carrier) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LONG, moved).await.map_err(|_| anyhow::anyhow!("still on {:?}, not on {carrier}", self.carrier()))?;
        Ok(begin.elapsed())
    }
}

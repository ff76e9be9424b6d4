//! Two clusters that dial out to one hub, and three users with different rights.

use anyhow::{Context, Result};
use moorline_e2e::{
    cluster::{Cluster, Network},
    moorline::{Agent, Hub, kubectl},
    process::{eventually, text},
};
use std::{path::PathBuf, process::Command, time::Duration};

/// Everything that a scene needs. Fields drop in order: agents, hub, clusters.
pub struct World {
    /// edge1's agent; a scene may take it away and must put one back.
    pub agent1: Option<Agent>,
    /// edge2's agent.
    pub agent2: Option<Agent>,
    /// The hub.
    pub hub: Hub,
    /// With a node, in a network that nothing can dial into.
    pub edge1: Cluster,
    /// Control plane only, the same kind of network.
    pub edge2: Cluster,
    /// Scratch space.
    pub dir: PathBuf,
    _temporary: tempfile::TempDir,
}

/// What guards against waiting for ever.
const SOON: Duration = Duration::from_secs(60);

/// May do everything in edge1's namespaces and look at its nodes; may view edge2.
pub const ALICE: &str = "alice";
/// May view the namespace `team` of edge1.
pub const BOB: &str = "bob";
/// A user of the hub whom no grant lets into any cluster.
pub const CAROL: &str = "carol";

impl World {
    /// Starts it all.
    pub fn start() -> Result<Self> {
        let temporary = tempfile::Builder::new().prefix("mle2e").tempdir_in("/tmp")?;
        let dir = temporary.path().to_owned();
        let (net1, net2) = (Network::up("mle1", 81)?, Network::up("mle2", 82)?);
        let names = ["127.0.0.1", &net1.outside.clone(), &net2.outside.clone()];
        let asks = crate::endpoint::webhook_of_edge2(&dir)?;
        let starting = std::thread::spawn(move || Cluster::start_with(102, false, Some(net2), &asks));
        let edge1 = Cluster::start(101, true, Some(net1))?;
        let edge2 = starting.join().map_err(|_| anyhow::anyhow!("starting edge2 panicked"))??;
        let hub = Hub::start(&dir, 18643, &names)?;
        let mut world = Self { agent1: None, agent2: None, hub, edge1, edge2, dir, _temporary: temporary };
        world.join()?;
        world.rights()?;
        Ok(world)
    }

    fn join(&mut self) -> Result<()> {
        for (cluster, name) in [(&self.edge1, "edge1"), (&self.edge2, "edge2")] {
            let network = cluster.network().context("a network")?;
            let mut join = self.hub.join_command(name)?;
            // Each network reaches the hub by its own side's address.
            for word in &mut join {
                if word.starts_with("https://") {
                    *word = format!("https://{}:{}", network.outside, self.hub.port);
                }
            }
            let room = crate::endpoint::room(&self.dir).display().to_string();
            let more = ["--endpoint-dir", room.as_str()];
            let more = if name == "edge2" { &more[..] } else { &[] };
            let agent = Agent::start(cluster, &join, &self.dir.join(format!("agent-{name}")), more)?;
            self.hub.wait_connected(name, SOON).with_context(|| agent.process.log())?;
            *(if name == "edge1" { &mut self.agent1 } else { &mut self.agent2 }) = Some(agent);
        }
        Ok(())
    }

    fn rights(&self) -> Result<()> {
        let e1 = |args: &[&str]| self.edge1.admin(args).map(drop);
        e1(&["create", "namespace", "team"])?;
        // What controllers put into a new namespace is there before anything is compared.
        eventually("the namespace's own objects", Duration::from_secs(30), || {
            e1(&["-n", "team", "get", "configmap/kube-root-ca.crt", "serviceaccount/default"])
        })?;
        e1(&["create", "clusterrolebinding", "alice", "--clusterrole=admin", "--user", ALICE])?;
        e1(&["create", "clusterrole", "look", "--verb=get,list,watch", "--resource=nodes,namespaces"])?;
        e1(&["create", "clusterrolebinding", "alice-look", "--clusterrole=look", "--user", ALICE])?;
        e1(&["create", "clusterrole", "make-namespaces", "--verb=create,delete,patch", "--resource=namespaces"])?;
        e1(&["create", "clusterrolebinding", "alice-ns", "--clusterrole=make-namespaces", "--user", ALICE])?;
        e1(&["create", "clusterrole", "as-bob", "--verb=impersonate", "--resource=users", "--resource-name=bob"])?;
        e1(&["create", "clusterrolebinding", "alice-as-bob", "--clusterrole=as-bob", "--user", ALICE])?;
        e1(&["-n", "team", "create", "rolebinding", "bob", "--clusterrole=view", "--user", BOB])?;
        self.edge2.admin(&["create", "clusterrolebinding", "alice", "--clusterrole=view", "--user", ALICE])?;
        self.hub.add_user(ALICE, &["edge1", "edge2"])?;
        self.hub.add_user(BOB, &["edge1"])?;
        self.hub.add_user(CAROL, &[])?;
        Ok(())
    }

    /// kubectl as `user` through the hub.
    pub fn through(&self, user: &str, cluster: &str) -> Result<Command> {
        let config = self.dir.join(format!("{user}-{cluster}.kubeconfig"));
        if !config.exists() {
            self.hub.kubeconfig(user, cluster)?;
        }
        let mut command = Command::new(kubectl());
        command.arg("--kubeconfig").arg(config);
        Ok(command)
    }

    /// kubectl straight at edge1's API server from inside, as the same user by impersonation.
    pub fn direct(&self, user: &str) -> Command {
        let mut command = self.edge1.command(kubectl());
        command.arg("--kubeconfig").arg(self.edge1.kubeconfig()).args(["--as", user]);
        command
    }

    /// Runs kubectl as `user` through the hub on edge1 and wants success.
    pub fn kubectl(&self, user: &str, args: &[&str]) -> Result<String> {
        text(self.through(user, "edge1")?.args(args))
    }

    /// The bearer token that `user` logged in with.
    pub fn bearer(&self, user: &str) -> Result<String> {
        let path = self.hub.kubeconfig(user, "edge1")?;
        let config = std::fs::read_to_string(path)?;
        let line =
            config.lines().find_map(|l| l.trim().strip_prefix("token: ")).context("no token in the kubeconfig")?;
        Ok(line.trim_matches(['"', '\'']).to_owned())
    }

    /// Puts back what a failed scene took away.
    pub fn heal(&mut self) -> Result<()> {
        if self.hub.process.is_none() {
            self.hub.restart()?;
        }
        if self.agent1.is_none() {
            self.restart_agent1()?;
        }
        if self.agent2.is_none() {
            self.restart_agent2()?;
        }
        self.all_connected()
    }

    /// Waits for both agents.
    pub fn all_connected(&self) -> Result<()> {
        self.hub.wait_connected("edge1", SOON)?;
        self.hub.wait_connected("edge2", SOON)
    }

    /// The same for edge2's, which keeps bundles for its endpoints.
    pub fn restart_agent2(&mut self) -> Result<()> {
        self.agent2 = None;
        let before = Agent::connections(&self.dir.join("agent-edge2"));
        let network = self.edge2.network().context("a network")?;
        let url = format!("https://{}:{}", network.outside, self.hub.port);
        let words = ["moorline", "agent", "--hub", &url].map(str::to_owned);
        let room = crate::endpoint::room(&self.dir).display().to_string();
        let more = ["--endpoint-dir", room.as_str()];
        let agent = Agent::start(&self.edge2, &words, &self.dir.join("agent-edge2"), &more)?;
        self.agent2.insert(agent).connected(before)?;
        self.hub.wait_connected("edge2", SOON)
    }

    /// Starts edge1's agent again on the state that it has: no token.
    pub fn restart_agent1(&mut self) -> Result<()> {
        self.agent1 = None;
        let before = Agent::connections(&self.dir.join("agent-edge1"));
        let network = self.edge1.network().context("a network")?;
        let url = format!("https://{}:{}", network.outside, self.hub.port);
        let words = ["moorline", "agent", "--hub", &url].map(str::to_owned);
        let agent = Agent::start(&self.edge1, &words, &self.dir.join("agent-edge1"), &[])?;
        self.agent1.insert(agent).connected(before)?;
        self.hub.wait_connected("edge1", SOON)
    }
}

//! A hub in a process of its own, and as many node agents of one cluster as one likes, at the level of their greetings: each
//! joins, says how its node is, and holds a session or is parked.

use crate::{
    LONG,
    across::{ask, free_port, sum},
    client::{Admin, CLUSTER},
    fleet,
    world::Agent,
};
use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use moorline_e2e::process::Process;
use moorline_link::{Carrier, DialError, HubAddress, Identity, Limits, Session, Trust, dial_through, tls};
use moorline_proto::{
    code::CloseCode,
    control::{Hello, VERSION},
    id::InstanceId,
};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant, UNIX_EPOCH},
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// Agents that join or greet at once.
const AT_ONCE: usize = 8;
/// How long an agent stays that comes and goes.
const STAY: Duration = Duration::from_millis(300);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(100);

/// The hub and the credentials of its node agents.
pub struct Crowd {
    /// The hub.
    pub hub: Process,
    admin: Admin,
    members: Vec<Member>,
    trust: Trust,
    at: HubAddress,
    ops: u16,
    _dir: TempDir,
}

struct Member {
    name: String,
    zone: &'static str,
    identity: Identity,
}

/// What became of a round of greetings.
#[derive(Default)]
pub struct Round {
    /// Those that hold a session, with their zones.
    pub standing: Vec<(&'static str, Agent)>,
    /// How long the others were told to stay away.
    pub pauses: Vec<Duration>,
    /// Processor time of the hub's for it.
    pub busy: Duration,
}

impl Crowd {
    /// Starts a hub with one cluster.
    ///
    /// # Errors
    /// Anything that does not work.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (port, ops) = (free_port()?, free_port()?);
        let hub = fleet::start(&dir, port, ops)?;
        let ready = async {
            while ask(ops, "/readyz").await.is_err() {
                sleep(LOOK).await;
            }
        };
        timeout(LONG, ready).await.with_context(|| format!("the hub is not ready: {}", hub.log()))?;
        let admin = Admin::of(&dir.path().join("hub"), SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
        admin.make("clusters", "Cluster", json!({ "name": CLUSTER }), json!({})).await?;
        let trust = Trust { roots: vec![admin.root.clone()], domain: "moorline.local".parse()? };
        let at = HubAddress { host: "127.0.0.1".into(), port };
        Ok(Self { hub, admin, members: Vec::new(), trust, at, ops, _dir: dir })
    }

    /// So many more join, all in one zone.
    ///
    /// # Errors
    /// One is not let in.
    pub async fn join(&mut self, count: usize, zone: &'static str) -> Result<()> {
        self.join_as("node", count, zone).await
    }

    /// So many more agents of the cluster itself join, all of which may hold a session.
    ///
    /// # Errors
    /// One is not let in.
    pub async fn join_whole(&mut self, count: usize) -> Result<()> {
        self.join_as("agent", count, "a").await
    }

    async fn join_as(&mut self, role: &str, count: usize, zone: &'static str) -> Result<()> {
        let token = self.admin.join_token_of(CLUSTER, count).await?;
        let first = self.members.len();
        let joining = stream::iter(first..first + count).map(|n| {
            let (admin, token) = (&self.admin, &token);
            async move {
                let (key, name) = (KeyPair::generate()?, format!("worker-{n}"));
                let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
                let question = json!({ "token": token, "csr": csr, "name": name, "role": role });
                let until = Instant::now() + 2 * LONG;
                let answer = loop {
                    let (code, answer) = admin.ask("POST", "/agent/join", &question.to_string()).await?;
                    match code {
                        200 => break answer,
                        // A hub takes ten joins a second from one address.
                        429 if Instant::now() < until => sleep(LOOK).await,
                        _ => bail!("join: {code} {}", String::from_utf8_lossy(&answer)),
                    }
                };
                let answer: Value = serde_json::from_slice(&answer)?;
                let mut chain = Vec::new();
                for pem in answer["chain"].as_array().context("no chain")? {
                    chain.push(CertificateDer::from_pem_slice(pem.as_str().unwrap_or_default().as_bytes())?);
                }
                let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
                Ok(Member { name, zone, identity: Identity { chain, key } })
            }
        });
        let members: Vec<Member> = joining.buffered(AT_ONCE).try_collect().await?;
        self.members.extend(members);
        Ok(())
    }

    /// All of them greet, from the `first` on, and say how their nodes are.
    ///
    /// # Errors
    /// One is refused for another reason than that there are enough.
    pub async fn greet(&self, first: usize) -> Result<Round> {
        let before = self.busy()?;
        let all = stream::iter(self.members.iter().skip(first));
        let mut greeting = all.map(|member| async { (member.zone, self.one(member).await) }).buffered(AT_ONCE);
        let mut round = Round::default();
        while let Some((zone, outcome)) = greeting.next().await {
            match outcome {
                // The hub's own plugins ask it things: one that never answered would always be busy.
                Ok(session) => round.standing.push((zone, Agent::serve(session))),
                Err(DialError::Refused(goodbye)) if goodbye.code == CloseCode::Parked => {
                    round.pauses.push(Duration::from_millis(goodbye.retry_after_ms.into()));
                }
                Err(other) => bail!("{other}: {}", self.hub.log()),
            }
        }
        round.busy = self.busy()? - before;
        Ok(round)
    }

    /// The members come and go in turn, `each_second` of them, for `long`: the hub's memory in bytes, second by second.
    ///
    /// # Errors
    /// One is refused.
    pub async fn churn(&self, each_second: u32, long: Duration) -> Result<Vec<u64>> {
        let (begin, mut memory) = (Instant::now(), Vec::new());
        let times = (0..).map(|n| Duration::from_secs(1) * n / each_second).take_while(|at| *at < long);
        let visits = stream::iter(times.zip(self.members.iter().cycle())).map(|(at, member)| async move {
            sleep(at.saturating_sub(begin.elapsed())).await;
            let agent = Agent::serve(self.one(member).await?);
            sleep(STAY).await;
            agent.session.close(CloseCode::Normal, "it goes");
            Ok::<_, DialError>(())
        });
        let mut visits = visits.buffered(self.members.len() / 2);
        loop {
            if memory.len() as u64 <= begin.elapsed().as_secs() {
                memory.push(self.resident()?);
            }
            match visits.next().await {
                None => return Ok(memory),
                Some(visit) => visit.with_context(|| self.hub.log())?,
            }
        }
    }

    /// Files that the hub has open: sockets, most of them.
    ///
    /// # Errors
    /// There is no hub.
    pub fn files(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.hub.id()))?.count())
    }

    /// Sessions that the hub has.
    ///
    /// # Errors
    /// The hub does not say.
    pub async fn sessions(&self) -> Result<usize> {
        Ok(sum(self.ops, "moorline_hub_sessions_open", &[]).await? as usize)
    }

    async fn one(&self, member: &Member) -> Result<Session, DialError> {
        let bad = |cause: String| DialError::Tls { address: self.at.to_string(), cause };
        let tls = tls::client_config(&member.identity, &self.trust).map_err(|error| bad(error.to_string()))?;
        let facts = [
            ("node", member.name.as_str()),
            ("zone", member.zone),
            ("agentVersion", "0.1.0"),
            ("node.api", "ok"),
            ("node.ready", "ok"),
            ("node.osImage", "Debian GNU/Linux 13 (trixie)"),
            ("node.os", "linux"),
            ("node.arch", "amd64"),
            ("node.kernel", "6.12.48+deb13-amd64"),
            ("node.kubelet", "v1.34.1"),
            ("node.runtime", "containerd://1.7.24"),
            ("node.memory", "60"),
            ("node.disk", "40"),
        ];
        let hello = Hello {
            min_version: VERSION,
            max_version: VERSION,
            instance: InstanceId(1),
            software: "netsim/1".into(),
            capabilities: Vec::new(),
            facts: facts.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
            now_ms: UNIX_EPOCH.elapsed().map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or_default()),
        };
        let (session, _) = dial_through(&self.at, Carrier::Tls, None, tls, hello, &Limits::default()).await?;
        Ok(session)
    }

    /// Waits until the hub has written so many reports of nodes; how many it did.
    ///
    /// # Errors
    /// It has not, in time.
    pub async fn has_written(&self, count: usize) -> Result<usize> {
        let until = Instant::now() + LONG;
        loop {
            let written = sum(self.ops, "moorline_hub_node_reports_total", &["written"]).await? as usize;
            if count <= written {
                return Ok(written);
            }
            ensure!(Instant::now() < until, "{written} of {count} were written");
            sleep(LOOK).await;
        }
    }

    /// Node agents that hold a session, as the hub counts them.
    ///
    /// # Errors
    /// The hub does not say.
    pub async fn standing(&self) -> Result<usize> {
        Ok(sum(self.ops, "moorline_hub_sessions_open", &["node"]).await? as usize)
    }

    /// The hub's objects of nodes.
    ///
    /// # Errors
    /// The hub does not say.
    pub async fn nodes(&self) -> Result<usize> {
        let nodes = self.admin.look("nodes").await?;
        Ok(nodes["items"].as_array().map_or(0, Vec::len))
    }

    /// The hub's memory in bytes, once it has stopped falling.
    ///
    /// # Errors
    /// There is no hub.
    pub async fn memory(&self) -> Result<u64> {
        let mut last = self.resident()?;
        for _ in 0..20 {
            sleep(10 * LOOK).await;
            let now = self.resident()?;
            if last <= now + (64 << 10) {
                return Ok(now);
            }
            last = now;
        }
        Ok(last)
    }

    fn resident(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.hub.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// Processor time of the hub's.
    fn busy(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.hub.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no stat")?;
        // utime and stime are fields 14 and 15, in hundredths of a second (proc(5)).
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.hub.signal(libc::SIGKILL);
    }
}

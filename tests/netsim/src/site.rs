//! A whole agent, and an API server whose answer never ends.

use crate::{LONG, world::World};
use anyhow::Result;
use moorline_agent::{Config, Preference, UpstreamConfig};
use moorline_link::HubAddress;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::{fs, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// How often `/ticks` says the next number.
pub const TICK: Duration = Duration::from_millis(100);

/// The agent's process, but in ours. Dropping it ends it.
pub struct Site {
    registry: prometheus::Registry,
    _stop: tokio_util::sync::DropGuard,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Site {
    /// Joins an agent named `name` to the world's cluster by way of `at`, and runs it.
    ///
    /// # Errors
    /// The site cannot be set up; what the agent meets later shows in its metrics.
    pub async fn start(world: &World, name: &str, at: HubAddress, carrier: Preference) -> Result<Self> {
        let token = world.join_token().await?;
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
        let (upstream, api) = api_server(&dir).await?;
        let config = Config {
            hub: at,
            token,
            name: Some(name.parse()?),
            cluster: None,
            role: moorline_agent::AgentRole::Cluster,
            node_name: None,
            shell_root: "/".into(),
            state_dir: dir.join("state"),
            upstream,
            policy_file: None,
            carrier,
            state_secret: None,
            endpoint_dir: None,
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
        let tasks = [api, tokio::spawn(run)].map(AbortOnDropHandle::new);
        Ok(Self { registry, _stop: stop.drop_guard(), _tasks: tasks })
    }

    /// What carries the agent's session, by its own metrics; `None` before there is one.
    pub fn carrier(&self) -> Option<String> {
        let families = self.registry.gather();
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

async fn api_server(dir: &Path) -> Result<(UpstreamConfig, tokio::task::JoinHandle<()>)> {
    let key = KeyPair::generate()?;
    let cert = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![cert.der().clone()],
            PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    fs::write(dir.join("ca.crt"), cert.pem())?;
    fs::write(dir.join("token"), "edge-token\n")?;
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
         clusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n\
         users: [{{name: u, user: {{tokenFile: token}}}}]\n",
        listener.local_addr()?
    );
    let path = dir.join("kubeconfig");
    fs::write(&path, text)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((socket, _)) = listener.accept().await {
            connections.spawn(answer(socket, acceptor.clone()));
        }
    });
    Ok((UpstreamConfig::Kubeconfig { path, context: None }, task))
}

/// One request: `/ticks` counts for ever, anything else is answered with `ok`.
async fn answer(socket: TcpStream, acceptor: TlsAcceptor) -> Result<()> {
    let mut stream = acceptor.accept(socket).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let ticks = String::from_utf8_lossy(&head).lines().next().is_some_and(|line| line.contains("/ticks"));
    if !ticks {
        let text = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
        stream.write_all(text).await?;
        return Ok(stream.shutdown().await?);
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
    for n in 0.. {
        let line = format!("tick {n}\n");
        stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await?;
        stream.flush().await?;
        sleep(TICK).await;
    }
    Ok(())
}

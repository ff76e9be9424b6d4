//! The hub, its cluster, its agent.

use crate::client::{Admin, CLUSTER, pattern};
use anyhow::{Context, Result};
use http::{Request, Response};
use moorline_hub::{Config, Hub};
use moorline_link::{Carrier, DialError, HttpProxy, HubAddress, Identity, Limits, Session, Trust, dial_through, tls};
use moorline_proto::{control::Hello, control::VERSION, id::InstanceId};
use moorline_proxy::{Body, body, wire};
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::{Value, json};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// How long open work may take when the hub goes away: short, so that a scene sees what is cut by it and what is not.
pub const GRACE: Duration = Duration::from_secs(2);

/// A hub with one cluster, and the credentials of an agent of it.
pub struct World {
    hub: Hub,
    dir: TempDir,
    /// Its administrator, on loopback.
    pub admin: Admin,
    identity: Identity,
    trust: Trust,
}

impl World {
    /// Starts the hub and joins the agent.
    ///
    /// # Errors
    /// Anything that does not work.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut config = Config::new(dir.path().join("hub"));
        config.listen = "127.0.0.1:0".parse()?;
        config.ops_listen = config.listen;
        config.names = vec!["localhost".to_owned()];
        config.limits.grace = GRACE;
        let hub = Hub::start(config, &prometheus::Registry::new()).await?;
        let admin = Admin::of(&dir.path().join("hub"), hub.addr())?;
        let roots = vec![admin.root.clone()];
        let key = KeyPair::generate()?;
        let identity =
            Identity { chain: Vec::new(), key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())) };
        let mut world = Self { hub, dir, admin, identity, trust: Trust { roots, domain: "moorline.local".parse()? } };
        world.admin.make("clusters", "Cluster", json!({ "name": CLUSTER }), json!({})).await?;
        let token = world.admin.join_token().await?;
        let csr = CertificateParams::default().serialize_request(&key)?.pem()?;
        let question = json!({ "token": token, "csr": csr, "name": "a1" });
        let (code, answer) = world.admin.ask("POST", "/agent/join", &question.to_string()).await?;
        anyhow::ensure!(code == 200, "join: {code}");
        let answer: Value = serde_json::from_slice(&answer)?;
        for pem in answer["chain"].as_array().context("no chain")? {
            world.identity.chain.push(CertificateDer::from_pem_slice(pem.as_str().unwrap_or_default().as_bytes())?);
        }
        world.trust.domain = answer["trustDomain"].as_str().unwrap_or_default().parse()?;
        Ok(world)
    }

    /// The hub's port.
    pub fn port(&self) -> u16 {
        self.hub.addr().port()
    }

    /// A folder that ends with the world.
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Dials as the agent to `at`, which may be a proxy in front of the hub.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn dial(
        &self,
        at: &HubAddress,
        carrier: Carrier,
        proxy: Option<&HttpProxy>,
        limits: &Limits,
    ) -> Result<Agent, DialError> {
        let tls = tls::client_config(&self.identity, &self.trust);
        let tls = tls.map_err(|error| DialError::Tls { address: at.to_string(), cause: error.to_string() })?;
        let hello = Hello {
            min_version: VERSION,
            max_version: VERSION,
            instance: InstanceId(1),
            software: "netsim/1".into(),
            capabilities: Vec::new(),
            facts: Vec::new(),
            now_ms: 0,
        };
        let (session, _) = dial_through(at, carrier, proxy, tls, hello, limits).await?;
        Ok(Agent::serve(session))
    }
}

/// An agent whose API server is a pattern.
pub struct Agent {
    /// Its session.
    pub session: Session,
    _task: AbortOnDropHandle<()>,
}

impl Agent {
    pub(crate) fn serve(session: Session) -> Self {
        let accepting = session.clone();
        let task = tokio::spawn(async move {
            let mut streams = JoinSet::new();
            while let Some(stream) = accepting.accept().await {
                streams.spawn(wire::serve(stream.accept(), answer));
                while streams.try_join_next().is_some() {}
            }
        });
        Self { session, _task: AbortOnDropHandle::new(task) }
    }
}

async fn answer(request: Request<Body>) -> Response<Body> {
    match request.uri().path().rsplit('/').next().and_then(|size| size.parse().ok()) {
        Some(size) => Response::new(body::full(pattern(size))),
        None => Response::new(request.into_body()),
    }
}

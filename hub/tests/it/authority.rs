//! The hub's authority is replaced by another.

use crate::world::{API, Agent, LONG, Member, World, eventually, read_answer};
use moorline_hub::authority::{CaStatus, CaStep, RotationError, step};
use moorline_link::{Carrier, DialError, Identity, Trust, tls};
use moorline_proto::{code::CloseCode, control::Control};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use std::path::Path;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

const NEVER: &str = "2999-01-01T00:00:00Z";

/// What `moorline hub ca …` does.
async fn ca(data: &Path, what: CaStep) -> Result<CaStatus, RotationError> {
    let data = data.to_owned();
    tokio::task::spawn_blocking(move || step(&data, what)).await.unwrap()
}

impl World {
    async fn ca_step(&self, what: CaStep) -> Result<CaStatus, RotationError> {
        ca(&self.dir.path().join("hub"), what).await
    }

    /// Makes the next authority and waits until agents get certificates of it.
    async fn rotate(&self) {
        self.ca_step(CaStep::Rotate).await.unwrap();
        let issuing = async || self.pin_of_a_token().await == self.pin("ca-next.crt");
        eventually("the listeners believe both", issuing).await;
    }

    fn pin(&self, file: &str) -> [u8; 32] {
        tls::spki_sha256(&self.root(file)).unwrap()
    }

    fn root(&self, file: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.dir.path().join("hub").join(file)).unwrap()
    }

    async fn pin_of_a_token(&self) -> [u8; 32] {
        let token = self.join_token("pins", 1, NEVER).await;
        moorline_authz::token::TokenText::parse(&token).unwrap().pin.unwrap()
    }

    /// Whether the port proves itself to who knows this pin alone.
    async fn is_known_by(&self, pin: [u8; 32]) -> bool {
        let socket = TcpStream::connect(self.hub.addr()).await.unwrap();
        let config = tls::pinned_client_config(pin, &[b"http/1.1"]).unwrap();
        TlsConnector::from(config).connect(ServerName::try_from("localhost").unwrap(), socket).await.is_ok()
    }

    async fn holds(&self, agent: &str) -> Value {
        self.get(&self.admin, &format!("{API}/agents/{agent}")).await.json()["status"]["authority"].clone()
    }
}

/// What an agent is offered, as it keeps it.
async fn offered(agent: &Agent, had: &Member) -> Member {
    let message = timeout(LONG, agent.session.recv()).await.expect("an offer in time");
    let Some(Control::Renewed { chain, bundle }) = message else { panic!("{message:?}") };
    let certs = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
    let identity = Identity { chain: certs(chain), key: had.identity.key.clone_key() };
    Member { identity, trust: Trust { roots: certs(bundle), domain: had.trust.domain.clone() } }
}

fn same(member: &Member) -> Member {
    Member { identity: member.identity.clone(), trust: member.trust.clone() }
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_an_authority_is_replaced_and_nobody_is_cut_off() {
    let world = World::new().await;
    world.cluster("pins").await;
    let before = world.pin("ca.crt");
    let old_root = world.root("ca.crt");
    let mut agents = Vec::new();
    for carrier in [Carrier::Tls, Carrier::Quic, Carrier::WebSocket] {
        let cluster = format!("edge-{carrier}");
        world.cluster(&cluster).await;
        let token = world.join_token(&cluster, 1, NEVER).await;
        let member = world.join(&token, "a1", None).await.unwrap();
        agents.push((carrier, cluster, world.dial(&member, carrier, 1).await.unwrap(), member));
    }
    let clusters: Vec<&str> = agents.iter().map(|(_, cluster, ..)| cluster.as_str()).collect();
    let anna = world.user("anna", &clusters).await;
    let mut streams = Vec::new();
    for (carrier, cluster, agent, _) in &agents {
        let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
        let ask = format!(
            "GET /k8s/clusters/{cluster}/waits HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {anna}\r\n\r\n"
        );
        stream.write_all(ask.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let there = async || agent.lines().iter().any(|line| line.contains("waits"));
        eventually("a request that takes its time", there).await;
        streams.push((*carrier, stream));
    }
    let early = world.join_token("edge-tls", 1, NEVER).await;
    assert!(matches!(world.ca_step(CaStep::Retire).await, Err(RotationError::Hub(why)) if why.contains("ca rotate")));

    world.rotate().await;
    assert!(matches!(world.ca_step(CaStep::Rotate).await, Err(RotationError::Hub(why)) if why.contains("already")));
    assert_eq!(world.metric("moorline_hub_authority_rotating"), 1.0);
    let next = world.pin("ca-next.crt");
    assert_ne!(next, before);
    assert!(world.is_known_by(before).await && world.is_known_by(next).await, "by the pin of either");
    let both = world.get(&world.admin, "/auth/ca").await.body;
    let both: Vec<_> = CertificateDer::pem_slice_iter(both.as_bytes()).map(Result::unwrap).collect();
    assert_eq!(both, [world.root("ca-next.crt"), old_root], "the one that stays comes first");

    let refused = world.ca_step(CaStep::Retire).await;
    assert!(
        matches!(&refused, Err(RotationError::Hub(why)) if why.contains("edge-quic.a1") && why.contains("--force")),
        "{refused:?}"
    );
    let mut later = Vec::new();
    for (carrier, cluster, agent, member) in &agents {
        let new = offered(agent, member).await;
        assert_eq!(new.trust.roots, both);
        // Away at that moment, the agent would come back with the old one.
        let back = world.dial(&same(member), *carrier, 1).await.unwrap();
        let again = world.dial(&new, *carrier, 1).await.unwrap();
        drop(back);
        let text = format!("sha256:{}", next.iter().map(|b| format!("{b:02x}")).collect::<String>());
        eventually("it is noted", async || world.holds(&format!("{cluster}.a1")).await == json!(text)).await;
        later.push((again, new));
    }
    let joined = world.join(&early, "a2", None).await.unwrap();
    assert_eq!(joined.trust.roots, both, "a token of before is good, and what it gives lasts");

    let status = world.ca_step(CaStep::Status).await.unwrap();
    assert_eq!((status.hold, status.behind, status.named), (3, 1, vec!["edge-tls.a2".to_owned()]));
    let a2 = world.dial(&joined, Carrier::Tls, 9).await.unwrap();
    eventually("nobody is behind", async || world.ca_step(CaStep::Status).await.unwrap().behind == 0).await;
    let status = world.ca_step(CaStep::Retire).await.unwrap();
    assert!(status.next.is_none());
    eventually("who knows the old one alone is refused", async || !world.is_known_by(before).await).await;
    assert!(world.is_known_by(next).await);
    assert_eq!(world.pin("ca.crt"), next);
    assert_eq!(world.metric("moorline_hub_authority_rotating"), 0.0);
    for ((carrier, _, _, old), (again, new)) in agents.iter().zip(&later) {
        assert!(timeout(LONG, again.session.ping()).await.unwrap().is_ok(), "{carrier}");
        // The old authority is to be forgotten.
        let last = offered(again, new).await;
        assert_eq!(last.trust.roots, [world.root("ca.crt")], "{carrier}");
        world.dial(&last, *carrier, 1).await.unwrap();
        // Who slept through it knows no such hub, and is known to none.
        let Err(DialError::Tls { cause, .. }) = world.dial(old, *carrier, 1).await else { panic!("{carrier}: let in") };
        assert!(cause.contains("does not trust"), "{carrier}: {cause}");
        let half = Member { identity: old.identity.clone(), trust: last.trust.clone() };
        let Err(error) = world.dial(&half, *carrier, 1).await else { panic!("{carrier}: let in") };
        assert!(error.to_string().contains("authority that the hub does not know"), "{carrier}: {error}");
    }
    for ((_, _, agent, _), (carrier, mut stream)) in agents.iter().zip(streams) {
        agent.release.notify_one();
        assert_eq!(read_answer(&mut stream).await.code, 200, "{carrier}: what was open over all of it was cut");
    }
    drop(a2);
    let kubeconfig: Value =
        serde_json::from_slice(&std::fs::read(world.dir.path().join("hub/admin.kubeconfig")).unwrap()).unwrap();
    let data = kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
    let pem = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, data).unwrap();
    assert_eq!(CertificateDer::from_pem_slice(&pem).unwrap(), world.root("ca.crt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_without_overlap_who_holds_the_old_one_is_put_out_with_a_reason() {
    let world = World::new().await;
    world.cluster("pins").await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    world.rotate().await;
    let status = world.ca_step(CaStep::ForceRetire).await.unwrap();
    assert_eq!(status.behind, 1);
    let why = timeout(LONG, agent.session.closed()).await.unwrap();
    assert_eq!(why.code, CloseCode::CredentialGone);
    let token = world.join_token("edge1", 1, NEVER).await;
    let anew = world.join(&token, "a2", None).await.unwrap();
    world.dial(&anew, Carrier::Tls, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn f26_a_hub_that_is_started_anew_goes_on_where_it_was() {
    let world = World::new().await;
    world.cluster("pins").await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 1, NEVER).await;
    let member = world.join(&token, "a1", None).await.unwrap();
    let before = world.pin("ca.crt");
    let (world, data) = restarted(world).await;
    let stopped = world.stop().await;
    // While none runs.
    let status = ca(&data, CaStep::Rotate).await.unwrap();
    assert!(status.next.is_some() && !status.counted);
    assert!(matches!(ca(&data, CaStep::Retire).await, Err(RotationError::Unknown)));
    let world = stopped.start().await;
    let agent = world.dial(&member, Carrier::Tls, 1).await.unwrap();
    let new = offered(&agent, &member).await;
    drop(agent);
    assert!(world.is_known_by(before).await && world.is_known_by(world.pin("ca-next.crt")).await);
    let stopped = world.stop().await;
    let status = ca(&data, CaStep::ForceRetire).await.unwrap();
    assert!(status.next.is_none());
    let world = stopped.start().await;
    world.dial(&new, Carrier::Tls, 1).await.unwrap();
    assert!(world.dial(&member, Carrier::Tls, 1).await.is_err());
    assert!(!world.is_known_by(before).await);
}

/// A hub's folder, between two runs.
struct Stopped {
    dir: tempfile::TempDir,
}

impl Stopped {
    async fn start(self) -> World {
        World::in_folder(self.dir, |_| {}).await
    }
}

impl World {
    async fn stop(self) -> Stopped {
        self.hub.shutdown().await;
        Stopped { dir: self.dir }
    }
}

async fn restarted(world: World) -> (World, std::path::PathBuf) {
    let data = world.dir.path().join("hub");
    (world.stop().await.start().await, data)
}

//! Node agents: they stand by, take over, and hand back.

use crate::world::{API, Agent, LONG, Member, World, eventually};
use moorline_link::{Carrier, DialError};
use moorline_proto::{code::CloseCode, control::Control};
use rcgen::CertificateParams;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
    task::JoinSet,
};

const LATE: &str = "2999-01-01T00:00:00Z";

impl World {
    async fn nodes(&self, count: u32) -> Vec<Member> {
        let token = self.join_token("edge1", count, LATE).await;
        let mut members = Vec::new();
        for n in 0..count {
            members.push(self.join_node(&token, &format!("n{n}")).await);
        }
        members
    }

    async fn node_in(&self, member: &Member, zone: &str) -> Result<Agent, DialError> {
        self.dial_with(member, Carrier::Tls, 1, self.hub.addr().port(), &[("zone", zone)]).await
    }

    async fn reason(&self) -> String {
        let cluster = self.get(&self.admin, &format!("{API}/clusters/edge1")).await.json();
        cluster["status"]["conditions"][0]["reason"].as_str().unwrap_or_default().to_owned()
    }

    fn standing(&self) -> f64 {
        self.metric("moorline_hub_sessions_open{carrier=\"tls\",role=\"node\"}")
    }
}

fn parked(result: Result<Agent, DialError>) -> Option<u32> {
    match result {
        Err(DialError::Refused(goodbye)) if goodbye.code == CloseCode::Parked => Some(goodbye.retry_after_ms),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_agent_carries_requests_while_there_is_no_cluster_agent() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let user = world.user("ana", &["edge1"]).await;
    let node = world.nodes(1).await.remove(0);
    let node = world.dial(&node, Carrier::Tls, 1).await.unwrap();
    eventually("standing by", async || world.standing() == 1.0).await;
    let path = "/k8s/clusters/edge1/api/v1/nodes";

    assert_eq!(world.get(&user, path).await.code, 200);
    assert!(node.lines().is_empty(), "a node agent only stands by: {:?}", node.lines());

    agent.session.close(CloseCode::Normal, "evicted");
    eventually("taken over", async || world.get(&user, path).await.code == 200 && !node.lines().is_empty()).await;
    assert!(world.metric("moorline_hub_fallback_streams_total") >= 1.0);
    assert_eq!(node.last().principal.user, "ana", "the same identity, whoever carries it");
    eventually("told", async || world.reason().await == "NodeAgentOnly").await;

    let token = world.join_token("edge1", 1, LATE).await;
    let back = world.join(&token, "a2", None).await.unwrap();
    let back = world.dial(&back, Carrier::Tls, 1).await.unwrap();
    eventually("told", async || world.reason().await == "AgentConnected").await;
    let before = node.lines().len();
    assert_eq!(world.get(&user, path).await.code, 200);
    assert_eq!((node.lines().len(), back.lines().is_empty()), (before, false), "handed back at once");
}

/// Its cluster's owner has it act for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_agent_that_is_there_for_its_node_alone_carries_nothing() {
    let world = World::new().await;
    let agent = world.connected("edge1", Carrier::Tls).await;
    let user = world.user("ana", &["edge1"]).await;
    let member = world.nodes(1).await.remove(0);
    let apart = || world.dial_with(&member, Carrier::Tls, 1, world.hub.addr().port(), &[("standIn", "0")]);
    assert!(parked(apart().await).is_some(), "nothing to stand by for");
    // Somebody has something for it to do: it is let in, and still carries nothing.
    let path = "/k8s/clusters/edge1/shell?node=n0";
    assert_eq!(world.get(&user, path).await.code, 503);
    let node = apart().await.unwrap();
    eventually("there", async || world.standing() == 1.0).await;
    agent.session.close(CloseCode::Normal, "evicted");
    eventually("told", async || world.reason().await == "NoAgent").await;
    assert_eq!(world.get(&user, "/k8s/clusters/edge1/api/v1/nodes").await.code, 503);
    let cluster = world.get(&world.admin, &format!("{API}/clusters/edge1")).await.json();
    assert_eq!(cluster["status"]["nodeAgents"].as_u64().unwrap_or_default(), 0, "{cluster}");
    assert!(node.lines().is_empty(), "{:?}", node.lines());
    // One that does stand by takes over beside it.
    let token = world.join_token("edge1", 1, LATE).await;
    let other = world.join_node(&token, "n9").await;
    let other = world.dial(&other, Carrier::Tls, 1).await.unwrap();
    eventually("taken over", async || world.get(&user, "/k8s/clusters/edge1/api/v1/nodes").await.code == 200).await;
    assert_eq!((other.lines().len(), node.lines().len()), (1, 0));
}

/// Nor does it take the place of one that does, be it alone in its zone.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_agent_that_is_there_for_its_node_alone_takes_nobodys_place() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let members = world.nodes(3).await;
    let _standing = [world.node_in(&members[0], "a").await.unwrap(), world.node_in(&members[1], "a").await.unwrap()];
    eventually("standing by", async || world.standing() == 2.0).await;
    let facts = [("zone", "b"), ("standIn", "0")];
    let apart = world.dial_with(&members[2], Carrier::Tls, 1, world.hub.addr().port(), &facts).await;
    assert!(parked(apart).is_some());
    assert_eq!(world.standing(), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn few_node_agents_hold_sessions_and_the_others_are_asked_to_come_again() {
    let world = World::with(|config| config.limits.standby_nodes = 2).await;
    world.cluster("edge1").await;
    let nodes = world.nodes(4).await;
    // All at once: promised places count.
    let mut standing = Vec::new();
    let mut pauses = Vec::new();
    let (a, b, c, d) = tokio::join!(
        world.dial(&nodes[0], Carrier::Tls, 1),
        world.dial(&nodes[1], Carrier::Tls, 1),
        world.dial(&nodes[2], Carrier::Tls, 1),
        world.dial(&nodes[3], Carrier::Tls, 1),
    );
    for (n, result) in [a, b, c, d].into_iter().enumerate() {
        match result {
            Ok(agent) => standing.push((n, agent)),
            other => pauses.extend(parked(other)),
        }
    }
    assert_eq!((standing.len(), pauses.len()), (2, 2));
    assert!(pauses.iter().all(|pause| *pause >= 20_000), "{pauses:?}");
    eventually("in the table", async || world.standing() == 2.0).await;

    // A session of one's own may be replaced at any time, and a place that is free goes to whoever asks.
    let (first, _) = &standing[0];
    let again = world.dial(&nodes[*first], Carrier::Tls, 1).await.unwrap();
    again.session.close(CloseCode::Normal, "gone");
    for (_, agent) in &standing {
        agent.session.close(CloseCode::Normal, "gone");
    }
    eventually("gone", async || world.standing() == 0.0).await;
    let waiting = (0..4).find(|n| standing.iter().all(|(stood, _)| stood != n)).unwrap();
    world.dial(&nodes[waiting], Carrier::Tls, 1).await.unwrap();
}

/// Certificates are renewed in sessions: one that is parked for good would be locked out when its own has expired.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_node_agent_is_let_in_for_a_new_certificate() {
    let world = World::with(|config| config.limits.standby_nodes = 1).await;
    world.cluster("edge1").await;
    let nodes = world.nodes(2).await;
    let _stands = world.dial(&nodes[0], Carrier::Tls, 1).await.unwrap();
    eventually("standing", async || world.standing() == 1.0).await;
    assert!(parked(world.dial(&nodes[1], Carrier::Tls, 1).await).is_some());

    let old = world.until(&nodes[1], SystemTime::now() + Duration::from_secs(86_400));
    let guest = world.session(&old).await;
    let csr = CertificateParams::default().serialize_request(&old.key_pair()).unwrap();
    guest.send(Control::Renew { csr: csr.der().to_vec() }).await.unwrap();
    let renewed = tokio::time::timeout(Duration::from_secs(20), guest.recv()).await.expect("an answer in time");
    assert!(matches!(renewed, Some(Control::Renewed { .. })), "{renewed:?}");
    // With its new certificate it takes its own place, and has none any more once it has left.
    let again = world.session(&nodes[1]).await;
    for session in [&guest, &again] {
        session.close(CloseCode::Normal, "renewed");
    }
    eventually("parked again", async || match world.dial(&nodes[1], Carrier::Tls, 1).await {
        Err(DialError::Refused(goodbye)) => goodbye.code == CloseCode::Parked,
        Err(_) => false,
        Ok(early) => {
            early.session.close(CloseCode::Normal, "not yet");
            false
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_agents_that_stand_by_are_spread_over_zones() {
    let world = World::with(|config| config.limits.standby_nodes = 2).await;
    world.cluster("edge1").await;
    let nodes = world.nodes(4).await;
    let first = world.node_in(&nodes[0], "a").await.unwrap();
    let second = world.node_in(&nodes[1], "a").await.unwrap();
    eventually("standing", async || world.standing() == 2.0).await;
    assert!(parked(world.node_in(&nodes[2], "a").await).is_some());

    let third = world.node_in(&nodes[2], "b").await.unwrap();
    let reason =
        tokio::select! { reason = first.session.closed() => reason, reason = second.session.closed() => reason };
    assert_eq!((reason.code, reason.by_peer), (CloseCode::Parked, true));
    eventually("one of each zone", async || world.standing() == 2.0).await;
    assert!(parked(world.node_in(&nodes[3], "b").await).is_some());
    assert!(third.session.ping().await.is_ok());
}

/// A way to the hub that can fall silent.
struct Gate {
    port: u16,
    shut: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Gate {
    async fn to(hub: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, shut) = (listener.local_addr().unwrap().port(), Arc::new(AtomicBool::new(false)));
        let closed = shut.clone();
        let task = tokio::spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(hub).await.unwrap();
                let ((a, b), (c, d)) = (near.into_split(), far.into_split());
                all.spawn(pass(a, d, closed.clone()));
                all.spawn(pass(c, b, closed.clone()));
            }
        });
        Self { port, shut, task }
    }
}

/// Passes bytes on while the gate is open, and swallows them while it is shut.
async fn pass(mut from: tcp::OwnedReadHalf, mut to: tcp::OwnedWriteHalf, shut: Arc<AtomicBool>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if !shut.load(Ordering::SeqCst) && to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_agent_that_fell_silent_gets_no_new_requests() {
    let (world, user, gate, agent, node) = behind_a_gate(Duration::from_secs(3)).await;
    let path = "/k8s/clusters/edge1/api/v1/nodes";
    assert_eq!(world.get(&user, path).await.code, 200);
    assert_eq!((agent.lines().len(), node.lines().len()), (1, 0));

    gate.shut.store(true, Ordering::SeqCst);
    eventually("noticed", async || world.reason().await == "NodeAgentOnly").await;
    let open = world.metric("moorline_hub_sessions_open{carrier=\"tls\",role=\"agent\"}");
    assert_eq!(open, 1.0, "long before the session counts as dead");
    assert_eq!(world.get(&user, path).await.code, 200);
    assert_eq!((agent.lines().len(), node.lines().len()), (1, 1));
}

/// A cluster agent that stands behind a gate, and a node agent that stands by.
async fn behind_a_gate(doubt: Duration) -> (World, String, Gate, Agent, Agent) {
    let world = World::with(|config| {
        config.limits.probe = Duration::from_millis(100);
        config.limits.doubt = doubt;
    })
    .await;
    world.cluster("edge1").await;
    let user = world.user("ana", &["edge1"]).await;
    let token = world.join_token("edge1", 1, LATE).await;
    let member = world.join(&token, "a1", None).await.unwrap();
    let gate = Gate::to(world.hub.addr()).await;
    let agent = world.dial_with(&member, Carrier::Tls, 1, gate.port, &[]).await.unwrap();
    let node = world.nodes(1).await.remove(0);
    let node = world.dial(&node, Carrier::Tls, 1).await.unwrap();
    eventually("standing by", async || world.standing() == 1.0).await;
    (world, user, gate, agent, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_begins_before_the_silence_is_noticed_is_done_by_a_node_agent_and_once() {
    let (world, user, gate, agent, node) = behind_a_gate(Duration::from_secs(1)).await;
    let path = "/k8s/clusters/edge1/api/v1/namespaces";
    gate.shut.store(true, Ordering::SeqCst);
    let new = serde_json::json!({ "kind": "Namespace" });
    let (read, write) = tokio::join!(world.get(&user, path), world.call(&user, "POST", path, &new));
    assert_eq!((read.code, write.code), (200, 200), "{read:?} {write:?}");
    assert_eq!(agent.lines().len(), 0, "{:?}", agent.lines());
    let mut done = node.lines();
    done.sort();
    assert_eq!(done, [format!("GET {}", &path[19..]), format!("POST {}", &path[19..])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_under_way_is_not_made_twice() {
    let (world, user, gate, agent, node) = behind_a_gate(Duration::from_secs(3)).await;
    let path = "/k8s/clusters/edge1/waits";
    let new = serde_json::json!({});
    let call = async { world.call(&user, "POST", path, &new).await };
    let silence = async {
        tokio::time::timeout(LONG, agent.reached.notified()).await.expect("it reaches the agent");
        gate.shut.store(true, Ordering::SeqCst);
        eventually("noticed", async || world.reason().await == "NodeAgentOnly").await;
        gate.task.abort();
    };
    let (answer, ()) = tokio::join!(call, silence);
    assert_eq!((answer.code, node.lines().len()), (502, 0), "{answer:?}");
}

/// The cluster agent's node falls silent with the node agent on it: requests are done on another node, though nothing says
/// which of the node agents is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_lost_with_all_that_is_on_it_is_passed_over() {
    const CALLS: usize = 8;
    let world = World::with(|config| {
        config.limits.probe = Duration::from_millis(100);
        config.limits.doubt = Duration::from_secs(1);
    })
    .await;
    world.cluster("edge1").await;
    let user = world.user("ana", &["edge1"]).await;
    let token = world.join_token("edge1", 1, LATE).await;
    let member = world.join(&token, "a1", None).await.unwrap();
    let gate = Gate::to(world.hub.addr()).await;
    let nodes = world.nodes(2).await;
    let agent = world.dial_with(&member, Carrier::Tls, 1, gate.port, &[]).await.unwrap();
    let lost = world.dial_with(&nodes[0], Carrier::Tls, 1, gate.port, &[]).await.unwrap();
    let other = world.dial(&nodes[1], Carrier::Tls, 1).await.unwrap();
    eventually("standing by", async || world.standing() == 2.0).await;
    let path = "/k8s/clusters/edge1/api/v1/namespaces";
    assert_eq!(world.get(&user, path).await.code, 200);
    assert_eq!((agent.lines().len(), lost.lines().len() + other.lines().len()), (1, 0));

    gate.shut.store(true, Ordering::SeqCst);
    let new = serde_json::json!({ "kind": "Namespace" });
    let call = async |_| {
        let (read, write) = tokio::join!(world.get(&user, path), world.call(&user, "POST", path, &new));
        assert_eq!((read.code, write.code), (200, 200), "{read:?} {write:?}");
    };
    futures_util::future::join_all((0..CALLS).map(call)).await;
    assert_eq!((agent.lines().len(), lost.lines().len()), (1, 0), "nothing has come to the lost node");
    assert_eq!(other.lines().len(), 2 * CALLS, "and each call to the other, once");
    let open = world.metric("moorline_hub_sessions_open{carrier=\"tls\",role=\"agent\"}");
    assert_eq!((open, world.standing()), (1.0, 2.0), "long before their sessions count as dead");
}

/// When the cluster agent was found silent nobody else was there. Whoever comes then takes what waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_silent_agent_is_done_by_a_node_agent_that_comes_later() {
    let (world, user, gate, agent, node) = behind_a_gate(Duration::from_millis(300)).await;
    let token = world.join_token("edge1", 1, LATE).await;
    let late = world.join_node(&token, "late").await;
    gate.shut.store(true, Ordering::SeqCst);
    eventually("noticed", async || world.reason().await == "NodeAgentOnly").await;
    node.session.close(CloseCode::Normal, "gone");
    eventually("alone", async || world.standing() == 0.0).await;
    let path = "/k8s/clusters/edge1/api/v1/namespaces";
    let help = async {
        eventually("it waits", async || world.metric("moorline_proxy_requests_in_flight") == 1.0).await;
        world.dial(&late, Carrier::Tls, 1).await.unwrap()
    };
    let (read, late) = tokio::join!(world.get(&user, path), help);
    assert_eq!((read.code, late.lines().len(), agent.lines().len()), (200, 1, 0), "{read:?}");
    let open = world.metric("moorline_hub_sessions_open{carrier=\"tls\",role=\"agent\"}");
    assert_eq!(open, 1.0, "long before the session counts as dead");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_switch_and_the_way_back_are_events_and_numbers() {
    let (world, _, gate, agent, _node) = behind_a_gate(Duration::from_secs(3)).await;
    gate.shut.store(true, Ordering::SeqCst);
    eventually("noticed", async || world.reason().await == "NodeAgentOnly").await;
    let (to_node, back) =
        ("moorline_hub_fallback_switches_total{to=\"node\"}", "moorline_hub_fallback_switches_total{to=\"agent\"}");
    eventually("counted", async || world.metric(to_node) == 1.0).await;
    let event = async |name: &str| world.get(&world.admin, &format!("{API}/events/{name}")).await;
    eventually("an event", async || event("edge1.nodeagentonly").await.code == 200).await;
    let told = event("edge1.nodeagentonly").await.json();
    assert_eq!((told["spec"]["type"].as_str(), told["spec"]["count"].as_u64()), (Some("Warning"), Some(1)), "{told}");

    // As kubectl describe asks.
    let uid = told["spec"]["involved"]["uid"].as_str().unwrap();
    let of = |name: &str| {
        format!(
            "/api/v1/events?fieldSelector=involvedObject.kind%3DCluster%2CinvolvedObject.name%3D{name}%2CinvolvedObject.uid%3D{uid}&limit=500"
        )
    };
    let list = world.get(&world.admin, &of("edge1")).await.json();
    let reasons: Vec<_> = list["items"].as_array().unwrap().iter().filter_map(|e| e["reason"].as_str()).collect();
    assert_eq!((list["kind"].as_str(), reasons.contains(&"NodeAgentOnly")), (Some("EventList"), true), "{list}");
    assert_eq!(world.get(&world.admin, &of("edge2")).await.json()["items"], serde_json::json!([]));
    let ana = world.user("eve", &[]).await;
    assert_eq!(world.get(&ana, "/api/v1/events").await.code, 403, "by the caller's own right");

    // The same session answers again, or another comes.
    gate.task.abort();
    drop(agent);
    let token = world.join_token("edge1", 1, LATE).await;
    let new = world.join(&token, "a2", None).await.unwrap();
    let _new = world.dial(&new, Carrier::Tls, 1).await.unwrap();
    eventually("back", async || world.metric(back) == 1.0).await;
    eventually("told", async || event("edge1.clusteragentback").await.code == 200).await;
    // They go with their cluster.
    assert_eq!(
        world.call(&world.admin, "DELETE", &format!("{API}/clusters/edge1"), &serde_json::Value::Null).await.code,
        200
    );
    eventually("gone", async || event("edge1.nodeagentonly").await.code == 404).await;
}

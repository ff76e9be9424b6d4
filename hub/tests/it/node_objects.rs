//! What node agents tell of their nodes, as objects of the hub's API.

use crate::world::{API, Member, World, eventually};
use moorline_link::{Carrier, DialError};
use moorline_proto::{code::CloseCode, control::Control};
use serde_json::Value;

const LATE: &str = "2999-01-01T00:00:00Z";

impl World {
    async fn node_object(&self, name: &str) -> Value {
        let answer = self.get(&self.admin, &format!("{API}/nodes/{name}")).await;
        if answer.code == 200 { answer.json() } else { Value::Null }
    }

    async fn node_agents(&self, cluster: &str, count: u32) -> Vec<Member> {
        let token = self.join_token(cluster, count, LATE).await;
        let mut members = Vec::new();
        for n in 0..count {
            members.push(self.join_node(&token, &format!("n{n}")).await);
        }
        members
    }
}

fn condition(node: &Value, name: &str) -> String {
    let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|c| c["type"] == name);
    found.map_or_else(String::new, |c| format!("{} {}", c["status"].as_str().unwrap(), c["reason"].as_str().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_agent_has_its_node_told_whether_it_stands_by_or_is_parked() {
    let world = World::with(|config| config.limits.standby_nodes = 1).await;
    world.connected("edge1", Carrier::Tls).await;
    let nodes = world.node_agents("edge1", 2).await;
    let told = [
        ("node", "worker-1.example"),
        ("node.kubelet", "v1.33.4"),
        ("node.ready", "ok"),
        ("node.etcd", "http://127.0.0.1:2379: refused"),
        ("node.roles", "control-plane"),
        ("node.cert.apiserver.crt", "1700000000"),
    ];
    let port = world.hub.addr().port();
    let standing = world.dial_with(&nodes[0], Carrier::Tls, 1, port, &told).await.unwrap();
    let parked = world.dial_with(&nodes[1], Carrier::Tls, 1, port, &[("node.kernel", "6.1\u{202e}x")]).await;
    assert!(matches!(parked, Err(DialError::Refused(goodbye)) if goodbye.code == CloseCode::Parked));

    eventually("both", async || {
        world.node_object("edge1.n0").await["status"].is_object()
            && world.node_object("edge1.n1").await["status"].is_object()
    })
    .await;
    let node = world.node_object("edge1.n0").await;
    assert_eq!(node["spec"]["node"], "worker-1.example");
    assert_eq!(node["metadata"]["labels"]["moorline.dev/cluster"], "edge1");
    assert_eq!(node["metadata"]["labels"]["node-role.kubernetes.io/control-plane"], "");
    assert_eq!(node["status"]["kubeletVersion"], "v1.33.4");
    assert_eq!(condition(&node, "Ready"), "True KubeletReady");
    assert_eq!(condition(&node, "EtcdReachable"), "False NoAnswer");
    assert_eq!(condition(&node, "CertificatesExpiring"), "True EndsWithinThirtyDays");
    assert_eq!(world.node_object("edge1.n1").await["status"]["kernelVersion"], "6.1x", "fit for a terminal");
    assert_eq!(world.node_object("edge1.a1").await, Value::Null, "a cluster agent has no node");

    let facts = [("node.kubelet", "v1.34.0"), ("node.ready", "False: KubeletNotReady"), ("node.etcd", "ok")];
    let facts = facts.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    standing.session.send(Control::Facts(facts)).await.unwrap();
    eventually("the change", async || world.node_object("edge1.n0").await["status"]["kubeletVersion"] == "v1.34.0")
        .await;
    let node = world.node_object("edge1.n0").await;
    assert_eq!(condition(&node, "Ready"), "False KubeletNotReady");
    assert_eq!(condition(&node, "EtcdReachable"), "True Answers");
    assert_eq!(node["spec"]["node"], "worker-1.example", "a name that was not told again stays");

    let written = || world.metric("moorline_hub_node_reports_total{result=\"written\"}");
    eventually("each word is written once", async || written() == 3.0).await;
    let answer = world.call(&world.admin, "DELETE", &format!("{API}/clusters/edge1"), &Value::Null).await;
    assert_eq!(answer.code, 200);
    eventually("gone with the cluster", async || {
        let nodes = world.get(&world.admin, &format!("{API}/nodes")).await.json();
        nodes["items"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_for_administrators_and_made_by_their_agents_alone() {
    let world = World::new().await;
    world.connected("edge1", Carrier::Tls).await;
    let user = world.user("ana", &["edge1"]).await;
    assert_eq!(world.get(&user, &format!("{API}/nodes")).await.code, 403);
    let spec = serde_json::json!({ "cluster": "edge1", "agent": "n0" });
    let object = serde_json::json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "Node", "metadata": { "name": "other" }, "spec": spec });
    let answer = world.call(&world.admin, "POST", &format!("{API}/nodes"), &object).await;
    assert_eq!(answer.code, 422, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_all_the_time_is_written_seldom_and_the_last_word_stands() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let node = world.node_agents("edge1", 1).await.remove(0);
    let port = world.hub.addr().port();
    let told = [("node.kubelet", "v0")];
    let standing = world.dial_with(&node, Carrier::Tls, 1, port, &told).await.unwrap();
    eventually("the first word", async || world.node_object("edge1.n0").await["status"].is_object()).await;
    let begun = std::time::Instant::now();
    for n in 1..=8 {
        let facts = vec![("node.kubelet".to_owned(), format!("v{n}"))];
        standing.session.send(Control::Facts(facts)).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await; // so that there is something to write each time
    }
    eventually("the last word", async || world.node_object("edge1.n0").await["status"]["kubeletVersion"] == "v8").await;
    let written = world.metric("moorline_hub_node_reports_total{result=\"written\"}");
    // The first, and one in five seconds from then on.
    let most = 2.0 + (begun.elapsed().as_secs_f64() / 5.0).floor();
    assert!(written <= most, "{written} writes in {:?}", begun.elapsed());
    assert!(standing.session.ping().await.is_ok());
}

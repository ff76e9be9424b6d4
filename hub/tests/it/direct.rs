//! What clusters' own endpoints get from the hub.

use crate::world::{API, Agent, World, eventually};
use moorline_authz::bundle::{Bundle, open};
use moorline_link::Carrier;
use rustls_pki_types::CertificateDer;
use serde_json::json;
use std::time::{Duration, Instant};

/// A cluster whose agent asks for bundles.
async fn edge(world: &World, name: &str) -> Agent {
    world.cluster(name).await;
    let token = world.join_token(name, 1, "2999-01-01T00:00:00Z").await;
    let member = world.join(&token, "a1", None).await.unwrap();
    world.dial_with(&member, Carrier::Tls, 1, world.hub.addr().port(), &[("endpoint", "1")]).await.unwrap()
}

fn read(ca: &CertificateDer<'_>, bytes: &str, cluster: &str) -> Bundle {
    let authority = webpki::EndEntityCert::try_from(ca).unwrap();
    let way = webpki::aws_lc_rs::ECDSA_P256_SHA256;
    let verify = |message: &[u8], signature: &[u8]| authority.verify_signature(way, message, signature).is_ok();
    open(bytes.as_bytes(), verify, cluster, None).unwrap()
}

/// The bundles that reached the agent.
fn got(world: &World, agent: &Agent, cluster: &str) -> Vec<Bundle> {
    let ca = world.ca();
    let seen = agent.seen.lock().unwrap();
    seen.iter().filter(|seen| seen.line == "PUT /bundle").map(|seen| read(&ca, &seen.body, cluster)).collect()
}

fn names(bundle: &Bundle) -> Vec<&str> {
    bundle.users.iter().map(|user| user.name.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_gets_a_bundle_for_each_change_that_is_about_it_and_no_other() {
    let world = World::new().await;
    let (one, two) = (edge(&world, "edge1").await, edge(&world, "edge2").await);
    let quiet = world.connected("edge3", Carrier::Tls).await;
    let newest = async |agent: &Agent, cluster: &str, what: &str, holds: &dyn Fn(&Bundle) -> bool| {
        eventually(what, async || got(&world, agent, cluster).last().is_some_and(holds)).await;
    };
    newest(&one, "edge1", "a first one", &|bundle| names(bundle) == ["admin"]).await;
    newest(&two, "edge2", "a first one", &|bundle| names(bundle) == ["admin"]).await;
    let of_two = got(&world, &two, "edge2").len();

    let key = world.user("anna", &["edge1"]).await;
    newest(&one, "edge1", "with anna", &|bundle| names(bundle) == ["admin", "anna"]).await;
    let first = got(&world, &one, "edge1").pop().unwrap();
    assert_eq!(first.users[1].groups, ["dev"]);
    assert!(first.api_keys.is_empty(), "a key for every cluster is known to the hub alone");
    assert!(first.expires > first.issued && !first.keys.is_empty());

    // A key that names the cluster, and its end: s51.
    let spec = json!({ "user": "anna", "expires": "2999-01-01T00:00:00Z", "clusters": ["edge1"] });
    let made = world.create("tokens", "Token", "", spec).await;
    let id = made["metadata"]["name"].as_str().unwrap().to_owned();
    newest(&one, "edge1", "with the key", &|bundle| bundle.api_keys.iter().any(|key| key.id == id)).await;
    let direct = world.call(&key, "POST", "/auth/token", &json!({ "clusters": ["edge1"] })).await;
    assert_eq!(direct.code, 200);
    assert_eq!(world.call(&world.admin, "DELETE", &format!("{API}/tokens/{id}"), &json!(null)).await.code, 200);
    newest(&one, "edge1", "without the key", &|bundle| {
        bundle.api_keys.is_empty() && bundle.revoked.iter().any(|revoked| revoked.id == id)
    })
    .await;
    // One whose time is brought forward to now has ended as well: tokens that were made by it are not good until its first end.
    let spec = json!({ "user": "anna", "expires": "2999-01-01T00:00:00Z" });
    let made = world.create("tokens", "Token", "", spec).await;
    let id = made["metadata"]["name"].as_str().unwrap().to_owned();
    world.patch(&format!("{API}/tokens/{id}"), &json!({ "spec": { "expires": "2020-01-01T00:00:00Z" } })).await;
    newest(&one, "edge1", "with a key whose time was cut", &|bundle| bundle.revoked.iter().any(|r| r.id == id)).await;
    world.patch(&format!("{API}/users/anna"), &json!({ "spec": { "disabled": true } })).await;
    newest(&one, "edge1", "without anna", &|bundle| names(bundle) == ["admin"]).await;
    let serials: Vec<u64> = got(&world, &one, "edge1").iter().map(|bundle| bundle.serial).collect();
    assert!(serials.windows(2).all(|pair| pair[0] < pair[1]), "{serials:?}");

    // The other cluster heard of the key's end, which may concern it, and of nothing else.
    for bundle in got(&world, &two, "edge2").iter().skip(of_two) {
        assert_eq!(names(bundle), ["admin"]);
    }
    assert!(quiet.lines().iter().all(|line| line != "PUT /bundle"), "whoever does not ask gets none");
    let cluster = world.get(&world.admin, &format!("{API}/clusters/edge1")).await.json();
    assert_eq!(cluster["status"]["direct"]["server"], "https://edge1.example:6444", "kubeconfigs can name it");
}

/// Whoever holds a node learns nothing of the cluster's users, and cannot say where they should send their tokens.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_agent_that_asks_for_bundles_gets_none() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 2, "2999-01-01T00:00:00Z").await;
    let node = world.join_node(&token, "n1").await;
    let (facts, port) = ([("endpoint", "1")], world.hub.addr().port());
    let node = world.dial_with(&node, Carrier::Tls, 1, port, &facts).await.unwrap();
    let agent = world.join(&token, "a1", None).await.unwrap();
    let agent = world.dial_with(&agent, Carrier::Tls, 2, port, &facts).await.unwrap();
    for users in 1..=3 {
        eventually("the agent's", async || got(&world, &agent, "edge1").last().is_some_and(|b| b.users.len() == users))
            .await;
        world.user(&format!("u{users}"), &["edge1"]).await;
    }
    assert_eq!(node.lines().iter().find(|line| line.contains("/bundle")), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_can_be_taken_away_by_an_administrator_alone() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let anna = world.user("anna", &[]).await;
    let path = "/auth/bundles/edge1";
    let answer = world.get(&world.admin, path).await;
    assert_eq!(names(&read(&world.ca(), &answer.body, "edge1")), ["admin"]);
    let later = world.get(&world.admin, path).await;
    let serial = |answer: &crate::world::Answer| read(&world.ca(), &answer.body, "edge1").serial;
    assert!(serial(&answer) < serial(&later));
    assert_eq!(world.get(&anna, path).await.code, 403);
    assert_eq!(world.get(&world.admin, "/auth/bundles/none").await.code, 404);
    assert_eq!(world.send("GET", path, &[], "").await.code, 401);
    assert!(world.audit_at_end().await.contains("/auth/bundles/edge1"));
}

/// F44: how far behind the others may be while one cluster does not answer.
const BEHIND: Duration = Duration::from_secs(5);

/// F44: a cluster of many agents, none of which ever answers, keeps no other cluster waiting.
#[tokio::test(flavor = "multi_thread")]
async fn f44_a_cluster_that_does_not_answer_keeps_no_other_waiting() {
    const SILENT: u32 = 70;
    let world = World::new().await;
    world.cluster("stuck").await;
    let token = world.join_token("stuck", SILENT, "2999-01-01T00:00:00Z").await;
    let mut silent = Vec::new();
    for n in 0..SILENT {
        let member = world.join(&token, &format!("a{n}"), None).await.unwrap();
        silent.push(world.dial_silent(&member, &[("endpoint", "1")]).await);
    }
    let one = edge(&world, "edge1").await;
    eventually("a first one", async || !got(&world, &one, "edge1").is_empty()).await;
    // What holds others up does so each time; a busy moment of the machine does not.
    let mut best = Duration::MAX;
    for n in 0..3 {
        let begun = Instant::now();
        world.user(&format!("anna{n}"), &["edge1"]).await;
        eventually("with her", async || got(&world, &one, "edge1").last().is_some_and(|b| b.users.len() == 2 + n))
            .await;
        best = best.min(begun.elapsed());
    }
    eprintln!("behind by {best:?}");
    assert!(best < BEHIND, "{best:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn f01_what_an_endpoint_recorded_is_taken_once_in_order_and_as_its_own_clusters() {
    let world = World::new().await;
    let agent = edge(&world, "edge1").await;
    let asked = |line: &str| agent.lines().iter().filter(|seen| *seen == line).count();
    // Asked again, it has nothing new.
    eventually("asked again", async || asked("GET /audit?after=2") >= 1).await;
    assert_eq!((asked("GET /audit?after=0"), asked("DELETE /audit?upto=2")), (1, 1));
    let log = world.audit_at_end().await;
    let at = |id: &str| log.find(&format!("\"auditID\":\"{id}\"")).unwrap_or_else(|| panic!("{id} in {log}"));
    assert!(at("a-1") < at("a-2") && log.matches("\"a-1\"").count() == 1, "{log}");
    let line = log.lines().find(|line| line.contains("\"a-1\"")).unwrap();
    assert!(
        line.contains("\"moorline.dev/cluster\":\"edge1\"") && line.contains("\"moorline.dev/path\":\"direct\""),
        "{line}"
    );
    assert!(!line.contains("somebody-elses") && !line.contains("forged"), "{line}");
}

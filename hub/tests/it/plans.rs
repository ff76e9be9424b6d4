//! Plans: signed, handed to nodes in turn, paused when one fails.

use crate::world::{API, World, eventually};
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use moorline_authz::plan::{self, Phase, Plan, ProbeResult, Progress};
use moorline_endpoint::trust::Anchors;
use moorline_link::{Carrier, DialError, Session};
use moorline_proto::{code::CloseCode, header::Target};
use moorline_proxy::{body, wire};
use serde_json::{Value, json};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// A node agent that takes plans and says of them what it is told to say.
#[derive(Default)]
struct Node {
    taken: Mutex<Vec<Plan>>,
    says: Mutex<Progress>,
    refuses: Mutex<Option<String>>,
    /// Plans that it was told to forget.
    forgotten: Mutex<Vec<String>>,
    /// It hears, and nobody learns of it: its answers are empty, and to an end there is none.
    mute: AtomicBool,
    /// Words that the hub has waited for in vain.
    given_up: AtomicUsize,
}

/// A question that is not answered, until whoever asked gives up.
struct Unanswered(Arc<Node>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.0.given_up.fetch_add(1, Ordering::Relaxed);
    }
}

impl Node {
    fn serve(session: Session, name: String, anchors: Anchors) -> Arc<Self> {
        let node = Arc::new(Self::default());
        let this = Arc::clone(&node);
        tokio::spawn(async move {
            while let Some(incoming) = session.accept().await {
                assert_eq!(incoming.header.target, Target::Node);
                assert_eq!(incoming.header.principal, None, "a plan is nobody's but the hub's");
                let (this, anchors, name) = (Arc::clone(&this), anchors.clone(), name.clone());
                let serve = wire::serve(incoming.accept(), async move |request| {
                    if request.method() == Method::DELETE {
                        this.forgotten.lock().unwrap().push(request.uri().path().to_owned());
                        if this.mute.load(Ordering::Relaxed) {
                            let _asked = Unanswered(Arc::clone(&this));
                            std::future::pending::<()>().await;
                        }
                    }
                    if request.method() == Method::PUT {
                        if let Some(why) = this.refuses.lock().unwrap().clone() {
                            let mut response = Response::new(body::full(why));
                            *response.status_mut() = StatusCode::FORBIDDEN;
                            return response;
                        }
                        let bytes = request.into_body().collect().await.unwrap().to_bytes();
                        let verify = |message: &[u8], signature: &[u8]| anchors.verify(message, signature);
                        let plan = plan::open(&bytes, verify, ("edge1", &name), 0).unwrap();
                        this.taken.lock().unwrap().push(plan);
                        if this.mute.load(Ordering::Relaxed) {
                            return Response::new(body::full("")); // as good as none
                        }
                    }
                    Response::new(body::full(serde_json::to_vec(&*this.says.lock().unwrap()).unwrap()))
                });
                let _ = serve.await; // the hub may have gone
            }
        });
        node
    }
    fn says(&self, phase: Phase, message: &str) {
        *self.says.lock().unwrap() = Progress { phase, message: message.to_owned(), ..Progress::default() };
    }
    fn taken(&self) -> usize {
        self.taken.lock().unwrap().len()
    }
}

async fn nodes(world: &World, count: u32) -> Vec<Arc<Node>> {
    world.cluster("edge1").await;
    let token = world.join_token("edge1", count, "2999-01-01T00:00:00Z").await;
    let anchors = Anchors::new(vec![world.ca()]).unwrap();
    let mut all = Vec::new();
    for n in 0..count {
        let member = world.join_node(&token, &format!("n{n}")).await;
        let session = world.session(&member).await;
        all.push(Node::serve(session, format!("n{n}"), anchors.clone()));
    }
    eventually("the nodes", async || {
        let nodes = world.get(&world.admin, &format!("{API}/nodes")).await.json();
        nodes["items"].as_array().is_some_and(|all| all.len() == count as usize)
    })
    .await;
    all
}

fn spec() -> Value {
    json!({
        "cluster": "edge1", "nodeSelector": { "moorline.dev/cluster": "edge1" },
        "steps": [{ "name": "one", "run": { "command": ["/bin/true"] } }],
    })
}

impl World {
    async fn plan(&self) -> Value {
        self.get(&self.admin, &format!("{API}/nodeplans/p")).await.json()["status"].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_goes_from_node_to_node_and_stops_where_one_fails() {
    let world = World::new().await;
    let nodes = nodes(&world, 3).await;
    nodes[0].says(Phase::Running, "step 1 of 1: one");
    world.create("nodeplans", "NodePlan", "p", spec()).await;
    eventually("the first begins", async || world.plan().await["phase"] == "Running").await;
    assert_eq!((nodes[0].taken(), nodes[1].taken()), (1, 0), "one at a time");
    assert_eq!(world.plan().await["message"], "n0: step 1 of 1: one");

    nodes[1].says(Phase::Failed, "step one: it\u{1b}[2J broke");
    nodes[0].says(Phase::Succeeded, "");
    eventually("paused", async || world.plan().await["phase"] == "Paused").await;
    let status = world.plan().await;
    assert_eq!((&status["done"], &status["failed"], &status["total"]), (&json!(1), &json!(1), &json!(3)));
    assert_eq!(status["message"], "n1: step one: it[2J broke", "fit for a terminal");
    assert_eq!(nodes[2].taken(), 0, "no further node begins");

    // Mended, and asked for again: done anew everywhere; agents that have it already say so.
    nodes[1].says(Phase::Succeeded, "");
    nodes[2].says(Phase::Succeeded, "");
    world.patch(&format!("{API}/nodeplans/p"), &json!({ "spec": { "run": "2" } })).await;
    eventually("done", async || world.plan().await["phase"] == "Succeeded").await;
    assert_eq!((nodes[0].taken(), nodes[1].taken(), nodes[2].taken()), (2, 2, 1));
    let sums: Vec<String> = nodes[0].taken.lock().unwrap().iter().map(Plan::checksum).collect();
    assert_ne!(sums[0], sums[1], "another run is another plan");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_clusters_owner_refuses_is_told_with_the_rule() {
    let world = World::new().await;
    let nodes = nodes(&world, 1).await;
    *nodes[0].refuses.lock().unwrap() = Some("the cluster's edge policy takes no plans".to_owned());
    world.create("nodeplans", "NodePlan", "p", spec()).await;
    eventually("refused", async || world.plan().await["phase"] == "Failed").await;
    assert_eq!(world.plan().await["nodes"][0]["progress"]["phase"], "Refused");
    assert_eq!(world.plan().await["message"], "n0: the cluster's edge policy takes no plans");
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_cannot_be_are_refused_at_once_and_are_for_administrators() {
    let world = World::new().await;
    world.cluster("edge1").await;
    let user = world.user("ana", &[]).await;
    let object = |spec: Value| json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "NodePlan", "metadata": { "name": "p" }, "spec": spec });
    let post =
        async |token: &str, spec: Value| world.call(token, "POST", &format!("{API}/nodeplans"), &object(spec)).await;
    assert_eq!(post(&user, spec()).await.code, 403);
    let mut nobody = spec();
    nobody["nodeSelector"] = json!({});
    let mut climbs = spec();
    climbs["steps"] = json!([{ "name": "w", "write": { "path": "/etc/../shadow", "content": "" } }]);
    let mut unknown = spec();
    unknown["steps"] = json!([{ "name": "w" }]);
    let mut nowhere = spec();
    nowhere["cluster"] = json!("edge2");
    let all =
        [(nobody, "spec.nodes"), (climbs, "spec.steps[0]"), (unknown, "spec.steps[0]"), (nowhere, "does not exist")];
    for (wrong, field) in all {
        let answer = post(&world.admin, wrong).await;
        assert!(answer.code == 422 && answer.body.contains(field), "{answer:?}");
    }
    let sum = plan::sha256(b"hello");
    let put = async |token: &str, sum: &str| {
        let head = format!("Authorization: Bearer {token}");
        world.send("PUT", &format!("/plans/files/{sum}"), &[&head], "hello").await.code
    };
    assert_eq!(put(&user, &sum).await, 403);
    assert_eq!(put(&world.admin, &"0".repeat(64)).await, 422);
    assert_eq!(put(&world.admin, &sum).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_forget_a_plan_that_is_deleted_and_what_they_print_has_a_bound() {
    let world = World::new().await;
    let nodes = nodes(&world, 2).await;
    let long = plan::StepResult { name: "one".to_owned(), output: "x".repeat(12 << 10), ..plan::StepResult::default() };
    for node in &nodes {
        *node.says.lock().unwrap() =
            Progress { phase: Phase::Running, steps: vec![long.clone(); 64], ..Progress::default() };
    }
    let mut wide = spec();
    wide["strategy"] = json!({ "maxUnavailable": 2 });
    let made = world.create("nodeplans", "NodePlan", "p", wide).await;
    eventually("under way", async || world.plan().await["nodes"][1]["progress"]["steps"].is_array()).await;
    let status = world.plan().await;
    let size = status.to_string().len();
    assert!(size < 512 << 10, "{size} bytes of status");

    let uid = made["metadata"]["uid"].as_str().unwrap();
    let gone = world.call(&world.admin, "DELETE", &format!("{API}/nodeplans/p"), &Value::Null).await;
    assert_eq!(gone.code, 200, "{gone:?}");
    for node in &nodes {
        let told = async || *node.forgotten.lock().unwrap() == [format!("/plan/{uid}")];
        eventually("told to forget", told).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_goes_with_its_cluster_and_is_not_done_to_its_namesake() {
    let world = World::new().await;
    world.cluster("edge1").await;
    world.create("nodeplans", "NodePlan", "p", spec()).await;
    let gone = world.call(&world.admin, "DELETE", &format!("{API}/clusters/edge1"), &Value::Null).await;
    assert_eq!(gone.code, 200, "{gone:?}");
    eventually("gone", async || world.get(&world.admin, &format!("{API}/nodeplans/p")).await.code == 404).await;
    // Plans are handed out in the order of their names.
    let nodes = nodes(&world, 1).await;
    world.create("nodeplans", "NodePlan", "q", spec()).await;
    eventually("another", async || nodes[0].taken() == 1).await;
    assert_eq!(nodes[0].taken.lock().unwrap()[0].name, "q");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_answers_are_lost_is_told_of_a_plans_end_and_holds_up_no_other() {
    let world = World::new().await;
    let nodes = nodes(&world, 2).await;
    nodes[0].mute.store(true, Ordering::Relaxed);
    let of = |node: &str| {
        let mut spec = spec();
        (spec["nodeSelector"], spec["nodes"]) = (json!({}), json!([node]));
        spec
    };
    world.create("nodeplans", "NodePlan", "lost", of("n0")).await;
    eventually("taken", async || nodes[0].taken() > 0).await;
    let gone = world.call(&world.admin, "DELETE", &format!("{API}/nodeplans/lost"), &Value::Null).await;
    assert_eq!(gone.code, 200, "{gone:?}");
    let told = || nodes[0].forgotten.lock().unwrap().len();
    nodes[1].says(Phase::Running, "");
    eventually("told, though nobody knows that it took it", async || told() == 1).await;

    world.create("nodeplans", "NodePlan", "p", of("n1")).await;
    eventually("another begins", async || nodes[1].taken() == 1).await;
    assert_eq!(nodes[0].given_up.load(Ordering::Relaxed), 0, "while the hub still waits for the first");
    eventually("given up", async || nodes[0].given_up.load(Ordering::Relaxed) == 1).await;
    nodes[1].says(Phase::Succeeded, "");
    eventually("done", async || world.plan().await["phase"] == "Succeeded").await;
    assert_eq!(told(), 1, "it is told again after a pause");
}

/// Of many nodes few have a session; a plan is for any of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_node_is_called_for_its_plan() {
    let world = World::with(|config| config.limits.standby_nodes = 1).await;
    world.cluster("edge1").await;
    let token = world.join_token("edge1", 2, "2999-01-01T00:00:00Z").await;
    let (first, second) = (world.join_node(&token, "n0").await, world.join_node(&token, "n1").await);
    let anchors = Anchors::new(vec![world.ca()]).unwrap();
    let standing = Node::serve(world.session(&first).await, "n0".to_owned(), anchors.clone());
    eventually("standing by", async || world.get(&world.admin, &format!("{API}/nodes/edge1.n0")).await.code == 200)
        .await;
    let ask = async || world.greet(&second, Carrier::Tls, 1, world.hub.addr().port(), &[]).await;
    assert!(matches!(ask().await, Err(DialError::Refused(goodbye)) if goodbye.code == CloseCode::Parked));
    let mut only = spec();
    only["nodeSelector"] = json!({});
    only["nodes"] = json!(["n1"]);
    world.create("nodeplans", "NodePlan", "p", only).await;
    let mut session = None;
    eventually("that it is wanted", async || {
        session = ask().await.ok();
        session.is_some()
    })
    .await;
    let called = Node::serve(session.unwrap(), "n1".to_owned(), anchors);
    called.says(Phase::Succeeded, "");
    eventually("done", async || world.plan().await["phase"] == "Succeeded").await;
    assert_eq!((called.taken(), standing.taken()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_watched_after_a_plan_is_told_as_it_turns() {
    let world = World::new().await;
    let nodes = nodes(&world, 1).await;
    let says = |ok: bool| {
        let probe = ProbeResult { name: "file".to_owned(), ok, ..ProbeResult::default() };
        *nodes[0].says.lock().unwrap() =
            Progress { phase: Phase::Succeeded, probes: vec![probe], ..Progress::default() };
    };
    let told = async |ok: bool| {
        let status = world.plan().await;
        status["phase"] == "Succeeded" && status["nodes"][0]["progress"]["probes"][0]["ok"] == ok
    };
    says(true);
    let mut watched = spec();
    watched["probes"] = json!([{ "name": "file", "everySeconds": 5, "probe": { "file": "/etc/hostname" } }]);
    world.create("nodeplans", "NodePlan", "p", watched).await;
    eventually("so", async || told(true).await).await;
    says(false);
    eventually("not so any more", async || told(false).await).await;
}

//! Fifty kubectls work while their cluster loses its agent, with both agents in pods of the real node, as the chart has them.

use crate::{
    deploy::{NODE_AGENT, REGISTRY, acted, apply, emptied, helm, import, objects, ready},
    endpoint_pods::{no_services, services},
    load::{self, Cut, KILLED, Load, SILENT, back},
    nodes,
    world::{ALICE, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    moorline::kubectl,
    process::{eventually, run, text},
};
use std::{process::Command, time::Duration};

const CLUSTER: &str = "edge1-load";
const NAMESPACE: &str = "moorline-system";
const NODES: &str = "moorline-nodes";
const POD: &str = "moorline-agent-0";
/// Longest wait for something that comes by itself.
const SOON: Duration = Duration::from_secs(90);

pub fn all(world: &mut World) -> Result<()> {
    services(world)?;
    let outcome = scene(world).with_context(|| {
        let admin = |args: &[&str]| world.edge1.admin(args).unwrap_or_default();
        let log = |of: &str, name: &str| admin(&["-n", of, "logs", name, "--tail=20"]);
        let pods = admin(&["get", "pods", "-A", "-o", "wide"]);
        format!("{pods}\n{}\n{}", log(NAMESPACE, POD), log(NODES, "daemonset/moorline-node"))
    });
    world.edge1.admin(&["delete", "namespace", NAMESPACE, NODES, "--ignore-not-found", "--wait=false"])?;
    no_services(world)?;
    outcome
}

/// The chart as it comes: one cluster agent, and the node's, which the cluster's vouches for.
fn install(world: &World) -> Result<()> {
    import(world, REGISTRY, "moorline-agent")?;
    let join = world.hub.moorline("admin", &["token", "create", "--cluster", CLUSTER])?;
    let token = join.split_whitespace().skip_while(|w| *w != "--token").nth(1).context("token")?;
    let pin = world.hub.moorline("admin", &["token", "nodes", "--cluster", CLUSTER])?;
    let pin = pin.split_once("MOORLINE_HUB_PIN: ").context("a pin")?.1.trim().to_owned();
    let network = world.edge1.network().context("network")?;
    let mut chart = objects(&text(&mut helm(&[
        &format!("hubUrl=https://{}:{}", network.outside, world.hub.port),
        &format!("token={token}"),
        &format!("cluster={CLUSTER}"),
        &format!("hubPin={pin}"),
        &format!("image.registry={REGISTRY}"),
        "image.pullPolicy=Never",
        "nodes.enabled=true",
        &format!("nodes.stateDir={}", world.dir.join("node-load").display()),
    ]))?)?;
    // One, so that there is nobody but the node's when it goes.
    let set = chart.get_mut(&format!("StatefulSet {NAMESPACE}/moorline-agent")).context("StatefulSet")?;
    set["spec"]["replicas"] = serde_json::json!(1);
    emptied(world, &[NAMESPACE, NODES])?;
    apply(world, chart.values().filter(|object| object["kind"] == "Namespace"), &[])?;
    apply(world, chart.values(), &["--force-conflicts"])?;
    world.hub.wait_connected(CLUSTER, SOON)?;
    ready(world, NAMESPACE, POD)?;
    eventually("the node's agent", SOON, || {
        ensure!(nodes::status(world, CLUSTER)?["nodeAgents"] == 1, "{}", nodes::status(world, CLUSTER)?);
        Ok(())
    })
}

/// A field of the cluster agent's pod.
fn pod(world: &World, path: &str) -> Result<String> {
    let path = format!("jsonpath={{{path}}}");
    Ok(world.edge1.admin(&["-n", NAMESPACE, "get", "pod", POD, "-o", &path])?.trim().to_owned())
}

fn scale(world: &World, replicas: u8) -> Result<()> {
    let replicas = format!("--replicas={replicas}");
    world.edge1.admin(&["-n", NAMESPACE, "scale", "statefulset/moorline-agent", &replicas]).map(drop)
}

/// What the node's runtime is asked about images.
fn images(world: &World, words: &[&str]) -> Result<()> {
    let socket = world.edge1.dir.join("run/containerd.sock");
    text(Command::new("ctr").arg("-a").arg(socket).args(["-n", "k8s.io", "images"]).args(words)).map(drop)
}

/// Asks for the eviction of the cluster agent's pod, as `kubectl drain` does.
fn evict(world: &World) -> Result<()> {
    // Kubernetes 1.20, which the tests' control plane is, has it as a beta.
    let eviction = serde_json::json!({
        "apiVersion": "policy/v1beta1", "kind": "Eviction", "metadata": { "name": POD, "namespace": NAMESPACE },
    });
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{POD}/eviction");
    let mut command = world.edge1.command(kubectl());
    command.arg("--kubeconfig").arg(world.edge1.kubeconfig()).args(["create", "--raw", &path, "-f", "-"]);
    let output = run(&mut command, eviction.to_string().as_bytes())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Pod and session are there again.
fn serves(world: &World) -> Result<()> {
    back(world, CLUSTER)?;
    eventually("the cluster agent's pod", SOON, || ready(world, NAMESPACE, POD))
}

fn stands_in(world: &World) -> Result<()> {
    let reason = nodes::reason(world, CLUSTER)?;
    ensure!(reason == "NodeAgentOnly", "{reason}");
    Ok(())
}

fn scene(world: &mut World) -> Result<()> {
    install(world)?;
    let world = &*world;
    world.hub.moorline("admin", &["grant", "create", "alice-load", "--user", ALICE, "--cluster", CLUSTER])?;
    let config = world.hub.kubeconfig(ALICE, CLUSTER)?;
    apply(world, &load::objects(), &["--force-conflicts"])?;
    let taken = || world.hub.metric("moorline_hub_fallback_streams_total", &[]);
    let (before, audited) = (taken()?, world.edge1.audit().len());
    let mut load = Load::start(&config, load::KUBECTLS)?;

    let container = pod(world, ".status.containerStatuses[0].containerID")?;
    let container = container.strip_prefix("containerd://").context("a container")?;
    let socket = world.edge1.dir.join("run/containerd.sock");
    load.lose("the pod's program killed", KILLED, || {
        let mut ctr = Command::new("ctr");
        ctr.arg("-a").arg(&socket).args(["-n", "k8s.io", "tasks", "kill", "-s", "SIGKILL", container]);
        text(&mut ctr).map(drop)
    })?;
    load.regain("the kubelet has started it again", || serves(world))?;

    load.lose("scaled to zero", KILLED, || scale(world, 0))?;
    stands_in(world)?;
    ensure!(before < taken()?, "no request was a node agent's");
    let audit = world.edge1.audit();
    ensure!(acted(audit.get(audited..).unwrap_or_default(), NODE_AGENT), "nothing was done by the node's pod");
    load.regain("scaled to one", || {
        scale(world, 1)?;
        serves(world)
    })?;

    let address = pod(world, ".status.podIP")?;
    let mut cut = None;
    load.lose("its pod's network cut", SILENT, || {
        let (to, from) = (format!("ip daddr {address}"), format!("ip saddr {address}"));
        cut = Some(Cut::new(world, &[("forward", &to), ("prerouting", &from)])?);
        Ok(())
    })?;
    stands_in(world)?;
    load.regain("its pod's network joined again", || {
        drop(cut);
        serves(world)
    })?;

    // As when a node is emptied, and the registry has lost what the next pod needs.
    let counted = || world.hub.metric("moorline_hub_fallback_switches_total", &["to=\"node\""]);
    let (before, told, switched) = (taken()?, nodes::switches(world, CLUSTER)?, counted()?);
    load.lose("its pod evicted, and its image gone", KILLED, || {
        images(world, &["rm", &format!("{REGISTRY}/moorline-agent:0.1.0")])?;
        evict(world)
    })?;
    eventually("a pod without an image", SOON, || {
        let waits = pod(world, ".status.containerStatuses[0].state.waiting.reason")?;
        ensure!(waits == "ErrImageNeverPull", "{waits:?}");
        Ok(())
    })?;
    stands_in(world)?;
    ensure!(before < taken()?, "no request was a node agent's");
    eventually("what tells it", SOON, || {
        ensure!(told < nodes::switches(world, CLUSTER)?, "no event");
        ensure!(switched < counted()?, "no number");
        Ok(())
    })?;
    load.regain("its image is back", || {
        images(world, &["import", &world.dir.join("moorline-agent.tar").to_string_lossy()])?;
        serves(world)
    })?;
    load.end()
}

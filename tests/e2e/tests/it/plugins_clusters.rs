//! Role templates in several real clusters at once: those that match have them, each is put right by itself, and one that does
//! not match has nothing of them although it lets the plugin in.

use crate::{
    plugins::{Hub, let_in},
    world::World,
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    cluster::Cluster,
    moorline::Agent,
    process::{eventually, text},
    root,
};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(40);
/// The third, which the hub reaches by itself.
const THIRD: &str = "edge8";
const THIRD_PORTS: u16 = 104;

const SPREAD: &str = "
apiVersion: moorline.dev/v1alpha1
kind: RoleTemplate
metadata: {name: spread}
spec:
  clusters: {matchLabels: {spread: 'yes'}}
  rules: [{apiGroups: [''], resources: [pods], verbs: [get, list]}]
---
apiVersion: moorline.dev/v1alpha1
kind: TemplateBinding
metadata: {name: spread}
spec:
  template: spread
  users: [dora]
  groups: [ops]
  clusters: {matchLabels: {spread: 'yes'}}
  namespaces: [default]
";

/// What a cluster's own API server says that somebody may do.
fn may(cluster: &Cluster, who: &[&str]) -> Result<bool> {
    let mut command = cluster.command(moorline_e2e::moorline::kubectl());
    command.arg("--kubeconfig").arg(cluster.kubeconfig());
    let output = command.args(["auth", "can-i", "list", "pods", "-n", "default"]).args(who).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim() == "yes")
}

const USER: &[&str] = &["--as", "dora"];
const MEMBER: &[&str] = &["--as", "emil", "--as-group", "ops"];

/// Whether a cluster has the role and both its holders, and nobody else.
fn has(cluster: &Cluster) -> Result<()> {
    let verbs = cluster.admin(&["get", "clusterrole", "moorline:spread", "-o", "jsonpath={.rules[*].verbs[*]}"])?;
    let holders = ["-n", "default", "get", "rolebinding", "moorline:spread", "-o", "jsonpath={.subjects[*].name}"];
    let holders = cluster.admin(&holders)?;
    ensure!((verbs.as_str(), holders.as_str()) == ("get list", "dora ops"), "{verbs}; {holders}");
    ensure!(may(cluster, USER)? && may(cluster, MEMBER)?, "its API server does not go by it");
    Ok(())
}

fn has_not(cluster: &Cluster) -> Result<()> {
    let all = cluster.admin(&["get", "clusterroles,clusterrolebindings,rolebindings", "-A", "-o", "name"])?;
    ensure!(!all.contains("moorline:spread"), "{all}");
    ensure!(!may(cluster, USER)? && !may(cluster, MEMBER)?);
    Ok(())
}

/// Restarts edge2's agent with a policy that lets the plugin in.
fn let_into_edge2(world: &mut World) -> Result<()> {
    // As `let_in` has written it for edge1.
    let policy = world.dir.join("policy.yaml");
    let room = crate::endpoint::room(&world.dir);
    world.agent2 = None;
    let network = world.edge2.network().context("a network")?;
    let url = format!("https://{}:{}", network.outside, world.hub.port);
    let words = ["moorline", "agent", "--hub", &url].map(str::to_owned);
    let more = ["--policy-file", policy.to_str().context("path")?, "--endpoint-dir", room.to_str().context("path")?];
    world.agent2 = Some(Agent::start(&world.edge2, &words, &world.dir.join("agent-edge2"), &more)?);
    world.hub.wait_connected("edge2", Duration::from_secs(60))
}

pub fn rbac(world: &mut World) -> Result<()> {
    let third = Cluster::start(THIRD_PORTS, false, None)?;
    let done = spreads(world, &third);
    // As other scenes expect it.
    let _ = world.hub.moorline("admin", &["delete", "cluster", THIRD, "--yes"]);
    world.restart_agent1()?;
    world.restart_agent2()?;
    done
}

fn spreads(world: &mut World, third: &Cluster) -> Result<()> {
    let_in(world, &["rbac"])?;
    let_into_edge2(world)?;
    let manifest = root().join("deploy/plugins/rbac.yaml");
    for cluster in [&world.edge2, third] {
        cluster.admin(&["apply", "-f", manifest.to_str().context("path")?])?;
    }
    let kubeconfig = third.kubeconfig();
    text(world.hub.cli("admin").args(["import", THIRD, "--plugin", "rbac", "--kubeconfig"]).arg(kubeconfig))?;
    let hub = Hub(world);
    let label = |cluster: &str, label: &str| hub.k(&["label", "cluster", cluster, label]).map(drop);
    label("edge1", "spread=yes")?;
    label("edge2", "spread=yes")?;
    label(THIRD, "spread=no")?;
    hub.apply(SPREAD)?;
    let in_sync = |cluster: &str, objects: &str| {
        eventually(&format!("{cluster} is in sync"), SOON, || {
            let (status, reason, message) = hub.condition(cluster, "RolesSynced")?;
            ensure!((status.as_str(), reason.as_str()) == ("True", "InSync"), "{status} {reason} {message}");
            ensure!(message.starts_with(objects), "{message}");
            Ok(())
        })
    };
    let synced = |clusters: u64| {
        eventually("it is told", SOON, || {
            for kind in ["roletemplate", "templatebinding"] {
                let sync = hub.json(&[kind, "spread"])?["status"]["sync"].clone();
                ensure!(sync["clusters"] == clusters && sync["synced"] == clusters, "{kind}: {sync}");
            }
            Ok(())
        })
    };
    // Two match; the third lets the plugin in as they do, and has nothing.
    in_sync("edge1", "2 objects")?;
    in_sync("edge2", "2 objects")?;
    in_sync(THIRD, "0 objects")?;
    synced(2)?;
    has(&world.edge1)?;
    has(&world.edge2)?;
    has_not(third)?;

    // Each is put right where it was changed, and that is told of this cluster alone.
    let drifts = || world.hub.metric("moorline_plugin_events_total", &["rbac", "drift_corrected"]);
    let before = drifts()?;
    let wider = r#"[{"op":"add","path":"/rules/0/verbs/-","value":"delete"}]"#;
    world.edge1.admin(&["patch", "clusterrole", "moorline:spread", "--type=json", "-p", wider])?;
    eventually("edge1 as it was", SOON, || has(&world.edge1))?;
    eventually("edge1's drift", SOON, || {
        let message = hub.condition("edge1", "RolesSynced")?.2;
        ensure!(message.contains("put right") && message.contains("last ClusterRole moorline:spread"), "{message}");
        ensure!(drifts()? - before >= 1.0, "{} after {before}", drifts()?);
        Ok(())
    })?;
    for other in ["edge2", THIRD] {
        let message = hub.condition(other, "RolesSynced")?.2;
        ensure!(!message.contains("moorline:spread"), "{other}: {message}");
    }
    let eve = r#"[{"op":"add","path":"/subjects/-","value":{"kind":"User","name":"eve","apiGroup":"rbac.authorization.k8s.io"}}]"#;
    world.edge2.admin(&["-n", "default", "patch", "rolebinding", "moorline:spread", "--type=json", "-p", eve])?;
    world.edge2.admin(&["delete", "clusterrole", "moorline:spread"])?;
    eventually("edge2 as it was", SOON, || has(&world.edge2))?;
    eventually("edge2's drift", SOON, || {
        let message = hub.condition("edge2", "RolesSynced")?.2;
        ensure!(message.contains("put right") && message.contains("moorline:spread"), "{message}");
        ensure!(drifts()? - before >= 3.0, "{} after {before}", drifts()?);
        Ok(())
    })?;

    // Which clusters match is looked at anew when their labels change.
    hub.k(&["label", "cluster", "edge1", "spread-"])?;
    hub.k(&["label", "cluster", THIRD, "spread=yes", "--overwrite"])?;
    eventually("the third has it", SOON, || has(third))?;
    eventually("edge1 has it no more", SOON, || has_not(&world.edge1))?;
    has(&world.edge2)?;
    synced(2)?;
    hub.k(&["delete", "templatebinding/spread", "roletemplate/spread"])?;
    for cluster in [&world.edge2, third] {
        eventually("it is withdrawn", SOON, || has_not(cluster))?;
    }
    hub.k(&["label", "cluster", "edge2", "spread-"]).map(drop)
}

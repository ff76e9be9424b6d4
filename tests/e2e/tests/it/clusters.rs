//! The plugin `clusters`: a cluster that the hub reaches by itself, whether agents are up to date, and what happens when a
//! cluster is removed.

use crate::{
    plugins::Hub,
    world::{ALICE, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    cluster::Cluster,
    process::{eventually, text},
    root,
};
use serde_json::Value;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(40);

const TEMPLATE: &str = "
apiVersion: moorline.dev/v1alpha1
kind: RoleTemplate
metadata: {name: imported}
spec: {clusters: {names: [edge9]}, rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]}
";

fn import(world: &World, direct: &Cluster) -> Result<String> {
    let kubeconfig = direct.kubeconfig();
    let kubeconfig = kubeconfig.to_str().context("a path")?;
    said(world, &["import", "edge9", "--kubeconfig", kubeconfig, "--plugin", "rbac"])
}

/// What the command line says to its caller, which is not its output.
fn said(world: &World, args: &[&str]) -> Result<String> {
    let output = world.hub.cli("admin").args(args).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{args:?}: {said}");
    Ok(said)
}

fn role(direct: &Cluster) -> bool {
    direct.admin(&["get", "clusterrole", "moorline:imported"]).is_ok()
}

fn condition(world: &World, wanted: &str, is: (&str, &str)) -> Result<()> {
    eventually(wanted, SOON, || {
        let (status, reason, message) = Hub(world).condition("edge9", wanted)?;
        ensure!((status.as_str(), reason.as_str()) == is, "{status} {reason} {message}");
        Ok(())
    })
}

/// Starts the hub with settings of plugins.
fn with_plugins(world: &mut World, settings: &str) -> Result<()> {
    let file = world.dir.join("plugins.yaml");
    std::fs::write(&file, format!("plugins: {settings}\n"))?;
    world.hub.more = vec!["--config".to_owned(), file.display().to_string()];
    world.hub.restart()
}

pub fn all(world: &mut World) -> Result<()> {
    let direct = Cluster::start(103, false, None)?;
    let manifest = root().join("deploy/plugins/rbac.yaml");
    direct.admin(&["apply", "-f", manifest.to_str().context("a path")?])?;
    direct.admin(&["create", "clusterrolebinding", "alice", "--clusterrole=view", "--user", ALICE])?;
    with_plugins(world, "{clusters: {cleanup: 10}}")?;
    let done = imports_and_cleans_up(world, &direct).and_then(|()| is_bounded(world, direct));
    let gone = is_gone_when_switched_off(world);
    world.hub.more.clear();
    world.hub.restart()?;
    done.and(gone)
}

fn imports_and_cleans_up(world: &mut World, direct: &Cluster) -> Result<()> {
    // One that agents serve would have two API servers under its name.
    let kubeconfig = direct.kubeconfig();
    let taken = world.hub.cli("admin").args(["import", "edge1", "--kubeconfig"]).arg(kubeconfig).output()?;
    ensure!(
        !taken.status.success() && String::from_utf8_lossy(&taken.stderr).contains("agents of its own"),
        "{taken:?}"
    );
    ensure!(!Hub(world).k(&["get", "clusterimports", "-o", "name"])?.contains("edge1"));
    ensure!(import(world, direct)?.contains("edge9 imported: Kubernetes v1."));
    let hub = Hub(world);
    // A user gets there as everywhere: by the hub's grants, in their own name, by the cluster's RBAC.
    world.hub.moorline("admin", &["grant", "create", "alice-edge9", "--user", ALICE, "--cluster", "edge9"])?;
    let listed = text(world.through(ALICE, "edge9")?.args(["get", "configmaps", "-n", "kube-system", "-o", "name"]))?;
    ensure!(listed.contains("extension-apiserver-authentication"), "{listed}");
    let refused = world.through(ALICE, "edge9")?.args(["create", "namespace", "x"]).output()?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("User \"alice\" cannot create"), "{refused:?}");
    ensure!(direct.audit().contains("\"impersonatedUser\":{\"username\":\"alice\""), "the API server saw alice");
    condition(world, "AgentUpToDate", ("True", "SameVersion"))?;
    let version = hub.json(&["cluster", "edge9"])?["status"]["kubernetesVersion"].clone();
    ensure!(version.as_str().is_some_and(|v| v.starts_with("v1.")), "{version}");
    // The hub's plugins get there, those that were let in.
    hub.apply(TEMPLATE)?;
    condition(world, "RolesSynced", ("True", "InSync"))?;
    ensure!(role(direct));
    condition(world, "Ready", ("Unknown", "NotAllowed"))?;
    // An import outlives the hub that runs its agent.
    world.hub.restart()?;
    world.hub.wait_connected("edge9", SOON)?;
    // With the cluster goes what plugins made there, the import, its agent and its identity.
    let said = said(world, &["delete", "cluster", "edge9", "--yes"])?;
    ensure!(!said.contains("RolesSynced"), "{said}");
    ensure!(!role(direct), "it was taken away before the cluster went");
    eventually("the import is gone", SOON, || {
        let names = Hub(world).k(&["get", "clusterimports,agents", "-o", "name"])?;
        ensure!(!names.contains("edge9"), "{names}");
        ensure!(std::fs::read_dir(world.hub.data().join("imports"))?.next().is_none(), "its identity is still there");
        Ok(())
    })
}

/// A cluster that does not answer holds its removal up for so long and no longer, and what is left is said.
fn is_bounded(world: &World, direct: Cluster) -> Result<()> {
    import(world, &direct)?;
    condition(world, "RolesSynced", ("True", "InSync"))?;
    ensure!(role(&direct));
    drop(direct);
    let begun = Instant::now();
    let said = said(world, &["delete", "cluster", "edge9", "--yes"])?;
    ensure!(said.contains("Left behind there: ") && said.contains("RolesSynced"), "{said}");
    ensure!(begun.elapsed() < Duration::from_secs(60), "took {:?}", begun.elapsed());
    ensure!(world.hub.metric("moorline_plugin_events_total", &["clusters", "cluster_left_behind"])? == 1.0);
    Hub(world).k(&["delete", "roletemplate", "imported"]).map(drop)
}

/// Switched off it holds nothing any more, and its kind is gone.
fn is_gone_when_switched_off(world: &mut World) -> Result<()> {
    let finalizers = |world: &World| -> Result<Value> {
        Ok(Hub(world).json(&["cluster", "edge1"])?["metadata"]["finalizers"].clone())
    };
    eventually("edge1 is held", SOON, || {
        ensure!(finalizers(world)?[0] == "clusters.plugins.moorline.dev/cleanup");
        Ok(())
    })?;
    with_plugins(world, "{clusters: {enabled: false}}")?;
    ensure!(finalizers(world)?.as_array().is_none_or(Vec::is_empty), "nobody would ever take it off");
    let served = Hub(world).k(&["api-resources", "-o", "name"])?;
    ensure!(!served.contains("clusterimports") && served.contains("clusterhealths"), "{served}");
    Ok(())
}

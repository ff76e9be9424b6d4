//! The manifests and the chart say the same.

use super::{helm, kustomized, objects, with_components};
use crate::world::World;
use anyhow::{Context, Result, ensure};
use moorline_e2e::{binary, process::text, root};
use serde_json::{Value, json};
use std::{collections::BTreeMap, process::Command};

/// Each object of the manifests is in what the chart makes, and nothing else.
fn alike(plain: &BTreeMap<String, Value>, chart: &BTreeMap<String, Value>) -> Result<()> {
    ensure!(plain.keys().eq(chart.keys()), "{:?}\n{:?}", plain.keys(), chart.keys());
    for (name, object) in plain {
        ensure!(chart.get(name) == Some(object), "{name} differs:\n{object}\n{:?}", chart.get(name));
    }
    Ok(())
}

/// What node agents may have besides, as kustomize has it.
pub const COMPONENTS: &[&[&str]] = &[
    &["node-apart"],
    &["node-shells"],
    &["node-plans"],
    &["node-drain"],
    &["node-pki"],
    &["node-rotation"],
    // With both, in whatever order, it is as with the one that gives more.
    &["node-pki", "node-rotation"],
    &["node-rotation", "node-pki"],
    &["node-shells", "node-plans", "node-drain", "node-rotation"],
];

/// The same as the chart has it.
const VALUES: &[&[&str]] = &[
    &["nodes.standIn=false"],
    &["nodes.shells.enabled=true"],
    &["nodes.plans.folders={/var/lib/moorline-plans}"],
    &["nodes.plans.drain=true"],
    &["nodes.pki.enabled=true"],
    &["nodes.pki.enabled=true", "nodes.pki.rotate=true"],
    &["nodes.pki.enabled=true", "nodes.pki.rotate=true"],
    &["nodes.pki.enabled=true", "nodes.pki.rotate=true"],
    &[
        "nodes.shells.enabled=true",
        "nodes.plans.folders={/var/lib/moorline-plans}",
        "nodes.plans.drain=true",
        "nodes.pki.enabled=true",
        "nodes.pki.rotate=true",
    ],
];

/// The DaemonSet of node agents.
const NODES: &str = "DaemonSet moorline-nodes/moorline-node";

/// Each of the node's folders is in the pod under its own name, and none lies over part of another: what is to be read
/// would keep from being written what is below it.
fn folders_apart(pod: &Value) -> Result<()> {
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let word = |of: &Value| of.as_str().unwrap_or_default().to_owned();
    let folders = list(&pod["volumes"]).into_iter().filter(|volume| !volume["hostPath"].is_null());
    let folders: BTreeMap<String, String> =
        folders.map(|volume| (word(&volume["name"]), word(&volume["hostPath"]["path"]))).collect();
    let mounts = list(&pod["containers"][0]["volumeMounts"]);
    let mounts =
        mounts.iter().filter_map(|mount| Some((folders.get(&word(&mount["name"]))?, word(&mount["mountPath"]))));
    let mounts: Vec<(&String, String)> = mounts.collect();
    ensure!(mounts.len() == folders.len(), "a folder twice, or nowhere: {mounts:?} of {folders:?}");
    for (folder, at) in &mounts {
        // The shells' root is at a place of its own in the pod.
        ensure!(*folder == at || at == "/shell", "{folder} is at {at}");
        let over = mounts.iter().find(|(_, other)| other.starts_with(&format!("{at}/")));
        ensure!(over.is_none(), "{over:?} lies over {at}");
    }
    Ok(())
}

/// The chart's pods have room for the shells that they give: as many more as are asked for.
fn room_for_shells() -> Result<()> {
    let pod = |more: &[&str]| -> Result<Value> {
        let on = [&["nodes.enabled=true", "nodes.shells.enabled=true"], more].concat();
        let chart = objects(&text(&mut helm(&on))?)?;
        Ok(chart[NODES]["spec"]["template"]["spec"]["containers"][0].clone())
    };
    for (most, limit) in [("1", "1280Mi"), ("8", "9344Mi")] {
        let container = pod(&[&format!("nodes.shells.most={most}")])?;
        ensure!(container["resources"]["limits"]["memory"] == limit, "{}", container["resources"]);
        let told = json!({ "name": "MOORLINE_SHELLS", "value": most });
        ensure!(container["env"].as_array().is_some_and(|env| env.contains(&told)), "{}", container["env"]);
    }
    let container = pod(&["nodes.shells.limits.cpu=2"])?;
    let limits = json!({ "cpu": 2, "memory": "4736Mi" });
    ensure!(container["resources"]["limits"] == limits, "{}", container["resources"]);
    Ok(())
}

/// What node agents may have besides is there where it is asked for, and nowhere else.
fn more_on_nodes(world: &World) -> Result<()> {
    ensure!(COMPONENTS.len() == VALUES.len(), "a component without values");
    for (components, values) in COMPONENTS.iter().zip(VALUES) {
        let mut plain = kustomized("agent")?;
        plain.extend(with_components(world, components)?);
        let chart = objects(&text(&mut helm(&[&["nodes.enabled=true"], *values].concat()))?)?;
        alike(&plain, &chart).with_context(|| format!("{components:?}"))?;
        folders_apart(&plain[NODES]["spec"]["template"]["spec"]).with_context(|| format!("{components:?}"))?;
    }
    // Without being asked for, a node agent has no right that is not everybody's, and no folder of the node's but its own.
    let bare = kustomized("daemonset")?;
    let pod = &bare[NODES]["spec"]["template"]["spec"];
    ensure!(pod["containers"][0]["securityContext"]["capabilities"] == json!({ "drop": ["ALL"] }), "{pod}");
    let volumes = pod["volumes"].as_array().context("volumes")?;
    let folders: Vec<&Value> = volumes.iter().filter(|volume| !volume["hostPath"].is_null()).collect();
    ensure!(folders.len() == 1 && folders[0]["name"] == "state", "{folders:?}");
    // Without the right to act as users nothing but its own node's object is left.
    let apart = objects(&text(&mut helm(&["nodes.enabled=true", "nodes.standIn=false", "policy.shells.allow=true"]))?)?;
    let roles =
        apart.iter().filter(|(name, _)| name.starts_with("ClusterRole /moorline-node") && !name.ends_with("-joins"));
    let left: Vec<_> = roles.flat_map(|(_, role)| super::rights(role)).collect();
    ensure!(left == ["get nodes"], "{left:?}");
    let policy =
        apart["ConfigMap moorline-nodes/moorline-edge-policy"]["data"]["policy.yaml"].as_str().unwrap_or_default();
    ensure!(policy.contains("standIn:\n    allow: false") && policy.contains("shells:\n    allow: true"), "{policy}");
    // A node agent on its node's own network finds the node's etcd.
    let on = ["nodes.enabled=true", "nodes.pki.enabled=true", "hostNetwork=true"];
    let chart = objects(&text(&mut helm(&on))?)?;
    let pod = &chart[NODES]["spec"]["template"]["spec"];
    let dirs = json!({ "name": "MOORLINE_PKI_DIRS", "value": "/etc/kubernetes/pki,/var/lib/kubelet/pki" });
    ensure!(pod["containers"][0]["env"].as_array().is_some_and(|env| env.contains(&dirs)), "{pod}");
    room_for_shells()?;
    for bad in [
        "nodes.standIn=no-one",
        "nodes.shells.enabled=often",
        "nodes.shells.most=0",
        "nodes.shells.most=33",
        "nodes.shells.root=bin",
        "nodes.shells.root=/",
        "nodes.shells.root=/a/../b",
        "nodes.shells.privileged=true",
        "nodes.plans.folders={var}",
        "nodes.plans.folders={/}",
        "nodes.pki.rotate=true",
    ] {
        ensure!(text(&mut helm(&["nodes.enabled=true", bad])).is_err(), "the chart takes {bad}");
    }
    Ok(())
}

/// A chart and manifests kept apart would drift apart.
pub fn same(world: &mut World) -> Result<()> {
    let mut plain = BTreeMap::new();
    for folder in ["agent", "daemonset", "hub"] {
        plain.extend(kustomized(folder)?);
    }
    let mut on = vec!["nodes.enabled=true", "hub.enabled=true"];
    ensure!(plain.keys().eq(objects(&text(&mut helm(&on))?)?.keys()), "without Windows");
    on.push("nodes.windows.enabled=true");
    plain.extend(kustomized("daemonset-windows")?);
    let chart = objects(&text(&mut helm(&on))?)?;
    alike(&plain, &chart)?;
    for bad in [
        "hubUrl=http://x",
        "agent.replicas=3",
        "hub.storage=lots",
        "token=secret",
        "policy.api.readonly=true",
        "nodes.windows.stateDir=/var/lib",
    ] {
        ensure!(text(&mut helm(&[bad])).is_err(), "the chart takes {bad}");
    }
    on_windows(&chart["DaemonSet moorline-nodes/moorline-node-windows"]["spec"]["template"]["spec"])?;
    let on = ["endpoint.enabled=true", "endpoint.publicUrl=https://edge1.example.com:30644"];
    let (plain, chart) = (kustomized("endpoint")?, objects(&text(&mut helm(&on))?)?);
    alike(&plain, &chart)?;
    for bad in [
        "endpoint.publicUrl=",
        "endpoint.publicUrl=http://edge1:1",
        "endpoint.nodePort=often",
        "endpoint.serviceType=HostPort",
        "endpoint.storage=lots",
        "endpoint.hostPort=6444",
        "agent.enabled=false",
    ] {
        ensure!(text(&mut helm(&[&on[..], &[bad]].concat())).is_err(), "the chart takes {bad}");
    }
    rights_by_value()?;
    more_on_nodes(world)?;
    // A volume instead of a folder that goes with its pod, and break-glass users.
    let more = ["endpoint.storage=1Gi", "endpoint.breakGlass={root,ops}", "endpoint.serviceType=LoadBalancer"];
    let chart = objects(&text(&mut helm(&[&on[..], &more].concat()))?)?;
    let set = &chart["StatefulSet moorline-system/moorline-agent"]["spec"];
    ensure!(set["volumeClaimTemplates"][0]["metadata"]["name"] == "endpoint", "{set}");
    let volumes = set["template"]["spec"]["volumes"].as_array().context("volumes")?;
    ensure!(volumes.iter().all(|volume| volume["name"] != "endpoint"), "two volumes of a name: {set}");
    ensure!(chart["ConfigMap moorline-system/moorline-endpoint"]["data"]["MOORLINE_BREAK_GLASS"] == "root,ops");
    ensure!(chart["Service moorline-system/moorline-endpoint"]["spec"]["type"] == "LoadBalancer");
    Ok(())
}

/// Rights for services and for imports are there where they are asked for, and are what the manifests give.
fn rights_by_value() -> Result<()> {
    let read = |file: &str| std::fs::read_to_string(root().join("deploy").join(file));
    let mut plain = kustomized("agent")?;
    for file in ["services/rbac.yaml", "services/network.yaml", "imports/network.yaml"] {
        plain.extend(objects(&read(file)?)?);
    }
    for namespace in ["shop", "web"] {
        plain.extend(objects(&read("imports/rbac.yaml")?.replace("NAMESPACE", namespace))?);
    }
    let on = ["services.enabled=true", "imports.enabled=true", "imports.namespaces={shop,web}"];
    let allows = "policy.imports.allow={shop/web}";
    let chart = objects(&text(&mut helm(&[&on[..], &[allows]].concat()))?)?;
    ensure!(plain.keys().eq(chart.keys()), "{:?}\n{:?}", plain.keys(), chart.keys());
    let own = ["StatefulSet moorline-system/moorline-agent", "ConfigMap moorline-system/moorline-edge-policy"];
    for (name, object) in plain.iter().filter(|(name, _)| !own.contains(&name.as_str())) {
        ensure!(chart.get(name) == Some(object), "{name} differs:\n{object}\n{:?}", chart.get(name));
    }
    let env = chart[own[0]]["spec"]["template"]["spec"]["containers"][0]["env"].clone();
    let address =
        json!({ "name": "MOORLINE_IMPORTS_ADDRESS", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } });
    ensure!(env.as_array().is_some_and(|env| env.contains(&address)), "{env}");
    let policy = chart[own[1]]["data"]["policy.yaml"].as_str().context("a policy")?;
    ensure!(policy.contains("imports:") && policy.contains("- shop/web"), "{policy}");
    for bad in [
        &on[..],
        &["imports.enabled=true", allows],
        &["imports.enabled=true", "imports.namespaces={Shop}", allows],
        &["imports.enabled=true", "imports.namespaces={shop}", "policy.imports.allow={web}"],
        &["imports.enabled=true", "imports.namespaces={shop}", allows, "agent.enabled=false"],
        &["services.enabled=often"],
        &["services.enabled=true", "agent.enabled=false"],
        &["policy.services.allowed={shop/web}"],
    ] {
        ensure!(text(&mut helm(bad)).is_err(), "the chart takes {bad:?}");
    }
    Ok(())
}

/// What newer Kubernetes asks of a HostProcess pod, and the tests' one does not know (its *Create a Windows HostProcess Pod*,
/// and the fields that it forbids where `os` is Windows).
fn on_windows(pod: &Value) -> Result<()> {
    let context = json!({ "windowsOptions": { "hostProcess": true, "runAsUserName": "NT AUTHORITY\\SYSTEM" } });
    ensure!(pod["securityContext"] == context && pod["hostNetwork"] == true, "{pod}");
    ensure!(pod["os"]["name"] == "windows" && pod["nodeSelector"]["kubernetes.io/os"] == "windows", "{pod}");
    let container = &pod["containers"][0];
    ensure!(container["securityContext"].is_null() && pod["containers"][1].is_null(), "{container}");
    for volume in pod["volumes"].as_array().context("volumes")? {
        ensure!(volume["projected"]["defaultMode"].is_null(), "modes are Linux': {volume}");
    }
    let help = text(Command::new(binary().with_file_name("moorline-agent")).arg("--help"))?;
    for argument in container["args"].as_array().context("arguments")? {
        let flag = argument.as_str().and_then(|argument| argument.split('=').next()).context("a flag")?;
        ensure!(help.contains(flag), "moorline-agent has no {flag}");
    }
    Ok(())
}

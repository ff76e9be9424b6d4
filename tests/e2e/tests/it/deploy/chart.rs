//! The manifests and the chart say the same.

use super::{helm, kustomized, objects};
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

/// A chart and manifests kept apart would drift apart.
pub fn same(_: &mut World) -> Result<()> {
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

//! The hub's plugins on real clusters.

use crate::world::{BOB, CAROL, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    moorline::{Agent, kubectl},
    process::{eventually, run, text},
    root,
};
use serde_json::{Value, json};
use std::{
    process::Command,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(30);

/// kubectl as the hub's administrator in the hub's own API.
pub struct Hub<'a>(pub &'a World);

impl Hub<'_> {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(kubectl());
        command.arg("--kubeconfig").arg(self.0.hub.data().join("admin.kubeconfig")).args(args);
        command
    }

    pub fn k(&self, args: &[&str]) -> Result<String> {
        text(&mut self.command(args))
    }

    pub fn apply(&self, yaml: &str) -> Result<()> {
        let output = run(&mut self.command(&["apply", "-f", "-"]), yaml.as_bytes())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn refused(&self, yaml: &str) -> Result<String> {
        let output = run(&mut self.command(&["apply", "-f", "-"]), yaml.as_bytes())?;
        ensure!(!output.status.success(), "was applied: {yaml}");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let mut all = vec!["get"];
        all.extend(args);
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.k(&all)?)?)
    }

    /// Status and reason of a condition of a cluster.
    pub fn condition(&self, cluster: &str, r#type: &str) -> Result<(String, String, String)> {
        let object = self.json(&["cluster", cluster])?;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|c| c["type"] == r#type).context("no such condition")?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason"), text("message")))
    }
}

/// Restarts edge1's agent with a policy that lets plugins in.
pub fn let_in(world: &mut World, plugins: &[&str]) -> Result<()> {
    let policy = world.dir.join("policy.yaml");
    let allow = plugins.join(", ");
    let yaml = format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n  plugins: {{allow: [{allow}]}}\n");
    std::fs::write(&policy, yaml)?;
    world.agent1 = None;
    let network = world.edge1.network().context("a network")?;
    let url = format!("https://{}:{}", network.outside, world.hub.port);
    let words = ["moorline", "agent", "--hub", &url].map(str::to_owned);
    let more = ["--policy-file", policy.to_str().context("path")?];
    world.agent1 = Some(Agent::start(&world.edge1, &words, &world.dir.join("agent-edge1"), &more)?);
    for plugin in plugins {
        let manifest = root().join(format!("deploy/plugins/{plugin}.yaml"));
        world.edge1.admin(&["apply", "-f", manifest.to_str().context("path")?])?;
    }
    world.hub.wait_connected("edge1", Duration::from_secs(60))
}

fn can(world: &World, user: &str, args: &[&str]) -> Result<bool> {
    let mut command = world.through(user, "edge1")?;
    let output = command.args(["auth", "can-i"]).args(args).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim() == "yes")
}

const TEMPLATE: &str = "
apiVersion: moorline.dev/v1alpha1
kind: RoleTemplate
metadata: {name: deployer}
spec:
  rules:
  - {apiGroups: [apps], resources: [deployments], verbs: [get, list, create, delete]}
---
apiVersion: moorline.dev/v1alpha1
kind: TemplateBinding
metadata: {name: bob-deploys}
spec:
  template: deployer
  users: [bob]
  clusters: {matchLabels: {env: prod}}
  namespaces: [team]
";

pub fn rbac(world: &mut World) -> Result<()> {
    Hub(world).k(&["label", "cluster", "edge1", "env=prod"])?;
    Hub(world).apply(TEMPLATE)?;
    // The hub is not root: nothing happens before the cluster's owner has let the plugin in, by name.
    eventually("the edge's refusal", SOON, || {
        let (status, reason, message) = Hub(world).condition("edge1", "RolesSynced")?;
        ensure!((status.as_str(), reason.as_str()) == ("False", "NotAllowed"), "{status} {reason} {message}");
        Ok(())
    })?;
    ensure!(!can(world, BOB, &["create", "deployments", "-n", "team"])?);
    let_in(world, &["rbac"])?;
    eventually("bob's role", SOON, || {
        ensure!(can(world, BOB, &["create", "deployments", "-n", "team"])?);
        Ok(())
    })?;
    ensure!(!can(world, BOB, &["create", "deployments", "-n", "default"])?, "s53: in its namespace only");
    let hub = Hub(world);
    eventually("statuses", SOON, || {
        let binding = hub.json(&["templatebinding", "bob-deploys"])?;
        ensure!(binding["status"]["sync"]["synced"] == 1 && binding["status"]["sync"]["clusters"] == 1, "{binding}");
        // Edge2 has let nobody in: that is told, and holds up nobody else.
        let template = hub.json(&["roletemplate", "deployer"])?;
        let sync = &template["status"]["sync"];
        // Other scenes have left clusters that are not connected.
        ensure!(sync["clusters"].as_u64() >= Some(2) && sync["synced"] == 1 && sync["failed"] == 1, "f44: {sync}");
        ensure!(sync["failures"][0].as_str().is_some_and(|f| f.starts_with("edge2: ")), "{sync}");
        ensure!(hub.condition("edge1", "RolesSynced")?.0 == "True");
        Ok(())
    })?;

    // Drift is put right, whatever it is, counted and reported.
    let edge = |args: &[&str]| world.edge1.admin(args);
    edge(&["delete", "clusterrole", "moorline:deployer"])?;
    eventually("the role is back", SOON, || edge(&["get", "clusterrole", "moorline:deployer"]).map(drop))?;
    let more = r#"[{"op":"add","path":"/subjects/-","value":{"kind":"User","name":"eve","apiGroup":"rbac.authorization.k8s.io"}}]"#;
    edge(&["-n", "team", "patch", "rolebinding", "moorline:bob-deploys", "--type=json", "-p", more])?;
    let wider = r#"[{"op":"add","path":"/rules/0/verbs/-","value":"*"}]"#;
    edge(&["patch", "clusterrole", "moorline:deployer", "--type=json", "-p", wider])?;
    edge(&["label", "clusterrole", "moorline:deployer", "moorline.dev/plugin-", "moorline.dev/cluster-"])?;
    eventually("all as it was", SOON, || {
        let binding =
            edge(&["-n", "team", "get", "rolebinding", "moorline:bob-deploys", "-o", "jsonpath={.subjects[*].name}"])?;
        let role = edge(&["get", "clusterrole", "moorline:deployer", "-o", "json"])?;
        let role: Value = serde_json::from_str(&role)?;
        ensure!(binding == "bob", "{binding}");
        ensure!(role["rules"][0]["verbs"].as_array().is_some_and(|v| v.len() == 4), "{role}");
        ensure!(role["metadata"]["labels"]["moorline.dev/plugin"] == "rbac", "{role}");
        Ok(())
    })?;
    eventually("drift is told", SOON, || {
        ensure!(world.hub.metric("moorline_plugin_events_total", &["rbac", "drift_corrected"])? >= 3.0);
        ensure!(hub.condition("edge1", "RolesSynced")?.2.contains("put right"));
        Ok(())
    })?;

    // Nobody is given more than the owner's ceiling, and what is refused holds up nothing else.
    hub.apply(
        "
apiVersion: moorline.dev/v1alpha1
kind: RoleTemplate
metadata: {name: anything}
spec: {clusters: {names: [edge1]}, rules: [{apiGroups: ['*'], resources: ['*'], verbs: ['*']}]}
---
apiVersion: moorline.dev/v1alpha1
kind: RoleTemplate
metadata: {name: reader}
spec: {clusters: {names: [edge1]}, rules: [{apiGroups: [''], resources: [pods], verbs: [get]}]}
",
    )?;
    eventually("s55: the ceiling", SOON, || {
        let sync = hub.json(&["roletemplate", "anything"])?["status"]["sync"].clone();
        ensure!(sync["failures"][0].as_str().is_some_and(|f| f.contains("attempting to grant")), "{sync}");
        ensure!(hub.json(&["roletemplate", "reader"])?["status"]["sync"]["synced"] == 1);
        Ok(())
    })?;
    hub.k(&["delete", "roletemplate", "anything"])?;

    // What nobody wants any more goes; what others made stays, whatever it is called.
    edge(&["create", "clusterrole", "moorline:theirs", "--verb=get", "--resource=pods"])?;
    hub.k(&["delete", "templatebinding", "bob-deploys"])?;
    eventually("bob's role is gone", SOON, || {
        ensure!(!can(world, BOB, &["create", "deployments", "-n", "team"])?);
        ensure!(edge(&["-n", "team", "get", "rolebindings", "-o", "name"])?.lines().all(|l| !l.contains("moorline")));
        Ok(())
    })?;
    edge(&["get", "clusterrole", "moorline:theirs"])?;

    // Roles at the hub itself.
    ensure!(!world.hub.moorline(CAROL, &["clusters", "-o", "name"])?.contains("edge"));
    hub.apply(
        "
apiVersion: moorline.dev/v1alpha1
kind: GlobalRole
metadata: {name: looker}
spec: {rules: [{resources: [clusters], verbs: [get, list, watch], resourceNames: [edge2]}]}
---
apiVersion: moorline.dev/v1alpha1
kind: GlobalRoleBinding
metadata: {name: carol-looks}
spec: {role: looker, users: [carol]}
",
    )?;
    eventually("carol's global role", SOON, || {
        let seen = world.hub.moorline(CAROL, &["clusters", "-o", "name"])?;
        ensure!(seen.contains("edge2") && !seen.contains("edge1"), "s52: {seen}");
        Ok(())
    })?;
    let above = "{apiVersion: moorline.dev/v1alpha1, kind: GlobalRole, metadata: {name: up}, spec: {rules: [{resources: [users], verbs: [update]}]}}";
    ensure!(hub.refused(above)?.contains("only administrators"));
    hub.k(&["delete", "globalrolebinding", "carol-looks"])?;
    eventually("no more", SOON, || {
        ensure!(!world.hub.moorline(CAROL, &["clusters", "-o", "name"])?.contains("edge"));
        Ok(())
    })?;
    hub.k(&["delete", "roletemplates", "--all"])?;
    edge(&["delete", "clusterrole", "moorline:theirs"])?;
    Ok(())
}

const PROJECT: &str = "
apiVersion: moorline.dev/v1alpha1
kind: Project
metadata: {name: web}
spec:
  cluster: edge1
  namespaces: [old]
  members: [{users: [bob], role: edit, manageNamespaces: true}]
  quota: {pods: '6'}
  networkIsolation: true
  podSecurity: restricted
---
apiVersion: moorline.dev/v1alpha1
kind: Project
metadata: {name: theirs}
spec: {cluster: edge1, members: [{users: [carol], role: view}]}
";

fn space(name: &str, project: &str) -> String {
    format!(
        "{{apiVersion: moorline.dev/v1alpha1, kind: ProjectNamespace, metadata: {{name: {name}}}, spec: {{project: {project}}}}}"
    )
}

pub fn projects(world: &mut World) -> Result<()> {
    world.edge1.admin(&["create", "namespace", "old"])?;
    let_in(world, &["projects"])?;
    let hub = Hub(world);
    hub.apply(PROJECT)?;
    let edge = |args: &[&str]| world.edge1.admin(args);
    // Bob is a member: he makes namespaces of his project at the hub, and of no other.
    let token = world.bearer(BOB)?;
    let as_bob = |args: &[&str], yaml: &str| {
        let mut all = vec!["--token", token.as_str()];
        all.extend(args);
        run(&mut hub.command(&all), yaml.as_bytes())
    };
    eventually("bob's right", SOON, || {
        let made = as_bob(&["create", "-f", "-"], &space("shop", "web"))?;
        ensure!(made.status.success(), "{made:?}");
        Ok(())
    })?;
    let refused = as_bob(&["create", "-f", "-"], &space("shop2", "theirs"))?;
    ensure!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("orbidden"),
        "s53: {refused:?}"
    );
    let listed = as_bob(&["get", "projects", "-o", "name"], "")?;
    ensure!(String::from_utf8_lossy(&listed.stdout).trim() == "project.moorline.dev/web", "s52: {listed:?}");
    ensure!(
        !as_bob(&["patch", "project", "web", "--type=merge", "-p", r#"{"spec":{"quota":{}}}"#], "")?.status.success(),
        "s55"
    );
    let phase = |name: &str, wanted: &str| {
        eventually(&format!("{name} {wanted}"), SOON, || {
            let object = hub.json(&["projectnamespace", name])?;
            ensure!(object["status"]["phase"] == wanted, "{}", object["status"]);
            Ok(())
        })
    };
    phase("shop", "Ready")?;
    let labels: Value = serde_json::from_str(&edge(&["get", "namespace", "shop", "-o", "json"])?)?;
    ensure!(labels["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted", "{labels}");
    edge(&["-n", "shop", "get", "networkpolicy", "moorline-project"])?;
    ensure!(can(world, BOB, &["create", "pods", "-n", "shop"])? && can(world, BOB, &["create", "pods", "-n", "old"])?);
    ensure!(!can(world, BOB, &["create", "pods", "-n", "default"])?);
    // What somebody else made is left alone, and told.
    hub.apply(&space("team", "web"))?;
    phase("team", "Failed")?;
    ensure!(!can(world, BOB, &["create", "pods", "-n", "team"])?);
    hub.k(&["delete", "projectnamespace", "team", "--timeout=20s"])?;
    edge(&["get", "namespace", "team"])?;

    // Six pods for both together, wherever they are.
    let pod = |namespace: &str, name: &str| {
        let overrides = r#"{"spec":{"nodeSelector":{"none":"such"}}}"#;
        edge(&["-n", namespace, "run", name, "--image=none", "--restart=Never", "--overrides", overrides, "--as", BOB])
            .map(drop)
    };
    let eventually_pod =
        |namespace: &str, name: &str| eventually(&format!("pod {name}"), SOON, || pod(namespace, name));
    for (namespace, name) in [("shop", "a"), ("shop", "b"), ("shop", "c"), ("shop", "d"), ("shop", "f"), ("old", "g")] {
        eventually_pod(namespace, name)?;
    }
    eventually("usage is told", SOON, || {
        let used = hub.json(&["project", "web"])?["status"]["used"].clone();
        ensure!(used["pods"] == "6", "{used} {}", edge(&["get", "resourcequotas,pods", "-A", "-o", "yaml"])?);
        Ok(())
    })?;
    for namespace in ["shop", "old"] {
        let refused = pod(namespace, "e").err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(refused.contains("exceeded quota"), "{namespace}: {refused}");
    }
    edge(&["-n", "shop", "delete", "pod", "a", "b", "--now"])?;
    eventually_pod("old", "e")?;
    let hard = |namespace: &str| -> Result<i64> {
        let text =
            edge(&["-n", namespace, "get", "resourcequota", "moorline-project", "-o", "jsonpath={.spec.hard.pods}"])?;
        Ok(text.parse()?)
    };
    ensure!(hard("shop")? + hard("old")? <= 6);

    // A namespace goes with its own object alone.
    ensure!(as_bob(&["delete", "projectnamespace", "shop", "--timeout=60s"], "")?.status.success());
    ensure!(edge(&["get", "namespace", "shop"]).is_err(), "it went before its object did");
    hub.apply(&space("kept", "web"))?;
    phase("kept", "Ready")?;
    hub.k(&["delete", "projects", "--all"])?;
    eventually("let go", SOON, || {
        for namespace in ["kept", "old"] {
            let object: Value = serde_json::from_str(&edge(&["get", "namespace", namespace, "-o", "json"])?)?;
            ensure!(object["metadata"]["labels"].get("moorline.dev/project").is_none(), "{object}");
            ensure!(edge(&["-n", namespace, "get", "rolebindings,resourcequotas", "-o", "name"])?.trim().is_empty());
        }
        Ok(())
    })?;
    hub.k(&["delete", "projectnamespace", "kept", "--timeout=20s"])?;
    edge(&["delete", "namespace", "old", "kept", "--wait=false"])?;
    Ok(())
}

pub fn health(world: &mut World) -> Result<()> {
    // A pod that no node takes is one in trouble, and gives a warning.
    let overrides = r#"{"spec":{"nodeSelector":{"none":"such"}}}"#;
    world.edge1.admin(&["run", "nowhere", "--image=none", "--restart=Never", "--overrides", overrides])?;
    eventually("the scheduler's warning", SOON, || {
        let events = world.edge1.admin(&["get", "events", "--field-selector", "type=Warning"])?;
        ensure!(events.contains("FailedScheduling"), "{events}");
        Ok(())
    })?;
    let_in(world, &["health"])?;
    let hub = Hub(world);
    eventually("how edge1 is", SOON, || {
        let (status, reason, message) = hub.condition("edge1", "Ready")?;
        ensure!(
            (status.as_str(), message.as_str()) == ("True", "1 of 1 nodes are ready"),
            "{status} {reason} {message}"
        );
        let health = hub.json(&["clusterhealth", "edge1"])?["status"].clone();
        ensure!(
            health["nodes"] == 1 && health["nodesReady"] == 1 && health["allocatable"]["cpu"].is_string(),
            "{health}"
        );
        ensure!(health["pods"].as_u64() >= Some(1) && health["podsInTrouble"].as_u64() >= Some(1), "{health}");
        let warnings = health["warnings"].as_array().context("warnings")?;
        ensure!(warnings.iter().any(|w| w["reason"] == "FailedScheduling"), "{health}");
        // What a real API server says of itself. Nobody elects a leader there, nor measures usage.
        let parts = health["components"].as_array().context("components")?;
        for name in ["kube-apiserver", "etcd"] {
            ensure!(parts.iter().any(|part| part["name"] == name && part["state"] == "Healthy"), "{name}: {health}");
        }
        ensure!(health["usage"] == "NotServed" && health["used"] == json!({}), "{health}");
        let fleet = hub.json(&["fleethealth", "fleet"])?["status"].clone();
        ensure!(fleet["clustersKnown"].as_u64() >= Some(1) && fleet["nodes"].as_u64() >= Some(1), "{fleet}");
        Ok(())
    })?;
    eventually("edge2 lets it not in", SOON, || {
        let (status, reason, _) = hub.condition("edge2", "Ready")?;
        ensure!((status.as_str(), reason.as_str()) == ("Unknown", "NotAllowed"), "{status} {reason}");
        Ok(())
    })?;
    // What the object says may be of a hub before this one; what was seen is this one's own.
    eventually("what was seen of edge1", SOON, || {
        let history: Value = serde_json::from_str(&hub.k(&["get", "--raw", "/plugins/health/clusters/edge1"])?)?;
        ensure!(history["points"][0][1] == 1, "{history}");
        Ok(())
    })?;
    let table = hub.k(&["get", "health"])?;
    ensure!(table.contains("edge1") && !table.contains("edge2"), "{table}");
    world.agent1 = None;
    eventually("nobody knows", SOON, || {
        let (status, reason, _) = Hub(world).condition("edge1", "Ready")?;
        ensure!((status.as_str(), reason.as_str()) == ("Unknown", "NotConnected"), "{status} {reason}");
        Ok(())
    })?;
    world.edge1.admin(&["delete", "pod", "nowhere", "--now"]).map(drop)
}

const SHARED: &str = "
apiVersion: moorline.dev/v1alpha1
kind: SharedSecret
metadata: {name: shared}
spec:
  data: {a: b25l, b: dHdv}
  clusters: {names: [edge1, edge2]}
  namespaces: {names: [shared-one], matchLabels: {shared: 'yes'}}
";

/// One that no cluster takes.
const POISON: &str = "
apiVersion: moorline.dev/v1alpha1
kind: SharedSecret
metadata: {name: poison}
spec: {type: kubernetes.io/tls, data: {a: b25l}, clusters: {names: ['*']}, namespaces: {names: [shared-one]}}
";

/// How far behind the others may be (F44).
const BEHIND: Duration = Duration::from_secs(5);
/// A machine that is busy may be slow once; somebody who waits for a silent cluster is late each time.
const TRIES: [&str; 3] = ["Zml2ZQ==", "c2l4", "c2V2ZW4="];

/// A cluster whose agent is there and silent, and an object that is refused, hold up nothing else, and what is well is not
/// made anew.
fn f44_the_others_do_not_wait(world: &World) -> Result<()> {
    let (hub, agent2) = (Hub(world), world.agent2.as_ref().context("edge2's agent")?);
    let secret = |what: &str| world.edge1.admin(&["-n", "shared-one", "get", "secret", "shared", "-o", what]);
    let uid = secret("jsonpath={.metadata.uid}")?;
    hub.apply(POISON)?;
    eventually("the refusal", SOON, || {
        let (status, _, message) = hub.condition("edge1", "SecretsSynced")?;
        ensure!(status == "False" && message.contains("poison"), "{status} {message}");
        Ok(())
    })?;
    let mut took = Vec::new();
    for data in TRIES {
        agent2.process.signal(libc::SIGSTOP);
        let followed = hub.apply(&SHARED.replace("{a: b25l, b: dHdv}", &format!("{{a: {data}}}"))).and_then(|()| {
            let begun = Instant::now();
            eventually("the change", SOON, || {
                let there = secret("jsonpath={.data.a}")?;
                ensure!(there == data, "{there}");
                Ok(())
            })?;
            Ok(begun.elapsed())
        });
        agent2.process.signal(libc::SIGCONT);
        took.push(followed?);
        if took.last().is_some_and(|took| *took < BEHIND) {
            break;
        }
    }
    ensure!(took.last().is_some_and(|took| *took < BEHIND), "the others were {took:?} behind");
    ensure!(secret("jsonpath={.metadata.uid}")? == uid, "a good one was made anew");
    hub.apply(&SHARED.replace("{a: b25l, b: dHdv}", "{a: dGhyZWU=}"))?;
    hub.k(&["delete", "sharedsecret", "poison"])?;
    world.hub.wait_connected("edge2", SOON)
}

pub fn secrets(world: &mut World) -> Result<()> {
    Hub(world).apply(SHARED)?;
    let_in(world, &["secrets"])?;
    let hub = Hub(world);
    let edge = |args: &[&str]| world.edge1.admin(args);
    let data = |namespace: &str| -> Result<Value> {
        let secret: Value = serde_json::from_str(&edge(&["-n", namespace, "get", "secret", "shared", "-o", "json"])?)?;
        Ok(secret["data"].clone())
    };
    let is = |namespace: &str, wanted: &Value| {
        eventually("the secret as it is declared", SOON, || {
            let there = data(namespace)?;
            ensure!(there == *wanted, "{namespace}: {there}");
            Ok(())
        })
    };
    let is_gone = |namespace: &str| {
        eventually("no secret", SOON, || {
            let names = edge(&["-n", namespace, "get", "secret", "-o", "name"])?;
            ensure!(!names.contains("secret/shared"), "{namespace}: {names}");
            Ok(())
        })
    };
    // It appears in namespaces that are there, and in those that come or are labelled later.
    let (both, one) = (json!({ "a": "b25l", "b": "dHdv" }), json!({ "a": "dGhyZWU=" }));
    for namespace in ["shared-one", "shared-two", "shared-other"] {
        edge(&["create", "namespace", namespace])?;
    }
    is("shared-one", &both)?;
    is_gone("shared-two")?;
    edge(&["label", "namespace", "shared-two", "shared=yes"])?;
    is("shared-two", &both)?;
    is_gone("shared-other")?;
    eventually("statuses", SOON, || {
        let sync = hub.json(&["sharedsecret", "shared"])?["status"]["sync"].clone();
        ensure!(sync["clusters"] == 2 && sync["synced"] == 1, "{sync}");
        ensure!(hub.condition("edge1", "SecretsSynced")?.0 == "True");
        // Edge2's owner has let nobody in.
        let (status, reason, _) = hub.condition("edge2", "SecretsSynced")?;
        ensure!((status.as_str(), reason.as_str()) == ("False", "NotAllowed"), "{status} {reason}");
        Ok(())
    })?;
    // It follows changes, a key that is taken out too; what others do to it is put right.
    hub.apply(&SHARED.replace("{a: b25l, b: dHdv}", "{a: dGhyZWU=}"))?;
    is("shared-one", &one)?;
    is("shared-two", &one)?;
    f44_the_others_do_not_wait(world)?;
    edge(&["-n", "shared-one", "patch", "secret", "shared", "-p", r#"{"data":{"a":"ZXZl"}}"#])?;
    edge(&["-n", "shared-two", "delete", "secret", "shared"])?;
    is("shared-one", &one)?;
    is("shared-two", &one)?;
    // Somebody else's is left alone, and that is told.
    edge(&["-n", "shared-other", "create", "secret", "generic", "shared", "--from-literal=own=1"])?;
    edge(&["label", "namespace", "shared-other", "shared=yes"])?;
    eventually("the refusal", SOON, || {
        let (status, reason, message) = hub.condition("edge1", "SecretsSynced")?;
        ensure!(status == "False" && message.contains("somebody else made"), "{status} {reason} {message}");
        Ok(())
    })?;
    ensure!(data("shared-other")? == json!({ "own": "MQ==" }), "it was touched");
    // It leaves where it is not meant for any more, and everywhere once it is withdrawn.
    edge(&["label", "namespace", "shared-two", "shared-"])?;
    is_gone("shared-two")?;
    let why = hub.refused(&SHARED.replace("b25l", "hunter2!"))?;
    ensure!(why.contains("is not base64") && !why.contains("hunter2"), "{why}");
    hub.k(&["delete", "sharedsecret", "shared"])?;
    is_gone("shared-one")?;
    ensure!(data("shared-other")? == json!({ "own": "MQ==" }), "it was touched");
    edge(&["delete", "namespace", "shared-one", "shared-two", "shared-other", "--wait=false"]).map(drop)
}

//! Plans that empty a real node first: a disruption budget is kept, a failure pauses, an agent that dies goes on.

use crate::{nodes, world::World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    moorline::{Agent, kubectl},
    process::{eventually, run},
};
use serde_json::{Value, json};
use std::{fs, process::Command, time::Duration};

const LONG: Duration = Duration::from_secs(120);

/// kubectl as the hub's administrator, at the hub.
pub fn hub(world: &World, words: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(kubectl());
    command.arg("--kubeconfig").arg(world.hub.data().join("admin.kubeconfig"));
    let output = run(command.args(words), input.as_bytes())?;
    ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn plan(world: &World, name: &str, spec: &Value) -> Result<()> {
    let object = json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "NodePlan", "metadata": { "name": name }, "spec": spec });
    hub(world, &["apply", "-f", "-"], &object.to_string()).map(drop)
}

pub fn status(world: &World, name: &str) -> Result<Value> {
    let text = hub(world, &["get", "nodeplans.moorline.dev", name, "-o", "json"], "")?;
    Ok(serde_json::from_str::<Value>(&text)?["status"].take())
}

pub fn reaches(world: &World, name: &str, phase: &str) -> Result<Value> {
    eventually(phase, LONG, || {
        let now = status(world, name)?;
        ensure!(now["phase"] == phase, "{now}");
        Ok(now)
    })
}

fn pod(world: &World) -> Result<(String, String)> {
    let json = world.edge1.admin(&["-n", "team", "get", "pods", "-l", "app=guarded", "-o", "json"])?;
    let list: Value = serde_json::from_str(&json)?;
    let pods = list["items"].as_array().context("pods")?.iter();
    let mut alive = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let pod = alive.next().context("a pod")?;
    let word = |at: &str| pod.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok((word("/metadata/uid"), word("/status/phase")))
}

/// New certificates, and the static pod that reads them starts anew.
fn static_pods(world: &World, node: &str) -> Result<()> {
    let dir = world.edge1.dir.clone();
    let (pki, manifests) = (dir.join("plan-pki"), dir.join("manifests"));
    let copied = run(Command::new("cp").arg("-r").arg(dir.join("pki")).arg(&pki), b"")?;
    ensure!(copied.status.success());
    let started = dir.join("static-started");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "reader", "namespace": "default" },
        "spec": {
            "hostNetwork": true, "terminationGracePeriodSeconds": 0,
            "volumes": [{ "name": "d", "hostPath": { "path": dir } }],
            "containers": [{
                "name": "c", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
                "volumeMounts": [{ "name": "d", "mountPath": "/d" }],
                "command": ["/bin/busybox", "sh", "-c",
                    "/bin/busybox cat /d/plan-pki/apiserver.crt >>/d/static-started; exec /bin/busybox httpd -f -p 127.0.0.1:28431 -h /d"],
            }],
        },
    });
    fs::write(manifests.join("reader.yaml"), pod.to_string())?;
    let seen = || -> Result<Vec<String>> {
        let text = fs::read_to_string(&started)?;
        let parts = text.split("-----BEGIN CERTIFICATE-----").skip(1);
        Ok(parts.map(|part| format!("-----BEGIN CERTIFICATE-----{part}")).collect())
    };
    eventually("a static pod", LONG, || {
        ensure!(seen()?.len() == 1, "{}", seen()?.len());
        Ok(())
    })?;
    let before = fs::read_to_string(pki.join("apiserver.crt"))?;
    let (pki_text, manifests) = (pki.display().to_string(), manifests.display().to_string());
    let words = ["plan", "certificates", "fresh", "-c", "edge1", "--node", node, "--dir", &pki_text, "--rotate"];
    let more = ["--within-days=0", "--restart", "--pod=reader=127.0.0.1:28431", "--manifests", &manifests, "--wait"];
    let output = run(world.hub.cli("admin").args(words).args(more), b"")?;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("$ moorline plan certificates … --rotate --restart\n{said}");
    ensure!(output.status.success() && said.contains("reader-answers Succeeded"), "{said}");
    let now = fs::read_to_string(pki.join("apiserver.crt"))?;
    let read = eventually("a second start", LONG, || {
        let seen = seen()?;
        ensure!(seen.len() == 2, "{}", seen.len());
        Ok(seen)
    })?;
    ensure!(now != before && read[1].trim() == now.trim() && read[0].trim() == before.trim(), "it reads the new ones");
    fs::remove_file(dir.join("manifests/reader.yaml"))?;
    hub(world, &["delete", "nodeplans.moorline.dev", "fresh"], "").map(drop)
}

pub fn closed(world: &World) -> Result<bool> {
    let said = world.edge1.admin(&["get", "nodes", "-o", "jsonpath={.items[0].spec.unschedulable}"])?;
    Ok(said.trim() == "true")
}

pub fn all(world: &mut World) -> Result<()> {
    let dir = world.dir.join("drains");
    fs::create_dir_all(&dir)?;
    let (policy, mark) = (dir.join("policy.yaml"), dir.join("mark").display().to_string());
    fs::write(
        &policy,
        format!(
            "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n  plans:\n    allow: true\n    drain: true\n    \
             commands: [/bin/sleep]\n    paths: [{}, {}]\n",
            dir.display(),
            world.edge1.dir.display()
        ),
    )?;
    let policy = policy.display().to_string();
    let more = ["--policy-file", policy.as_str()];
    let agent = nodes::join(world, &more)?;
    let outcome = scene(world, agent, &more, &mark);
    // What is left of a scene that failed must not keep others' pods away.
    let left = ["-n", "team", "delete", "deployment/guarded", "pdb/guarded", "--ignore-not-found", "--wait=false"];
    world.edge1.admin(&left)?;
    let node = world.edge1.admin(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    world.edge1.admin(&["uncordon", node.trim()])?;
    outcome
}

fn scene(world: &mut World, agent: Agent, more: &[&str], mark: &str) -> Result<()> {
    let name = agent.state.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("agent--name="));
    let name = name.context("a name")?.to_owned();
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "guarded", "namespace": "team" },
        "spec": {
            "replicas": 1, "selector": { "matchLabels": { "app": "guarded" } },
            "template": { "metadata": { "labels": { "app": "guarded" } }, "spec": {
                "terminationGracePeriodSeconds": 0,
                "containers": [{ "name": "c", "image": "docker.io/local/busybox:1", "imagePullPolicy": "Never",
                    "command": ["/bin/busybox", "sleep", "100000"] }],
            } },
        },
    });
    let apply = |object: &Value| -> Result<()> {
        let mut apply = world.edge1.command(kubectl());
        apply.arg("--kubeconfig").arg(world.edge1.kubeconfig()).args(["apply", "-f", "-"]);
        let output = run(&mut apply, object.to_string().as_bytes())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    apply(&deployment)?;
    let budget = |version: &str| {
        json!({ "apiVersion": version, "kind": "PodDisruptionBudget", "metadata": { "name": "guarded", "namespace": "team" },
                "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "guarded" } } } })
    };
    // Before Kubernetes 1.21 it was a beta.
    apply(&budget("policy/v1")).or_else(|_| apply(&budget("policy/v1beta1")))?;
    world.edge1.admin(&["-n", "team", "rollout", "status", "deployment/guarded", "--timeout=90s"])?;
    eventually("a budget that counts", LONG, || {
        let healthy =
            world.edge1.admin(&["-n", "team", "get", "pdb", "guarded", "-o", "jsonpath={.status.currentHealthy}"])?;
        ensure!(healthy.trim() == "1", "{healthy}");
        Ok(())
    })?;
    let (before, _) = pod(world)?;

    // The budget lets no pod go: the plan fails before its first step, and the rest is paused.
    let steps = |first: Value| json!([first, { "name": "mark", "write": { "path": mark, "content": "done\n", "mode": "0644" } }]);
    let quick = json!({ "name": "rest", "run": { "command": ["/bin/sleep", "0"] } });
    let network = world.edge1.network().context("a network")?;
    let url = format!("https://{}:{}", network.outside, world.hub.port);
    let node = world.edge1.admin(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    let mut words = world.hub.join_command("edge1")?;
    words.iter_mut().filter(|word| word.starts_with("https://")).for_each(|word| word.clone_from(&url));
    let mut second = vec!["--role", "node", "--node-name", node.trim(), "--name=z-second"];
    second.extend(more);
    let second = Agent::start(&world.edge1, &words, &world.dir.join("agent-z-second"), &second)?;
    eventually("a second agent", LONG, || world.hub.moorline("admin", &["get", "nodes", "edge1.z-second"]).map(drop))?;
    let both = json!([name, "z-second"]);
    let spec = |run: &str, nodes: &Value, seconds: u32, steps: Value| {
        json!({ "cluster": "edge1", "nodes": nodes, "run": run, "steps": steps,
                "strategy": { "maxUnavailable": 1, "drainSeconds": seconds, "pauseOnFailure": true } })
    };
    plan(world, "empty", &spec("1", &both, 6, steps(quick.clone())))?;
    let paused = reaches(world, "empty", "Paused")?;
    drop(second);
    let one = json!([name]);
    println!("with a budget: {paused}");
    ensure!(paused.to_string().contains("team/guarded-"), "it says which pod: {paused}");
    ensure!(pod(world)?.0 == before, "a budget was broken");
    ensure!(closed(world)? && fs::metadata(mark).is_err(), "nothing is done on a node that was not emptied");

    // Who takes a plan away has the node back in use.
    world.edge1.admin(&["annotate", "node", node.trim(), "moorline.dev/closed-for-"])?;
    world.edge1.admin(&["uncordon", node.trim()])?;
    plan(world, "taken", &spec("1", &one, 600, steps(quick.clone())))?;
    eventually("a node that is being emptied", LONG, || {
        let now = status(world, "taken")?;
        ensure!(now.to_string().contains("emptying the node"), "{now}");
        Ok(())
    })?;
    ensure!(closed(world)?);
    hub(world, &["delete", "nodeplans.moorline.dev", "taken"], "")?;
    eventually("the node to be in use", LONG, || {
        ensure!(!closed(world)?);
        Ok(())
    })?;
    ensure!(pod(world)?.0 == before, "a budget was broken");

    // Without it the pod goes, the steps are done, and the node is back in use.
    world.edge1.admin(&["-n", "team", "delete", "pdb", "guarded"])?;
    plan(world, "empty", &spec("2", &one, 90, steps(quick.clone())))?;
    reaches(world, "empty", "Succeeded")?;
    ensure!(pod(world)?.0 != before, "it was not evicted");
    ensure!(!closed(world)? && fs::read_to_string(mark)? == "done\n");
    eventually("the pod's return", LONG, || {
        ensure!(pod(world)?.1 == "Running", "{:?}", pod(world)?);
        Ok(())
    })?;

    // What its operator has closed stays closed.
    world.edge1.admin(&["cordon", node.trim()])?;
    plan(world, "kept", &spec("1", &one, 90, steps(quick)))?;
    reaches(world, "kept", "Succeeded")?;
    ensure!(closed(world)?, "its operator did not open it");
    world.edge1.admin(&["uncordon", node.trim()])?;
    eventually("the pod's return", LONG, || {
        ensure!(pod(world)?.1 == "Running", "{:?}", pod(world)?);
        Ok(())
    })?;

    // As after a reboot: the agent dies under a step, and the next one goes on there without a token.
    fs::remove_file(mark)?;
    let slow = json!({ "name": "rest", "run": { "command": ["/bin/sleep", "20"], "timeoutSeconds": 60 } });
    plan(world, "reboot", &spec("1", &one, 0, steps(slow)))?;
    eventually("a step under way", LONG, || {
        let now = status(world, "reboot")?;
        ensure!(now.to_string().contains("step 1 of 2"), "{now}");
        Ok(())
    })?;
    let state = agent.state.clone();
    agent.process.signal(9);
    drop(agent);
    ensure!(fs::metadata(mark).is_err());
    let words = ["moorline", "agent", "--hub", &url].map(str::to_owned);
    let flag = format!("--name={name}");
    let mut all = vec!["--role", "node", "--node-name", node.trim(), &flag];
    all.extend(more);
    let _again = Agent::start(&world.edge1, &words, &state, &all)?;
    reaches(world, "reboot", "Succeeded")?;
    ensure!(fs::read_to_string(mark)? == "done\n");
    static_pods(world, &name)?;
    for name in ["empty", "kept", "reboot"] {
        hub(world, &["delete", "nodeplans.moorline.dev", name], "")?;
    }
    Ok(())
}

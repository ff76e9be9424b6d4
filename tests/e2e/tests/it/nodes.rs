//! Node agents.

use crate::{
    deploy::libraries,
    world::{ALICE, BOB, CAROL, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    moorline::Agent,
    process::{Process, eventually, run, text},
};
use std::{
    path::Path,
    process::Child,
    time::{Duration, Instant},
};

/// The bound for an agent that was killed.
const KILLED: Duration = Duration::from_secs(3);
/// The bound for one that says nothing any more.
const SILENT: Duration = Duration::from_secs(10);

/// A node agent of edge1 that stands by.
pub fn join(world: &World, more: &[&str]) -> Result<Agent> {
    let network = world.edge1.network().context("a network")?;
    let node = world.edge1.admin(&["get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"])?;
    let mut words = world.hub.join_command("edge1")?;
    for word in &mut words {
        if word.starts_with("https://") {
            *word = format!("https://{}:{}", network.outside, world.hub.port);
        }
    }
    let name = format!("--name=node-{}", world.dir.read_dir()?.count()); // each scene's is another agent
    let mut all = vec!["--role", "node", "--node-name", node.trim(), &name];
    all.extend(more);
    let agent = Agent::start(&world.edge1, &words, &world.dir.join(format!("agent{name}")), &all)?;
    agent.connected(0).with_context(|| agent.process.log())?;
    eventually("a node agent that stands by", Duration::from_secs(60), || {
        ensure!(status(world, "edge1")?["nodeAgents"] == 1, "{}", agent.process.log());
        Ok(())
    })?;
    Ok(agent)
}

pub fn status(world: &World, cluster: &str) -> Result<serde_json::Value> {
    let json = world.hub.moorline("admin", &["clusters", cluster, "-o", "json"])?;
    Ok(serde_json::from_str::<serde_json::Value>(&json)?["status"].take())
}

/// Why the cluster is called connected, or not.
pub fn reason(world: &World, cluster: &str) -> Result<String> {
    let status = status(world, cluster)?;
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let connected = conditions.iter().find(|c| c["type"] == "Connected").context("a condition")?;
    Ok(connected["reason"].as_str().unwrap_or_default().to_owned())
}

/// How long it takes until a request that is made now or later succeeds.
fn until_success(world: &World, patience: Duration) -> Result<Duration> {
    let (started, patience) = (Instant::now(), format!("--request-timeout={}ms", patience.as_millis()));
    eventually("success", Duration::from_secs(30), || {
        let mut command = world.through(ALICE, "edge1")?;
        let output = run(command.args(["get", "namespaces", &patience]), b"")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    })?;
    Ok(started.elapsed())
}

/// A watch that runs meanwhile on the node agent.
fn watch(world: &World) -> Result<Child> {
    let mut command = world.through(ALICE, "edge1")?;
    command.args(["get", "namespaces", "--watch"]).stdout(std::process::Stdio::null());
    Ok(command.spawn()?)
}

pub fn stands_in(world: &mut World) -> Result<()> {
    let node = join(world, &[])?;
    ensure!(reason(world, "edge1")? == "AgentConnected");

    // What a kubectl takes while all is well is the machine's.
    let usual = until_success(world, SILENT)?;
    let patience = Duration::from_secs(1) + 2 * usual;
    let agent = world.agent1.take().context("agent")?;
    agent.process.signal(9);
    drop(agent);
    let took = until_success(world, patience)?;
    println!("a request succeeds {took:?} after the cluster agent was killed; usually {usual:?}");
    ensure!(took < KILLED + 2 * usual, "{took:?}");
    // The status is written once the request is on its way.
    eventually("a status that says so", Duration::from_secs(5), || {
        let status = status(world, "edge1")?;
        ensure!(reason(world, "edge1")? == "NodeAgentOnly", "{status}");
        Ok(())
    })?;
    told(world)?;
    let mut on_node = watch(world)?;

    world.restart_agent1()?;
    eventually("the cluster agent's return", Duration::from_secs(40), || {
        ensure!(reason(world, "edge1")? == "AgentConnected", "{}", status(world, "edge1")?);
        Ok(())
    })?;
    world.kubectl(ALICE, &["get", "namespaces"])?;
    let running = on_node.try_wait()?.is_none();
    on_node.kill()?;
    on_node.wait()?;
    ensure!(running, "what runs on the node agent goes on there");

    let frozen = Frozen::new(&world.agent1.as_ref().context("agent")?.process);
    let took = until_success(world, patience)?;
    println!("a request succeeds {took:?} after the cluster agent fell silent");
    ensure!(took < SILENT + 2 * usual, "{took:?}");
    drop(frozen);
    eventually("the cluster agent's return", Duration::from_secs(40), || {
        ensure!(reason(world, "edge1")? == "AgentConnected", "{}", status(world, "edge1")?);
        Ok(())
    })?;
    drop(node);
    world.kubectl(ALICE, &["get", "namespaces"]).map(drop)
}

/// kubectl as the hub's administrator.
fn hub_kubectl(world: &World, words: &[&str]) -> Result<String> {
    let mut command = std::process::Command::new(moorline_e2e::moorline::kubectl());
    text(command.arg("--kubeconfig").arg(world.hub.data().join("admin.kubeconfig")).args(words))
}

/// How often an event says that a cluster had to be reached by its nodes' agents.
pub fn switches(world: &World, cluster: &str) -> Result<u64> {
    let event = format!("events.moorline.dev/{cluster}.nodeagentonly");
    let event: serde_json::Value = serde_json::from_str(&hub_kubectl(world, &["get", &event, "-o", "json"])?)?;
    event["spec"]["count"].as_u64().with_context(|| event.to_string())
}

/// kubectl shows the switch as what happened to the cluster.
fn told(world: &World) -> Result<()> {
    eventually("an event", Duration::from_secs(20), || {
        let events = hub_kubectl(world, &["get", "events"])?;
        ensure!(events.contains("NodeAgentOnly") && events.contains("cluster/edge1"), "{events}");
        Ok(())
    })?;
    let described = hub_kubectl(world, &["describe", "clusters.moorline.dev", "edge1"])?;
    let events = described.split_once("Events:").map(|(_, events)| events.to_owned()).unwrap_or_default();
    println!("$ kubectl describe cluster edge1\n…Events:{events}");
    ensure!(events.contains("NodeAgentOnly") && events.contains("moorline-hub"), "{described}");
    Ok(())
}

/// What the hub says of the one node that has an agent.
fn node(world: &World, agent: &str) -> Result<serde_json::Value> {
    let json = world.hub.moorline("admin", &["get", "nodes", &format!("edge1.{agent}"), "-o", "json"])?;
    Ok(serde_json::from_str(&json)?)
}

fn condition(node: &serde_json::Value, name: &str) -> String {
    let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|c| c["type"] == name);
    found.map_or_else(String::new, |c| c["status"].as_str().unwrap_or_default().to_owned())
}

pub fn facts(world: &mut World) -> Result<()> {
    let pki = world.edge1.dir.join("pki").to_string_lossy().into_owned();
    // up.sh counts its ports from one offset.
    let etcd = format!("http://127.0.0.1:{}", world.edge1.port - 16443 + 12379);
    let agent = join(world, &["--pki-dirs", &pki, "--etcd", &etcd])?;
    let name =
        agent.state.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("agent--name="));
    let name = name.context("a name")?.to_owned();
    eventually("what the node tells", Duration::from_secs(30), || {
        let node = node(world, &name)?;
        ensure!(condition(&node, "Ready") == "True" && condition(&node, "EtcdReachable") == "True", "{node}");
        Ok(())
    })?;
    let told = node(world, &name)?;
    let direct = world.edge1.admin(&["get", "nodes", "-o", "jsonpath={.items[0].status.nodeInfo}"])?;
    let direct: serde_json::Value = serde_json::from_str(&direct)?;
    for fact in
        ["osImage", "operatingSystem", "architecture", "kernelVersion", "kubeletVersion", "containerRuntimeVersion"]
    {
        ensure!(direct[fact].is_string() && told["status"][fact] == direct[fact], "{fact}: {told}");
    }
    ensure!(condition(&told, "ApiServerReachable") == "True" && condition(&told, "ClockSkewed") == "False", "{told}");
    let certificates = told["status"]["certificates"].as_array().context("certificates")?;
    ensure!(certificates.iter().any(|c| c["name"] == "apiserver.crt"), "{told}");
    let table = hub_kubectl(world, &["get", "nodes.moorline.dev", "-o", "wide"])?;
    println!("{table}");
    // How full this machine's disk is no test decides: the table says what the node's conditions say.
    let problems = if condition(&told, "DiskPressure") == "True" { "DiskPressure" } else { "<none>" };
    let row = table.lines().find(|row| row.starts_with(&format!("edge1.{name} "))).context("the node's row")?;
    ensure!(
        row.split_whitespace().nth(4) == Some(problems)
            && direct["kubeletVersion"].as_str().is_some_and(|version| row.contains(version)),
        "{problems}: {table}"
    );
    drop(agent);
    Ok(())
}

/// A process that stands still until this is dropped.
struct Frozen<'a>(&'a Process);
impl<'a> Frozen<'a> {
    fn new(process: &'a Process) -> Self {
        process.signal(19); // SIGSTOP
        Self(process)
    }
}
impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.signal(18); // SIGCONT
    }
}

/// A root for shells: busybox and kubectl, both static, and nothing else.
pub fn shell_root(world: &World) -> Result<std::path::PathBuf> {
    let root = world.dir.join("shell-root");
    let bin = root.join("bin");
    if bin.exists() {
        return Ok(root);
    }
    std::fs::create_dir_all(&bin)?;
    std::fs::copy(moorline_e2e::moorline::kubectl(), bin.join("kubectl"))?;
    std::fs::copy("/bin/busybox", bin.join("busybox"))?;
    for name in ["sh", "ls", "cat", "id", "stty"] {
        std::os::unix::fs::symlink("busybox", bin.join(name))?;
    }
    Ok(root)
}

/// The same with bash, and what completes its lines.
fn bash_root(world: &World) -> Result<std::path::PathBuf> {
    let root = world.dir.join("bash-root");
    let completion = Path::new("/usr/share/bash-completion/bash_completion");
    let files = libraries(Path::new("/bin/bash"))?;
    let files = files.iter().filter_map(|pair| pair.split_once('=')).map(|(from, _)| Path::new(from));
    for file in files.chain([Path::new("/bin/bash"), completion]) {
        let to = root.join(file.strip_prefix("/")?);
        std::fs::create_dir_all(to.parent().context("a folder")?)?;
        std::fs::copy(file, to)?;
    }
    for (name, from) in [("kubectl", moorline_e2e::moorline::kubectl()), ("cat", "/bin/busybox".into())] {
        std::fs::copy(from, root.join("bin").join(name))?;
    }
    Ok(root)
}

/// What a shell of `user` on edge1 prints when this is typed into it, and its exit code.
fn shell(world: &World, user: &str, more: &[&str], typed: &str) -> Result<(String, Option<i32>)> {
    shell_of(world, user, "edge1", more, typed)
}

/// The same on any cluster.
pub fn shell_of(world: &World, user: &str, cluster: &str, more: &[&str], typed: &str) -> Result<(String, Option<i32>)> {
    let mut command = world.hub.cli(user);
    command.args(["shell", cluster]).args(more);
    let output = run(&mut command, typed.as_bytes())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((format!("{}{}", text(&output.stdout), text(&output.stderr)), output.status.code()))
}

pub fn shells(world: &mut World) -> Result<()> {
    let (said, code) = shell(world, ALICE, &[], "")?;
    ensure!(code == Some(1) && said.contains("no node agent"), "{code:?} {said}");

    let root = shell_root(world)?.to_string_lossy().into_owned();
    let closed = join(world, &["--shell-root", &root])?;
    let (said, code) = shell(world, ALICE, &[], "")?;
    ensure!(code == Some(1) && said.contains("spec.shells.allow"), "not unless the owner says so: {code:?} {said}");
    drop(closed);

    let policy = world.dir.join("shells.yaml");
    std::fs::write(&policy, "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {shells: {allow: true}}\n")?;
    let node = join(world, &["--shell-root", &root, "--policy-file", &policy.to_string_lossy()])?;
    let (said, code) = shell(world, ALICE, &[], "kubectl get namespaces\nkubectl get clusterroles\nid -u\nexit 3\n")?;
    println!("a shell of alice's:\n{said}");
    ensure!(code == Some(3), "{code:?} {said}");
    ensure!(said.contains("kube-system") && said.contains("team"), "{said}");
    ensure!(said.contains(r#"User "alice" cannot list resource "clusterroles""#), "as herself, no more: {said}");
    ensure!(said.contains("1900000000"), "nobody on the node: {said}");
    let (said, _) = shell(world, BOB, &[], "kubectl get configmaps -n team\nkubectl get nodes\nexit\n")?;
    ensure!(said.contains("kube-root-ca.crt") && said.contains(r#"User "bob" cannot list resource "nodes""#), "{said}");
    let as_bob = "kubectl get nodes --as bob\nkubectl get nodes --as carol\nexit\n";
    let (said, _) = shell(world, ALICE, &[], as_bob)?;
    ensure!(said.contains(r#"User "bob" cannot list"#) && said.contains("cannot impersonate"), "{said}");

    let (said, code) = shell(world, CAROL, &[], "exit\n")?;
    ensure!(code == Some(1) && said.to_lowercase().contains("forbidden"), "{code:?} {said}");
    let (said, code) = shell(world, ALICE, &["--node", "nobody"], "exit\n")?;
    ensure!(code == Some(1) && said.contains(r#"no node agent "nobody""#), "{code:?} {said}");
    drop(node);

    // What is completed is what alice may see: the API server's kinds, and a namespace's name.
    let root = bash_root(world)?.to_string_lossy().into_owned();
    let node = join(world, &["--shell-root", &root, "--policy-file", &policy.to_string_lossy()])?;
    let (said, code) = shell(world, ALICE, &[], "kubectl get configm\t-n tea\t\nexit 5\n")?;
    println!("completed:\n{said}");
    ensure!(code == Some(5) && said.contains("kube-root-ca.crt"), "{code:?} {said}");
    drop(node);
    Ok(())
}

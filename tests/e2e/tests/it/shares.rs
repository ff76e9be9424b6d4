//! A service of two clusters at an address of a third one's: web servers in their networks, real API servers, and the way
//! through the hub. edge3 is one more agent beside edge2's control plane: a cluster of its own to the hub.

use crate::{
    deploy::{AGENT, rights, used},
    world::World,
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    cluster::Cluster,
    moorline::{Agent, kubectl},
    process::{Process, eventually, run, text},
    root,
};
use serde_json::Value;
use std::{path::Path, time::Duration};

const LONG: Duration = Duration::from_secs(60);
/// Where the DNS servers of this scene listen in their networks.
const DNS: u16 = 15353;

/// A web server in a cluster's network that says where it is, and the service `real/shop` for it.
fn backend(world: &World, cluster: &Cluster, name: &str, port: u16) -> Result<Process> {
    let dir = world.dir.join(format!("shop-{name}"));
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("who"), name)?;
    let inside = cluster.network().context("a network")?.inside.clone();
    let mut command = cluster.command("python3");
    command.args(["-m", "http.server", "--bind", &inside, "--directory"]).arg(&dir).arg(port.to_string());
    let process = Process::spawn(command, &dir.join("log"))?;
    let own = format!("http://{inside}:{port}/who");
    eventually("web server", LONG, || text(cluster.command("curl").args(["-sSf", "--max-time", "5", &own])))?;
    let objects = format!(
        r#"{{"apiVersion": "v1", "kind": "List", "items": [
        {{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "real"}}}},
        {{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "remote"}}}},
        {{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "shop", "namespace": "real"}},
          "spec": {{"ports": [{{"name": "http", "port": 80}}, {{"name": "dns", "port": 53, "protocol": "UDP"}}]}}}},
        {{"apiVersion": "v1", "kind": "Endpoints", "metadata": {{"name": "shop", "namespace": "real"}},
          "subsets": [{{"addresses": [{{"ip": "{inside}"}}], "ports": [{{"name": "http", "port": {port}}},
            {{"name": "dns", "port": {DNS}, "protocol": "UDP"}}]}}]}}]}}"#
    );
    let mut apply = cluster.command(kubectl());
    apply.arg("--kubeconfig").arg(cluster.kubeconfig()).args(["apply", "-f", "-"]);
    let made = run(&mut apply, objects.as_bytes())?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    eventually("endpoint slices", LONG, || {
        let selector = ["-l", "kubernetes.io/service-name=shop", "-o", "name"];
        let found = cluster.admin(&[&["-n", "real", "get", "endpointslices"][..], &selector].concat())?;
        ensure!(!found.is_empty(), "none yet");
        Ok(())
    })?;
    Ok(process)
}

/// A real DNS server in a cluster's network, which knows one name, at this address.
fn resolver(world: &World, cluster: &Cluster, name: &str, address: &str) -> Result<Process> {
    let inside = &cluster.network().context("a network")?.inside;
    let mut server = cluster.command("dnsmasq");
    server.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--bind-interfaces"]);
    server.args(["--no-daemon", &format!("--listen-address={inside}"), &format!("--port={DNS}")]);
    server.arg(format!("--address=/deep.test/{address}"));
    Process::spawn(server, &world.dir.join(format!("dns-{name}.log")))
}

/// What a pod of this cluster is told of `deep.test` at `to`.
fn asked(cluster: &Cluster, to: &str) -> Result<String> {
    const ASK: &str = "import socket, sys
host, port = sys.argv[1].rsplit(':', 1)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
s.sendto(bytes.fromhex('123401000001000000000000') + b'\\x04deep\\x04test\\x00\\x00\\x01\\x00\\x01', (host, int(port)))
answer = s.recv(512)
print(socket.inet_ntoa(answer[-4:]) if answer[:2] == bytes.fromhex('1234') else 'another answer')";
    Ok(text(cluster.command("python3").args(["-c", ASK, to]))?.trim().to_owned())
}

/// A kubeconfig of the account that the agent of `deploy/` has, with what `deploy/imports/rbac.yaml` gives it and nothing
/// else.
fn account(world: &World, cluster: &Cluster) -> Result<std::path::PathBuf> {
    let rights = std::fs::read_to_string(root().join("deploy/imports/rbac.yaml"))?.replace("NAMESPACE", "remote");
    let objects = format!(
        r#"{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "remote"}}}}
---
{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "moorline-system"}}}}
---
{{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {{"name": "moorline-agent", "namespace": "moorline-system"}}}}
---
{rights}"#
    );
    let admin = |args: &[&str], input: &str| -> Result<String> {
        let mut command = cluster.command(kubectl());
        let done = run(command.arg("--kubeconfig").arg(cluster.kubeconfig()).args(args), input.as_bytes())?;
        ensure!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    };
    admin(&["apply", "-f", "-"], &objects)?;
    let path = "/api/v1/namespaces/moorline-system/serviceaccounts/moorline-agent/token";
    let request = r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [], "expirationSeconds": 3600}}"#;
    let made: Value = serde_json::from_str(&admin(&["create", "--raw", path, "-f", "-"], request)?)?;
    let mut config: Value = serde_saphyr::from_str(&std::fs::read_to_string(cluster.kubeconfig())?)?;
    config["users"][0]["user"] = serde_json::json!({ "token": made["status"]["token"] });
    let file = world.dir.join("imports.kubeconfig");
    std::fs::write(&file, config.to_string())?;
    Ok(file)
}

/// kubectl at the hub, as its administrator.
fn hub(world: &World, args: &[&str], input: &[u8]) -> Result<String> {
    let mut command = std::process::Command::new(kubectl());
    command.arg("--kubeconfig").arg(world.hub.data().join("admin.kubeconfig")).args(args);
    let done = run(&mut command, input)?;
    ensure!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

fn agent(world: &World, cluster: &Cluster, words: &[String], state: &Path, spec: &str) -> Result<Agent> {
    Ok(Agent {
        process: started(world, cluster, words, state, spec, (&cluster.kubeconfig(), &[]))?,
        state: state.to_owned(),
    })
}

fn started(
    world: &World,
    cluster: &Cluster,
    words: &[String],
    state: &Path,
    spec: &str,
    (kubeconfig, more): (&Path, &[&str]),
) -> Result<Process> {
    let policy = state.with_extension("shares-policy.yaml");
    std::fs::write(&policy, format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {spec}\n"))?;
    let url = format!("https://{}:{}", cluster.network().context("a network")?.outside, world.hub.port);
    let words: Vec<String> =
        words.iter().map(|word| if word.starts_with("https://") { url.clone() } else { word.clone() }).collect();
    let mut command = cluster.command(binary());
    command.args(words.iter().skip(1)).arg("--state-dir").arg(state).arg("--kubeconfig").arg(kubeconfig);
    command.arg("--policy-file").arg(policy).args(more);
    Process::spawn(command, &state.with_extension("log"))
}

fn reason(world: &World, object: &str) -> Result<String> {
    hub(world, &["get", object, "-o", "jsonpath={.status.conditions[0].reason}"], b"")
}

fn becomes(world: &World, object: &str, wanted: &str) -> Result<()> {
    eventually(wanted, LONG, || {
        let now = hub(world, &["get", object, "-o", "jsonpath={.status.conditions[0].reason}"], b"")?;
        ensure!(now == wanted, "{object} is {now}");
        Ok(())
    })
}

/// All of it, and then the usual agents again.
pub fn shared(world: &mut World) -> Result<()> {
    world.agent1 = None;
    world.agent2 = None;
    let done = scene(world);
    let (one, two) = (world.restart_agent1(), world.restart_agent2());
    done.and(one).and(two)
}

fn scene(world: &World) -> Result<()> {
    let known = ["moorline", "agent", "--hub", "https://hub"].map(str::to_owned);
    let opens = |cluster: &Cluster| -> Result<String> {
        Ok(format!("services: {{allowAddresses: ['{}']}}", cluster.network().context("a network")?.inside))
    };
    let address = world.edge2.network().context("a network")?.inside.clone();
    let one_state = world.dir.join("agent-edge1");
    let one = agent(world, &world.edge1, &known, &one_state, &format!("{{{}}}", opens(&world.edge1)?))?;
    let words = world.hub.join_command("edge3")?;
    let three_state = world.dir.join("agent-edge3");
    let three = agent(world, &world.edge2, &words, &three_state, &format!("{{{}}}", opens(&world.edge2)?))?;
    let imports = ["--imports-address", address.as_str()];
    let spec = "{imports: {allow: ['remote/shop']}}";
    let own = account(world, &world.edge2)?;
    let state = world.dir.join("agent-edge2");
    let two = started(world, &world.edge2, &known, &state, spec, (&own, &imports))?;
    for name in ["edge1", "edge2", "edge3"] {
        world.hub.wait_connected(name, LONG)?;
    }
    let first = backend(world, &world.edge1, "edge1", 18080)?;
    let second = backend(world, &world.edge2, "edge3", 18080)?;

    let shared = r#"{"apiVersion": "moorline.dev/v1alpha1", "kind": "ServiceExport", "metadata": {"name": "shop-edge1"}, "spec":
          {"cluster": "edge1", "namespace": "real", "service": "shop", "ports": [{"port": 80, "name": "http"}], "importers": ["edge2"]}}
---
{"apiVersion": "moorline.dev/v1alpha1", "kind": "ServiceExport", "metadata": {"name": "shop-edge3"}, "spec":
          {"cluster": "edge3", "namespace": "real", "service": "shop", "ports": [{"port": 80, "name": "http"}], "importers": ["*"]}}
---
{"apiVersion": "moorline.dev/v1alpha1", "kind": "ServiceImport", "metadata": {"name": "shop"}, "spec":
          {"cluster": "edge2", "namespace": "remote", "service": "shop", "from": {"namespace": "real"}}}"#;
    hub(world, &["apply", "-f", "-"], shared.as_bytes())?;
    becomes(world, "serviceimport/shop", "Imported").with_context(|| two.log())?;
    let shown = hub(world, &["get", "serviceimports"], b"")?;
    ensure!(shown.contains("edge1,edge3"), "{shown}");

    // The service has the address that the hub shows; behind it is the agent. (Here is no kube-proxy: its part, from
    // address to endpoint, is done by hand.)
    let object = |kind: &str, select: &[&str]| -> Result<Value> {
        let args = [&["-n", "remote", "get", kind, "-o", "json"][..], select].concat();
        Ok(serde_json::from_str(&world.edge2.admin(&args)?)?)
    };
    let service = object("service/shop", &[])?;
    let told = hub(world, &["get", "serviceimport/shop", "-o", "jsonpath={.status.address}"], b"")?;
    ensure!(service["spec"]["clusterIP"] == told.as_str(), "{service} is not at {told}");
    let slices = object("endpointslices", &["-l", "kubernetes.io/service-name=shop"])?;
    let slice = &slices["items"][0];
    let at = format!(
        "{}:{}",
        slice["endpoints"][0]["addresses"][0].as_str().context("no address")?,
        slice["ports"][0]["port"]
    );
    let curl = || text(world.edge2.command("curl").args(["-sS", "--max-time", "20", &format!("http://{at}/who")]));
    let mut seen: Vec<String> = (0..10).map(|_| curl()).collect::<Result<_>>().with_context(|| {
        format!("agent edge2: {}\nedge1: {}\nedge3: {}", two.log(), one.process.log(), three.process.log())
    })?;
    seen.sort();
    seen.dedup();
    ensure!(seen.iter().all(|who| who == "edge1" || who == "edge3"), "{seen:?}");

    // One backend ends: every connection finds the other. Then the other way round.
    drop(first);
    for _ in 0..10 {
        let who = curl().context("edge1's backend is away")?;
        ensure!(who == "edge3", "{who}");
    }
    let first = backend(world, &world.edge1, "edge1", 18080)?;
    drop(second);
    for _ in 0..10 {
        let who = curl().context("edge3's backend is away")?;
        ensure!(who == "edge1", "{who}");
    }
    becomes(world, "serviceexport/shop-edge3", "ConnectionRefused")?;
    ensure!(reason(world, "serviceimport/shop")? == "Imported");
    drop(first);
    ensure!(curl().is_err(), "nobody is left");
    becomes(world, "serviceimport/shop", "NoneReachable")?;

    datagrams(world, (one, three), &object)?;

    // What a cluster's agent did for another one's pods stands in the audit log as that agent's.
    let audit = std::fs::read_to_string(world.hub.data().join("audit.log"))?;
    ensure!(audit.contains(r#""username":"moorline:agent:edge2."#), "no such record");
    let all = ["delete", "serviceimport/shop", "serviceexport/shop-edge1", "serviceexport/shop-edge3", "cluster/edge3"];
    hub(world, &all, b"")?;
    eventually("the service is gone", LONG, || {
        ensure!(world.edge2.admin(&["-n", "remote", "get", "services,endpointslices", "-o", "name"])?.is_empty());
        Ok(())
    })?;
    // Every right that the manifest gives was used.
    let role = ["-n", "remote", "get", "role", "moorline-agent-imports", "-o", "json"];
    let granted = rights(&serde_json::from_str(&world.edge2.admin(&role)?)?);
    let used = used(&world.edge2.audit(), AGENT);
    let unused: Vec<_> = granted.difference(&used).collect();
    ensure!(unused.is_empty() && !granted.is_empty(), "rights that nothing uses: {unused:?}; used: {used:?}");
    world.edge2.admin(&["delete", "namespace", "moorline-system", "--wait=false"]).map(drop)
}

/// The same service over UDP: a port more in both exports, real DNS, and a cluster that is lost.
fn datagrams(
    world: &World,
    (one, three): (Agent, Agent),
    object: &impl Fn(&str, &[&str]) -> Result<Value>,
) -> Result<()> {
    let _servers =
        [resolver(world, &world.edge1, "edge1", "10.1.2.1")?, resolver(world, &world.edge2, "edge3", "10.1.2.3")?];
    for export in ["shop-edge1", "shop-edge3"] {
        let ports =
            r#"{"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 53, "name": "dns", "protocol": "UDP"}]}}"#;
        hub(world, &["patch", "serviceexport", export, "--type=merge", "-p", ports], b"")?;
    }
    let at = eventually("a port for datagrams", LONG, || {
        let slices = object("endpointslices", &["-l", "kubernetes.io/service-name=shop"])?;
        let slice = &slices["items"][0];
        let ports = slice["ports"].as_array().context("ports")?;
        let udp = ports.iter().find(|port| port["protocol"] == "UDP").context("no UDP yet")?;
        Ok(format!("{}:{}", slice["endpoints"][0]["addresses"][0].as_str().context("no address")?, udp["port"]))
    })?;
    let service = object("service/shop", &[])?;
    ensure!(service["spec"]["ports"][0]["protocol"] == "UDP", "{}", service["spec"]["ports"]);
    let answer = eventually("an answer of a DNS server elsewhere", LONG, || asked(&world.edge2, &at))?;
    // Whoever took the datagrams is lost: the others take them.
    let (lost, other) = match answer.as_str() {
        "10.1.2.1" => (one, "10.1.2.3"),
        "10.1.2.3" => (three, "10.1.2.1"),
        strange => anyhow::bail!("an answer of nobody: {strange}"),
    };
    drop(lost);
    eventually("an answer of the other cluster", LONG, || {
        let answer = asked(&world.edge2, &at)?;
        ensure!(answer == other, "{answer}");
        Ok(())
    })
}

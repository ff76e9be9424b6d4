//! The endpoint as `deploy/endpoint` has it: real pods on the real node, reached by the port of the node, with the hub and
//! without it; and one context for both ways under the commands that live on long streams.

use crate::{
    deploy::{AGENT, apply, emptied, import, kustomized, rights, used},
    streams::{self, Kubectl, Way},
    world::{ALICE, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    cluster::Network,
    moorline::kubectl,
    process::{Followed, eventually, run, text},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

const CLUSTER: &str = "edge1-pods";
const NAMESPACE: &str = "moorline-system";
const PODS: [&str; 2] = ["moorline-agent-0", "moorline-agent-1"];
/// As the Service says.
const NODE_PORT: u16 = 30644;
/// What the manifests call the images.
const REGISTRY: &str = "ghcr.io/moorline";
/// Longest wait for something that comes by itself.
const SOON: Duration = Duration::from_secs(90);
/// How late a revocation may reach an endpoint while the hub is there.
const LATE: Duration = Duration::from_secs(60);

/// What kube-proxy does, for two Services: the API server's, and the endpoint's. The node has no kube-proxy.
const TABLE: &str = "moorline-services";

/// The node's port leads to these addresses, by turns; to none: nothing listens there.
fn lead_to(world: &World, addresses: &[String]) -> Result<()> {
    let turns: Vec<String> = addresses.iter().enumerate().map(|(n, address)| format!("{n} : {address}")).collect();
    let node_port = if turns.is_empty() {
        String::new()
    } else {
        let map = format!("numgen inc mod {} map {{ {} }}:6444", turns.len(), turns.join(", "));
        format!("fib daddr type local tcp dport {NODE_PORT} dnat to {map}")
    };
    // Pods reach an API server that listens on loopback, and a hub that knows no way back to them.
    let rules = format!(
        "table ip {TABLE}\ndelete table ip {TABLE}\ntable ip {TABLE} {{\n\
         chain in {{\n type nat hook prerouting priority -100\n ip daddr 10.96.0.1 tcp dport 443 dnat to 127.0.0.1:{port}\n {node_port}\n }}\n\
         chain own {{\n type nat hook output priority -100\n {node_port}\n }}\n\
         chain out {{\n type nat hook postrouting priority 100\n ip saddr 10.88.0.0/16 oifname \"eth0\" masquerade\n ip saddr != 10.88.0.0/16 ip daddr 10.88.0.0/16 masquerade\n }}\n}}\n",
        port = world.edge1.port
    );
    let output = run(network(world)?.command("nft").args(["-f", "-"]), rules.as_bytes())?;
    ensure!(output.status.success(), "{rules}\n{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn route_localnet(world: &World, value: u8) -> Result<()> {
    let write = format!("echo {value} > /proc/sys/net/ipv4/conf/all/route_localnet");
    text(network(world)?.command("sh").args(["-c", &write])).map(drop)
}

/// Pods find their API server, and their way out; nothing listens at the node's port.
pub fn services(world: &World) -> Result<()> {
    route_localnet(world, 1)?;
    lead_to(world, &[])
}

/// Takes that back.
pub fn no_services(world: &World) -> Result<()> {
    text(network(world)?.command("nft").args(["delete", "table", "ip", TABLE]))?;
    route_localnet(world, 0)
}

/// What Kubernetes says of the endpoint's Service, which has both pods.
fn addresses(world: &World) -> Result<Vec<String>> {
    let path = "jsonpath={.subsets[*].addresses[*].ip}";
    eventually("both pods behind the Service", SOON, || {
        let found = world.edge1.admin(&["-n", NAMESPACE, "get", "endpoints", "moorline-endpoint", "-o", path])?;
        let found: Vec<String> = found.split_whitespace().map(str::to_owned).collect();
        ensure!(found.len() == PODS.len(), "{found:?}");
        Ok(found)
    })
}

fn network(world: &World) -> Result<&Network> {
    world.edge1.network().context("a network")
}

fn node(world: &World) -> Result<String> {
    Ok(format!("{}:{NODE_PORT}", network(world)?.inside))
}

/// An authority and a certificate for the node's address, as the manifests want them.
fn certificate(world: &World) -> Result<(String, String)> {
    let dir = world.dir.join("pods-tls");
    std::fs::create_dir_all(&dir)?;
    let openssl = |args: &str| text(Command::new("openssl").current_dir(&dir).args(args.split_whitespace()));
    let curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {curve} -days 30 -subj /CN=ours -keyout ca.key -out ca.crt"))?;
    let name = format!("subjectAltName=IP:{}", network(world)?.inside);
    openssl(&format!("req -new {curve} -subj /CN=endpoint -addext {name} -keyout key -out csr"))?;
    openssl("x509 -req -in csr -CA ca.crt -CAkey ca.key -CAcreateserial -copy_extensions copy -days 30 -out crt")?;
    let read = |name: &str| std::fs::read_to_string(dir.join(name));
    // The chain's last is what kubeconfigs get.
    Ok((read("crt")? + &read("ca.crt")?, read("key")?))
}

fn secret(name: &str, data: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name, "namespace": NAMESPACE }, "stringData": data })
}

/// `deploy/endpoint` as it is, but for what its comments tell an owner to write: the hub, the address, and three Secrets.
fn install(world: &World) -> Result<()> {
    import(world, REGISTRY, "moorline-agent")?;
    import(world, REGISTRY, "moorline")?;
    let join = world.hub.moorline("admin", &["token", "create", "--cluster", CLUSTER, "--uses", "2"])?;
    let token = join.split_whitespace().skip_while(|w| *w != "--token").nth(1).context("token")?;
    let mut objects = kustomized("endpoint")?;
    let mut set = |name: &str, key: &str, value: String| -> Result<()> {
        let object = objects.get_mut(&format!("ConfigMap {NAMESPACE}/{name}")).context("ConfigMap")?;
        object["data"][key] = json!(value);
        Ok(())
    };
    set("moorline-agent", "MOORLINE_HUB", format!("https://{}:{}", network(world)?.outside, world.hub.port))?;
    set("moorline-endpoint", "MOORLINE_PUBLIC_URL", format!("https://{}", node(world)?))?;
    let (chain, key) = certificate(world)?;
    let secrets = [
        secret("moorline-join", &json!({ "token": token })),
        secret("moorline-endpoint-seal", &json!({ "key": "0123456789abcdef0123456789abcdef" })),
        secret("moorline-endpoint-tls", &json!({ "tls.crt": chain, "tls.key": key })),
    ];
    emptied(world, &[NAMESPACE])?;
    let is_namespace = |object: &&Value| object["kind"] == "Namespace";
    apply(world, objects.values().filter(is_namespace), &[])?;
    apply(world, secrets.iter(), &["--force-conflicts"])?;
    apply(world, objects.values(), &["--force-conflicts"])?;
    let rollout = ["-n", NAMESPACE, "rollout", "status", "statefulset/moorline-agent", "--timeout=120s"];
    world.edge1.admin(&rollout).map(drop)
}

/// Alice on the node's network, where no hub is found at the address that her login knows.
fn direct(world: &World) -> Result<Command> {
    let mut command = network(world)?.command(kubectl());
    command.env("XDG_CONFIG_HOME", world.dir.join("users").join(ALICE));
    command.arg("--kubeconfig").arg(world.dir.join("pods.kubeconfig"));
    command.args(["--context", &format!("{CLUSTER}-direct")]);
    Ok(command)
}

/// A request that can be told from others.
fn mark(world: &World, mark: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/team/configmaps?mark={mark}");
    text(direct(world)?.args(["get", "--raw", &path])).map(drop)
}

/// What one pod says of itself: not by the Service, so that each is asked.
fn metric(world: &World, address: &str, name: &str) -> Result<f64> {
    let page = text(network(world)?.command("curl").args([
        "-sf",
        "--max-time",
        "5",
        &format!("http://{address}:9445/metrics"),
    ]))?;
    let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).with_context(|| format!("{name} in\n{page}"))
}

/// Whether a token is let in by one pod.
fn lets_in(world: &World, address: &str, token: &str) -> Result<bool> {
    let mut ask = network(world)?.command("curl");
    ask.args(["-s", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]);
    ask.arg(world.dir.join("pods-tls/ca.crt")).args(["-H", &format!("Authorization: Bearer {token}")]);
    // The certificate is for the node's address; the pod is meant.
    let node = node(world)?;
    ask.args(["--connect-to", &format!("{node}:{address}:6444"), &format!("https://{node}/version")]);
    match text(&mut ask)?.as_str() {
        "200" => Ok(true),
        "401" | "403" => Ok(false),
        other => anyhow::bail!("{address} answers {other}"),
    }
}

fn direct_token(world: &World, user: &str) -> Result<String> {
    let url = world.hub.url();
    let credential = world.hub.moorline(user, &["kube", "credential", "--hub", &url, "--cluster", CLUSTER])?;
    let credential: Value = serde_json::from_str(&credential)?;
    credential.pointer("/status/token").and_then(Value::as_str).map(str::to_owned).context("a token")
}

fn kill_hub(world: &mut World) -> Result<()> {
    world.hub.process.take().context("hub")?.signal(9);
    Ok(())
}

/// Two that need a connection of their own, by this way.
fn short_streams(world: &World, start: &dyn Fn() -> Result<Command>) -> Result<()> {
    let inside = network(world)?;
    let beside = |program: &str| inside.command(program);
    let kubectl = Kubectl { way: Way::SpdyOnly, start, beside: &beside };
    kubectl.attach()?;
    kubectl.forward()
}

/// The commands that live on long streams, by this way.
fn long_streams(world: &World, start: &dyn Fn() -> Result<Command>) -> Result<()> {
    let inside = network(world)?;
    let beside = |program: &str| inside.command(program);
    for way in [Way::WebSocketFirst, Way::SpdyOnly] {
        let kubectl = Kubectl { way, start, beside: &beside };
        kubectl.exec(&world.dir)?;
        kubectl.attach()?;
        kubectl.forward()?;
    }
    let kubectl = Kubectl { way: Way::WebSocketFirst, start, beside: &beside };
    kubectl.logs()?;
    kubectl.objects()
}

pub fn all(world: &mut World) -> Result<()> {
    streams::pod(world)?;
    let outcome = scene(world);
    let admin = |args: &[&str]| world.edge1.admin(args).unwrap_or_default();
    let outcome = outcome.with_context(|| {
        let log = |pod: &str, container: &str| admin(&["-n", NAMESPACE, "logs", pod, "-c", container, "--tail=15"]);
        let logs: Vec<String> = PODS.iter().flat_map(|pod| [log(pod, "agent"), log(pod, "endpoint")]).collect();
        format!("{}\n{}", admin(&["-n", NAMESPACE, "get", "pods", "-o", "wide"]), logs.join("\n"))
    });
    world.edge1.admin(&["delete", "namespace", NAMESPACE, "--wait=false"])?;
    no_services(world)?;
    world.heal()?;
    world.hub.wait_connected("edge1", SOON)?;
    world.hub.wait_connected("edge2", SOON)?;
    outcome
}

fn scene(world: &mut World) -> Result<()> {
    let before = world.edge1.audit().len();
    services(world)?;
    install(world)?;
    let pods = addresses(world)?;
    lead_to(world, &pods)?;
    world.hub.moorline("admin", &["grant", "create", "alice-pods", "--user", ALICE, "--cluster", CLUSTER])?;
    eventually("a direct context", SOON, || {
        let config = world.hub.moorline(ALICE, &["kubeconfig", CLUSTER])?;
        ensure!(config.contains(&format!("https://{}", node(world)?)), "{config}");
        Ok(std::fs::write(world.dir.join("pods.kubeconfig"), config)?)
    })?;
    replicas(world, &pods)?;
    through_both(world)?;
    auto(world, &pods)?;
    without_a_hub(world, &pods)?;
    every_right(world, before)
}

/// Both have the same bundle, and what it takes away is gone at both.
fn replicas(world: &World, pods: &[String]) -> Result<()> {
    world.hub.add_user("erin", &[CLUSTER])?;
    let token = direct_token(world, "erin")?;
    let everywhere = |wanted: bool| -> Result<()> {
        for pod in pods {
            ensure!(lets_in(world, pod, &token)? == wanted, "{pod} does not say {wanted}");
        }
        Ok(())
    };
    eventually("in at both", LATE, || everywhere(true))?;
    world.hub.moorline("admin", &["user", "disable", "erin"])?;
    let begun = Instant::now();
    eventually("out at both", LATE, || everywhere(false))?;
    println!("deactivated: out at both replicas after {:?}", begun.elapsed());
    let kept = ["-n", NAMESPACE, "get", "secret", "moorline-endpoint-bundle", "-o", "jsonpath={.data.bundle}"];
    ensure!(!world.edge1.admin(&kept)?.is_empty(), "the Secret is empty");
    // Both write the Secret at the same time, and neither is kept from it.
    for pod in PODS {
        let log = world.edge1.admin(&["-n", NAMESPACE, "logs", pod, "-c", "agent"])?;
        ensure!(!log.contains("not in its Secret"), "{log}");
    }
    eventually("EndpointReady", SOON, || {
        let cluster: Value = serde_json::from_str(&world.hub.moorline("admin", &["clusters", CLUSTER, "-o", "json"])?)?;
        let conditions = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
        for (name, reason) in [("BundleCurrent", "Delivered"), ("EndpointReady", "Serving")] {
            let found = conditions.iter().find(|one| one["type"] == name).with_context(|| cluster.to_string())?;
            ensure!(found["status"] == "True" && found["reason"] == reason, "{found}");
        }
        Ok(())
    })?;
    for pod in pods {
        let left = metric(world, pod, "moorline_endpoint_bundle_left_seconds")?;
        ensure!((1.0..=86_400.0).contains(&left), "{pod}: {left} s");
        ensure!(metric(world, pod, "moorline_endpoint_bundle_age_seconds")? < 120.0, "{pod}");
    }
    Ok(())
}

/// With the hub and without: everything that kubectl does through the hub.
fn through_both(world: &mut World) -> Result<()> {
    eventually("alice by the node's port", LATE, || mark(world, "with"))?;
    kill_hub(world)?;
    let begun = Instant::now();
    mark(world, "away-1")?;
    println!("hub killed: kubectl by the node's port answered after {:?}", begun.elapsed());
    long_streams(world, &|| direct(world))?;
    mark(world, "away-2")?;
    world.hub.restart()?;
    world.hub.wait_connected(CLUSTER, SOON)?;
    // What was recorded meanwhile, by two pods, comes once and each pod's in order.
    let log = world.hub.data().join("audit.log");
    eventually("the records", SOON, || {
        let log = std::fs::read_to_string(&log)?;
        let count = |mark: &str| log.lines().filter(|line| line.contains(&format!("?mark={mark}\""))).count();
        ensure!(count("away-1") == 1 && count("away-2") == 1, "{} and {}", count("away-1"), count("away-2"));
        Ok(())
    })?;
    let log = std::fs::read_to_string(&log)?;
    let ids = log.lines().filter(|line| line.contains("\"moorline.dev/path\":\"direct\""));
    let ids: Vec<Value> = ids.map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of_cluster = |line: &&Value| line["annotations"]["moorline.dev/cluster"] == CLUSTER;
    let complete = ids.iter().filter(of_cluster).filter(|line| line["stage"] == "ResponseComplete");
    let mut seen = BTreeSet::new();
    for line in complete {
        ensure!(seen.insert(line["auditID"].to_string()), "twice: {line}");
    }
    ensure!(seen.len() > 20, "{} records", seen.len());
    Ok(())
}

type Streams = fn(&World, &dyn Fn() -> Result<Command>) -> Result<()>;

/// Alice with one context for both ways, where both can be reached.
struct Auto {
    home: PathBuf,
    config: PathBuf,
}

impl Auto {
    fn moorline(&self, world: &World, args: &[&str]) -> Result<Command> {
        let mut command = network(world)?.command(binary());
        command.env("XDG_CONFIG_HOME", &self.home).env("NO_COLOR", "1").args(args);
        Ok(command)
    }

    fn kubectl(&self, world: &World) -> Result<Command> {
        let mut command = network(world)?.command(kubectl());
        command.env("XDG_CONFIG_HOME", &self.home).arg("--kubeconfig").arg(&self.config);
        Ok(command)
    }

    /// The very next kubectl works, and so do these streams; all of it went this way.
    fn go(&self, world: &World, way: &str, streams: Streams) -> Result<()> {
        let begun = Instant::now();
        text(self.kubectl(world)?.args(["get", "namespaces", "-o", "name"]))?;
        println!("one context: by the {way} way in {:?}", begun.elapsed());
        streams(world, &|| self.kubectl(world)).with_context(|| format!("by the {way} way"))?;
        let shown: Value = serde_json::from_str(&text(&mut self.moorline(world, &["kube", "relay", "--show"])?)?)?;
        ensure!(shown.pointer("/clusters/0/way").is_some_and(|now| now == way), "{shown}, not {way}");
        Ok(())
    }
}

fn auto(world: &mut World, pods: &[String]) -> Result<()> {
    let auto = Auto { home: world.dir.join("users/alice-pods-auto"), config: world.dir.join("pods-auto.kubeconfig") };
    let outcome = both_ways(world, pods, &auto);
    let _ = run(&mut auto.moorline(world, &["kube", "relay", "--stop"])?, b"");
    outcome
}

/// exec, attach, port-forward, logs and watches by either way, and a session that the hub's end ends.
fn both_ways(world: &mut World, pods: &[String], auto: &Auto) -> Result<()> {
    let hub = format!("https://{}:{}", network(world)?.outside, world.hub.port);
    let ca = world.hub.data().join("ca.crt");
    let mut login = auto.moorline(world, &["login", &hub, "--user", ALICE, "--password-stdin", "--ca-file"])?;
    let output = run(login.arg(ca), format!("pw-of-{ALICE}-123456").as_bytes())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(&auto.config, text(&mut auto.moorline(world, &["kubeconfig", CLUSTER, "--auto"])?)?)?;

    // Nothing listens at the node's port: through the hub.
    lead_to(world, &[])?;
    auto.go(world, "hub", long_streams)?;
    // The hub is killed under a watch and a forwarded port: both end, and what comes next goes the other way.
    let mut watch = auto.kubectl(world)?;
    let mut watch = Followed::spawn(watch.args(["-n", "team", "get", "configmaps", "-w", "-o", "name"]))?;
    watch.until(SOON, |seen| seen.contains("configmap/kube-root-ca.crt"))?;
    let mut forward = auto.kubectl(world)?;
    let mut forward = Followed::spawn(forward.args(["-n", "team", "port-forward", "pod/box", ":8080"]))?;
    forward.until(SOON, |seen| seen.contains("->"))?;
    lead_to(world, pods)?;
    kill_hub(world)?;
    for (what, session) in [("watch", &mut watch), ("port-forward", &mut forward)] {
        session.ends(SOON).with_context(|| format!("a {what} on a way that is gone"))?;
    }
    auto.go(world, "direct", long_streams)?;
    // The hub is back, and the node's port takes no new connections; those from before go on.
    world.hub.restart()?;
    world.hub.wait_connected(CLUSTER, SOON)?;
    lead_to(world, &[])?;
    auto.go(world, "hub", short_streams)?;
    lead_to(world, pods)
}

/// A pod that is made anew while there is no hub has the bundle from its Secret, and lets users in.
fn without_a_hub(world: &mut World, pods: &[String]) -> Result<()> {
    let before = metric(world, pods.first().context("a pod")?, "moorline_endpoint_bundle_serial")?;
    eventually("the newest bundle everywhere", LATE, || {
        for pod in pods {
            ensure!(metric(world, pod, "moorline_endpoint_bundle_serial")? > 0.0);
        }
        Ok(())
    })?;
    let token = direct_token(world, ALICE)?;
    kill_hub(world)?;
    let pod = PODS[1];
    world.edge1.admin(&["-n", NAMESPACE, "delete", "pod", pod, "--grace-period=5"])?;
    let path = "jsonpath={.status.podIP}";
    let address = eventually("the new pod's address", SOON, || {
        let address = world.edge1.admin(&["-n", NAMESPACE, "get", "pod", pod, "-o", path])?;
        ensure!(!address.is_empty() && !pods.contains(&address), "{address}");
        Ok(address)
    })?;
    eventually("the new pod lets alice in", SOON, || {
        ensure!(lets_in(world, &address, &token)?, "it does not");
        Ok(())
    })?;
    ensure!(metric(world, &address, "moorline_endpoint_bundle_serial")? >= before, "an older bundle");
    // A pod that does not reach the hub is not ready, and is reached by the Service all the same.
    let now = addresses(world)?;
    ensure!(now.contains(&address), "{now:?} without {address}");
    world.hub.restart()?;
    world.hub.wait_connected(CLUSTER, SOON)?;
    world
        .edge1
        .admin(&["-n", NAMESPACE, "wait", &format!("pod/{pod}"), "--for=condition=Ready", "--timeout=90s"])
        .map(drop)
}

/// The Role gives what is used and nothing else.
fn every_right(world: &World, before: usize) -> Result<()> {
    let role = world.edge1.admin(&["-n", NAMESPACE, "get", "role", "moorline-endpoint", "-o", "json"])?;
    let granted = rights(&serde_json::from_str(&role)?);
    let audit = world.edge1.audit();
    let used = used(audit.get(before..).unwrap_or_default(), AGENT);
    let unused: Vec<_> = granted.difference(&used).collect();
    ensure!(!granted.is_empty() && unused.is_empty(), "rights that nothing uses: {unused:?}; used: {used:?}");
    ensure!(used.contains("impersonate users"), "{used:?}");
    Ok(())
}

//! The manifests and the chart: the API server takes them, the agents run from images on the real node, and no right is given
//! that nothing uses.

mod chart;
mod inside;

pub use self::chart::same;

use crate::{
    nodes::{shell_of, shell_root},
    world::{ALICE, World},
};
use anyhow::{Context, Result, bail, ensure};
use moorline_e2e::{
    binary, cache,
    moorline::kubectl,
    process::{Process, eventually, run, text},
    root,
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// What the images are called on the node.
pub const REGISTRY: &str = "docker.io/moorline-test";
pub const CLUSTER: &str = "edge1-deploy";
const NAMESPACES: [&str; 3] = ["moorline-system", "moorline-nodes", "moorline-hub"];
pub const AGENT: &str = "system:serviceaccount:moorline-system:moorline-agent";
pub const NODE_AGENT: &str = "system:serviceaccount:moorline-nodes:moorline-node";

/// `kind namespace/name` → object.
pub fn objects(yaml: &str) -> Result<BTreeMap<String, Value>> {
    let documents = yaml.split("\n---").map(|part| part.trim_start_matches("---").trim());
    let documents = documents.filter(|part| part.lines().any(|line| !line.starts_with('#') && !line.trim().is_empty()));
    let named = documents.map(|part| {
        let object: Value = serde_saphyr::from_str(part).with_context(|| part.to_owned())?;
        let word = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok((format!("{} {}/{}", word("/kind"), word("/metadata/namespace"), word("/metadata/name")), object))
    });
    named.collect()
}

pub fn kustomized(folder: &str) -> Result<BTreeMap<String, Value>> {
    objects(&text(Command::new(kubectl()).arg("kustomize").arg(root().join("deploy").join(folder)))?)
}

/// What an overlay of the node agents' manifests makes of them with these components.
pub fn with_components(world: &World, components: &[&str]) -> Result<BTreeMap<String, Value>> {
    let overlay = world.dir.join("overlay");
    std::fs::create_dir_all(&overlay)?;
    text(Command::new("cp").arg("-rT").arg(root().join("deploy")).arg(overlay.join("deploy")))?;
    let components: Vec<String> = components.iter().map(|component| format!("deploy/{component}")).collect();
    let text_of = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [deploy/daemonset]\ncomponents: [{}]\n",
        components.join(", ")
    );
    std::fs::write(overlay.join("kustomization.yaml"), text_of)?;
    objects(&text(Command::new(kubectl()).arg("kustomize").arg(overlay))?)
}

/// What the chart makes of these settings.
pub fn helm(settings: &[&str]) -> Command {
    let mut command = Command::new(cache().join("helm/helm"));
    command.args(["template", "moorline"]).arg(root().join("deploy/helm/moorline"));
    settings.iter().for_each(|setting| {
        let flag = if setting.starts_with("extraEnv") { "--set-string" } else { "--set" };
        command.args([flag, setting]);
    });
    command
}

/// Kubernetes 1.20 has the disruption budget as a beta, in the same shape, and does not know of HostProcess pods.
fn for_1_20(mut object: Value) -> Value {
    if object["kind"] == "PodDisruptionBudget" {
        object["apiVersion"] = json!("policy/v1beta1");
    }
    if let Some(pod) = object.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut) {
        pod.remove("os");
        let windows = pod.get_mut("securityContext").and_then(|context| context.get_mut("windowsOptions"));
        windows.and_then(Value::as_object_mut).map(|options| options.remove("hostProcess"));
    }
    object
}

pub fn apply<'a>(world: &World, objects: impl IntoIterator<Item = &'a Value>, more: &[&str]) -> Result<String> {
    let items: Vec<Value> = objects.into_iter().cloned().map(for_1_20).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string();
    let mut command = world.edge1.command(kubectl());
    command.arg("--kubeconfig").arg(world.edge1.kubeconfig());
    let output = run(command.args(["apply", "--server-side", "-f", "-"]).args(more), list.as_bytes())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Other scenes leave namespaces of these names behind them, which go by themselves: nothing can be made in them until then.
pub fn emptied(world: &World, namespaces: &[&str]) -> Result<()> {
    let words = [&["delete", "namespace"], namespaces, &["--ignore-not-found", "--timeout=90s"]].concat();
    world.edge1.admin(&words).map(drop)
}

/// The libraries of a program that is not static, as `moorline-pack` takes them.
pub fn libraries(program: &Path) -> Result<Vec<String>> {
    let Ok(listed) = text(Command::new("ldd").arg(program)) else { return Ok(vec![]) };
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(|path| format!("{path}={path}")).collect())
}

/// Makes the image as a release does, and brings it to the node.
pub fn import(world: &World, registry: &str, program: &str) -> Result<()> {
    let built = |name: &str| binary().with_file_name(name);
    let released = std::env::var_os("MOORLINE_DIST").map(|d| PathBuf::from(d).join(format!("{program}-linux-amd64")));
    let program_file = match released {
        Some(file) => file,
        // What debuggers need is most of what cargo made, and nothing here reads it.
        None => {
            let bare = world.dir.join(program);
            text(Command::new("strip").arg("-o").arg(&bare).arg(built(program)))?;
            bare
        }
    };
    let archive = world.dir.join(format!("{program}.tar"));
    let mut pack = Command::new(built("moorline-pack"));
    pack.args(["image", "--name", &format!("{registry}/{program}:0.1.0"), "--program", program]);
    pack.args(["--folder", "var/lib/moorline-agent", "--description", "test", "--output"]).arg(&archive);
    pack.arg("--binary").arg(format!("amd64={}", program_file.display()));
    for library in libraries(&program_file)? {
        pack.args(["--file", &library]);
    }
    text(&mut pack).context("moorline-pack: cargo build -p moorline-pack")?;
    let socket = world.edge1.dir.join("run/containerd.sock");
    text(Command::new("ctr").arg("-a").arg(socket).args(["-n", "k8s.io", "images", "import"]).arg(archive)).map(drop)
}

/// Kustomize's output and the chart's; the agents join, serve, come back without a token; every right is used.
pub fn installed(world: &mut World) -> Result<()> {
    import(world, REGISTRY, "moorline-agent")?;
    let join = world.hub.moorline("admin", &["token", "create", "--cluster", CLUSTER])?;
    let token = join.split_whitespace().skip_while(|w| *w != "--token").nth(1).context("token")?;
    // The node's agent has no token: the cluster's vouches for its pod.
    let nodes = world.hub.moorline("admin", &["token", "nodes", "--cluster", CLUSTER])?;
    let pin = nodes.split_once("MOORLINE_HUB_PIN: ").context("a pin")?.1.trim();
    let network = world.edge1.network().context("network")?;
    let asked_for = inside::settings(world);
    let mut settings: Vec<&str> = asked_for.iter().map(String::as_str).collect();
    let own = [
        &format!("hubUrl=https://{}:{}", network.outside, world.hub.port),
        &format!("token={token}"),
        &format!("cluster={CLUSTER}"),
        &format!("hubPin={pin}"),
        &format!("image.registry={REGISTRY}"),
        "image.pullPolicy=Never",
        "nodes.enabled=true",
        &format!("nodes.stateDir={}", world.dir.join("node").display()),
        "nodes.shells.enabled=true",
        &format!("nodes.shells.root={}", shell_root(world)?.display()),
        "policy.shells.allow=true",
        // There is neither kube-proxy nor DNS here.
        "hostNetwork=true",
        "extraEnv[0].name=KUBERNETES_SERVICE_HOST,extraEnv[0].value=127.0.0.1",
        &format!("extraEnv[1].name=KUBERNETES_SERVICE_PORT,extraEnv[1].value={}", world.edge1.port),
    ];
    settings.extend(own);
    let mut chart = objects(&text(&mut helm(&settings))?)?;
    inside::kubeadm(world, &mut chart)?;
    let is_namespace = |object: &&Value| object["kind"] == "Namespace";
    let mut all = kustomized("agent")?;
    all.extend(kustomized("daemonset-windows")?); // with that for Linux
    all.extend(kustomized("hub")?);
    emptied(world, &NAMESPACES)?;
    apply(world, all.values().filter(is_namespace), &[])?;
    apply(world, all.values(), &["--dry-run=server"]).context("the manifests")?;
    apply(world, kustomized("endpoint")?.values(), &["--dry-run=server"]).context("the endpoint's manifests")?;
    for components in chart::COMPONENTS {
        let all = with_components(world, components)?;
        apply(world, all.values(), &["--dry-run=server"]).with_context(|| format!("{components:?}"))?;
    }
    let begun = world.edge1.audit().len();
    apply(world, chart.values(), &["--force-conflicts"]).context("the chart")?;
    let outcome = live(world, begun);
    let logs = world.edge1.admin(&["-n", "moorline-system", "logs", "moorline-agent-0", "--tail=20"]);
    let pods = world.edge1.admin(&["get", "pods", "-A"]);
    world.edge1.admin(&[&["delete", "namespace", "--wait=false"], &NAMESPACES[..]].concat())?;
    outcome.with_context(|| format!("{}\n{}", pods.unwrap_or_default(), logs.unwrap_or_default()))
}

/// What the agents have done is in the API server's audit log, `begun` bytes from its begin on.
fn live(world: &mut World, begun: usize) -> Result<()> {
    // On the node's own network the second one would wait for the first one's port.
    world.edge1.admin(&["-n", "moorline-system", "scale", "statefulset/moorline-agent", "--replicas=1"])?;
    world.hub.wait_connected(CLUSTER, Duration::from_secs(90))?;
    ready(world, "moorline-system", "moorline-agent-0")?;
    let shared =
        world.edge1.admin(&["-n", "moorline-nodes", "get", "secret", "moorline-join", "--ignore-not-found"])?;
    ensure!(shared.trim().is_empty(), "nodes share a token: {shared}");
    strangers(world)?;
    world.edge1.admin(&["-n", "moorline-nodes", "rollout", "status", "daemonset/moorline-node", "--timeout=90s"])?;

    // Somebody of a group, and alice as somebody else: what the rights are for.
    world.hub.moorline("admin", &["user", "groups", ALICE, "--add", "shift"])?;
    world.hub.moorline("admin", &["grant", "create", "alice-deploy", "--user", ALICE, "--cluster", CLUSTER])?;
    let config = world.hub.kubeconfig(ALICE, CLUSTER)?;
    let as_alice = |args: &[&str]| text(Command::new(kubectl()).arg("--kubeconfig").arg(&config).args(args));
    let traffic = || -> Result<()> {
        as_alice(&["get", "pods", "-n", "moorline-system"])?;
        as_alice(&["--as=bob", "get", "pods", "-n", "team"])?;
        Ok(())
    };
    traffic()?;

    // A pod made anew finds itself in its Secret: nobody joins.
    let joins = world.hub.metric("moorline_hub_joins_total", &[])?;
    let uid = || {
        world.edge1.admin(&[
            "-n",
            "moorline-system",
            "get",
            "pod",
            "moorline-agent-0",
            "-o",
            "jsonpath={.metadata.uid}",
        ])
    };
    let before = uid()?;
    world.edge1.admin(&["-n", "moorline-system", "delete", "secret", "moorline-join"])?;
    world.edge1.admin(&["-n", "moorline-system", "delete", "pod", "moorline-agent-0", "--grace-period=5"])?;
    eventually("new pod", Duration::from_secs(60), || {
        ensure!(uid()? != before, "the old one");
        Ok(())
    })?;
    ready(world, "moorline-system", "moorline-agent-0")?;
    ensure!(world.hub.metric("moorline_hub_joins_total", &[])? == joins, "the new pod joined");

    // Without the cluster's agents the node's stands in.
    let audited = world.edge1.audit().len();
    world.edge1.admin(&["-n", "moorline-system", "scale", "statefulset/moorline-agent", "--replicas=0"])?;
    eventually("request by the node's agent", Duration::from_secs(60), || {
        traffic()?;
        let audit = world.edge1.audit();
        ensure!(acted(audit.get(audited..).unwrap_or_default(), NODE_AGENT), "not by the node's agent");
        Ok(())
    })?;
    traffic()?;

    // A shell in the node agent's pod, by the rights that it is given for that.
    let (said, code) = shell_of(
        world,
        ALICE,
        CLUSTER,
        &[],
        "id -u; echo var:$(ls / | grep -cx var); kubectl get pods -n team && echo kube-o''k; exit 3\n",
    )?;
    println!("a shell in a pod:\n{said}");
    ensure!(code == Some(3) && said.contains("1900000000"), "{code:?} {said}");
    ensure!(
        said.contains("var:0") && said.contains("kube-ok"),
        "nothing of the pod's is there, and the cluster is: {said}"
    );

    inside::all(world)?;

    for (account, objects) in [
        (
            AGENT,
            [
                ("clusterrole", "moorline-agent", ""),
                ("role", "moorline-agent", "moorline-system"),
                ("clusterrole", "moorline-node-joins", ""),
                ("role", "moorline-node-joins", "moorline-nodes"),
            ]
            .as_slice(),
        ),
        (
            NODE_AGENT,
            ["moorline-node", "moorline-node-stand-in", "moorline-node-drain"]
                .map(|role| ("clusterrole", role, ""))
                .as_slice(),
        ),
    ] {
        let mut granted = BTreeSet::new();
        for (kind, name, namespace) in objects {
            let mut args = vec!["get", kind, name, "-o", "json"];
            if !namespace.is_empty() {
                args.extend(["-n", namespace]);
            }
            granted.extend(rights(&serde_json::from_str(&world.edge1.admin(&args)?)?));
        }
        let audit = world.edge1.audit();
        let used = used(audit.get(begun..).unwrap_or_default(), account);
        // Kubernetes 1.20 ignores Impersonate-Uid; newer ones refuse a request without the right.
        granted.remove("impersonate uids");
        // The second agent does not run here.
        granted.retain(|right| !right.ends_with("moorline-agent-1"));
        let unused: Vec<_> = granted.difference(&used).collect();
        ensure!(unused.is_empty(), "{account} has rights that nothing uses: {unused:?}; used: {used:?}");
    }
    Ok(())
}

/// A token of this account for this audience, bound to a pod if there is one.
fn account_token(
    world: &World,
    (namespace, account): (&str, &str),
    audience: &str,
    pod: Option<&str>,
) -> Result<String> {
    let mut spec = json!({ "audiences": [audience], "expirationSeconds": 600 });
    if let Some(pod) = pod {
        spec["boundObjectRef"] = json!({ "apiVersion": "v1", "kind": "Pod", "name": pod });
    }
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec });
    let mut command = world.edge1.command(kubectl());
    command.arg("--kubeconfig").arg(world.edge1.kubeconfig());
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let output = run(command.args(["create", "--raw", &path, "-f", "-"]), request.to_string().as_bytes())?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let made: Value = serde_json::from_slice(&output.stdout)?;
    Ok(made["status"]["token"].as_str().context("a token")?.to_owned())
}

/// Nobody joins as a node that is not theirs.
fn strangers(world: &World) -> Result<()> {
    let nodes = world.hub.moorline("admin", &["token", "nodes", "--cluster", CLUSTER])?;
    let pin = nodes.split_once("MOORLINE_HUB_PIN: ").context("a pin")?.1.trim().to_owned();
    let pods = ["-n", "moorline-nodes", "get", "pods", "-o", "jsonpath={.items[0].metadata.name}"];
    let pod = eventually("the node's pod", Duration::from_secs(60), || {
        let pod = world.edge1.admin(&pods)?;
        ensure!(!pod.trim().is_empty());
        Ok(pod.trim().to_owned())
    })?;
    let node = ("moorline-nodes", "moorline-node");
    let network = world.edge1.network().context("network")?;
    let url = format!("https://{}:{}", network.outside, world.hub.port);
    for (n, (account, audience, pod, refusal, is_final)) in [
        (("default", "default"), "moorline-join", None, "not of the service account", true),
        (node, "moorline-join", None, "bound to no pod", true),
        // What the cluster does not know is answered as by a cluster that is not there: it may try again.
        (node, "https://kubernetes.default.svc", Some(pod.as_str()), "no agent of this cluster vouches", false),
        // Its own account and pod, only that the pod is on another node.
        (node, "moorline-join", Some(pod.as_str()), "the agent asks for another-node", true),
    ]
    .into_iter()
    .enumerate()
    {
        let file = world.dir.join(format!("stranger-{n}.token"));
        std::fs::write(&file, account_token(world, account, audience, pod)?)?;
        let mut command = network.command(binary());
        command.args(["agent", "--role=node", "--node-name=another-node", "--hub", &url, "--cluster", CLUSTER]);
        command.args(["--hub-pin", &pin, "--account-token-file"]).arg(&file);
        command.arg("--state-dir").arg(world.dir.join(format!("stranger-{n}")));
        command.arg("--kubeconfig").arg(world.edge1.kubeconfig());
        let mut stranger = Process::spawn(command, &world.dir.join(format!("stranger-{n}.log")))?;
        eventually("a refusal", Duration::from_secs(60), || {
            ensure!(stranger.log().contains(refusal), "{account:?} {audience}: {}", stranger.log());
            Ok(())
        })?;
        let end = if is_final { stranger.wait(Duration::from_secs(60))? } else { None };
        ensure!(end.is_some() == is_final && end != Some(0), "{account:?} {audience}: {end:?} {}", stranger.log());
    }
    Ok(())
}

pub fn ready(world: &World, namespace: &str, pod: &str) -> Result<()> {
    world
        .edge1
        .admin(&["-n", namespace, "wait", &format!("pod/{pod}"), "--for=condition=Ready", "--timeout=90s"])
        .map(drop)
}

/// Each right of a role, one `verb resource [name]` each.
pub fn rights(role: &Value) -> BTreeSet<String> {
    let words = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut all = BTreeSet::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        let names = words(&rule["resourceNames"]);
        for verb in words(&rule["verbs"]) {
            for resource in words(&rule["resources"]) {
                if names.is_empty() {
                    all.insert(format!("{verb} {resource}"));
                }
                all.extend(names.iter().map(|name| format!("{verb} {resource} {name}")));
            }
        }
    }
    all
}

fn lines(audit: &str, account: &str) -> impl Iterator<Item = Value> {
    let lines: Vec<Value> = audit.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let account = account.to_owned();
    lines.into_iter().filter(move |line| line["user"]["username"] == account.as_str())
}

/// Whether the account has done something as alice.
pub fn acted(audit: &str, account: &str) -> bool {
    lines(audit, account).any(|line| line["impersonatedUser"]["username"] == ALICE)
}

/// What the API server let the account do, in the words of [`rights`].
pub fn used(audit: &str, account: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for line in lines(audit, account).filter(|line| line["responseStatus"]["code"].as_u64().is_some_and(|c| c < 400)) {
        let other = &line["impersonatedUser"];
        if other.is_object() {
            all.insert("impersonate users".to_owned());
            let groups = other["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
            if groups.filter(|group| *group != "system:authenticated").count() != 0 {
                all.insert("impersonate groups".to_owned());
            }
            continue;
        }
        let (verb, target) = (line["verb"].as_str().unwrap_or_default(), &line["objectRef"]);
        let resource = target["resource"].as_str().unwrap_or_default();
        let resource = target["subresource"].as_str().map_or(resource.to_owned(), |part| format!("{resource}/{part}"));
        all.insert(format!("{verb} {resource}"));
        all.insert(format!("{verb} {resource} {}", target["name"].as_str().unwrap_or_default()));
    }
    all
}

/// The judge sees what it should: a right that nothing used is named.
pub fn judge(_: &mut World) -> Result<()> {
    let role = json!({ "rules": [{ "verbs": ["get", "patch"], "resources": ["secrets"], "resourceNames": ["a"] }] });
    let line = |verb: &str, code: u16| {
        json!({ "user": { "username": AGENT }, "verb": verb, "objectRef": { "resource": "secrets", "name": "a" },
                "responseStatus": { "code": code } })
        .to_string()
    };
    let audit = format!("{}\n{}\n", line("get", 200), line("patch", 403));
    let granted = rights(&role);
    let unused: Vec<_> = granted.difference(&used(&audit, AGENT)).cloned().collect();
    if unused != ["patch secrets a"] {
        bail!("{unused:?}");
    }
    Ok(())
}

/// The units are as closed as they are said to be, and systemd understands every line.
pub fn units(_: &mut World) -> Result<()> {
    for unit in ["moorline-hub.service", "moorline-agent.service", "moorline-endpoint@.service"] {
        let path = root().join("deploy/systemd").join(unit);
        // The score is in tenths; systemd calls what is below 2.0 "OK" and what is over 7.0 "UNSAFE".
        let mut command = Command::new("systemd-analyze");
        text(command.args(["security", "--offline=true", "--no-pager", "--threshold=15"]).arg(&path))?;
        let output = run(Command::new("systemd-analyze").arg("verify").arg(&path), b"")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // A template is verified as an instance of it.
        let name = unit.split(['@', '.']).next().unwrap_or(unit);
        let mine = said.lines().filter(|line| line.contains(name) && !line.contains("is not executable"));
        ensure!(mine.count() == 0, "{said}");
    }
    Ok(())
}

/// The endpoint's manifests are the agent's and what they say: a container as restricted, and a right to one Secret.
pub fn endpoint(_: &mut World) -> Result<()> {
    let (with, without) = (kustomized("endpoint")?, kustomized("agent")?);
    let mut more: Vec<_> = with.keys().filter(|name| !without.contains_key(*name)).map(String::as_str).collect();
    more.sort_unstable();
    let wanted = [
        "ConfigMap moorline-system/moorline-endpoint",
        "NetworkPolicy moorline-system/moorline-endpoint",
        "Role moorline-system/moorline-endpoint",
        "RoleBinding moorline-system/moorline-endpoint",
        "Secret moorline-system/moorline-endpoint-bundle",
        "Service moorline-system/moorline-endpoint",
    ];
    ensure!(more == wanted, "{more:?}");
    let changed: Vec<_> = without.iter().filter(|(name, object)| with.get(*name) != Some(object)).collect();
    ensure!(changed.len() == 1 && changed[0].0 == "StatefulSet moorline-system/moorline-agent", "{changed:?}");
    let role = &with["Role moorline-system/moorline-endpoint"];
    let granted: Vec<_> = rights(role).into_iter().collect();
    ensure!(
        granted == ["get secrets moorline-endpoint-bundle", "patch secrets moorline-endpoint-bundle"],
        "{granted:?}"
    );
    // Pod Security's "restricted", which the namespace enforces where Kubernetes knows it.
    let pod = &with["StatefulSet moorline-system/moorline-agent"]["spec"]["template"]["spec"];
    let context = &pod["securityContext"];
    ensure!(context["runAsNonRoot"] == true && context["seccompProfile"]["type"] == "RuntimeDefault", "{context}");
    ensure!(pod["hostNetwork"].is_null(), "the network of its host");
    let containers = pod["containers"].as_array().context("containers")?;
    ensure!(containers.len() == 2, "{} containers", containers.len());
    for container in containers {
        let context = &container["securityContext"];
        ensure!(
            context["allowPrivilegeEscalation"] == false && context["capabilities"]["drop"] == json!(["ALL"]),
            "{container}"
        );
        ensure!(
            context["readOnlyRootFilesystem"] == true && !container["resources"]["limits"]["memory"].is_null(),
            "{container}"
        );
        let ports = container["ports"].as_array().into_iter().flatten();
        ensure!(ports.filter(|port| !port["hostPort"].is_null()).count() == 0, "host ports are forbidden: {container}");
    }
    // Both use the same folder and the same key, and the program takes these words.
    let mounts = |at: usize| containers[at]["volumeMounts"].as_array().cloned().unwrap_or_default();
    for name in ["endpoint", "seal"] {
        let of = |at: usize| {
            mounts(at).into_iter().find(|mount| mount["name"] == name).map(|mount| mount["mountPath"].clone())
        };
        ensure!(of(0).is_some() && of(0) == of(1), "{name}: {:?} and {:?}", of(0), of(1));
    }
    let arguments: Vec<&str> =
        containers[1]["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let help = text(Command::new(binary()).args(["endpoint", "--help"]))?;
    for flag in arguments.iter().filter_map(|argument| argument.split('=').next()).filter(|flag| flag.starts_with("--"))
    {
        ensure!(help.contains(flag), "moorline endpoint has no {flag}");
    }
    Ok(())
}

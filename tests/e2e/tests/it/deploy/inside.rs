//! What the node agent's pod does where its owner has asked for it, what shells in it cannot do, and what a reboot leaves.

use super::CLUSTER;
use crate::{
    drains::{closed, hub, plan, reaches, status},
    nodes::{reason, shell_of},
    terminals::Terminal,
    world::{ALICE, BOB, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    moorline::kubectl,
    process::{eventually, run, text},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(90);
const DAEMON_SET: &str = "DaemonSet moorline-nodes/moorline-node";
/// The first user of shells, and how many processes one may have: `agent/shell/src/limits.rs`.
const FIRST_UID: u32 = 1_900_000_000;
const PROCESSES: usize = 256;
/// What a shell shows, in bytes.
const SHOWN: u64 = 128 << 20;
/// What the agent may have grown by when a shell has shown that, in KiB.
const GROWN: u64 = 32 << 10;

/// What must fail in a shell, each with a command that would do it.
const ATTACKS: &[(&str, &str)] = &[
    ("token", "cat /var/run/secrets/moorline/token || cat /var/run/secrets/moorline-join/token || ls /run/secrets"),
    ("agents-key", "ls /var/lib/moorline-agent || ls /var/lib"),
    ("policy", "cat /etc/moorline/policy.yaml"),
    ("kubeadm", "ls /etc/kubernetes || ls /var/lib/kubelet"),
    ("nodes-files", "cat /etc/shadow || ls /root || ls /var || ls /sys || ls /old"),
    ("out-by-root", "ls /proc/1/root/var || ls /proc/1/root/../../var || ls /proc/1/cwd/../../../var"),
    ("out-by-link", "ln -s /proc/1/root/../../../var/run/secrets/moorline/token /tmp/l; cat /tmp/l"),
    ("out-by-chroot", "busybox chroot / /bin/busybox true"),
    ("out-by-pivot", "busybox pivot_root /tmp /tmp"),
    ("agents-process", "busybox grep -qaE \"[-]-role=node|[M]OORLINE_\" /proc/[0-9]*/cmdline /proc/[0-9]*/environ"),
    ("agents-pid", "kill -0 AGENT || ls /proc/AGENT"),
    ("mount", "busybox mount -t tmpfs x /tmp || busybox mount -t proc x /tmp || busybox mount --bind / /tmp"),
    ("remount", "busybox mount -o remount,rw /bin || busybox mount -o remount,exec /tmp"),
    ("umount", "busybox umount -l /proc || busybox umount /tmp"),
    ("unshare", "busybox unshare -m /bin/busybox true || busybox unshare -U /bin/busybox true"),
    ("setns", "busybox nsenter -t 1 -m /bin/busybox true || busybox nsenter -t 1 -n /bin/busybox true"),
    ("device", "busybox mknod /tmp/sda b 8 0 || busybox mknod ~/mem c 1 1"),
    ("root", "busybox su -c /bin/true || busybox chown 0 /tmp"),
    ("host-name", "busybox hostname other"),
    ("kernel-log", "busybox dmesg"),
    ("programs", "echo x > /bin/x || echo x > /etc/x || echo x > /x"),
    ("api-servers-port", "busybox nc -w 2 127.0.0.1 PORT </dev/null"),
    ("agents-port", "busybox nc -w 2 127.0.0.1 9445 </dev/null"),
    ("nodes-address", "busybox nc -w 2 ADDRESS PORT </dev/null"),
];

/// A folder of the node that plans may use.
fn folder(world: &World) -> PathBuf {
    world.dir.join("pod-plans")
}

/// Where the node has what kubeadm has in /etc/kubernetes.
fn kubernetes(world: &World) -> PathBuf {
    world.dir.join("pod-kubernetes")
}

/// What the chart is asked for more.
pub fn settings(world: &World) -> Vec<String> {
    let folder = folder(world).display().to_string();
    vec![
        "nodes.pki.enabled=true".to_owned(),
        "nodes.pki.rotate=true".to_owned(),
        "nodes.plans.drain=true".to_owned(),
        format!("nodes.plans.folders={{{folder}}}"),
        "policy.plans.allow=true".to_owned(),
        "policy.plans.drain=true".to_owned(),
        format!("policy.plans.paths={{/etc/kubernetes,{folder}}}"),
    ]
}

/// The control plane's certificates, as kubeadm lays them out, are at the usual places of the pod: this machine's own stay out
/// of it.
pub fn kubeadm(world: &World, chart: &mut BTreeMap<String, Value>) -> Result<()> {
    let (etc, kubelet) = (kubernetes(world), world.dir.join("pod-kubelet"));
    fs::create_dir_all(&etc)?;
    text(Command::new("cp").arg("-r").arg(world.edge1.dir.join("pki")).arg(&etc))?;
    fs::copy(world.edge1.kubeconfig(), etc.join("admin.conf"))?;
    let set = chart.get_mut(DAEMON_SET).context("a DaemonSet")?;
    let volumes = set["spec"]["template"]["spec"]["volumes"].as_array_mut().context("volumes")?;
    let mut moved = 0;
    for path in volumes.iter_mut().filter_map(|volume| volume.pointer_mut("/hostPath/path")) {
        for (usual, here) in [("/etc/kubernetes", &etc), ("/var/lib/kubelet/pki", &kubelet)] {
            if path == usual {
                (*path, moved) = (json!(here), moved + 1);
            }
        }
    }
    ensure!(moved == 2, "{moved} of two folders");
    Ok(())
}

/// With the node's agent alone in its pod.
pub fn all(world: &World) -> Result<()> {
    attacks(world)?;
    others(world)?;
    fork_bomb(world)?;
    torrent(world)?;
    let name = facts(world)?;
    plans(world, &name)?;
    reboot(world, &name)
}

/// The agent in the pod, as the node numbers it.
fn agent() -> Result<u32> {
    let words = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let is_it = |pid: &u32| {
        let words = String::from_utf8_lossy(&words(*pid)).into_owned();
        words.contains("--role=node") && words.contains("--service-account-dir=/var/run/secrets/moorline")
    };
    let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_it).max().context("an agent in a pod")
}

fn attacks(world: &World) -> Result<()> {
    let address = &world.edge1.network().context("a network")?.inside;
    let mut typed = String::from(
        "t() { if sh -c \"$2\" >/dev/null 2>&1 </dev/null; then echo \"<$1 op\"en\">\"; else echo \"<$1 sh\"ut\">\"; fi; }\n\
         for own in grep chroot pivot_root mount umount unshare nsenter mknod su chown hostname dmesg nc; do\n\
         t has-$own \"busybox --list | busybox grep -qx $own\"; done\nt control 'cat /proc/self/status && id -u'\n",
    );
    for (name, attack) in ATTACKS {
        let attack = attack.replace("AGENT", &agent()?.to_string()).replace("ADDRESS", address);
        typed.push_str(&format!("t {name} '{}'\n", attack.replace("PORT", &world.edge1.port.to_string())));
    }
    let (said, code) = shell_of(world, ALICE, CLUSTER, &[], &format!("{typed}exit 4\n"))?;
    let outcomes: BTreeMap<&str, &str> = said
        .split('<')
        .filter_map(|part| part.split_once('>')?.0.split_once(' '))
        .filter(|(_, outcome)| ["open", "shut"].contains(outcome))
        .collect();
    println!("in a shell of a pod's: {outcomes:?}");
    ensure!(code == Some(4), "{code:?} {said}");
    for (name, outcome) in &outcomes {
        let wanted = if *name == "control" || name.starts_with("has-") { "open" } else { "shut" };
        ensure!(*outcome == wanted, "{name} is {outcome}: {said}");
    }
    let tried = ATTACKS.iter().filter(|(name, _)| outcomes.contains_key(name)).count();
    ensure!(tried == ATTACKS.len() && outcomes.contains_key("control"), "{tried} of them were tried: {said}");
    Ok(())
}

/// A shell of this user's that goes on.
fn enter(world: &World, user: &str) -> Result<Terminal> {
    let mut command = world.hub.cli(user);
    command.args(["shell", CLUSTER]);
    Terminal::begin(command)
}

/// Bob's shell on the same node, while alice has hers.
fn others(world: &World) -> Result<()> {
    world.hub.moorline("admin", &["grant", "create", "bob-deploy", "--user", BOB, "--cluster", CLUSTER])?;
    let mut alice = enter(world, ALICE)?;
    alice.type_in("echo secret > /tmp/s; echo secret > ~/s; echo rea''dy\n")?;
    alice.until("ready")?;
    let seek = "cat /tmp/s ~/s; cat /proc/[0-9]*/root/tmp/s; id -u; kubectl get nodes\n\
                for p in $(busybox seq 2 400); do [ $p = $$ ] || kill -9 $p; done 2>/dev/null; exit 6\n";
    let (said, code) = shell_of(world, BOB, CLUSTER, &[], seek)?;
    ensure!(code == Some(6) && !said.contains("secret"), "{code:?} {said}");
    ensure!(said.contains(&(FIRST_UID + 1).to_string()), "a user of its own: {said}");
    ensure!(said.contains(r#"User "bob" cannot list resource "nodes""#), "{said}");
    alice.type_in("cat ~/s; echo still-th''ere; exit\n")?;
    alice.until("still-there")?;
    ensure!(alice.shown().contains("secret\r\n"), "{}", alice.shown());
    Ok(())
}

/// Processes of shells on this node.
fn of_shells() -> Result<usize> {
    let uid = |text: &str| text.lines().find_map(|line| line.strip_prefix("Uid:\t")?.split('\t').next()?.parse().ok());
    let statuses = fs::read_dir("/proc")?.flatten().filter_map(|e| fs::read_to_string(e.path().join("status")).ok());
    Ok(statuses.filter(|text| uid(text).is_some_and(|uid: u32| FIRST_UID <= uid)).count())
}

fn fork_bomb(world: &World) -> Result<()> {
    eventually("the end of earlier shells", SOON, || {
        ensure!(of_shells()? == 0, "{}", of_shells()?);
        Ok(())
    })?;
    let mut bomb = enter(world, ALICE)?;
    bomb.type_in("b() { b | b & }; b\n")?;
    eventually("a bomb", SOON, || {
        ensure!(PROCESSES / 2 < of_shells()?, "{} processes", of_shells()?);
        Ok(())
    })?;
    let (said, code) = shell_of(world, BOB, CLUSTER, &[], "echo fi''ne; exit 5\n")?;
    ensure!(code == Some(5) && said.contains("fine"), "{code:?} {said}");
    // The other shell's own few, and the one that the kernel counts when it becomes this user's.
    let most = of_shells()?;
    ensure!(most <= PROCESSES + 8, "{most} processes");
    bomb.end()?;
    eventually("its end", SOON, || {
        ensure!(of_shells()? == 0, "{}", of_shells()?);
        Ok(())
    })
}

/// Much flows through, and nothing of it stays in the agent.
fn torrent(world: &World) -> Result<()> {
    let peak = || -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", agent()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("a peak")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let typed = format!("busybox head -c {SHOWN} /dev/zero; exit 3\n");
    let (before, began) = (peak()?, Instant::now());
    let mut command = world.hub.cli(ALICE);
    let mut child = command.args(["shell", CLUSTER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    std::io::Write::write_all(&mut child.stdin.take().context("stdin")?, typed.as_bytes())?;
    let mut shown = child.stdout.take().context("stdout")?;
    let bytes = std::io::copy(&mut shown, &mut std::io::sink())?;
    let (code, grown) = (child.wait()?.code(), peak()?.saturating_sub(before));
    println!("{bytes} bytes in {:?}; the agent's peak has grown by {grown} KiB", began.elapsed());
    ensure!(code == Some(3) && SHOWN <= bytes && grown < GROWN, "{code:?}");
    Ok(())
}

/// What the node's agent tells of the certificates in its pod; the agent's name.
fn facts(world: &World) -> Result<String> {
    eventually("certificates", SOON, || {
        let words = ["get", "nodes", "-l", &format!("moorline.dev/cluster={CLUSTER}"), "-o", "json"];
        let told: Value = serde_json::from_str(&world.hub.moorline("admin", &words)?)?;
        let node = &told["items"][0];
        let certificates = node["status"]["certificates"].as_array().context("certificates")?;
        for name in ["apiserver.crt", "admin.conf"] {
            ensure!(certificates.iter().any(|one| one["name"] == name), "{name}: {node}");
        }
        let name = node["metadata"]["name"].as_str().and_then(|name| name.split_once('.')).context("a name")?.1;
        Ok(name.to_owned())
    })
}

/// Its node is emptied by the account's own rights, and its certificates are made anew.
fn plans(world: &World, name: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "bystander", "namespace": "team" },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [{ "name": "c", "imagePullPolicy": "Never",
            "image": "docker.io/local/busybox:1", "command": ["/bin/busybox", "sleep", "100000"] }] },
    });
    super::apply(world, [&pod], &[])?;
    super::ready(world, "team", "bystander")?;
    let (mark, admin) = (folder(world).join("mark"), kubernetes(world).join("admin.conf"));
    let (path, before) = (mark.display().to_string(), fs::read_to_string(&admin)?);
    let spec = json!({
        "cluster": CLUSTER, "nodes": [name], "strategy": { "drainSeconds": 90 },
        "steps": [
            { "name": "mark", "write": { "path": path, "content": "done\n", "mode": "0644" } },
            { "name": "rotate", "rotateCertificates": { "dir": "/etc/kubernetes/pki" } },
            { "name": "elsewhere", "write": { "path": "/var/lib/moorline-agent/x", "content": "" } },
        ],
    });
    plan(world, "elsewhere", &spec)?;
    let refused = reaches(world, "elsewhere", "Failed").or_else(|_| reaches(world, "elsewhere", "Paused"))?;
    ensure!(refused.to_string().contains("spec.plans.paths"), "{refused}");
    ensure!(!mark.exists() && !closed(world)?, "nothing is done of a plan that is refused");
    let mut spec = spec;
    spec["steps"].as_array_mut().and_then(Vec::pop).context("steps")?;
    plan(world, "in-a-pod", &spec)?;
    let done = reaches(world, "in-a-pod", "Succeeded")?;
    println!("a plan in a pod: {done}");
    ensure!(fs::read_to_string(&mark)? == "done\n" && !closed(world)?);
    let gone = world.edge1.admin(&["-n", "team", "get", "pod", "bystander", "--ignore-not-found"])?;
    ensure!(gone.trim().is_empty(), "it was not evicted: {gone}");
    ensure!(fs::read_to_string(&admin)? != before, "admin.conf is the old one");
    let mut command = world.edge1.command(kubectl());
    let can = text(command.arg("--kubeconfig").arg(&admin).args(["auth", "can-i", "delete", "nodes"]))?;
    ensure!(can.contains("yes"), "{can}");
    for name in ["elsewhere", "in-a-pod"] {
        hub(world, &["delete", "nodeplans.moorline.dev", name], "")?;
    }
    Ok(())
}

/// Kubelet, runtime and all pods end at once, as in a reboot, while a plan is under way: the pod comes back by itself, with its
/// identity, and goes on.
fn reboot(world: &World, name: &str) -> Result<()> {
    let dir = folder(world);
    let (go, after) = (dir.join("go"), dir.join("after"));
    let spec = json!({
        "cluster": CLUSTER, "nodes": [name],
        "steps": [
            { "name": "wait", "probe": { "file": go, "withinSeconds": 600 } },
            { "name": "after", "write": { "path": after, "content": "done\n", "mode": "0644" } },
        ],
    });
    plan(world, "reboot-in-a-pod", &spec)?;
    eventually("a step under way", SOON, || {
        let now = status(world, "reboot-in-a-pod")?;
        ensure!(now.to_string().contains("step 1 of 2"), "{now}");
        Ok(())
    })?;
    let (joins, was) = (world.hub.metric("moorline_hub_joins_total", &[])?, agent()?);
    let script = |path: &str| text(&mut world.edge1.command(path)).map(drop);
    let (stop_kubelet, start_kubelet) = world.edge1.scripts(&["kubelet"], &world.dir)?;
    let (stop_runtime, start_runtime) = world.edge1.scripts(&["containerd"], &world.dir)?;
    script(&stop_kubelet)?;
    let socket = world.edge1.dir.join("run/containerd.sock").display().to_string();
    let tasks = text(Command::new("ctr").args(["-a", &socket, "-n", "k8s.io", "tasks", "list"]))?;
    script(&stop_runtime)?;
    let own = world.edge1.dir.display().to_string();
    let shims = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
        let words = String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).ok()?).into_owned();
        let is_shim = words.contains("containerd-shim") && words.contains(&own);
        is_shim.then(|| entry.file_name().to_string_lossy().into_owned())
    });
    let tasks = tasks.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned));
    for pid in shims.chain(tasks).collect::<Vec<_>>() {
        run(Command::new("kill").args(["-9", &pid]), b"")?; // one may have ended with another
    }
    ensure!(agent().is_err(), "the agent has survived");
    script(&start_runtime)?;
    script(&start_kubelet)?;
    fs::write(&go, "")?;
    reaches(world, "reboot-in-a-pod", "Succeeded")?;
    ensure!(fs::read_to_string(&after)? == "done\n" && agent()? != was);
    ensure!(world.hub.metric("moorline_hub_joins_total", &[])? == joins, "it has joined anew");
    ensure!(reason(world, CLUSTER)? == "NodeAgentOnly", "{}", reason(world, CLUSTER)?);
    let (said, code) = shell_of(world, ALICE, CLUSTER, &[], "kubectl get pods -n team && echo kube-o''k; exit 3\n")?;
    ensure!(code == Some(3) && said.contains("kube-ok"), "{code:?} {said}");
    hub(world, &["delete", "nodeplans.moorline.dev", "reboot-in-a-pod"], "").map(drop)
}

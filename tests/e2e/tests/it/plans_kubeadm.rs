//! etcd as kubeadm has it: a static pod of a real kubelet's that speaks TLS alone. A snapshot is saved and restored by the
//! plans as they come, which take its manifest and the API server's away and put them back.

use crate::{nodes, plans::plan, world::World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    process::{eventually, text},
    root,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

const LONG: Duration = Duration::from_secs(120);
const CLIENTS: &str = "127.0.0.1:28479";
const PEERS: &str = "http://127.0.0.1:28480";

pub fn all(world: &mut World) -> Result<()> {
    let dir = world.edge1.dir.join("kubeadm");
    let outcome = scene(world, &dir);
    for pod in PODS {
        // What the kubelet sees no more it ends.
        let _ = fs::remove_file(manifest(world, pod));
    }
    outcome
}

const PODS: [&str; 2] = ["etcd", "kube-apiserver"];

fn manifest(world: &World, pod: &str) -> PathBuf {
    world.edge1.dir.join(format!("manifests/{pod}.yaml"))
}

/// The folder `pki/etcd`: an authority, and a certificate for both sides.
fn certificates(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let openssl = |words: &str| text(Command::new("openssl").current_dir(dir).args(words.split(' '))).map(drop);
    openssl("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -subj /CN=etcd-ca -days 10 -out ca.crt")?;
    openssl("req -newkey rsa:2048 -nodes -keyout server.key -subj /CN=node1 -out csr")?;
    fs::write(dir.join("ext"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")?;
    openssl("x509 -req -in csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 10 -extfile ext -out server.crt")
}

/// An image of the node's runtime with this program.
fn image(world: &World, name: &str) -> Result<()> {
    let (archive, program) = (world.dir.join(format!("{name}.tar")), format!("/usr/bin/{name}"));
    let mut make = Command::new(root().join("tests/kube/mkimage.sh"));
    make.arg(format!("local/{name}:1")).arg(&archive).arg(&program).arg(format!("{program}={program}"));
    text(make.args(crate::deploy::libraries(Path::new(&program))?))?;
    let socket = world.edge1.dir.join("run/containerd.sock");
    text(Command::new("ctr").arg("-a").arg(socket).args(["-n", "k8s.io", "images", "import"]).arg(archive)).map(drop)
}

fn pod(name: &str, image: &str, command: &[&str], dirs: &[PathBuf]) -> Value {
    let volumes: Vec<Value> = (0..)
        .zip(dirs)
        .map(|(n, dir)| json!({ "name": format!("d{n}"), "hostPath": { "path": dir, "type": "DirectoryOrCreate" } }))
        .collect();
    let mounts: Vec<Value> =
        (0..).zip(dirs).map(|(n, dir)| json!({ "name": format!("d{n}"), "mountPath": dir })).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "kube-system" },
        "spec": { "hostNetwork": true, "terminationGracePeriodSeconds": 5, "volumes": volumes,
            "containers": [{ "name": "c", "image": image, "imagePullPolicy": "Never", "command": command, "volumeMounts": mounts }] },
    })
}

fn scene(world: &World, dir: &Path) -> Result<()> {
    let (pki, data) = (dir.join("pki/etcd"), dir.join("etcd"));
    certificates(&pki)?;
    image(world, "etcd")?;
    let file = |name: &str| pki.join(name).display().to_string();
    let (ca, certificate, key, url) =
        (file("ca.crt"), file("server.crt"), file("server.key"), format!("https://{CLIENTS}"));
    let data_dir = data.display().to_string();
    #[rustfmt::skip]
    let etcd = [
        "/usr/bin/etcd", "--name=node1", "--data-dir", &data_dir, "--listen-client-urls", &url, "--advertise-client-urls", &url,
        "--cert-file", &certificate, "--key-file", &key, "--trusted-ca-file", &ca, "--client-cert-auth",
        "--listen-peer-urls", PEERS, "--initial-advertise-peer-urls", PEERS, "--initial-cluster", &format!("node1={PEERS}"),
    ];
    let idle = ["/bin/busybox", "sleep", "100000"];
    let pods = [
        pod("etcd", "docker.io/local/etcd:1", &etcd, &[data.clone(), pki.clone()]),
        // Its manifest alone takes part.
        pod("kube-apiserver", "docker.io/local/busybox:1", &idle, &[]),
    ];
    for (name, pod) in PODS.iter().zip(&pods) {
        fs::write(manifest(world, name), pod.to_string())?;
    }
    let ctl = |words: &[&str]| -> Result<String> {
        let mut command = world.edge1.command("etcdctl");
        command.args(["--endpoints", &url, "--cacert", &ca, "--cert", &certificate, "--key", &key]);
        text(command.env("ETCDCTL_API", "3").args(words))
    };
    eventually("etcd in its pod", LONG, || ctl(&["put", "ship", "moored"]).map(drop))?;

    let policy = dir.join("policy.yaml");
    let here = world.edge1.dir.display();
    let spec = format!("  plans: {{allow: true, commands: [/usr/bin/etcdctl], paths: [{here}]}}");
    fs::write(&policy, format!("apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec:\n{spec}\n"))?;
    let agent = nodes::join(world, &["--policy-file", &policy.display().to_string()])?;
    let name = agent.state.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("agent--name="));
    let name = name.context("a name")?;
    let snapshot = dir.join("snapshot.db").display().to_string();
    let pki = pki.display().to_string();
    let at = ["--cluster", "edge1", "--node", name, "--endpoint", &url, "--pki", &pki, "--wait"];
    let (ok, said) = plan(world, &[&["etcd-save", "kubeadm-save", "--to", &snapshot], &at[..]].concat())?;
    ensure!(ok && said.contains(" keep Succeeded"), "{said}");

    ctl(&["put", "ship", "sunk"])?;
    let manifests = world.edge1.dir.join("manifests").display().to_string();
    let back =
        ["etcd-restore", "kubeadm-back", "--from", &snapshot, "--data-dir", &data_dir, "--manifests", &manifests];
    let member = ["--member=node1", "--peer-url", PEERS];
    let (ok, said) = plan(world, &[&back[..], &member, &at].concat())?;
    ensure!(ok && said.contains(" start-kube-apiserver Succeeded") && said.contains(" healthy Succeeded"), "{said}");
    let found = eventually("etcd in its pod", LONG, || ctl(&["get", "ship", "--print-value-only"]))?;
    ensure!(found.trim() == "moored", "{found}");
    for name in PODS {
        ensure!(manifest(world, name).exists(), "{name} is not as it was");
    }
    let kept =
        fs::read_dir(dir)?.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("etcd.before-")).count();
    ensure!(kept == 1, "what was there is kept");
    drop(agent);
    let gone = ["delete", "nodeplans.moorline.dev", "kubeadm-save", "kubeadm-back"];
    crate::drains::hub(world, &gone, "").map(drop)
}

//! The hub's own API under plain kubectl, and the agent where it lives: in a pod.

use crate::world::{ALICE, CAROL, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    moorline::kubectl as binary_kubectl,
    process::{Followed, eventually, run, text},
};
use std::{process::Command, time::Duration};

pub fn kubectl(world: &mut World) -> Result<()> {
    let admin = world.hub.data().join("admin.kubeconfig");
    let command = |args: &[&str]| {
        let mut command = Command::new(binary_kubectl());
        command.arg("--kubeconfig").arg(&admin).args(args);
        command
    };
    let k = |args: &[&str]| text(&mut command(args));
    let table = k(&["get", "clusters"])?;
    ensure!(table.starts_with("NAME") && table.contains("edge1") && table.contains("True"), "{table}");
    ensure!(k(&["get", "clusters", "-o", "name"])?.contains("cluster.moorline.dev/edge2"));
    ensure!(k(&["api-resources", "--api-group=moorline.dev", "-o", "name"])?.lines().count() >= 6);
    let apply = |yaml: &str| -> Result<String> {
        let output = run(&mut command(&["apply", "-f", "-"]), yaml.as_bytes())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let yaml = "apiVersion: moorline.dev/v1alpha1\nkind: Cluster\nmetadata: {name: kubectl-made, labels: {a: b}}\nspec: {displayName: one}\n";
    // A watch shows each change as it comes.
    let mut watch = Followed::spawn(&mut command(&["get", "clusters", "-w", "--output-watch-events"]))?;
    watch.until(Duration::from_secs(60), |seen| seen.contains("edge2"))?;
    ensure!(apply(yaml)?.contains("created"));
    ensure!(apply(yaml)?.contains("unchanged"));
    ensure!(apply(&yaml.replace("one", "two"))?.contains("configured"));
    k(&["patch", "cluster", "kubectl-made", "--type=merge", "-p", r#"{"spec":{"displayName":"three"}}"#])?;
    k(&["label", "cluster", "kubectl-made", "c=d"])?;
    ensure!(k(&["get", "clusters", "-l", "a=b,c=d", "-o", "jsonpath={.items[*].spec.displayName}"])? == "three");
    ensure!(k(&["describe", "cluster", "kubectl-made"])?.contains("three"));
    let bad = run(&mut command(&["apply", "-f", "-"]), yaml.replace("displayName", "displayNamme").as_bytes())?;
    ensure!(!bad.status.success() && String::from_utf8_lossy(&bad.stderr).contains("displayNamme"), "{bad:?}");
    ensure!(k(&["delete", "cluster", "kubectl-made"])?.contains("deleted"));
    let events = watch.until(Duration::from_secs(180), |seen| seen.contains("DELETED"))?;
    ensure!(events.contains("ADDED") && events.contains("MODIFIED"), "{events}");
    // Users see the clusters that they may reach, and no secrets of others.
    let seen = world.hub.moorline(ALICE, &["clusters", "-o", "name"])?;
    ensure!(seen.contains("edge1") && seen.contains("edge2"), "{seen}");
    let none = world.hub.moorline(CAROL, &["clusters", "-o", "name"])?;
    ensure!(!none.contains("edge"), "{none}");
    let page = k(&["get", "users,tokens.moorline.dev,jointokens", "-o", "json"])?;
    ensure!(!page.contains("$argon2") && !page.contains("mlt_") && !page.contains("mlj_"), "a secret is readable");
    let refused = run(world.hub.cli(CAROL).args(["user", "create", "eve", "--password-stdin"]), b"long enough 123")?;
    ensure!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("orbidden"), "{refused:?}");
    Ok(())
}

/// The agent's own binary and libraries, mounted from the machine into a real pod, with the pod's projected
/// service-account token. Bridge pods cannot reach an API server on loopback, so the pod is on the host's network.
pub fn pod(world: &mut World) -> Result<()> {
    let binary = binary().canonicalize()?;
    let folder = binary.parent().context("folder")?.display().to_string();
    let network = world.edge1.network().context("network")?;
    let join = world.hub.join_command("edge1-pod")?;
    let token = join.iter().skip_while(|w| *w != "--token").nth(1).context("token")?;
    let yaml = format!(
        r#"
apiVersion: v1
kind: Namespace
metadata: {{name: moorline-system}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {{name: moorline-agent, namespace: moorline-system}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: moorline-agent}}
rules:
- {{apiGroups: [""], resources: [users, groups, serviceaccounts], verbs: [impersonate]}}
- {{apiGroups: [authentication.k8s.io], resources: [uids, "userextras/*"], verbs: [impersonate]}}
- {{apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: moorline-agent}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: moorline-agent}}
subjects: [{{kind: ServiceAccount, name: moorline-agent, namespace: moorline-system}}]
---
apiVersion: v1
kind: Pod
metadata: {{name: moorline-agent, namespace: moorline-system}}
spec:
  serviceAccountName: moorline-agent
  automountServiceAccountToken: false
  hostNetwork: true
  terminationGracePeriodSeconds: 5
  containers:
  - name: agent
    image: docker.io/local/busybox:1
    imagePullPolicy: Never
    command: [/lib64/ld-linux-x86-64.so.2, --library-path, /lib/x86_64-linux-gnu, /bin-host/moorline]
    args: [agent, --hub, "https://{hub}:{port}", --token, "{token}", --state-dir, /state]
    env:
    - {{name: KUBERNETES_SERVICE_HOST, value: "127.0.0.1"}}
    - {{name: KUBERNETES_SERVICE_PORT, value: "{api}"}}
    volumeMounts:
    - {{name: state, mountPath: /state}}
    - {{name: bin, mountPath: /bin-host, readOnly: true}}
    - {{name: lib64, mountPath: /lib64, readOnly: true}}
    - {{name: lib, mountPath: /lib/x86_64-linux-gnu, readOnly: true}}
    - {{name: account, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}}
  volumes:
  - {{name: state, emptyDir: {{}}}}
  - {{name: bin, hostPath: {{path: "{folder}"}}}}
  - {{name: lib64, hostPath: {{path: /lib64}}}}
  - {{name: lib, hostPath: {{path: /lib/x86_64-linux-gnu}}}}
  - name: account
    projected:
      sources:
      - serviceAccountToken: {{path: token, expirationSeconds: 600}}
      - configMap: {{name: kube-root-ca.crt, items: [{{key: ca.crt, path: ca.crt}}]}}
"#,
        hub = network.outside,
        port = world.hub.port,
        api = world.edge1.port,
    );
    let mut apply = world.edge1.command(binary_kubectl());
    apply.arg("--kubeconfig").arg(world.edge1.kubeconfig()).args(["apply", "-f", "-"]);
    let made = run(&mut apply, yaml.as_bytes())?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let logs =
        || world.edge1.admin(&["-n", "moorline-system", "logs", "moorline-agent", "--tail=30"]).unwrap_or_default();
    world.hub.wait_connected("edge1-pod", Duration::from_secs(60)).with_context(logs)?;
    world.hub.moorline("admin", &["grant", "create", "alice-pod", "--user", ALICE, "--cluster", "edge1-pod"])?;
    let path = world.hub.kubeconfig(ALICE, "edge1-pod")?;
    let pods = text(Command::new(binary_kubectl()).arg("--kubeconfig").arg(path).args([
        "get",
        "pods",
        "-n",
        "moorline-system",
    ]))?;
    ensure!(pods.contains("moorline-agent"), "{pods}");
    // The API server saw the service account act as alice.
    let audit = world.edge1.audit();
    ensure!(
        audit.lines().any(|l| l.contains("system:serviceaccount:moorline-system:moorline-agent")
            && l.contains(r#""impersonatedUser":{"username":"alice""#)),
        "no such line in the API server's audit log"
    );
    world.edge1.admin(&["-n", "moorline-system", "delete", "pod", "moorline-agent"])?;
    eventually("disconnected pod", Duration::from_secs(30), || {
        ensure!(!world.hub.connected("edge1-pod")?);
        Ok(())
    })
}

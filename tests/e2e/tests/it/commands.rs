//! What kubectl prints through the hub is what it prints direct.

use crate::world::{ALICE, BOB, World};
use anyhow::{Result, ensure};
use moorline_e2e::process::{Followed, eventually, run, text};
use std::time::Duration;

/// Commands whose answer the API determines: run as the same user both ways, compared byte for byte.
const TABLE: &[&[&str]] = &[
    &["version", "-o", "json"],
    &["api-resources", "--sort-by=name", "-o", "name"],
    &["api-versions"],
    &["get", "namespaces"],
    &["get", "namespaces", "-o", "yaml"],
    &["get", "nodes", "-o", "wide", "--no-headers=false"],
    &["get", "nodes", "-o", "jsonpath={.items[*].status.nodeInfo.kubeletVersion}"],
    &["get", "pods", "-A"],
    &["get", "configmaps", "-n", "team", "-o", "json"],
    &["get", "secrets", "-n", "kube-system", "-o", "name"],
    &["get", "clusterroles", "-o", "name"],
    &["get", "clusterroles", "view", "-o", "json"],
    &["get", "all", "-n", "team"],
    &["get", "pod", "there-is-none", "-n", "team"],
    &["get", "widgets"],
    &["get", "pods", "-n", "team", "-l", "app in (a,b),!c"],
    &["get", "pods", "-n", "team", "--field-selector", "status.phase=Running"],
    &["get", "configmaps", "-n", "team", "--chunk-size=1"],
    &["describe", "namespace", "team"],
    &["describe", "configmap", "table", "-n", "team"],
    &["explain", "pods.spec.containers"],
    &["explain", "deployments", "--recursive"],
    &["auth", "can-i", "create", "pods", "-n", "team"],
    &["auth", "can-i", "delete", "nodes"],
    &["cluster-info", "dump", "--namespaces", "nowhere", "-o", "name"],
    &["top", "nodes"],
    &["create", "configmap", "x", "-n", "team", "--dry-run=server", "-o", "jsonpath={.metadata.name}"],
    &["create", "configmap", "table", "-n", "team"],
    &["delete", "namespace", "kube-system", "--dry-run=server"],
    &["get", "--raw", "/version"],
    &["get", "--raw", "/api/v1/namespaces/team/configmaps/table"],
    &["get", "--raw", "/apis/apps/v1"],
    &["get", "--raw", "/nowhere"],
    &["get", "--raw", "/api/v1/namespaces/team/services/none:80/proxy/a%2Fb/..%2fc"],
    &["get", "--raw", "/openapi/v2?timeout=32s"],
];

/// A table without its ages (`5m31s`).
fn ageless(table: &str) -> String {
    let is_age = |word: &str| {
        word.starts_with(|c: char| c.is_ascii_digit())
            && word.ends_with(['s', 'm', 'h', 'd'])
            && word.chars().all(|c| c.is_ascii_digit() || "smhd".contains(c))
    };
    let line = |line: &str| -> String {
        line.split(' ').filter(|word| !word.is_empty()).map(|word| if is_age(word) { "<age> " } else { word }).collect()
    };
    table.lines().map(|one| line(one) + "\n").collect()
}

pub fn equal_direct(world: &mut World) -> Result<()> {
    world.edge1.admin(&["-n", "team", "create", "configmap", "table", "--from-literal=umlaut=äöü ✓"])?;
    let mut differences = Vec::new();
    for user in [ALICE, BOB] {
        for args in TABLE {
            let direct = run(world.direct(user).args(*args), b"")?;
            let through = run(world.through(user, "edge1")?.args(*args), b"")?;
            let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            // The whole of it, byte for byte; in a table ages move on.
            let is_table = args.contains(&"get") && !args.iter().any(|arg| arg.starts_with("-o") || *arg == "--raw");
            let shown = |bytes: &[u8]| if is_table { ageless(&words(bytes)) } else { words(bytes) };
            if shown(&direct.stdout) != shown(&through.stdout) || direct.status.code() != through.status.code() {
                differences.push(format!(
                    "{user}: kubectl {}\n--- direct ({})\n{}{}\n--- through the hub ({})\n{}{}",
                    args.join(" "),
                    direct.status,
                    words(&direct.stdout),
                    words(&direct.stderr),
                    through.status,
                    words(&through.stdout),
                    words(&through.stderr)
                ));
            } else if direct.stderr != through.stderr && !args.contains(&"--raw") {
                // Words on stderr carry log times and addresses; the refusals' own text must be the same.
                let refusal = |e: &[u8]| words(e).lines().filter(|l| l.starts_with("Error")).collect::<String>();
                if refusal(&direct.stderr) != refusal(&through.stderr) {
                    differences.push(format!(
                        "{user}: kubectl {}: stderr\n{}\n---\n{}",
                        args.join(" "),
                        words(&direct.stderr),
                        words(&through.stderr)
                    ));
                }
            }
        }
    }
    println!("{} commands as {} users compared", TABLE.len(), 2);
    ensure!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n\n"));
    // The second cluster, at the same time, is another one.
    let kube_system = |c: &moorline_e2e::cluster::Cluster| {
        c.admin(&["get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}"])
    };
    let seen = text(world.through(ALICE, "edge2")?.args([
        "get",
        "namespace",
        "kube-system",
        "-o",
        "jsonpath={.metadata.uid}",
    ]))?;
    ensure!(seen == kube_system(&world.edge2)? && seen != kube_system(&world.edge1)?, "edge2 answers as {seen}");
    Ok(())
}

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: life}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: docker.io/local/busybox:1
        imagePullPolicy: Never
        command: ["/bin/sh", "-c", "sleep 100000"]
"#;

pub fn lifecycle(world: &mut World) -> Result<()> {
    let apply = |more: &[&str], yaml: &str| -> Result<String> {
        let output = run(world.through(ALICE, "edge1")?.args(["apply", "-f", "-"]).args(more), yaml.as_bytes())?;
        ensure!(output.status.success(), "apply {more:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let k = |args: &[&str]| world.kubectl(ALICE, args);
    k(&["create", "namespace", "life"])?;
    // Controllers put them there; kubectl waits for no object that is not there yet.
    eventually("the namespace's own objects", Duration::from_secs(60), || {
        world.edge1.admin(&["-n", "life", "get", "sa/default", "configmap/kube-root-ca.crt"]).map(drop)
    })?;
    ensure!(apply(&[], DEPLOYMENT)?.contains("web created"));
    ensure!(apply(&[], DEPLOYMENT)?.contains("web unchanged"));
    ensure!(
        k(&["-n", "life", "rollout", "status", "deployment/web", "--timeout=60s"])?.contains("successfully rolled out")
    );
    k(&["-n", "life", "wait", "pod", "-l", "app=web", "--for=condition=Ready", "--timeout=60s"])?;
    // Server-side apply by another manager: the conflict is the API server's own.
    let scaled = DEPLOYMENT.replace("replicas: 1", "replicas: 2");
    let conflict = run(
        world.through(ALICE, "edge1")?.args(["apply", "--server-side", "--field-manager=other", "-f", "-"]),
        scaled.as_bytes(),
    )?;
    ensure!(String::from_utf8_lossy(&conflict.stderr).contains("conflict"), "{conflict:?}");
    ensure!(
        apply(&["--server-side", "--field-manager=other", "--force-conflicts"], &scaled)?
            .contains("serverside-applied")
    );
    k(&[
        "-n",
        "life",
        "patch",
        "deployment",
        "web",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/replicas","value":1}]"#,
    ])?;
    k(&["-n", "life", "patch", "deployment", "web", "--type=merge", "-p", r#"{"metadata":{"labels":{"a":"b"}}}"#])?;
    k(&["-n", "life", "patch", "deployment", "web", "-p", r#"{"metadata":{"annotations":{"c":"d"}}}"#])?;
    k(&["-n", "life", "label", "deployment", "web", "e=f"])?;
    k(&["-n", "life", "scale", "deployment", "web", "--replicas=2"])?;
    let mut edit = world.through(ALICE, "edge1")?;
    edit.env("KUBE_EDITOR", "sed -i s/a:\\ b/a:\\ edited/").args(["-n", "life", "edit", "deployment", "web"]);
    text(&mut edit)?;
    let seen = world.edge1.admin(&[
        "-n",
        "life",
        "get",
        "deployment",
        "web",
        "-o",
        "jsonpath={.metadata.labels.a}{.metadata.labels.e}{.metadata.annotations.c}{.spec.replicas}",
    ])?;
    ensure!(seen == "editedfd2", "{seen}");
    // A body of about 900 kB, up and down.
    let big = "x".repeat(900_000);
    let config = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"big","namespace":"life"}},"data":{{"v":"{big}"}}}}"#
    );
    let created = run(world.through(ALICE, "edge1")?.args(["create", "-f", "-"]), config.as_bytes())?;
    ensure!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    ensure!(
        k(&["-n", "life", "get", "configmap", "big", "-o", "jsonpath={.data.v}"])? == big,
        "900 kB came back changed"
    );
    ensure!(k(&["delete", "namespace", "life", "--timeout=90s"])?.contains("deleted"));
    Ok(())
}

pub fn watch(world: &mut World) -> Result<()> {
    let mut command = world.through(ALICE, "edge1")?;
    command.args(["-n", "team", "get", "configmaps", "-w", "--output-watch-events", "--no-headers"]);
    let mut watch = Followed::spawn(&mut command)?;
    // Once the watch shows what was there before, the changes may begin.
    watch.until(Duration::from_secs(60), |seen| seen.contains("kube-root-ca.crt"))?;
    for i in 0..20 {
        world.edge1.admin(&["-n", "team", "create", "configmap", &format!("watched-{i}")])?;
    }
    world.edge1.admin(&[
        "-n",
        "team",
        "delete",
        "configmap",
        "--field-selector=metadata.name!=table,metadata.name!=kube-root-ca.crt",
    ])?;
    let seen = watch.until(Duration::from_secs(180), |seen| seen.matches(" watched-").count() >= 40)?;
    for i in 0..20 {
        let name = format!("watched-{i}");
        let lines: Vec<_> = seen.lines().filter(|l| l.split_whitespace().nth(1) == Some(&name)).collect();
        ensure!(
            lines.len() == 2 && lines[0].starts_with("ADDED") && lines[1].starts_with("DELETED"),
            "{name}: {lines:?}"
        );
    }
    Ok(())
}

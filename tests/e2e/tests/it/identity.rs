//! Who the API server saw, by its own audit log, and what callers without a right are told.

use crate::world::{ALICE, BOB, CAROL, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::process::{Followed, eventually, run, text};
use serde_json::Value;
use std::{process::Command, time::Duration};

/// The product's own bound, S51: what a right that is gone had opened is cut.
const REVOKED: Duration = Duration::from_secs(5);

/// The audit events of edge1 whose URI contains `mark`.
fn seen(world: &World, mark: &str) -> Vec<Value> {
    let events = world.edge1.audit();
    events.lines().filter(|l| l.contains(mark)).filter_map(|l| serde_json::from_str(l).ok()).collect()
}

/// A request by curl: status and body.
pub fn curl(world: &World, bearer: Option<&str>, path: &str, headers: &[&str], more: &[&str]) -> Result<(u16, String)> {
    let mut command = Command::new("curl");
    command.args(["-s", "--max-time", "20", "--path-as-is", "-w", "\n%{http_code}", "--cacert"]);
    command.arg(world.hub.data().join("ca.crt"));
    if let Some(bearer) = bearer {
        command.args(["-H", &format!("Authorization: Bearer {bearer}")]);
    }
    for header in headers {
        command.args(["-H", header]);
    }
    let output = run(command.args(more).arg(format!("{}{path}", world.hub.url())), b"")?;
    let text = String::from_utf8(output.stdout)?;
    let (body, code) = text.rsplit_once('\n').context("curl printed no status")?;
    Ok((code.parse()?, body.to_owned()))
}

pub fn act_as(world: &mut World) -> Result<()> {
    // alice may impersonate bob in this cluster, and nobody else.
    let yes = world.kubectl(ALICE, &["get", "pods", "-n", "team", "--as", BOB, "-o", "name"]);
    ensure!(yes.is_ok(), "{yes:?}");
    let no = run(world.through(ALICE, "edge1")?.args(["get", "pods", "-n", "team", "--as", "dave"]), b"")?;
    let words = String::from_utf8_lossy(&no.stderr);
    ensure!(!no.status.success() && words.contains("Forbidden") && words.contains("dave"), "{words}");
    let (code, body) = curl(
        world,
        Some(&world.bearer(ALICE)?),
        "/k8s/clusters/edge1/api/v1/namespaces/team/pods?fieldManager=actas",
        &["Impersonate-User: bob"],
        &[],
    )?;
    ensure!(code == 200, "{code} {body}");
    let events = seen(world, "fieldManager=actas");
    ensure!(events.len() == 1 && events[0]["impersonatedUser"]["username"] == BOB, "{events:?}");
    // The hub's own record has both names.
    let line = eventually("audit line", Duration::from_secs(5), || {
        let log = std::fs::read_to_string(world.hub.data().join("audit.log"))?;
        log.lines().find(|l| l.contains("fieldManager=actas")).map(str::to_owned).context("not yet")
    })?;
    let record: Value = serde_json::from_str(&line)?;
    ensure!(record["user"]["username"] == ALICE && record["impersonatedUser"]["username"] == BOB, "{record}");
    let (code, _) = curl(
        world,
        Some(&world.bearer(BOB)?),
        "/k8s/clusters/edge1/api/v1/namespaces/team/pods?fieldManager=bobas",
        &["Impersonate-User: alice"],
        &[],
    )?;
    ensure!(code == 403 && seen(world, "fieldManager=bobas").is_empty(), "{code}");
    Ok(())
}

pub fn masters(world: &mut World) -> Result<()> {
    // Even where the cluster's own RBAC would allow it, the edge policy has the last word.
    world.edge1.admin(&["create", "clusterrole", "as-all", "--verb=impersonate", "--resource=users,groups"])?;
    world.edge1.admin(&["create", "clusterrolebinding", "alice-as-all", "--clusterrole=as-all", "--user", ALICE])?;
    let bearer = world.bearer(ALICE)?;
    let path = "/k8s/clusters/edge1/api/v1/nodes?fieldManager=masters";
    for headers in [
        &["Impersonate-User: root", "Impersonate-Group: system:masters"][..],
        &["Impersonate-Group: system:masters"],
        &["Impersonate-User: alice", "Impersonate-Group: team", "Impersonate-Group: system:masters"],
        &["Impersonate-User: system:admin"],
        &["Impersonate-User: system:kube-controller-manager"],
    ] {
        let (code, body) = curl(world, Some(&bearer), path, headers, &[])?;
        ensure!(code == 403 || code == 400, "{headers:?}: {code} {body}");
    }
    ensure!(seen(world, "fieldManager=masters").is_empty(), "{:?}", seen(world, "fieldManager=masters"));
    world.edge1.admin(&["delete", "clusterrolebinding", "alice-as-all"]).map(drop)
}

pub fn smuggled(world: &mut World) -> Result<()> {
    let bearer = world.bearer(BOB)?;
    let path = "/k8s/clusters/edge1/api/v1/namespaces/team/configmaps?fieldManager=smuggled";
    for (headers, may_pass) in [
        (&["Connection: Impersonate-User, Impersonate-Group, Authorization"][..], false),
        (
            &[
                "X-Remote-User: admin",
                "X-Remote-Group: system:masters",
                "X-Remote-Extra-a: b",
                "X-Forwarded-User: admin",
            ],
            true,
        ),
        (&["Impersonate_User: admin"], true),
        (&["IMPERSONATE-USER: admin"], false),
        (&["impersonate-extra-scopes: admin"], false),
        (&["X-Forwarded-For: 10.0.0.1", "Forwarded: for=10.0.0.1"], true),
    ] {
        for version in ["--http1.1", "--http2"] {
            // HTTP/2 has no Connection header: curl leaves it out.
            let may_pass = may_pass || (version == "--http2" && headers[0].starts_with("Connection"));
            let (code, body) = curl(world, Some(&bearer), path, headers, &[version])?;
            ensure!((may_pass && code == 200) || matches!(code, 400 | 403), "{headers:?} {version}: {code} {body}");
        }
    }
    let events = seen(world, "fieldManager=smuggled");
    ensure!(!events.is_empty(), "some of these requests are lawful and arrive");
    for event in events {
        ensure!(event["impersonatedUser"]["username"] == BOB, "{event}");
        let groups = event["impersonatedUser"]["groups"].to_string();
        ensure!(!groups.contains("masters"), "{event}");
        let ips = event["sourceIPs"].to_string();
        ensure!(!ips.contains("10.0.0.1"), "a client's X-Forwarded-For was believed: {ips}");
    }
    // Paths: before the cluster's own part nothing is reinterpreted; S42, S43.
    for path in [
        "/k8s/clusters/edge1/../edge2/api",
        "/k8s/clusters/%65dge1/api",
        "/k8s/clusters/edge1%2f..%2fedge2/api",
        "//k8s/clusters/edge1/api",
        "/k8s/./clusters/edge1/api",
        "/k8s/clusters//edge1/api",
        "/k8s/clusters/edge1;x/api",
        "/k8s/clusters/edge1%00/api",
    ] {
        let (code, body) = curl(world, Some(&bearer), path, &[], &[])?;
        ensure!(matches!(code, 400 | 403 | 404), "{path}: {code} {body}");
    }
    Ok(())
}

fn status(body: &str) -> Result<(String, u64)> {
    let status: Value = serde_json::from_str(body).with_context(|| body.to_owned())?;
    ensure!(status["kind"] == "Status" && status["apiVersion"] == "v1", "{body}");
    Ok((status["reason"].as_str().unwrap_or_default().to_owned(), status["code"].as_u64().unwrap_or_default()))
}

pub fn errors(world: &mut World) -> Result<()> {
    let (alice, carol) = (world.bearer(ALICE)?, world.bearer(CAROL)?);
    let get = |bearer: Option<&str>, path: &str| curl(world, bearer, path, &[], &[]);
    let wrong = format!("{}x", &alice[..alice.len() - 1]);
    for bearer in [None, Some("nonsense"), Some(wrong.as_str()), Some("mlt_aaaaaaaaaaaa.AAAA")] {
        let (code, body) = get(bearer, "/k8s/clusters/edge1/api")?;
        ensure!(code == 401 && status(&body)? == ("Unauthorized".into(), 401), "{bearer:?}: {code} {body}");
    }
    for path in
        [format!("/k8s/clusters/edge1/api?token={alice}"), format!("/k8s/clusters/edge1/api?access_token={alice}")]
    {
        ensure!(get(None, &path)?.0 == 401, "a token in the address was taken");
    }
    let (code, body) = get(Some(&carol), "/k8s/clusters/edge1/api")?;
    ensure!(code == 403 && status(&body)?.0 == "Forbidden", "{code} {body}");
    let printed = run(world.through(CAROL, "edge1")?.args(["get", "pods"]), b"")?;
    ensure!(String::from_utf8_lossy(&printed.stderr).contains("Error from server (Forbidden)"), "{printed:?}");
    let admin: Value = serde_json::from_slice(&std::fs::read(world.hub.data().join("admin.kubeconfig"))?)?;
    let admin = admin.pointer("/users/0/user/token").and_then(Value::as_str).context("admin token")?.to_owned();
    let (code, body) = get(Some(&admin), "/k8s/clusters/nowhere/api")?;
    ensure!(code == 404 && status(&body)?.0 == "NotFound", "{code} {body}");
    world.hub.moorline("admin", &["token", "create", "--cluster", "never-joined"])?;
    let headers = text(
        Command::new("curl")
            .args(["-s", "-D-", "-o/dev/null", "--max-time", "10", "--cacert"])
            .arg(world.hub.data().join("ca.crt"))
            .args(["-H", &format!("Authorization: Bearer {admin}")])
            .arg(format!("{}/k8s/clusters/never-joined/api", world.hub.url())),
    )?;
    let headers = headers.to_lowercase();
    ensure!(headers.contains(" 503") && headers.contains("retry-after:"), "{headers}");
    world.hub.moorline("admin", &["delete", "cluster", "never-joined", "--yes"])?;
    // A disabled user is out at once, also in mid-stream.
    world.hub.add_user("dora", &["edge1"])?;
    world.edge1.admin(&["-n", "team", "create", "rolebinding", "dora", "--clusterrole=view", "--user=dora"])?;
    let mut watching = world.through("dora", "edge1")?;
    let mut watching = Followed::spawn(watching.args(["-n", "team", "get", "configmaps", "-w"]))?;
    watching.until(Duration::from_secs(20), |seen| seen.contains("kube-root-ca.crt"))?;
    world.hub.moorline("admin", &["user", "disable", "dora"])?;
    watching.ends(REVOKED).context("a disabled user's watch")?;
    ensure!(world.through("dora", "edge1")?.args(["get", "pods"]).output()?.status.code() == Some(1));
    Ok(())
}

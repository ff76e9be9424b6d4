//! The authorized cluster endpoint on a real API server: the same answers three ways, and a drill with the hub gone.

use crate::world::{ALICE, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    binary,
    moorline::kubectl,
    process::{Followed, Process, eventually, run, text},
};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

/// Where edge2's users reach the proxy, and its API server the webhook: within their network.
const PROXY: &str = "127.0.0.1:6444";
const WEBHOOK: &str = "127.0.0.1:6445";
/// kubectl sessions that are open when the hub goes.
const SESSIONS: usize = 20;
/// Calls that are recorded meanwhile.
const RECORDED: usize = 30;
/// How late a revocation may reach the endpoint while the hub is there.
const LATE: Duration = Duration::from_secs(60);

/// Commands whose answer the API determines: the same three ways, byte for byte.
const TABLE: &[&[&str]] = &[
    &["get", "namespaces", "-o", "yaml"],
    &["get", "pods", "-A"],
    &["get", "configmaps", "-A", "-o", "json"],
    &["get", "secrets", "-n", "kube-system"],
    &["get", "nodes"],
    &["get", "widgets"],
    &["api-versions"],
    &["auth", "can-i", "--list"],
    &["auth", "can-i", "create", "pods"],
    &["create", "configmap", "x", "--dry-run=server"],
    &["delete", "namespace", "kube-system", "--dry-run=server"],
    &["get", "--raw", "/version"],
    &["get", "--raw", "/nowhere"],
    &["get", "--raw", "/api/v1/namespaces/default/services/none:80/proxy/a%2Fb"],
    &["get", "pods", "--as", "bob"],
    &["get", "pods", "--as", "system:admin"],
];

/// The folder that edge2's agent and endpoints share.
pub fn room(dir: &Path) -> PathBuf {
    dir.join("endpoint-edge2")
}

/// What edge2's API server is started with: it asks a webhook who comes with a token.
pub fn webhook_of_edge2(dir: &Path) -> Result<Vec<String>> {
    let (cert, key, config) = (dir.join("webhook.crt"), dir.join("webhook.key"), dir.join("webhook.yaml"));
    let mut make = Command::new("openssl");
    make.args(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=webhook".split(' '),
    );
    make.args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"]).arg(&key).arg("-out").arg(&cert);
    text(&mut make)?;
    let yaml = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: w, cluster: {{server: 'https://{WEBHOOK}/', certificate-authority: {}}}}}]\n\
         users: [{{name: w, user: {{}}}}]\ncontexts: [{{name: w, context: {{cluster: w, user: w}}}}]\ncurrent-context: w\n",
        cert.display()
    );
    std::fs::write(&config, yaml)?;
    Ok(vec![
        format!("--authentication-token-webhook-config-file={}", config.display()),
        "--authentication-token-webhook-version=v1".to_owned(),
        "--authentication-token-webhook-cache-ttl=1s".to_owned(),
    ])
}

/// An endpoint of edge2, in its network.
pub fn start(world: &World, mode: &str) -> Result<Process> {
    let dir = room(&world.dir);
    let mut command = world.edge2.command(binary());
    command.args(["endpoint", "--mode", mode, "--dir"]).arg(&dir);
    if mode == "proxy" {
        let url = format!("https://{PROXY}");
        command.args(["--listen", PROXY, "--name", "127.0.0.1", "--public-url", &url]);
        command.arg("--kubeconfig").arg(world.edge2.kubeconfig());
    } else {
        command.args(["--listen", WEBHOOK, "--tls-cert"]).arg(world.dir.join("webhook.crt"));
        command.arg("--tls-key").arg(world.dir.join("webhook.key"));
    }
    Process::spawn(command, &world.dir.join(format!("endpoint-{mode}.log")))
}

/// Three ways to edge2 as alice.
struct Ways<'a> {
    world: &'a World,
    config: PathBuf,
    token: String,
}

impl Ways<'_> {
    fn hub(&self, args: &[&str]) -> Result<Output> {
        run(self.world.through(ALICE, "edge2")?.args(args), b"")
    }

    /// kubectl in the cluster's own network, where no hub is found at the address that the login knows.
    fn inside(&self) -> Command {
        let mut command = self.world.edge2.command(kubectl());
        command.env("XDG_CONFIG_HOME", self.world.dir.join("users").join(ALICE));
        command
    }

    fn proxy(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.inside();
        command.arg("--kubeconfig").arg(&self.config).args(["--context", "edge2-direct"]).args(args);
        run(&mut command, b"")
    }

    fn webhook(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.inside();
        command.args([
            "--kubeconfig",
            "/dev/null",
            "--server",
            &format!("https://127.0.0.1:{}", self.world.edge2.port),
        ]);
        command.arg("--certificate-authority").arg(self.world.edge2.dir.join("pki/ca.crt"));
        run(command.args(["--token", &self.token]).args(args), b"")
    }
}

fn words(output: &Output) -> String {
    format!(
        "{:?}\n{}{}",
        output.status.code(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn all(world: &mut World) -> Result<()> {
    let (proxy, webhook) = (start(world, "proxy")?, start(world, "webhook")?);
    let logs = || format!("{}\n{}", proxy.log(), webhook.log());
    let config = world.dir.join("alice-direct.kubeconfig");
    // The next bundle brings the hub word of where the endpoint is.
    world.hub.add_user("dave", &["edge2"])?;
    eventually("a direct context", Duration::from_secs(30), || {
        std::fs::write(&config, world.hub.moorline(ALICE, &["kubeconfig", "edge2"])?)?;
        ensure!(std::fs::read_to_string(&config)?.contains("edge2-direct"), "no direct context");
        Ok(())
    })
    .with_context(logs)?;
    let ways = Ways { world, config, token: token_of(world, ALICE, "edge2")? };
    parity(&ways).with_context(logs)?;
    drill(world).with_context(logs)
}

/// The same table through hub, proxy and webhook.
fn parity(ways: &Ways<'_>) -> Result<()> {
    let mut differences = Vec::new();
    for args in TABLE {
        let (hub, proxy, webhook) = (ways.hub(args)?, ways.proxy(args)?, ways.webhook(args)?);
        // Errors that are the same everywhere prove nothing if nothing else is compared.
        ensure!(!std::ptr::eq(args, &TABLE[0]) || hub.status.success(), "{}", words(&hub));
        for (way, answer) in [("proxy", &proxy), ("webhook", &webhook)] {
            if answer.stdout != hub.stdout || answer.status.code() != hub.status.code() {
                differences.push(format!(
                    "kubectl {}\n--- hub {}--- {way} {}",
                    args.join(" "),
                    words(&hub),
                    words(answer)
                ));
            }
        }
    }
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    // Who the API server saw: as itself by the webhook, impersonated by the others.
    ways.hub(&["get", "--raw", "/api/v1/namespaces/default/configmaps?way=hub"])?;
    ways.proxy(&["get", "--raw", "/api/v1/namespaces/default/configmaps?way=proxy"])?;
    ways.webhook(&["get", "--raw", "/api/v1/namespaces/default/configmaps?way=webhook"])?;
    let seen = |way: &str| -> Result<(Value, Value, Vec<Value>)> {
        eventually("the API server's record", Duration::from_secs(10), || {
            let log = ways.world.edge2.audit();
            let line = log.lines().rfind(|line| line.contains(&format!("?way={way}\""))).context("no record yet")?;
            let event: Value = serde_json::from_str(line)?;
            let who = event.get("impersonatedUser").unwrap_or(&event["user"]);
            let mut groups = who["groups"].as_array().cloned().unwrap_or_default();
            groups.sort_by_key(Value::to_string);
            Ok((who["username"].clone(), who["uid"].clone(), groups))
        })
    };
    let hub = seen("hub")?;
    ensure!(hub.0 == ALICE, "{hub:?}");
    for way in ["proxy", "webhook"] {
        // API servers before 1.24 know no Impersonate-Uid: by the webhook they hear of it.
        let (user, _, groups) = seen(way)?;
        ensure!((&user, &groups) == (&hub.0, &hub.2), "{way}: {user} {groups:?}, through the hub {hub:?}");
    }
    Ok(())
}

/// kubectl as alice on the direct context, as she would.
fn direct(world: &World, args: &[&str]) -> Result<Output> {
    let mut command = world.edge2.command(kubectl());
    command.env("XDG_CONFIG_HOME", world.dir.join("users").join(ALICE));
    command.arg("--kubeconfig").arg(world.dir.join("alice-direct.kubeconfig"));
    run(command.args(["--context", "edge2-direct"]).args(args), b"")
}

/// kubectl with nothing but a token: what is decided is decided by the endpoint. By the proxy, or by the webhook that the API
/// server asks.
fn by_token(world: &World, mode: &str, token: &str) -> Result<Output> {
    let (server, ca) = match mode {
        "proxy" => (PROXY.to_owned(), room(&world.dir).join("tls/ca.crt")),
        _ => (format!("127.0.0.1:{}", world.edge2.port), world.edge2.dir.join("pki/ca.crt")),
    };
    let mut command = world.edge2.command(kubectl());
    command.args(["--kubeconfig", "/dev/null", "--server", &format!("https://{server}"), "--certificate-authority"]);
    run(command.arg(ca).args(["--token", token]).args(LOOK), b"")
}

/// A token of `user` for a cluster's endpoint.
pub fn token_of(world: &World, user: &str, cluster: &str) -> Result<String> {
    let url = world.hub.url();
    let credential = world.hub.moorline(user, &["kube", "credential", "--hub", &url, "--cluster", cluster])?;
    let credential: Value = serde_json::from_str(&credential)?;
    credential.pointer("/status/token").and_then(Value::as_str).map(str::to_owned).context("a token")
}

const LOOK: [&str; 4] = ["get", "namespaces", "-o", "name"];

/// The hub is killed under open sessions. The direct ways work at once; who was deactivated before stays out; what is
/// recorded meanwhile waits on disk, and comes to the hub once and in order.
fn drill(world: &mut World) -> Result<()> {
    let (hers, his) = (token_of(world, ALICE, "edge2")?, token_of(world, "dave", "edge2")?);
    // dave has no rights in the cluster: known is who is forbidden, unknown who is not authenticated.
    let known = |world: &World| -> Result<[bool; 2]> {
        let said = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("orbidden");
        Ok([said(&by_token(world, "proxy", &his)?), said(&by_token(world, "webhook", &his)?)])
    };
    eventually("dave is known", LATE, || {
        ensure!(known(world)? == [true; 2], "{:?}", known(world)?);
        Ok(())
    })?;
    world.hub.moorline("admin", &["user", "disable", "dave"])?;
    let begun = Instant::now();
    eventually("out by both modes", LATE, || {
        ensure!(known(world)? == [false; 2], "{:?}", known(world)?);
        Ok(())
    })?;
    println!("deactivated: out at proxy and webhook after {:?}", begun.elapsed());

    let mut open = Vec::new();
    for _ in 0..SESSIONS {
        let mut watch = world.through(ALICE, "edge2")?;
        open.push(Followed::spawn(watch.args(["get", "namespaces", "-w", "-o", "name"]))?);
    }
    // Each has shown what there is, and waits for more: these are sessions, not attempts.
    for watch in &mut open {
        watch.until(Duration::from_secs(60), |seen| seen.contains("namespace/default"))?;
        ensure!(watch.ended()?.is_none(), "a session ended by itself");
    }
    let process = world.hub.process.take().context("hub")?;
    process.signal(9);
    drop(process);
    let begun = Instant::now();
    let answer = direct(world, &LOOK)?;
    ensure!(answer.status.success(), "{}", words(&answer));
    println!(
        "hub killed under {SESSIONS} sessions: kubectl on the direct context answered after {:?}",
        begun.elapsed()
    );
    let answer = by_token(world, "webhook", &hers)?;
    ensure!(answer.status.success(), "by the webhook: {}", words(&answer));
    for session in &mut open {
        session.ends(Duration::from_secs(30)).context("what went through the hub")?;
    }
    // One after the other, so that there is an order; who is out stays out.
    for n in 0..RECORDED {
        let mark = format!("/api/v1/namespaces/default/configmaps?drill={n:02}");
        let answer = direct(world, &["get", "--raw", &mark])?;
        ensure!(answer.status.success(), "{}", words(&answer));
    }
    ensure!(known(world)? == [false; 2], "dave is back without a hub");
    let waiting = waiting(world)?;
    let last = format!("?drill={:02}\"", RECORDED - 1);
    ensure!(waiting.contains(&last), "not on disk: {waiting}");
    ensure!(waiting.len() < 64 << 20, "{} bytes", waiting.len());

    world.hub.restart()?;
    for cluster in ["edge1", "edge2"] {
        world.hub.wait_connected(cluster, Duration::from_secs(30))?;
    }
    eventually("the records", LATE, || {
        let log = std::fs::read_to_string(world.hub.data().join("audit.log"))?;
        ensure!(log.contains(&last), "the last is not there");
        Ok(())
    })?;
    // A second visit brings nothing a second time: what comes after it shows that there was one.
    ensure!(direct(world, &["get", "--raw", "/api/v1/namespaces/default/configmaps?drill=after"])?.status.success());
    let log = eventually("the next record", LATE, || {
        let log = std::fs::read_to_string(world.hub.data().join("audit.log"))?;
        ensure!(log.contains("?drill=after\""), "not there");
        Ok(log)
    })?;
    let mut seen = Vec::new();
    for line in log.lines().filter(|line| line.contains("?drill=")) {
        let event: Value = serde_json::from_str(line)?;
        ensure!(event["annotations"]["moorline.dev/path"] == "direct", "{event}");
        ensure!(event["user"]["username"] == ALICE, "{event}");
        if event["stage"] == "ResponseComplete" {
            seen.push(
                event["requestURI"].as_str().and_then(|uri| uri.split("drill=").nth(1)).unwrap_or("?").to_owned(),
            );
        }
    }
    let wanted: Vec<String> = (0..RECORDED).map(|n| format!("{n:02}")).chain(["after".to_owned()]).collect();
    ensure!(seen == wanted, "{seen:?}");

    ensure!(direct(world, &LOOK)?.status.success(), "and after the hub is back");
    world.hub.moorline("admin", &["user", "disable", ALICE])?;
    let begun = Instant::now();
    eventually("out", LATE, || {
        ensure!(!direct(world, &LOOK)?.status.success(), "alice is still in");
        Ok(())
    })?;
    println!("deactivated: out at the endpoint after {:?}", begun.elapsed());
    world.hub.moorline("admin", &["user", "enable", ALICE])?;
    eventually("in again", LATE, || {
        let answer = direct(world, &LOOK)?;
        ensure!(answer.status.success(), "{}", words(&answer));
        Ok(())
    })
}

/// Records that the endpoint keeps for the hub.
fn waiting(world: &World) -> Result<String> {
    let mut all = String::new();
    for entry in std::fs::read_dir(room(&world.dir).join("audit"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "jsonl") {
            all += &std::fs::read_to_string(path)?;
        }
    }
    Ok(all)
}

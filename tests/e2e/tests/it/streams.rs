//! The commands that live on long streams: logs, exec, attach, cp, port-forward, proxy.

use crate::world::{ALICE, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    moorline::kubectl_older,
    process::{Followed, eventually, run, text},
};
use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Within which a stream shows what it is there for.
const SOON: Duration = Duration::from_secs(20);

const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: box, namespace: team}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: box
    image: docker.io/local/busybox:1
    imagePullPolicy: Never
    stdin: true
    command: ["/bin/sh", "-c"]
    args:
    - |
      mkdir -p /www; echo served > /www/index.html
      httpd -p 8080 -h /www
      i=0; while true; do i=$((i+1)); echo "tick $i"; sleep 0.2; done & cat
"#;

/// How kubectl is asked to carry its streams.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    WebSocketFirst,
    SpdyOnly,
}

/// kubectl on some way to the cluster with the node.
pub struct Kubectl<'a> {
    /// How its streams are carried.
    pub way: Way,
    /// kubectl with its kubeconfig, where that way can be reached.
    pub start: &'a dyn Fn() -> Result<Command>,
    /// Another program in the same place.
    pub beside: &'a dyn Fn(&str) -> Command,
}

impl Kubectl<'_> {
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = (self.start)()?;
        let on = if matches!(self.way, Way::WebSocketFirst) { "true" } else { "false" };
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", on).env("KUBECTL_PORT_FORWARD_WEBSOCKETS", on);
        command.args(["-n", "team"]).args(args);
        Ok(command)
    }

    /// What stands in a terminal of 97 columns and 31 rows once kubectl has run in it, by util-linux' script.
    pub fn in_a_terminal(&self, args: &[&str]) -> Result<String> {
        let inner = self.command(args)?;
        let words: Vec<String> =
            std::iter::once(inner.get_program()).chain(inner.get_args()).map(|a| shell(&a.to_string_lossy())).collect();
        let mut tty = Command::new("script");
        tty.args(["-qec", &format!("stty rows 31 cols 97; {}", words.join(" ")), "/dev/null"]);
        for (key, value) in inner.get_envs() {
            if let Some(value) = value {
                tty.env(key, value);
            }
        }
        text(&mut tty)
    }

    pub fn exec(&self, dir: &Path) -> Result<()> {
        let echo = run(self.command(&["exec", "-i", "box", "--", "cat"])?.env("X", ""), b"through and back\n")?;
        ensure!(echo.stdout == b"through and back\n", "{:?}: exec -i gave {echo:?}", self.way);
        let code = run(&mut self.command(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7"])?, b"")?;
        ensure!(
            code.status.code() == Some(7)
                && code.stdout == b"out\n"
                && String::from_utf8_lossy(&code.stderr).starts_with("err\n"),
            "{:?}: exit code, out and err: {code:?}",
            self.way
        );
        // A terminal of a given size. kubectl tells the size a moment after the start.
        let seen = self.in_a_terminal(&[
            "exec",
            "-it",
            "box",
            "--",
            "sh",
            "-c",
            "i=0; while [ $i -lt 50 ] && [ -z \"$(stty size 2>/dev/null)\" ]; do i=$((i+1)); sleep 0.1; done; stty size; tty",
        ])?;
        ensure!(seen.contains("31 97") && seen.contains("/dev/pts/"), "{:?}: a terminal gave {seen:?}", self.way);
        // 5 MB there and back, the same bytes.
        let (up, down) = (dir.join("up"), dir.join("down"));
        let data: Vec<u8> = (0u32..5_000_000).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(&up, &data)?;
        text(&mut self.command(&["cp", &up.to_string_lossy(), "team/box:/tmp/copy"])?)?;
        text(&mut self.command(&["cp", "team/box:/tmp/copy", &down.to_string_lossy()])?)?;
        ensure!(std::fs::read(&down)? == data, "{:?}: cp changed the bytes", self.way);
        Ok(())
    }

    pub fn attach(&self) -> Result<()> {
        let mut attached = Followed::spawn(self.command(&["attach", "-i", "box"])?.stdin(Stdio::piped()))?;
        let mut stdin = attached.input()?;
        stdin.write_all(b"typed into attach\n")?;
        stdin.flush()?;
        attached
            .until(SOON, |seen| seen.contains("typed into attach") && seen.contains("tick"))
            .with_context(|| format!("{:?}: attach", self.way))?;
        Ok(())
    }

    pub fn forward(&self) -> Result<()> {
        let mut forward = Followed::spawn(&mut self.command(&["port-forward", "pod/box", ":8080"])?)?;
        let seen = forward.until(SOON, |seen| seen.contains("->") && seen.contains('\n'))?;
        let port: u16 = seen
            .split("127.0.0.1:")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .and_then(|port| port.parse().ok())
            .with_context(|| seen.clone())?;
        for round in 0..5 {
            let mut ask = (self.beside)("curl");
            let answer = text(ask.args(["-sS", "--max-time", "20", &format!("http://127.0.0.1:{port}/")]))?;
            ensure!(answer == "served\n", "{:?}: port-forward, round {round}: {answer:?}", self.way);
        }
        Ok(())
    }

    pub fn logs(&self) -> Result<()> {
        let mut following = Followed::spawn(&mut self.command(&["logs", "-f", "--tail=1", "box"])?)?;
        let seen = following.until(SOON, |seen| seen.matches("tick").count() >= 8)?;
        // Followed lines come one by one, none lost, none doubled.
        let ticks: Vec<u64> = seen.lines().filter_map(|l| l.strip_prefix("tick ")?.parse().ok()).collect();
        ensure!(ticks.windows(2).all(|w| w[1] == w[0] + 1), "{ticks:?}");
        ensure!(text(&mut self.command(&["logs", "box", "--tail=3"])?)?.lines().count() == 3);
        Ok(())
    }

    /// An object applied, applied again, seen by a watch that was there before, and deleted.
    pub fn objects(&self) -> Result<()> {
        let watch = ["get", "configmap", "-w", "-o", "jsonpath={.metadata.name}={.data.k}{\"\\n\"}"];
        let mut watch = Followed::spawn(&mut self.command(&watch)?)?;
        for value in ["one", "two"] {
            let object = format!(
                r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"older"}},"data":{{"k":"{value}"}}}}"#
            );
            let made = run(&mut self.command(&["apply", "-f", "-"])?, object.as_bytes())?;
            ensure!(made.status.success(), "{:?}: apply: {made:?}", self.way);
        }
        watch.until(SOON, |seen| seen.contains("older=two")).with_context(|| format!("{:?}: watch", self.way))?;
        text(&mut self.command(&["delete", "configmap", "older"])?)?;
        Ok(())
    }

    /// kubectl proxy leaves out the path of the kubeconfig's server unless it is told to append it: without the flag it
    /// asks the hub's own API, as it would any server behind a path.
    fn proxy(&self, world: &World) -> Result<()> {
        let mut proxy = Followed::spawn(&mut self.command(&["proxy", "--append-server-path", "--port=0"])?)?;
        let seen = proxy.until(SOON, |seen| seen.contains('\n'))?;
        let address = seen.trim().rsplit(' ').next().context("address")?.to_owned();
        let get = |path: &str| {
            text(Command::new("curl").args(["-sS", "--fail-with-body", &format!("http://{address}{path}")]))
        };
        let page = get("/api/v1/namespaces/team/pods/box:8080/proxy/")?;
        ensure!(page == "served\n", "kubectl proxy to a pod: {page:?}");
        let version = get("/version")?;
        ensure!(version == world.kubectl(ALICE, &["get", "--raw", "/version"])?, "the cluster's version: {version}");
        Ok(())
    }
}

fn shell(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

pub fn pod(world: &World) -> Result<()> {
    let made = run(world.through(ALICE, "edge1")?.args(["apply", "-f", "-"]), POD.as_bytes())?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    world.kubectl(ALICE, &["-n", "team", "wait", "pod/box", "--for=condition=Ready", "--timeout=60s"])?;
    eventually("page served in the pod", Duration::from_secs(20), || {
        world.kubectl(ALICE, &["get", "--raw", "/api/v1/namespaces/team/pods/box:8080/proxy/"])
    })?;
    Ok(())
}

pub fn all(world: &mut World) -> Result<()> {
    pod(world)?;
    let start = || world.through(ALICE, "edge1");
    let beside = |program: &str| Command::new(program);
    for way in [Way::WebSocketFirst, Way::SpdyOnly] {
        let kubectl = Kubectl { way, start: &start, beside: &beside };
        kubectl.exec(&world.dir)?;
        kubectl.attach()?;
        kubectl.forward()?;
    }
    let kubectl = Kubectl { way: Way::WebSocketFirst, start: &start, beside: &beside };
    kubectl.logs()?;
    kubectl.proxy(world)?;
    // Nothing stays behind: the streams of all these commands are gone from the hub.
    eventually("idle hub", Duration::from_secs(15), || {
        let open = world.hub.metric("moorline_proxy_requests_in_flight", &[])?;
        ensure!(open == 0.0, "{open} requests in flight");
        Ok(())
    })
}

/// U09: a kubectl that is older by five minors.
pub fn older_kubectl(world: &mut World) -> Result<()> {
    pod(world)?;
    let start = || {
        let mut command = Command::new(kubectl_older());
        command.arg("--kubeconfig").arg(world.hub.kubeconfig(ALICE, "edge1")?);
        Ok(command)
    };
    let beside = |program: &str| Command::new(program);
    for way in [Way::WebSocketFirst, Way::SpdyOnly] {
        let kubectl = Kubectl { way, start: &start, beside: &beside };
        kubectl.exec(&world.dir)?;
        kubectl.attach()?;
        kubectl.forward()?;
        kubectl.objects()?;
    }
    let kubectl = Kubectl { way: Way::SpdyOnly, start: &start, beside: &beside };
    kubectl.logs()?;
    kubectl.proxy(world)
}

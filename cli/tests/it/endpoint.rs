//! Bundles from a hub to the endpoint of a cluster, every part the program itself; what the hub says of it.

use super::{
    Running, eventually, moorline,
    real::{Hub, free, login, ok, page},
    spawn, stderr,
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

struct World {
    home: tempfile::TempDir,
    hub: Hub,
    token: String,
}

impl World {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let hub = Hub::start(home.path());
        login(home.path(), &hub, "admin", &std::fs::read_to_string(home.path().join("hub/admin.password")).unwrap());
        let join = ok(home.path(), &["token", "create", "--cluster", "edge1", "--uses", "3"]);
        let token = join.split_whitespace().last().unwrap().to_owned();
        Self { home, hub, token }
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home().join(name)
    }

    /// An agent whose API server is not there, which keeps bundles in a folder.
    fn agent(&self, room: &Path) -> Running {
        let kubeconfig = self.path("kubeconfig");
        let ca = self.path("hub/ca.crt");
        let text = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{ "name": "x", "cluster": { "server": "https://127.0.0.1:1", "certificate-authority": ca } }],
            "users": [{ "name": "x", "user": { "token": "x" } }],
            "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }] });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        let mut command = moorline(self.home());
        command.args(["agent", "--name", "a1", "--hub", &self.hub.url, "--token", &self.token, "--state-dir"]);
        command.arg(self.path("agent")).arg("--kubeconfig").arg(kubeconfig).arg("--endpoint-dir").arg(room);
        spawn(command, &self.path("agent.log"))
    }

    /// A webhook, and where its numbers are.
    fn webhook(&self, room: &Path) -> (Running, String) {
        let (listen, ops) = (free().to_string(), free().to_string());
        let mut command = moorline(self.home());
        command.args(["endpoint", "--mode", "webhook", "--listen", &listen, "--http-listen", &ops, "--dir"]);
        command.arg(room);
        (spawn(command, &self.path("endpoint.log")), ops)
    }

    /// Status and reason of a condition of the cluster.
    fn condition(&self, name: &str) -> (String, String, String) {
        let cluster: Value = serde_json::from_str(&ok(self.home(), &["clusters", "edge1", "-o", "json"])).unwrap();
        let all = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let one = all.into_iter().find(|one| one["type"] == name).unwrap_or_default();
        let word = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        (word("status"), word("reason"), word("message"))
    }

    #[track_caller]
    fn becomes(&self, name: &str, status: &str, reason: &str) {
        eventually(name, || {
            let found = self.condition(name);
            if (found.0.as_str(), found.1.as_str()) == (status, reason) {
                return Ok(());
            }
            Err(format!("{found:?}\n{}", std::fs::read_to_string(self.path("agent.log")).unwrap()))
        });
    }
}

fn metric(page: &str, line: &str) -> f64 {
    let found = page.lines().find(|l| l.starts_with(line));
    found.and_then(|l| l.rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

#[test]
fn the_hub_says_how_it_stands_with_a_clusters_endpoint() {
    let world = World::start();
    let room = world.path("room");
    let agent = world.agent(&room);
    world.becomes("BundleCurrent", "True", "Delivered");
    world.becomes("EndpointReady", "False", "NoEndpoint");
    let (endpoint, ops) = world.webhook(&room);
    world.becomes("EndpointReady", "True", "Serving");
    assert_eq!(world.condition("EndpointReady").2, "webhook");
    let shown = ok(world.home(), &["status"]);
    assert!(shown.contains("Serving (webhook)"), "{shown}");
    let page_now = page(&ops, "/metrics");
    let (age, left) = (
        metric(&page_now, "moorline_endpoint_bundle_age_seconds"),
        metric(&page_now, "moorline_endpoint_bundle_left_seconds"),
    );
    assert!((0.0..120.0).contains(&age) && (80_000.0..86_401.0).contains(&left), "{age} {left}");

    // Many users, and then one of them less: only what changed is sent.
    let home = world.home();
    let names: Vec<String> =
        (0..14).map(|n| format!("somebody-with-a-name-that-is-as-long-as-names-may-be-{n:02}")).collect();
    for name in &names {
        ok(home, &["user", "create", name, "--no-password"]);
    }
    let mut grant = vec!["grant", "create", "many", "--cluster", "edge1"];
    grant.extend(names.iter().flat_map(|name| ["--user", name.as_str()]));
    ok(home, &grant);
    let form = |form: &str| {
        metric(&page(&world.hub.ops, "/metrics"), &format!("moorline_hub_bundle_bytes_total{{form=\"{form}\"}}"))
    };
    let whole = |count: usize| {
        eventually("a bundle with them", || {
            let log = std::fs::read_to_string(world.path("agent.log")).unwrap();
            let last = log.lines().rfind(|line| line.contains("a bundle was kept")).unwrap_or_default().to_owned();
            if last.contains(&format!("users={count}")) { Ok(()) } else { Err(last) }
        });
    };
    whole(15);
    let before = (form("whole"), form("delta"));
    ok(home, &["user", "disable", &names[7]]);
    whole(14);
    let (more_whole, delta) = (form("whole") - before.0, form("delta") - before.1);
    assert!(more_whole == 0.0 && 0.0 < delta && delta < 2_000.0, "{more_whole} {delta}");
    eventually("used by the endpoint", || {
        let log = std::fs::read_to_string(world.path("endpoint.log")).unwrap();
        let kept = std::fs::read_to_string(world.path("agent.log")).unwrap();
        let serial = kept.lines().rfind(|line| line.contains("a bundle was kept")).unwrap();
        let serial = serial.split("serial=").nth(1).unwrap().split(' ').next().unwrap();
        if log.contains(serial) { Ok(()) } else { Err(format!("{serial} in {log}")) }
    });
    // At rest nobody reads who they are.
    let at_rest = std::fs::read(room.join("bundle")).unwrap();
    assert!(!at_rest.windows(8).any(|part| part == b"somebody"), "sealed");

    // The endpoint ends; then the folder takes no bundle; then the agent is gone.
    assert!(Command::new("kill").arg(endpoint.0.id().to_string()).status().unwrap().success());
    world.becomes("EndpointReady", "False", "NoEndpoint");
    std::fs::rename(room.join("bundle"), room.join("away")).unwrap();
    std::fs::create_dir_all(room.join("bundle/x")).unwrap();
    ok(home, &["user", "disable", &names[8]]);
    world.becomes("BundleCurrent", "False", "Refused");
    drop(agent);
    world.becomes("BundleCurrent", "Unknown", "AgentGone");
    let shown = ok(home, &["status"]);
    assert!(shown.contains("AgentGone"), "{shown}");
    assert!(metric(&page(&world.hub.ops, "/metrics"), "moorline_hub_endpoint_clusters{bundle=\"gone\"}") == 1.0);
}

/// By hand, and what is refused by hand: each in words, and what was there stays.
#[test]
fn z08_a_bundle_that_is_carried_is_checked_like_any_other() {
    let world = World::start();
    let (home, room, ca) = (world.home(), world.path("carried"), world.path("hub/ca.crt"));
    let fetch = |cluster: &str| {
        let output = moorline(home).args(["endpoint", "bundle", cluster]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output.stdout
    };
    ok(home, &["token", "create", "--cluster", "edge2"]);
    let (older, newer, foreign) = (fetch("edge1"), fetch("edge1"), fetch("edge2"));
    let import = |bytes: &[u8]| {
        let file = world.path("carried.bundle");
        std::fs::write(&file, bytes).unwrap();
        let mut command = moorline(home);
        command.args(["endpoint", "import"]).arg(&file).arg("--dir").arg(&room).args([
            "--cluster",
            "edge1",
            "--hub-ca",
        ]);
        command.arg(&ca).output().unwrap()
    };
    let taken = import(&newer);
    assert!(taken.status.success() && stderr(&taken).contains("good until"), "{}", stderr(&taken));
    let there = std::fs::read(room.join("bundle")).unwrap();
    let mut altered = newer.clone();
    *altered.last_mut().unwrap() ^= 1;
    for (bytes, why) in [
        (&older[..], "newer one is needed"),
        (&foreign, "is for cluster"),
        (&newer[..newer.len() / 2], "not signed"),
        (&altered, "not signed"),
        (b"moorline-bundle/1", "no bundle"),
        (&vec![b'a'; 100 << 20], "larger than"),
    ] {
        let output = import(bytes);
        assert!(!output.status.success() && stderr(&output).contains(why), "{why}: {}", stderr(&output));
        assert_eq!(std::fs::read(room.join("bundle")).unwrap(), there, "{why}");
    }
    let other = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap().cert.pem();
    std::fs::write(&ca, other).unwrap();
    let output = import(&newer);
    assert!(!output.status.success() && stderr(&output).contains("not signed"), "an unknown key: {}", stderr(&output));
    // The key that it was sealed with is lost: said in words, and nothing is served.
    std::fs::write(room.join("seal.key"), "0123456789abcdef0123456789abcdef").unwrap();
    let (mut serving, _) = world.webhook(&room);
    eventually("an end", || serving.0.try_wait().unwrap().map(drop).ok_or_else(|| "it serves".to_owned()));
    let log = std::fs::read_to_string(world.path("endpoint.log")).unwrap();
    assert!(log.contains("another key"), "{log}");
}

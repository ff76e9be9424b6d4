//! The program against itself: a hub process, and everything that its first users do.

use super::{feed, moorline, run, stderr, stdout};
use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Longest that a hub may take until it is ready. A debug build on a busy machine hashes a password in a second.
const READY: Duration = Duration::from_secs(30);

/// A hub in a folder, killed when dropped.
pub struct Hub {
    pub url: String,
    /// Address of its metrics.
    pub ops: String,
    child: Child,
}

impl Hub {
    pub fn start(home: &Path) -> Self {
        Self::start_with(home, |_| {})
    }

    /// `more`: what its command has beside the usual.
    pub fn start_with(home: &Path, more: impl FnOnce(&mut Command)) -> Self {
        let mut hub = Self::begin(home, [free(), free()], more);
        hub.wait(home);
        hub
    }

    /// One that nobody waits for. Where another one was, those who were logged in there are so here.
    pub fn begin(home: &Path, [listen, ops]: [SocketAddr; 2], more: impl FnOnce(&mut Command)) -> Self {
        let mut command = moorline(home);
        command.args(["hub", "--name", "127.0.0.1", "--listen", &listen.to_string(), "--ops-listen", &ops.to_string()]);
        command.arg("--data-dir").arg(home.join("hub")).stdout(Stdio::null());
        more(&mut command);
        let log = std::fs::File::create(home.join("hub.log")).unwrap();
        let ops = ops.to_string();
        Self { url: format!("https://{listen}"), ops, child: command.stderr(log).spawn().unwrap() }
    }

    /// Until it is ready.
    pub fn wait(&mut self, home: &Path) {
        let started = Instant::now();
        while !self.is_ready() {
            let log = || std::fs::read_to_string(home.join("hub.log")).unwrap();
            assert!(started.elapsed() < READY, "the hub is not ready:\n{}", log());
            assert!(self.child.try_wait().unwrap().is_none(), "the hub has ended:\n{}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Until it has ended by itself: with what code, if it was not killed.
    pub fn ended(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < READY, "the hub does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn is_ready(&self) -> bool {
        ready(&self.ops)
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    #[cfg(unix)]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, and the exit code.
    #[cfg(unix)]
    fn terminate(mut self) -> Option<i32> {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that is free for TCP and UDP, that nobody here was given before, and that no system gives to anybody and no
/// relay takes.
pub fn free() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Two test programs at once begin at different places.
        let n = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 7_000;
        let at = SocketAddr::from(([127, 0, 0, 1], 12_000 + u16::try_from(n).unwrap()));
        if TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok() {
            return at;
        }
    }
}

/// What a page of plain HTTP answers; nothing, if nobody is there.
pub fn page(at: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let Ok(mut stream) = TcpStream::connect(at) else { return String::new() };
    let _ = stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

fn ready(ops: &str) -> bool {
    page(ops, "/readyz").starts_with("HTTP/1.1 200")
}

pub fn login(home: &Path, hub: &Hub, user: &str, password: &str) {
    let mut command = moorline(home);
    command.args(["login", &hub.url, "--user", user, "--password-stdin", "--ca-file"]);
    let output = feed(command.arg(home.join("hub/ca.crt")), password);
    assert!(output.status.success(), "{}", stderr(&output));
}

pub fn ok(home: &Path, args: &[&str]) -> String {
    let output = run(home, args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

#[test]
fn a_hub_and_its_first_users() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let hub = Hub::start(home);
    let password = std::fs::read_to_string(home.join("hub/admin.password")).unwrap();
    login(home, &hub, "admin", &password);
    assert!(ok(home, &["whoami"]).contains("moorline:admins"));

    let join = ok(home, &["token", "create", "--cluster", "edge1"]);
    assert!(join.starts_with(&format!("moorline agent --hub {} --token mlj_", hub.url)), "{join}");
    assert_eq!(join.lines().count(), 1);
    assert!(ok(home, &["token", "list"]).contains("edge1"));
    assert!(ok(home, &["clusters"]).starts_with("NAME"));
    assert_eq!(ok(home, &["clusters", "-o", "name"]), "cluster.moorline.dev/edge1\n");
    assert!(ok(home, &["status"]).contains("edge1"));
    assert!(ok(home, &["kubeconfig", "edge1"]).contains(&format!("{}/k8s/clusters/edge1", hub.url)));

    let password = "a long enough password";
    let output = feed(moorline(home).args(["user", "create", "anna", "--password-stdin"]), password);
    assert!(output.status.success(), "{}", stderr(&output));
    ok(home, &["user", "groups", "anna", "--add", "ops"]);
    assert_eq!(ok(home, &["user", "groups", "anna"]), "ops\n");
    ok(home, &["grant", "create", "--group", "ops", "--cluster", "edge1"]);
    assert!(ok(home, &["grant", "list"]).contains("ops-edge1"));

    // What one cluster has for another, and why it is not there yet.
    ok(home, &["share", "export", "edge1", "shop/web", "80:http", "53/udp:dns", "--to", "edge2"]);
    let early = run(home, &["share", "import", "edge2", "shop/web", "--timeout", "1s"]);
    assert!(!early.status.success() && stderr(&early).contains("moorline share list"), "{}", stderr(&early));
    let words = ["shop-web-edge1", "80,53/UDP", "NotConnected", "CONFLICT", "shop-web-edge2", "NoCluster"];
    let begun = Instant::now();
    loop {
        let shared = ok(home, &["share", "list", "-o", "wide"]);
        if words.iter().all(|word| shared.contains(word)) {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{words:?}: {shared}");
    }
    ok(home, &["share", "delete", "import/shop-web-edge2", "export/shop-web-edge1"]);
    let nothing = run(home, &["share", "delete", "import/shop-web-edge2"]);
    assert!(stderr(&nothing).contains("moorline share list"), "{}", stderr(&nothing));
    let key = ok(home, &["apikey", "create", "--user", "anna", "--cluster", "edge1"]);
    assert!(key.starts_with("mlt_"), "{key}");

    login(home, &hub, "anna", password);
    assert_eq!(ok(home, &["clusters", "-o", "name"]), "cluster.moorline.dev/edge1\n");
    let refused = run(home, &["user", "create", "eve", "--no-password"]);
    assert!(stderr(&refused).to_lowercase().contains("forbidden"), "{}", stderr(&refused));
    ok(home, &["logout"]);

    let output = run(home, &["doctor", "--hub", &hub.url, "-o", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    for check in answer["checks"].as_array().unwrap() {
        assert!(["ok", "skip"].contains(&check["verdict"].as_str().unwrap()), "{answer:#}");
    }
    #[cfg(unix)]
    assert_eq!(hub.terminate(), Some(0), "{}", std::fs::read_to_string(home.join("hub.log")).unwrap());
}

/// One file carries hub and token to a cluster; who reads the directory listing of a stick learns nothing else.
#[test]
fn a_join_bundle_is_all_that_an_agent_needs() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let hub = Hub::start(home);
    let password = std::fs::read_to_string(home.join("hub/admin.password")).unwrap();
    login(home, &hub, "admin", &password);
    let bundle = home.join("edge1.join");
    let printed = ok(home, &["token", "create", "--cluster", "edge1", "--bundle", bundle.to_str().unwrap()]);
    assert_eq!(printed, "", "the token is in the file alone");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let kubeconfig = home.join("kubeconfig");
    let ca = home.join("hub/ca.crt");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{{name: x, cluster: {{server: 'https://127.0.0.1:1', certificate-authority: '{}'}}}}]\nusers: [{{name: x, user: {{token: x}}}}]\ncontexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n",
        ca.display()
    );
    std::fs::write(&kubeconfig, text).unwrap();
    let mut command = moorline(home);
    command.args(["agent", "--name", "a1", "--join-bundle"]).arg(&bundle).arg("--kubeconfig").arg(&kubeconfig);
    command.arg("--state-dir").arg(home.join("agent")).stderr(Stdio::null());
    let mut agent = command.spawn().unwrap();
    let started = Instant::now();
    while !ok(home, &["clusters", "edge1", "-o", "json"]).contains("\"status\": \"True\"") {
        assert!(started.elapsed() < READY, "the agent is not connected");
        std::thread::sleep(Duration::from_millis(50));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
}

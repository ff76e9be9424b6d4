//! `kubeconfig --auto`: one context, and a relay that takes the way that works.

use super::{
    fake::{Answer, Asked, FakeHub},
    feed, moorline, run, stderr, stdout,
};
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

/// What guards against waiting for ever.
const LONG: Duration = Duration::from_secs(30);

/// A hub and an endpoint, whose answers to what goes to the cluster have these codes.
struct Ways {
    hub: FakeHub,
    endpoint: Option<FakeHub>,
    by_hub: Arc<AtomicU16>,
    by_endpoint: Arc<AtomicU16>,
    home: tempfile::TempDir,
}

fn refused(code: u16) -> Answer {
    (code, json!({ "kind": "Status", "reason": "x", "message": "scripted" }).to_string())
}

fn of_hub(asked: &Asked, code: u16, direct: &Value) -> Answer {
    let login = json!({ "user": "anna", "token": "access", "expires": "2999-01-01T00:00:00Z", "expiresIn": 3600,
        "refreshToken": "mlr_0", "sessionExpires": "2999-01-01T00:00:00Z" });
    let bearer = asked.authorization.as_deref();
    match asked.path.as_str() {
        "/auth/login" => (200, login.to_string()),
        _ if bearer != Some("Bearer access") => refused(401),
        "/auth/token" => (200, json!({ "token": "direct", "expires": "2999-01-01T00:00:00Z" }).to_string()),
        "/apis/moorline.dev/v1alpha1/clusters/edge1" => {
            (200, json!({ "metadata": { "name": "edge1" }, "status": { "direct": direct } }).to_string())
        }
        path if path.starts_with("/k8s/clusters/edge1/") && code == 200 => {
            (200, format!("hub {} {}", asked.method, &path[19..]))
        }
        _ => refused(code),
    }
}

impl Ways {
    /// `ca`: the authority that the hub names for the endpoint; its own.
    fn start(ca: Option<String>) -> Self {
        Self::named(ca, "127.0.0.1")
    }

    /// An endpoint whose certificate has this name.
    fn named(ca: Option<String>, name: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (by_hub, by_endpoint) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicU16::new(200)));
        let code = Arc::clone(&by_endpoint);
        let endpoint = FakeHub::start(home.path(), &[name], move |asked: &Asked| {
            if asked.authorization.as_deref() != Some("Bearer direct") {
                return refused(401);
            }
            match code.load(Ordering::SeqCst) {
                200 => (200, format!("endpoint {} {}", asked.method, asked.path)),
                code => refused(code),
            }
        });
        let direct =
            json!({ "server": endpoint.url, "certificateAuthority": ca.unwrap_or_else(|| endpoint.ca.clone()) });
        let code = Arc::clone(&by_hub);
        let hub = FakeHub::start(home.path(), &["127.0.0.1"], move |asked: &Asked| {
            of_hub(asked, code.load(Ordering::SeqCst), &direct)
        });
        let mut login = moorline(home.path());
        login.args(["login", &hub.url, "--user", "anna", "--password-stdin", "--ca-file"]).arg(&hub.ca_file);
        let output = feed(&mut login, "right\n");
        assert!(output.status.success(), "{}", stderr(&output));
        Self { hub, endpoint: Some(endpoint), by_hub, by_endpoint, home }
    }

    fn home(&self) -> &Path {
        self.home.path()
    }

    /// Server and authority of the context, and its credential plugin's words.
    fn context(&self) -> Context {
        let output = run(self.home(), &["kubeconfig", "edge1", "--auto"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stdout(&output);
        let word = |key: &str| {
            text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap().trim_matches('"').to_owned()
        };
        assert_eq!(text.matches("server:").count(), 1, "one context: {text}");
        assert!(!text.contains("access") && !text.contains("mlr_"), "no credential of a hub's is in it: {text}");
        let ca = self.home().join("relay-ca.crt");
        let mut decode = Command::new("base64");
        decode.arg("-d");
        std::fs::write(&ca, feed(&mut decode, &word("certificate-authority-data: ")).stdout).unwrap();
        Context { server: word("server: "), ca }
    }

    fn credential(&self) -> Command {
        let mut command = moorline(self.home());
        command.args(["kube", "credential", "--hub", &self.hub.url, "--auto"]);
        command
    }

    fn token(&self) -> String {
        let output = self.credential().output().unwrap();
        token_of(&output)
    }

    /// What the relay says of itself, once it has a moment.
    fn relay(&self) -> Value {
        let begun = Instant::now();
        loop {
            let output = run(self.home(), &["kube", "relay", "--show"]);
            match serde_json::from_str(&stdout(&output)) {
                Ok(shown) => return shown,
                Err(_) => assert!(begun.elapsed() < LONG, "{}", stderr(&output)),
            }
        }
    }
}

impl Drop for Ways {
    fn drop(&mut self) {
        let _ = run(self.home.path(), &["kube", "relay", "--stop"]);
    }
}

struct Context {
    server: String,
    ca: PathBuf,
}

impl Context {
    /// Code, way, and what was answered.
    fn ask(&self, token: &str, more: &[&str], path: &str) -> (u16, String, String) {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-i", "--max-time", "30", "--path-as-is", "--cacert"]).arg(&self.ca).args(more);
        curl.arg("-H").arg(format!("Authorization: Bearer {token}")).arg(format!("{}{path}", self.server));
        let text = stdout(&curl.output().unwrap()).replace('\r', "");
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let way = head.lines().find_map(|line| line.strip_prefix("moorline-way: ")).unwrap_or_default();
        (code, way.to_owned(), body.to_owned())
    }

    /// Asks until the answer has this code: trouble is not looked at again within a moment of the last look.
    fn until(&self, token: &str, more: &[&str], path: &str, wanted: u16) -> (u16, String, String) {
        let begun = Instant::now();
        loop {
            let answer = self.ask(token, more, path);
            if answer.0 == wanted || LONG < begun.elapsed() {
                return answer;
            }
        }
    }
}

fn token_of(output: &Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    let credential: Value = serde_json::from_str(&stdout(output)).unwrap();
    credential["status"]["token"].as_str().unwrap().to_owned()
}

fn said(code: u16, way: &str, body: &str) -> (u16, String, String) {
    (code, way.to_owned(), body.to_owned())
}

/// The hub goes, the endpoint takes over; it goes, the hub is back. Each way is shown its own token.
#[test]
fn f01_one_context_follows_the_way_that_works() {
    let mut ways = Ways::start(None);
    ways.by_endpoint.store(503, Ordering::SeqCst);
    let context = ways.context();
    let token = ways.token();
    assert!(token.starts_with("mll_"), "good at the relay alone");
    assert_eq!(context.ask(&token, &[], "/api/v1/pods?limit=5"), said(200, "hub", "hub GET /api/v1/pods?limit=5"));
    // No agent of the cluster is connected to the hub.
    ways.by_endpoint.store(200, Ordering::SeqCst);
    ways.by_hub.store(503, Ordering::SeqCst);
    let found = context.until(&token, &[], "/a/..%2fb/../c", 200);
    assert_eq!(found, said(200, "direct", "endpoint GET /a/..%2fb/../c"));
    // An endpoint whose bundle is over knows nobody.
    ways.by_hub.store(200, Ordering::SeqCst);
    ways.by_endpoint.store(401, Ordering::SeqCst);
    let (code, way, body) = context.until(&token, &["-X", "POST", "-d", "{}"], "/api", 200);
    assert_eq!((code, way.as_str(), body.as_str()), (200, "hub", "hub POST /api"), "what was refused was not done");
    // The endpoint is gone, and the hub says no: that is an answer.
    ways.endpoint = None;
    ways.by_hub.store(403, Ordering::SeqCst);
    assert_eq!(context.ask(&token, &[], "/api").0, 403);
    ways.by_hub.store(200, Ordering::SeqCst);
    assert_eq!(context.ask(&token, &[], "/api").1, "hub");
    // Neither: in words, and soon.
    ways.by_hub.store(503, Ordering::SeqCst);
    assert_eq!(context.ask(&token, &[], "/api").0, 503);
    let shown = ways.relay();
    assert_eq!(shown["clusters"][0]["cluster"], "edge1", "{shown}");
}

#[test]
fn s10_the_relay_is_its_users_alone_and_each_way_proves_itself() {
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.pem();
    let ways = Ways::start(Some(other));
    let (context, token) = (ways.context(), ways.token());
    for wrong in ["", "direct", "access", &token[..token.len() - 1], &format!("{token}x")] {
        assert_eq!(context.ask(wrong, &[], "/api").0, 401, "{wrong}");
    }
    assert_eq!(context.ask(&token, &[], "/api").1, "hub");
    ways.by_hub.store(502, Ordering::SeqCst);
    assert_eq!(context.ask(&token, &[], "/api").0, 502, "somebody else's endpoint is no way");
    assert!(ways.endpoint.as_ref().unwrap().asked().is_empty(), "and is told nothing");
    let elsewhere = Context { server: context.server.replace("/edge1", "/../x"), ca: context.ca.clone() };
    assert_eq!(elsewhere.ask(&token, &[], "/api").0, 404);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let dir = ways.home().join(".config/moorline/relay");
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
        }
    }
}

#[test]
fn many_kubectl_at_once_start_one_relay_and_it_ends_when_it_is_told() {
    let ways = Ways::start(None);
    ways.context();
    let children: Vec<_> =
        (0..6).map(|_| ways.credential().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()).collect();
    let tokens = Mutex::new(std::collections::BTreeSet::new());
    for child in children {
        tokens.lock().unwrap().insert(token_of(&child.wait_with_output().unwrap()));
    }
    assert_eq!(tokens.lock().unwrap().len(), 1);
    let pid = ways.relay()["pid"].as_u64().unwrap();
    assert_eq!(ways.token(), *tokens.lock().unwrap().iter().next().unwrap());
    assert_eq!(ways.relay()["pid"], pid);
    assert!(run(ways.home(), &["kube", "relay", "--stop"]).status.success());
    let seat: Value =
        serde_json::from_slice(&std::fs::read(ways.home().join(".config/moorline/relay/seat.json")).unwrap()).unwrap();
    let port = u16::try_from(seat["port"].as_u64().unwrap()).unwrap();
    let begun = Instant::now();
    let taken = loop {
        match std::net::TcpListener::bind(("127.0.0.1", port)) {
            Ok(taken) => break taken,
            Err(e) => assert!(begun.elapsed() < LONG, "{e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
        // A relay that did not hear of it in time is told again.
        assert!(run(ways.home(), &["kube", "relay", "--stop"]).status.success());
    };
    // Somebody else has the port now: said in words, and nothing is sent to them.
    let output = ways.credential().output().unwrap();
    assert!(!output.status.success() && stderr(&output).contains("--auto-port"), "{}", stderr(&output));
    drop(taken);
}

#[test]
fn z08_what_auto_cannot_do_is_said() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["kube", "relay"]);
    assert!(stderr(&output).contains("kubeconfig CLUSTER --auto"), "{}", stderr(&output));
    let ways = Ways::start(None);
    let mut command = moorline(ways.home());
    let output = command.env("MOORLINE_API_KEY", "mlt_a.b").args(["kubeconfig", "edge1", "--auto"]).output().unwrap();
    assert!(!output.status.success() && stderr(&output).contains("works with a login"), "{}", stderr(&output));
    let dir = ways.home().join(".config/moorline/relay");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("seat.json"), "{\"port\":").unwrap();
    let output = run(ways.home(), &["kubeconfig", "edge1", "--auto"]);
    assert!(!output.status.success() && stderr(&output).contains("is damaged"), "{}", stderr(&output));
}

/// A certificate of the right authority for somebody else, and one of the wrong authority, are no endpoint.
#[test]
fn s68_a_certificate_for_another_name_is_no_way() {
    let ways = Ways::named(None, "elsewhere.example");
    let (context, token) = (ways.context(), ways.token());
    assert_eq!(context.ask(&token, &[], "/api").1, "hub");
    ways.by_hub.store(503, Ordering::SeqCst);
    assert_eq!(context.ask(&token, &[], "/api").0, 503);
    assert!(ways.endpoint.as_ref().unwrap().asked().is_empty(), "no byte of a request went there");
    // On a slow machine it may have been given up before it had shown its certificate; each new comparison gives it its time.
    let begun = Instant::now();
    loop {
        let shown = ways.relay()["clusters"][0]["tried"]["direct"].to_string();
        if shown.contains("certificate") {
            break;
        }
        assert!(begun.elapsed() < LONG, "{shown}");
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(context.ask(&token, &[], "/api").0, 503);
    }
    assert!(ways.endpoint.as_ref().unwrap().asked().is_empty(), "no byte of a request went there");
}

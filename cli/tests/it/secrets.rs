//! Secrets that were planted, and everything that a hub and an agent leave behind.

use super::{
    eventually,
    fake::{Answer, Asked, FakeHub},
    feed, moorline,
    real::{Hub, free, login, ok, page},
    spawn, stderr, stdout,
};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// What the API server answers: any review is allowed, and there is one Secret.
fn api(asked: &Asked) -> Answer {
    let answer = match asked.path.as_str() {
        path if path.ends_with("accessreviews") => json!({ "status": { "allowed": true } }),
        path if path.contains("/secrets") => json!({ "kind": "Secret", "data": { "key": "planted-in-an-answer" } }),
        _ => json!({ "kind": "Status" }),
    };
    (200, answer.to_string())
}

/// A kind whose objects show administrators, and nobody else, the credentials that they gave.
const GIVEN: &str = "clusterimports";

/// What was shown to somebody: answers, errors, pages, outputs. Each with where it was shown.
struct Shown<'a> {
    home: &'a Path,
    all: RefCell<Vec<(String, String)>>,
}

impl Shown<'_> {
    fn note(&self, place: &str, text: String) {
        self.all.borrow_mut().push((place.to_owned(), text));
    }

    /// A command that hands out nothing secret.
    fn run(&self, args: &[&str]) -> Output {
        let output = moorline(self.home).env("MOORLINE_LOG", "trace").args(args).output().unwrap();
        self.said(&format!("what `moorline {}` said", args.join(" ")), &output);
        output
    }

    fn said(&self, place: &str, output: &Output) {
        self.note(place, stdout(output) + &stderr(output));
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// All that an administrator is told by the hub's API: every kind of every group, as lists, tables and watches, and
    /// what it says of itself.
    fn api(&self, hub: &Hub, bearer: &str) {
        let get = |path: &str, more: &[&str]| {
            let answer = ask(self.home, &format!("{}{path}", hub.url), &[&["-H", bearer][..], more].concat());
            let (body, code) = answer.rsplit_once('\n').unwrap();
            self.note(&format!("GET {path} {more:?}"), body.to_owned());
            (body.to_owned(), code.to_owned())
        };
        let value = |path: &str| {
            let (body, code) = get(path, &[]);
            assert_eq!(code, "200", "{path}: {body}");
            serde_json::from_str::<Value>(&body).unwrap()
        };
        let names = |list: &Value, name: &str| -> Vec<String> {
            list.as_array().unwrap().iter().map(|one| one.pointer(name).unwrap().as_str().unwrap().to_owned()).collect()
        };
        let table = ["-H", "Accept: application/json;as=Table;v=v1;g=meta.k8s.io"];
        let mut kinds = Vec::new();
        for version in names(&value("/apis")["groups"], "/preferredVersion/groupVersion") {
            for kind in names(&value(&format!("/apis/{version}"))["resources"], "/name") {
                let path = format!("/apis/{version}/{kind}");
                if kind == GIVEN {
                    continue;
                }
                let (list, code) = get(&path, &[]);
                if kind.contains('/') || code != "200" {
                    continue; // a part of an object, or of namespaces alone
                }
                get(&path, &table);
                // From the beginning on: all that is there now. It goes on until curl has waited long enough.
                get(&format!("{path}?watch=1&timeoutSeconds=1"), &[]);
                let list: Value = serde_json::from_str(&list).unwrap();
                for name in names(&list["items"], "/metadata/name") {
                    get(&format!("{path}/{name}"), &[]);
                }
                kinds.push(kind);
            }
        }
        for kind in ["tokens", "jointokens", "users", "clusters", "clustergrants"] {
            assert!(kinds.iter().any(|known| known == kind), "{kind} is not among {kinds:?}");
        }
        for path in [
            "/auth/whoami",
            "/auth/keys",
            "/auth/providers",
            "/auth/audit?limit=1000",
            "/auth/principals?q=a",
            "/auth/lockouts",
            "/openapi/v2",
            "/version",
            "/metrics",
            "/debug",
        ] {
            get(path, &[]);
        }
    }
}

/// The command line of a process, which everybody on its machine can read, and of its children.
fn command_lines(pid: u32) -> String {
    let read = |path: String| {
        fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " ")).unwrap_or_default()
    };
    let mut all = read(format!("/proc/{pid}/cmdline"));
    for child in read(format!("/proc/{pid}/task/{pid}/children")).split_whitespace() {
        all += &read(format!("/proc/{child}/cmdline"));
    }
    all
}

/// Files of a folder and all below it that somebody else on this machine could read.
fn open_files(dir: &Path, closed: bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let (path, mode) = (entry.path(), entry.metadata().unwrap().permissions().mode());
        match path.is_dir() {
            true => found.extend(open_files(&path, closed || mode & 0o077 == 0)),
            false if !closed && mode & 0o077 != 0 => found.push(path),
            false => {}
        }
    }
    found
}

/// All that a request says of itself may be a secret.
fn ask(home: &Path, url: &str, more: &[&str]) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-s", "-o", "-", "-w", "\n%{http_code}", "--max-time", "30", "--cacert"]).arg(home.join("hub/ca.crt"));
    stdout(&curl.args(more).arg(url).output().unwrap())
}

/// Files of a folder and all below it that contain `secret`.
fn files_with(dir: &Path, secret: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, secret));
        } else if path.is_file() && fs::read(&path).unwrap().windows(secret.len()).any(|window| window == secret) {
            found.push(path);
        }
    }
    found
}

/// Where a secret may stand: what is handed to a person, or is the holder's own key ring.
const OWN: [&str; 6] = [
    "hub/admin.password",
    "backup/admin.password",
    "hub/admin.kubeconfig",
    "ldap-password",
    "edge.kubeconfig",
    "join-token",
];
/// What this test itself wrote, as anybody writes files, and what is meant to be read by all.
const OPEN: [&str; 8] = [
    "ldap-password",
    "hub.yaml",
    "edge.kubeconfig",
    "import.kubeconfig",
    "fake-ca.crt",
    "hub.log",
    "agent.log",
    "hub/ca.crt",
];

#[test]
fn s69_secrets_that_were_planted_are_found_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let mut planted: Vec<(&str, String)> = Vec::new();
    let shown = Shown { home, all: RefCell::default() };

    // A directory that nobody answers for, so that its errors are told.
    fs::write(home.join("ldap-password"), "planted-bind-password").unwrap();
    let config = format!(
        "logins:\n- name: corp\n  ldap:\n    url: ldaps://{}\n    bindDn: cn=moorline,dc=example\n    bindPasswordFile: {}\n    \
         userBase: dc=example\n    groupBase: dc=example\n",
        free(),
        home.join("ldap-password").display()
    );
    fs::write(home.join("hub.yaml"), config).unwrap();
    // The store is sealed where its owner gives it a key.
    let seal = home.join("seal.key");
    fs::write(&seal, "cGxhbnRlZC1wbGFudGVkLXBsYW50ZWQtcGxhbnRlZCE=").unwrap();
    fs::set_permissions(&seal, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let seal = seal.to_str().unwrap();
    let hub = Hub::start_with(home, |command| {
        command.env("MOORLINE_LOG", "trace").arg("--config").arg(home.join("hub.yaml")).args(["--seal-key-file", seal]);
    });
    planted.push(("a provider's password", "planted-bind-password".into()));

    let admin = fs::read_to_string(home.join("hub/admin.password")).unwrap();
    login(home, &hub, "admin", &admin);
    planted.push(("the administrator's password", admin.trim().to_owned()));
    for (user, password) in [("anna", "planted password of anna"), ("nobody", "planted password of nobody")] {
        let mut create = moorline(home);
        if user == "anna" {
            let output = feed(create.args(["user", "create", user, "--password-stdin"]), password);
            assert!(output.status.success(), "{}", stderr(&output));
        }
        let mut wrong = moorline(home);
        wrong.args(["login", &hub.url, "--user", user, "--password-stdin", "--ca-file"]).arg(home.join("hub/ca.crt"));
        wrong.env("HOME", home.join("elsewhere"));
        let output = feed(&mut wrong, &format!("{password}, and wrong"));
        assert!(!output.status.success());
        shown.said("a login that failed", &output);
        wrong.args(["--provider", "corp"]);
        let output = feed(&mut wrong, password);
        assert!(!output.status.success());
        shown.said("a login at a directory that is away", &output);
        planted.push(("a password", password.to_owned()));
    }
    shown.ok(&["grant", "create", "--user", "admin", "--cluster", "edge1"]);
    let key = ok(home, &["apikey", "create", "--user", "anna", "--cluster", "edge1"]);
    planted.push(("an API key", key.trim().to_owned()));
    let join = ok(home, &["token", "create", "--cluster", "edge1"]).split_whitespace().last().unwrap().to_owned();
    planted.push(("a join token", join.clone()));
    let bearer = ok(home, &["kubeconfig", "edge1", "--static"]);
    let bearer =
        bearer.lines().find_map(|line| line.trim().strip_prefix("token: ")).unwrap().trim_matches('"').to_owned();
    planted.push(("an access token", bearer.clone()));
    let kept = fs::read_to_string(home.join(".config/moorline/config.yaml")).unwrap();
    let refresh = kept.split_whitespace().find(|word| word.contains("mlr_")).unwrap().trim_matches('"');
    planted.push(("a refresh token", refresh.to_owned()));
    shown.ok(&["kubeconfig", "edge1", "--merge"]);
    shown.ok(&["kubeconfig", "edge1"]);

    // The cluster, whose agent has a token of its own.
    let cluster = FakeHub::start(home, &["127.0.0.1"], api);
    let kubeconfig = home.join("edge.kubeconfig");
    let text = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": { "server": cluster.url, "certificate-authority": cluster.ca_file } }],
        "users": [{ "name": "x", "user": { "token": "planted-token-of-the-edge" } }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }] });
    fs::write(&kubeconfig, text.to_string()).unwrap();
    planted.push(("the agent's token at the cluster", "planted-token-of-the-edge".into()));
    let ops = free().to_string();
    let mut agent = moorline(home);
    fs::write(home.join("join-token"), &join).unwrap();
    fs::set_permissions(home.join("join-token"), PermissionsExt::from_mode(0o600)).unwrap();
    agent.env("MOORLINE_LOG", "trace").args(["agent", "--name", "a1", "--hub", &hub.url, "--token-file"]);
    agent.arg(home.join("join-token")).arg("--state-dir");
    agent.arg(home.join("agent")).arg("--kubeconfig").arg(kubeconfig).args(["--http-listen", &ops]);
    let agent = spawn(agent, &home.join("agent.log"));

    let place = format!("{}/k8s/clusters/edge1/api/v1/namespaces/x/secrets/y", hub.url);
    let bearer = format!("Authorization: Bearer {bearer}");
    eventually("an answer of the cluster's", || {
        let answer = ask(home, &place, &["-H", &bearer]);
        let came = answer.ends_with("200") && answer.contains("planted-in-an-answer");
        came.then_some(()).ok_or_else(|| answer + &fs::read_to_string(home.join("agent.log")).unwrap())
    });
    planted.push(("a body from the cluster", "planted-in-an-answer".into()));
    let refused = |more: &[&str], url: &str| {
        let answer = ask(home, url, more);
        assert!(answer.ends_with("401"), "{more:?} {url}");
        shown.note("a refusal", answer);
    };
    assert!(ask(home, &place, &["-H", &bearer, "-X", "PUT", "-d", "planted-in-a-request"]).ends_with("200"));
    planted.push(("a body for the cluster", "planted-in-a-request".into()));
    refused(&["-H", "Authorization: Bearer mlt_plantedbearer_thatisnone"], &place);
    planted.push(("a token that is none", "plantedbearer".into()));
    refused(&["-u", "anna:planted-basic"], &place);
    // As curl sends it.
    planted.push(("a password in a header", "YW5uYTpwbGFudGVkLWJhc2lj".into()));
    refused(&[], &format!("{place}?token=planted-in-a-query"));
    planted.push(("a token in a query", "planted-in-a-query".into()));
    let token = bearer.rsplit(' ').next().unwrap();
    for path in [format!("{place}?access_token={token}"), format!("{place}/{token}")] {
        refused(&[], &path);
    }
    refused(&["-H", "Cookie: __Host-moorline=planted-in-a-cookie"], &place);
    planted.push(("a cookie", "planted-in-a-cookie".into()));
    let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": { "server": "https://127.0.0.1:1", "certificate-authority": cluster.ca_file } }],
        "users": [{ "name": "x", "user": { "token": "planted-for-an-import" } }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }] });
    fs::write(home.join("import.kubeconfig"), config.to_string()).unwrap();
    let path = home.join("import.kubeconfig");
    // It is kept, though nobody is there.
    let import = shown.run(&["import", "edge2", "--timeout", "1s", "--kubeconfig", path.to_str().unwrap()]);
    assert!(stderr(&import).contains("edge2 is imported"), "{}", stderr(&import));
    fs::remove_file(path).unwrap();
    planted.push(("a token of an imported cluster", "planted-for-an-import".into()));
    let (data, backup) = (home.join("hub"), home.join("backup"));
    shown.ok(&[
        "hub",
        "backup",
        "--seal-key-file",
        seal,
        "--data-dir",
        data.to_str().unwrap(),
        backup.to_str().unwrap(),
    ]);
    for words in [
        &["status"][..],
        &["clusters", "-o", "yaml"],
        &["token", "list", "-o", "json"],
        &["apikey", "list", "-o", "json"],
        &["get", "tokens", "-o", "yaml"],
        &["user", "list", "-o", "json"],
        &["audit", "search", "-o", "json"],
        &["doctor"],
        &["whoami", "-o", "json"],
    ] {
        shown.run(words);
    }
    shown.api(&hub, &bearer);

    // Who sits at the same machine sees what runs there, and which files stand open.
    for (who, pid) in [("hub", hub.pid()), ("agent", agent.0.id())] {
        let line = command_lines(pid);
        assert!(line.contains(who), "{line}");
        shown.note(&format!("the command line of the {who}"), line);
    }
    let open: Vec<String> = open_files(home, false)
        .into_iter()
        .map(|path| path.strip_prefix(home).unwrap().display().to_string())
        .filter(|name| !OPEN.contains(&name.as_str()))
        .collect();
    assert!(open.is_empty(), "others can read {open:#?}");
    fs::remove_dir_all(home.join(".config")).unwrap(); // the user's own login
    for (who, ops) in [("moorline_hub_", &hub.ops), ("moorline_agent_", &ops)] {
        let metrics = page(ops, "/metrics");
        assert!(metrics.contains(who), "{metrics}");
        for path in ["/readyz", "/livez", "/healthz", "/debug", "/debug/pprof/", "/"] {
            shown.note(&format!("{who} {path}"), page(ops, path));
        }
        shown.note(&format!("{who} /metrics"), metrics);
    }
    drop((hub, agent));
    let mut found = Vec::new();
    for (what, secret) in &planted {
        for (place, text) in shown.all.borrow().iter() {
            if text.contains(secret.as_str()) {
                found.push(format!("{what} in {place}"));
            }
        }
        for path in files_with(home, secret.as_bytes()) {
            let name = path.strip_prefix(home).unwrap().display().to_string();
            if !OWN.contains(&name.as_str()) {
                found.push(format!("{what} in {name}"));
            }
        }
    }
    // What is looked for there would be seen: the names of who and what are.
    let log = fs::read_to_string(home.join("hub.log")).unwrap();
    assert!(log.contains("TRACE") && log.contains("anna"), "the log says little");
    assert!(found.is_empty(), "{found:#?}");
}

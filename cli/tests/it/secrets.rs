//! Secrets that were planted, and everything that a hub and an agent leave behind.

use super::{
    eventually,
    fake::{Answer, Asked, FakeHub},
    feed, moorline,
    real::{Hub, free, login, ok, page},
    run, spawn, stderr, stdout,
};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
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
const OWN: [&str; 5] =
    ["hub/admin.password", "backup/admin.password", "hub/admin.kubeconfig", "ldap-password", "edge.kubeconfig"];

#[test]
fn s69_secrets_that_were_planted_are_found_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path();
    let mut planted: Vec<(&str, String)> = Vec::new();

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
        assert!(!feed(&mut wrong, &format!("{password}, and wrong")).status.success());
        wrong.args(["--provider", "corp"]);
        assert!(!feed(&mut wrong, password).status.success());
        planted.push(("a password", password.to_owned()));
    }
    ok(home, &["grant", "create", "--user", "admin", "--cluster", "edge1"]);
    let key = ok(home, &["apikey", "create", "--user", "anna", "--cluster", "edge1"]);
    planted.push(("an API key", key.trim().to_owned()));
    let join = ok(home, &["token", "create", "--cluster", "edge1"]).split_whitespace().last().unwrap().to_owned();
    planted.push(("a join token", join.clone()));
    let bearer = ok(home, &["kubeconfig", "edge1", "--static"]);
    let bearer =
        bearer.lines().find_map(|line| line.trim().strip_prefix("token: ")).unwrap().trim_matches('"').to_owned();
    planted.push(("an access token", bearer.clone()));

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
    agent.env("MOORLINE_LOG", "trace").args([
        "agent",
        "--name",
        "a1",
        "--hub",
        &hub.url,
        "--token",
        &join,
        "--state-dir",
    ]);
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
    let refused = |more: &[&str], url: &str| assert!(ask(home, url, more).ends_with("401"), "{more:?} {url}");
    assert!(ask(home, &place, &["-H", &bearer, "-X", "PUT", "-d", "planted-in-a-request"]).ends_with("200"));
    planted.push(("a body for the cluster", "planted-in-a-request".into()));
    refused(&["-H", "Authorization: Bearer mlt_plantedbearer_thatisnone"], &place);
    planted.push(("a token that is none", "plantedbearer".into()));
    refused(&["-u", "anna:planted-basic"], &place);
    // As curl sends it.
    planted.push(("a password in a header", "YW5uYTpwbGFudGVkLWJhc2lj".into()));
    refused(&[], &format!("{place}?token=planted-in-a-query"));
    planted.push(("a token in a query", "planted-in-a-query".into()));
    refused(&["-H", "Cookie: __Host-moorline=planted-in-a-cookie"], &place);
    planted.push(("a cookie", "planted-in-a-cookie".into()));
    let config = json!({ "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{ "name": "x", "cluster": { "server": "https://127.0.0.1:1", "certificate-authority": cluster.ca_file } }],
        "users": [{ "name": "x", "user": { "token": "planted-for-an-import" } }],
        "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }] });
    fs::write(home.join("import.kubeconfig"), config.to_string()).unwrap();
    let path = home.join("import.kubeconfig");
    // It is kept, though nobody is there.
    let import = run(home, &["import", "edge2", "--timeout", "1s", "--kubeconfig", path.to_str().unwrap()]);
    assert!(stderr(&import).contains("edge2 is imported"), "{}", stderr(&import));
    fs::remove_file(path).unwrap();
    planted.push(("a token of an imported cluster", "planted-for-an-import".into()));
    let (data, backup) = (home.join("hub"), home.join("backup"));
    ok(
        home,
        &["hub", "backup", "--seal-key-file", seal, "--data-dir", data.to_str().unwrap(), backup.to_str().unwrap()],
    );

    fs::remove_dir_all(home.join(".config")).unwrap(); // the user's own login
    let pages = format!("{}{}", page(&hub.ops, "/metrics"), page(&ops, "/metrics"));
    assert!(pages.contains("moorline_hub_") && pages.contains("moorline_agent_"), "{pages}");
    drop((hub, agent));
    let mut found = Vec::new();
    for (what, secret) in &planted {
        if pages.contains(secret.as_str()) {
            found.push(format!("{what} in a page of metrics"));
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

//! What the commands ask of a hub, and what they make of its answers.

use super::{
    fake::{Answer, Asked, FakeHub},
    feed, moorline, run, stderr, stdout,
};
use serde_json::{Value, json};
use std::path::Path;

const TOKEN: &str = "mlt_aaaaaaaaaaaa.c2VjcmV0";

fn status(code: u16, reason: &str, message: &str) -> Answer {
    let body = json!({ "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason,
        "message": message, "code": code });
    (code, body.to_string())
}

/// A hub with one user, one cluster and one password.
fn script(asked: &Asked) -> Answer {
    let ok = |value: Value| (200, value.to_string());
    let cluster = json!({ "metadata": { "name": "edge1" }, "spec": {}, "status": {} });
    let table = |rows: Value| {
        json!({ "kind": "Table", "metadata": { "resourceVersion": "7" }, "rows": rows, "columnDefinitions": [
            { "name": "Name", "type": "string", "priority": 0 }, { "name": "Status", "type": "string", "priority": 0 },
            { "name": "Remote", "type": "string", "priority": 1 }] })
    };
    let row = json!([{ "cells": ["edge1", "Connected", "192.0.2.1"] }]);
    let path = asked.path.trim_start_matches("/apis/moorline.dev/v1alpha1");
    if asked.path == "/auth/login" {
        let body: Value = serde_json::from_str(&asked.body).unwrap();
        return match body["password"].as_str() {
            Some("right") => ok(json!({ "token": TOKEN, "expires": "2999-01-01T00:00:00Z", "user": "anna" })),
            _ => status(401, "Unauthorized", "login failed"),
        };
    }
    if asked.authorization.as_deref() != Some(&format!("Bearer {TOKEN}")) {
        return status(401, "Unauthorized", "no valid token");
    }
    match (asked.method.as_str(), path) {
        ("GET", "/auth/whoami") => ok(json!({ "user": "anna", "uid": "1", "groups": ["ops", "dev"] })),
        ("POST", "/auth/logout") => (200, String::new()),
        ("GET", "/version") => ok(json!({ "gitVersion": "v0.1.0" })),
        ("GET", "/clusters") if asked.accept.contains("as=Table") => ok(table(row)),
        ("GET", "/clusters") => ok(json!({ "kind": "ClusterList", "items": [cluster] })),
        ("GET", "/clusters/edge1") => ok(cluster),
        ("GET", "/clusters/away") => status(503, "ServiceUnavailable", "away is not connected since 10:00\u{1b}[2J"),
        ("GET", "/clusters?watch=true&resourceVersion=7") => {
            let event = json!({ "type": "MODIFIED", "object": table(json!([{ "cells": ["edge1", "Gone", ""] }])) });
            // Then an end that makes the client stop: its table is no table.
            (200, format!("{event}\n{{\"type\":\"ADDED\",\"object\":{{}}}}\n"))
        }
        ("GET", "/clusters/hidden") => status(403, "Forbidden", "anna may not"),
        ("GET", "/clusters/new") => status(404, "NotFound", "clusters \"new\" not found"),
        ("POST", "/clusters") => (201, cluster.to_string()),
        ("POST", "/jointokens") => {
            let mut made: Value = serde_json::from_str(&asked.body).unwrap();
            made["status"] = json!({ "token": "mlj_bbbbbbbbbbbb.c2VjcmV0.cGlu",
                "joinCommand": "moorline agent --hub https://hub.example:8443 --token mlj_bbbbbbbbbbbb.c2VjcmV0.cGlu" });
            (201, made.to_string())
        }
        ("POST", "/clustergrants" | "/users") => (201, asked.body.clone()),
        ("PUT", "/users/bob/password") => (200, String::new()),
        _ => status(404, "NotFound", "the server could not find the requested resource"),
    }
}

fn logged_in() -> (tempfile::TempDir, FakeHub) {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(home.path(), &["127.0.0.1"], script);
    let output = login(home.path(), &hub, "right\n");
    assert!(output.status.success(), "{}", stderr(&output));
    (home, hub)
}

fn login(home: &Path, hub: &FakeHub, password: &str) -> std::process::Output {
    let mut command = moorline(home);
    command.args(["login", &hub.url, "--user", "anna", "--password-stdin", "--ca-file"]).arg(&hub.ca_file);
    feed(&mut command, password)
}

#[test]
fn a_login_is_kept_and_used() {
    let (home, hub) = logged_in();
    let kept = home.path().join(".config/moorline/config.yaml");
    let text = std::fs::read_to_string(&kept).unwrap();
    assert!(text.contains(TOKEN) && !text.contains("right"), "{text}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let output = run(home.path(), &["whoami"]);
    assert!(stdout(&output).contains("anna") && stdout(&output).contains("ops, dev"), "{}", stdout(&output));
    let output = run(home.path(), &["logout"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(hub.asked().iter().any(|asked| asked.path == "/auth/logout"), "the hub was told");
    assert!(!std::fs::read_to_string(&kept).unwrap().contains(TOKEN));
    assert_eq!(run(home.path(), &["whoami"]).status.code(), Some(1));
}

#[test]
fn a_wrong_password_keeps_nothing() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(home.path(), &["127.0.0.1"], script);
    let output = login(home.path(), &hub, "wrong\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("wrong user name or password"), "{}", stderr(&output));
    assert!(!home.path().join(".config/moorline/config.yaml").exists());
}

#[test]
fn a_server_that_cannot_prove_itself_gets_no_password() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(home.path(), &["elsewhere.example"], script);
    let output = login(home.path(), &hub, "right\n");
    assert!(stderr(&output).contains("not for this name"), "{}", stderr(&output));
    // The authority of another hub.
    let dir = home.path().join("other");
    std::fs::create_dir(&dir).unwrap();
    let other = FakeHub::start(&dir, &["127.0.0.1"], script);
    let mut command = moorline(home.path());
    command.args(["login", &other.url, "--user", "anna", "--password-stdin", "--ca-file"]).arg(&hub.ca_file);
    let output = feed(&mut command, "right\n");
    assert!(stderr(&output).contains("not signed by the authority"), "{}", stderr(&output));
    // Nobody there to compare a fingerprint.
    let mut command = moorline(home.path());
    let output = feed(command.args(["login", &other.url, "--user", "anna", "--password-stdin"]), "right\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--ca-pin"), "{}", stderr(&output));
    assert_eq!((hub.asked(), other.asked()), (vec![], vec![]));
}

#[test]
fn a_pin_is_trust_enough() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(home.path(), &["127.0.0.1"], script);
    let first = ["login", &hub.url, "--user", "anna", "--password-stdin"];
    let words = stderr(&feed(moorline(home.path()).args(first), "right\n"));
    let pin = words.split_whitespace().find(|word| word.starts_with("sha256:")).unwrap().to_owned();
    let mut wrong = moorline(home.path());
    wrong.args(first).args(["--ca-pin", &format!("sha256:{}", "0".repeat(64))]);
    let output = feed(&mut wrong, "right\n");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(hub.asked(), [], "nobody unproven is asked anything");
    let output = feed(moorline(home.path()).args(first).args(["--ca-pin", &pin]), "right\n");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(run(home.path(), &["whoami"]).status.success(), "the authority was kept");
}

#[test]
fn doctor_finds_a_hub_well_but_for_udp() {
    let (home, _hub) = logged_in();
    let output = run(home.path(), &["doctor", "-o", "json", "--timeout", "5s"]);
    let answer: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let verdict = |name: &str| {
        answer["checks"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap()["verdict"].clone()
    };
    for (name, want) in
        [("dns", "ok"), ("tcp", "ok"), ("tls", "ok"), ("quic", "warn"), ("clock", "ok"), ("login", "ok")]
    {
        assert_eq!(verdict(name), want, "{name}: {answer:#}");
    }
    assert!(output.status.success(), "a warning is no failure: {answer:#}");
}

#[test]
fn clusters_come_as_table_json_or_names() {
    let (home, _hub) = logged_in();
    assert_eq!(stdout(&run(home.path(), &["clusters"])), "NAME    STATUS\nedge1   Connected\n");
    let wide = stdout(&run(home.path(), &["get", "clusters", "-o", "wide"]));
    assert_eq!(wide, "NAME    STATUS      REMOTE\nedge1   Connected   192.0.2.1\n");
    assert_eq!(stdout(&run(home.path(), &["clusters", "-o", "name"])), "cluster.moorline.dev/edge1\n");
    let one: Value = serde_json::from_str(&stdout(&run(home.path(), &["clusters", "edge1", "-o", "json"]))).unwrap();
    assert_eq!(one["metadata"]["name"], "edge1");
    assert!(stdout(&run(home.path(), &["clusters", "-o", "yaml"])).contains("name: edge1"));
}

#[test]
fn a_watch_goes_on_where_the_list_ended() {
    let (home, hub) = logged_in();
    let output = run(home.path(), &["clusters", "-w"]);
    assert_eq!(stdout(&output), "NAME    STATUS\nedge1   Connected\nedge1   Gone\n", "{}", stderr(&output));
    assert!(hub.asked().iter().any(|asked| asked.path.ends_with("?watch=true&resourceVersion=7")));
}

#[test]
fn status_tells_hub_user_and_clusters() {
    let (home, _hub) = logged_in();
    let output = run(home.path(), &["status"]);
    let text = stdout(&output);
    assert!(text.contains("v0.1.0") && text.contains("anna") && text.contains("Never connected"), "{text}");
}

#[test]
fn a_kubeconfig_holds_the_way_and_the_token() {
    let (home, hub) = logged_in();
    let output = run(home.path(), &["kubeconfig", "edge1"]);
    let text = stdout(&output);
    assert!(text.contains(&format!("{}/k8s/clusters/edge1", hub.url)), "{text}");
    assert!(text.lines().any(|line| line.trim() == format!("token: {TOKEN}")), "{text}");
    let output = run(home.path(), &["kubeconfig", "hidden"]);
    assert!(output.status.success() && stdout(&output).contains("/k8s/clusters/hidden"), "a grant may come later");
    assert!(stderr(&output).contains("warning"), "{}", stderr(&output));
    let output = run(home.path(), &["kubeconfig", "nowhere"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));

    let output = run(home.path(), &["kubeconfig", "--merge", "--exec"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let merged = std::fs::read_to_string(home.path().join(".kube/config")).unwrap();
    assert!(!merged.contains(TOKEN) && merged.contains("client.authentication.k8s.io/v1"), "{merged}");
    let output = run(home.path(), &["kube", "credential", "--hub", &hub.url]);
    let credential: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&credential["kind"], &credential["status"]["token"]), (&json!("ExecCredential"), &json!(TOKEN)));
}

#[test]
fn a_join_token_is_one_line_and_a_new_cluster_is_told() {
    let (home, hub) = logged_in();
    let output = run(home.path(), &["token", "create", "--cluster", "new", "--ttl", "2h", "--uses", "3"]);
    assert_eq!(
        stdout(&output),
        "moorline agent --hub https://hub.example:8443 --token mlj_bbbbbbbbbbbb.c2VjcmV0.cGlu\n"
    );
    assert!(stderr(&output).contains("cluster new created"), "{}", stderr(&output));
    let asked = hub.asked();
    let made = asked.iter().find(|asked| asked.path.ends_with("/jointokens")).unwrap();
    let body: Value = serde_json::from_str(&made.body).unwrap();
    assert_eq!((&body["kind"], &body["spec"]["cluster"]), (&json!("JoinToken"), &json!("new")));
    assert_eq!(body["spec"]["maxUses"], 3);
    assert!(body["spec"]["expires"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn a_user_and_a_grant_are_what_was_said() {
    let (home, hub) = logged_in();
    let mut command = moorline(home.path());
    let output = feed(command.args(["user", "create", "bob", "--group", "dev", "--password-stdin"]), "pw-of-bob\n");
    assert!(output.status.success(), "{}", stderr(&output));
    let output = run(home.path(), &["grant", "create", "--user", "bob", "--cluster", "edge1", "--as-group", "view"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let asked = hub.asked();
    let body = |end: &str| -> Value {
        serde_json::from_str(&asked.iter().find(|asked| asked.path.ends_with(end)).unwrap().body).unwrap()
    };
    assert_eq!(body("/users")["spec"]["groups"], json!(["dev"]));
    assert_eq!(body("/users/bob/password"), json!({ "password": "pw-of-bob" }));
    assert_eq!(body("/clustergrants")["metadata"]["name"], "bob-edge1");
    let spec = json!({ "users": ["bob"], "groups": [], "clusters": ["edge1"], "asGroups": ["view"] });
    assert_eq!(body("/clustergrants")["spec"], spec);
}

#[test]
fn refusals_say_what_to_do_and_control_no_terminal() {
    let (home, hub) = logged_in();
    let output = run(home.path(), &["clusters", "hidden", "-o", "json"]);
    assert!(stderr(&output).contains("anna may not (Forbidden)"), "{}", stderr(&output));
    let output = run(home.path(), &["clusters", "away", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let words = stderr(&output);
    assert!(words.contains("not connected since 10:00") && words.contains("try again in 5 s"), "{words}");
    assert!(!words.contains('\u{1b}'), "{words:?}");
    let mut command = moorline(home.path());
    let output = command.arg("whoami").env("MOORLINE_API_KEY", "mlt_other.x").output().unwrap();
    assert!(stderr(&output).contains(&format!("moorline login {}", hub.url)), "{}", stderr(&output));
}

#[test]
fn a_program_needs_no_login() {
    let home = tempfile::tempdir().unwrap();
    let hub = FakeHub::start(home.path(), &["127.0.0.1"], script);
    let mut command = moorline(home.path());
    command.args(["clusters", "-o", "name"]).env("MOORLINE_HUB", &hub.url).env("MOORLINE_API_KEY", TOKEN);
    let output = command.env("MOORLINE_CA_FILE", &hub.ca_file).output().unwrap();
    assert_eq!(stdout(&output), "cluster.moorline.dev/edge1\n", "{}", stderr(&output));
}

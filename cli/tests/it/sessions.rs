//! A login that goes on: renewed by whoever needs it first, kept private, and of use while the hub is away.

use super::{
    fake::{Answer, Asked, FakeHub},
    feed, moorline, run, stderr, stdout,
};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A hub whose logins are over at once, `life` seconds of what it refreshes, and a count of refreshes.
fn hub(home: &Path, life: u64, refreshes: &Arc<AtomicU64>) -> FakeHub {
    let count = Arc::clone(refreshes);
    FakeHub::start(home, &["127.0.0.1"], move |asked: &Asked| script(asked, life, &count))
}

fn script(asked: &Asked, life: u64, refreshes: &AtomicU64) -> Answer {
    let refused = || (401, json!({ "kind": "Status", "reason": "Unauthorized", "message": "over" }).to_string());
    let issued = |n: u64, life: u64| {
        let answer = json!({ "user": "anna", "token": format!("access-{n}"), "expires": "2999-01-01T00:00:00Z",
            "expiresIn": life, "refreshToken": format!("mlr_{n}"), "sessionExpires": "2999-01-01T00:00:00Z" });
        (200, answer.to_string())
    };
    let now = refreshes.load(Ordering::SeqCst);
    match asked.path.as_str() {
        "/auth/login" => issued(0, 1),
        "/auth/refresh" => {
            let body: Value = serde_json::from_str(&asked.body).unwrap();
            if body["refreshToken"] != json!(format!("mlr_{now}")) {
                return refused();
            }
            issued(refreshes.fetch_add(1, Ordering::SeqCst) + 1, life)
        }
        _ if asked.authorization.as_deref() != Some(&format!("Bearer access-{now}")) => refused(),
        "/auth/whoami" => (200, json!({ "user": "anna", "groups": [] }).to_string()),
        "/auth/token" => {
            let answer = json!({ "token": "direct", "expires": "2999-01-01T00:00:00Z", "expiresIn": 5 });
            (200, answer.to_string())
        }
        _ => (200, "{}".to_owned()),
    }
}

fn login(home: &Path, hub: &FakeHub) {
    let mut command = moorline(home);
    command.args(["login", &hub.url, "--user", "anna", "--password-stdin", "--ca-file"]).arg(&hub.ca_file);
    let output = feed(&mut command, "right\n");
    assert!(output.status.success(), "{}", stderr(&output));
}

fn token_of(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{}", stderr(output));
    let credential: Value = serde_json::from_str(&stdout(output)).unwrap();
    assert_eq!(credential["apiVersion"], "client.authentication.k8s.io/v1");
    credential["status"]["token"].as_str().unwrap().to_owned()
}

#[test]
fn twenty_kubectl_at_once_renew_once() {
    let home = tempfile::tempdir().unwrap();
    let refreshes = Arc::new(AtomicU64::new(0));
    let hub = hub(home.path(), 3600, &refreshes);
    login(home.path(), &hub);
    let ask = || {
        let mut command = moorline(home.path());
        command.args(["kube", "credential", "--hub", &hub.url]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let all: Vec<_> = (0..20).map(|_| ask()).collect();
    for child in all {
        assert_eq!(token_of(&child.wait_with_output().unwrap()), "access-1");
    }
    assert_eq!(refreshes.load(Ordering::SeqCst), 1, "the others found what the first had fetched");
    let kept = home.path().join(".config/moorline/config.yaml");
    assert!(std::fs::read_to_string(&kept).unwrap().contains("mlr_1"));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn every_command_renews_the_login_and_a_login_that_is_over_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let refreshes = Arc::new(AtomicU64::new(0));
    let hub = hub(home.path(), 1, &refreshes);
    login(home.path(), &hub);
    assert!(stdout(&run(home.path(), &["whoami"])).contains("anna"));
    assert_eq!(refreshes.load(Ordering::SeqCst), 1);
    // Somebody else used it up: as after a reuse, the hub says no.
    refreshes.store(7, Ordering::SeqCst);
    for args in [&["whoami"][..], &["kube", "credential", "--hub", &hub.url]] {
        let output = run(home.path(), args);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(&format!("moorline login {}", hub.url)), "{}", stderr(&output));
    }
}

#[test]
fn a_kubeconfig_of_a_login_asks_moorline_and_holds_no_token() {
    let home = tempfile::tempdir().unwrap();
    let refreshes = Arc::new(AtomicU64::new(0));
    let hub = hub(home.path(), 3600, &refreshes);
    login(home.path(), &hub);
    let text = stdout(&run(home.path(), &["kubeconfig", "edge1"]));
    assert!(text.contains("client.authentication.k8s.io/v1") && !text.contains("access-"), "{text}");
    let text = stdout(&run(home.path(), &["kubeconfig", "edge1", "--static"]));
    assert!(text.lines().any(|line| line.trim() == "token: access-1"), "{text}");
}

#[test]
fn s51_logging_out_tells_the_hub_which_login_and_forgets_all_of_it() {
    let home = tempfile::tempdir().unwrap();
    let refreshes = Arc::new(AtomicU64::new(0));
    let hub = hub(home.path(), 3600, &refreshes);
    login(home.path(), &hub);
    let direct = run(home.path(), &["kube", "credential", "--hub", &hub.url, "--cluster", "edge1"]);
    assert_eq!(token_of(&direct), "direct");
    assert!(run(home.path(), &["logout"]).status.success());
    let told = hub.asked().into_iter().find(|asked| asked.path == "/auth/logout").unwrap();
    assert!(told.body.contains("mlr_1") && told.authorization.is_none(), "{told:?}");
    let config = home.path().join(".config/moorline");
    assert!(!std::fs::read_to_string(config.join("config.yaml")).unwrap().contains("mlr_"));
    let left: Vec<_> = std::fs::read_dir(config.join("tokens")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".lock")), "{left:?}");
}

#[test]
fn f01_the_token_for_a_cluster_is_of_use_while_the_hub_is_away() {
    let home = tempfile::tempdir().unwrap();
    let refreshes = Arc::new(AtomicU64::new(0));
    let hub = FakeHub::start(home.path(), &["127.0.0.1"], {
        let refreshes = Arc::clone(&refreshes);
        move |asked: &Asked| match asked.path.as_str() {
            // Its life is long, and a newer one is asked for at once.
            "/auth/token" => (200, json!({ "token": "direct", "expires": "2999-01-01T00:00:00Z" }).to_string()),
            _ => script(asked, 3600, &refreshes),
        }
    });
    login(home.path(), &hub);
    let url = hub.url.clone();
    let ask = || run(home.path(), &["kube", "credential", "--hub", &url, "--cluster", "edge1"]);
    assert_eq!(token_of(&ask()), "direct");
    drop(hub);
    assert_eq!(token_of(&ask()), "direct");
    let other = run(home.path(), &["kube", "credential", "--hub", &url, "--cluster", "edge2"]);
    assert!(stderr(&other).contains("cannot connect"), "{}", stderr(&other));
}

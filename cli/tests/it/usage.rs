//! Help, wrong usage, completion, and what is said to somebody who is not logged in.

use super::{feed, moorline, run, stderr, stdout};
use std::process::Stdio;

#[test]
fn help_goes_to_standard_output_and_names_every_command() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["--help"]);
    assert!(output.status.success());
    let help = stdout(&output);
    for command in [
        "hub",
        "agent",
        "login",
        "logout",
        "whoami",
        "kubeconfig",
        "token",
        "apikey",
        "user",
        "grant",
        "share",
        "clusters",
        "status",
        "doctor",
        "version",
        "get",
        "delete",
        "completion",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} is missing:\n{help}");
        let output = run(home.path(), &[command, "--help"]);
        assert!(output.status.success(), "{command}");
        assert!(stdout(&output).contains("Usage: moorline "), "{command}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    let home = tempfile::tempdir().unwrap();
    for args in [
        &[][..],
        &["nonsense"],
        &["token"],
        &["token", "create"],
        &["token", "create", "--cluster", "Not A Name"],
        &["token", "create", "--cluster", "a", "--ttl", "0s"],
        &["clusters", "-o", "xml"],
        &["clusters", "--hub", "http://insecure"],
        &["login"],
        &["login", "https://hub", "--ca-pin", "sha256:zz"],
        &["grant", "create", "--cluster", "edge1"],
        &["share", "export", "edge1", "shop/web", "--to", "edge2"],
        &["share", "export", "edge1", "shop/web", "80"],
        &["share", "export", "edge1", "web", "80", "--to", "edge2"],
        &["share", "delete", "shop-web-edge1"],
        &["hub", "--no-such-flag"],
        &["agent", "--hub", "hub:1", "--kubeconfig", "k", "--state-dir", "s", "--role", "node", "--endpoint-dir", "e"],
    ] {
        let output = run(home.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn completion_speaks_four_shells() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell"] {
        let output = run(home.path(), &["completion", shell]);
        assert!(output.status.success(), "{shell}");
        assert!(stdout(&output).contains("kubeconfig"), "{shell}");
    }
}

#[test]
fn somebody_not_logged_in_is_told_how() {
    let home = tempfile::tempdir().unwrap();
    for args in [&["clusters"][..], &["whoami"], &["kubeconfig", "a"], &["kube", "credential"], &["status"]] {
        let output = run(home.path(), args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(stderr(&output).contains("moorline login https://"), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
}

#[test]
fn a_hub_that_is_not_there_is_an_error_with_a_hint() {
    let home = tempfile::tempdir().unwrap();
    let url = "https://127.0.0.1:1".to_owned();
    let mut login = moorline(home.path());
    let output = feed(login.args(["login", &url, "--user", "anna", "--password-stdin"]), "secret\n");
    assert_eq!(output.status.code(), Some(1));
    let words = stderr(&output);
    assert!(words.contains(&format!("cannot connect to {url}")) && words.contains("hint: "), "{words}");
    assert!(!words.contains("secret"), "{words}");
}

#[test]
fn a_damaged_settings_file_is_refused_without_showing_it() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(".config/moorline");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.yaml"), "hubs: [{token: mlt_secret").unwrap();
    let output = run(home.path(), &["clusters"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!stderr(&output).contains("mlt_secret"), "{}", stderr(&output));
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let home = tempfile::tempdir().unwrap();
    let mut child = moorline(home.path())
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn a_version_needs_no_hub() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["version"]);
    assert!(output.status.success());
    assert_eq!(stdout(&output), format!("Client: v{}\n", env!("CARGO_PKG_VERSION")));
    let output = run(home.path(), &["version", "-o", "json"]);
    let version: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(version["clientVersion"]["gitVersion"], format!("v{}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn doctor_fails_when_a_check_fails_and_speaks_json() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["doctor", "-o", "json", "--timeout", "2s"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let checks = answer["checks"].as_array().unwrap();
    assert!(checks.iter().any(|check| check["name"] == "hub" && check["verdict"] == "fail"), "{answer}");
}

/// A hash of a chain and a key's pin are base64url: one in 64 begins with a hyphen.
#[test]
fn what_begins_with_a_hyphen_is_a_value_where_one_is_due() {
    let home = tempfile::tempdir().unwrap();
    let log = home.path().join("audit.log");
    std::fs::write(&log, "").unwrap();
    let hash = format!("-5{}", "A".repeat(41));
    let output = run(home.path(), &["audit", "verify", log.to_str().unwrap(), "--holds", &hash]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stdout(&output) + &stderr(&output);
    assert!(said.contains(&hash), "it was looked for: {said}");
    for args in [&["login", "https://127.0.0.1:1", "--ca-pin", &hash][..], &["agent", "--hub-pin", &hash]] {
        let output = run(home.path(), args);
        assert!(!stderr(&output).contains("unexpected argument"), "{args:?}: {}", stderr(&output));
    }
}

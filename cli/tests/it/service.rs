//! The hub and the agent as processes: configuration and wrong usage.

use super::{moorline, run, stderr};

#[test]
fn an_unknown_key_in_a_file_is_an_error_that_names_it() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config.yaml");
    std::fs::write(&path, "names: [hub.example]\nlistenn: 0.0.0.0:1\n").unwrap();
    for command in ["hub", "agent"] {
        let output = run(home.path(), &[command, "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{command}");
        let key = if command == "hub" { "listenn" } else { "names" };
        assert!(stderr(&output).contains(key), "{command}: {}", stderr(&output));
    }
}

#[test]
fn an_agent_without_hub_or_api_server_is_called_wrongly() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["agent"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--hub"), "{}", stderr(&output));
    let output = run(home.path(), &["agent", "--hub", "https://hub:8443"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--kubeconfig"), "{}", stderr(&output));
}

#[test]
fn a_setting_is_read_by_the_same_rule_from_flag_variable_and_file() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("config.yaml");
    std::fs::write(&path, "hub: http://plain\n").unwrap();
    let output = run(home.path(), &["agent", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2), "file");
    assert!(stderr(&output).contains("must be https"), "{}", stderr(&output));
    let output = moorline(home.path()).arg("agent").env("MOORLINE_HUB", "http://plain").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "variable");
    assert_eq!(run(home.path(), &["agent", "--hub", "http://plain"]).status.code(), Some(2), "flag");
}

#[test]
fn a_bad_log_filter_is_told_before_anything_starts() {
    let home = tempfile::tempdir().unwrap();
    let mut command = moorline(home.path());
    let output = command.args(["hub", "--data-dir", "x"]).env("MOORLINE_LOG", "a=b=c").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("MOORLINE_LOG"), "{}", stderr(&output));
}

/// systemd hears that the hub serves, that it is alive, and that it ends; in this order.
#[cfg(target_os = "linux")]
#[test]
fn systemd_hears_of_start_life_and_end() {
    use std::{os::unix::net::UnixDatagram, process::Command, time::Duration};
    let home = tempfile::tempdir().unwrap();
    let socket = UnixDatagram::bind(home.path().join("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let heard = || {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let free = || crate::real::free().to_string();
    let mut command = moorline(home.path());
    command.args(["hub", "--name", "127.0.0.1", "--listen", &free(), "--ops-listen", &free(), "--data-dir"]);
    command.arg(home.path().join("hub")).stderr(std::process::Stdio::null());
    command.env("NOTIFY_SOCKET", home.path().join("notify")).env("WATCHDOG_USEC", "200000");
    let mut hub = command.spawn().unwrap();
    // The first sign of life may come before the start is done: a first password takes its time.
    let mut said = Vec::new();
    while said.iter().filter(|word| *word == "WATCHDOG=1").count() < 3 || !said.contains(&"READY=1".to_owned()) {
        said.push(heard());
    }
    assert!(Command::new("kill").arg(hub.id().to_string()).status().unwrap().success());
    while heard() != "STOPPING=1" {}
    assert!(hub.wait().unwrap().success());
}

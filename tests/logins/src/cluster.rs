//! A cluster behind an agent: the binary, and a stand-in for the API server that keeps what it is asked.

use crate::{
    hub::{Hub, program},
    pki,
    process::{Process, port},
};
use std::{net::SocketAddr, path::PathBuf, process::Command, time::Duration};

/// Longest that an agent may take until it is connected.
const CONNECTED: Duration = Duration::from_secs(60);

pub struct Cluster {
    asked: PathBuf,
    agent: Process,
    _server: Process,
}

impl Cluster {
    /// Joins as `name` and waits until the hub has it. `own`: what its agent's command has beside the usual.
    pub fn join(hub: &Hub, name: &str, own: impl FnOnce(&mut Command)) -> Self {
        let dir = hub.dir.path().join(format!("cluster-{name}"));
        std::fs::create_dir(&dir).unwrap();
        let pki = pki::make(&dir);
        let (script, asked) = (dir.join("apiserver.mjs"), dir.join("asked"));
        std::fs::write(&script, include_str!("apiserver.mjs")).unwrap();
        std::fs::write(&asked, "").unwrap();
        let (serves, ops) = (port(), port());
        let mut command = Command::new("node");
        command.arg(script).arg(serves.to_string()).arg(&pki.cert).arg(&pki.key).arg(&asked);
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let server = Process::start(command, &dir.join("apiserver.log"), at(serves));
        let kubeconfig = serde_json::json!({ "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{ "name": "x", "cluster": { "server": format!("https://127.0.0.1:{serves}"), "certificate-authority": pki.ca } }],
            "users": [{ "name": "x", "user": { "token": "token of the agent" } }],
            "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }] });
        std::fs::write(dir.join("kubeconfig"), kubeconfig.to_string()).unwrap();
        let words = hub.admin(&["token", "create", "--cluster", name]).out;
        let token = words.split_whitespace().last().unwrap();
        let mut command = Command::new(program());
        command
            .args(["agent", "--name", "a1", "--hub", &hub.url(), "--token", token, "--state-dir"])
            .arg(dir.join("agent"));
        command.arg("--kubeconfig").arg(dir.join("kubeconfig")).args(["--http-listen", &at(ops).to_string()]);
        own(command.env("NO_COLOR", "1"));
        let agent = Process::start(command, &dir.join("agent.log"), at(ops));
        let made = Self { asked, agent, _server: server };
        let connected = || hub.admin(&["clusters", name, "-o", "json"]).out.contains("\"status\": \"True\"");
        let begun = std::time::Instant::now();
        while !connected() {
            assert!(begun.elapsed() < CONNECTED, "{name} is not connected: {}\n{}", made.log(), hub.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        made
    }

    /// What the agent has said.
    pub fn log(&self) -> String {
        self.agent.said()
    }

    /// What the API server was asked.
    pub fn asked(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&self.asked).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

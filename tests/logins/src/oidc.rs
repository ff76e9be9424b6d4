//! The certified `oidc-provider` from npm.

use crate::process::{Process, port};
use std::{net::SocketAddr, path::PathBuf, process::Command};
use tempfile::TempDir;

pub struct Oidc {
    pub port: u16,
    pub dir: TempDir,
    pub callback: String,
    process: Option<Process>,
}

/// Where tests/deps.sh installs it.
fn modules() -> PathBuf {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    let cache = var("MOORLINE_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|d| d.join("moorline")))
        .or_else(|| var("HOME").map(|d| d.join(".cache/moorline")));
    cache.unwrap().join("oidc")
}

impl Oidc {
    pub fn start(callback: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "a secret/of+both\n").unwrap();
        std::fs::write(dir.path().join("other"), "another secret\n").unwrap();
        let mut made = Self { port: port(), dir, callback: callback.to_owned(), process: None };
        made.up("first", false);
        made
    }

    /// Again, with another key of this name. `in_userinfo`: identity tokens have no more than they must.
    pub fn up(&mut self, kid: &str, in_userinfo: bool) {
        self.process = None;
        // Modules are found from where the script lies.
        let script = modules().join("moorline-test-provider.mjs");
        let text = include_str!("provider.mjs");
        if std::fs::read_to_string(&script).ok().as_deref() != Some(text) {
            // Several tests begin at once: none may see half of it.
            let part = self.dir.path().join("provider.mjs");
            std::fs::write(&part, text).unwrap();
            let beside = script.with_extension(format!("{}.part", self.port));
            std::fs::copy(&part, &beside).and_then(|_| std::fs::rename(&beside, &script)).unwrap();
        }
        let mut command = Command::new("node");
        command.arg(script).arg(self.port.to_string()).arg(&self.callback).arg(kid);
        command.env("IN_USERINFO", if in_userinfo { "yes" } else { "no" });
        let log = self.dir.path().join("log");
        self.process = Some(Process::start(command, &log, SocketAddr::from(([127, 0, 0, 1], self.port))));
    }

    pub fn said(&self) -> String {
        self.process.as_ref().map(Process::said).unwrap_or_default()
    }

    /// An account of the provider's is closed.
    pub fn deactivate(&self, account: &str) {
        let url = format!("http://127.0.0.1:{}/deactivate/{account}", self.port);
        let done = Command::new("curl").args(["-sf", "-m", "20", "-X", "POST", &url]).status().unwrap();
        assert!(done.success());
    }

    pub fn yaml(&self) -> String {
        self.yaml_of("moorline", "secret")
    }

    pub fn yaml_of(&self, client: &str, secret: &str) -> String {
        let secret = self.dir.path().join(secret);
        format!(
            "- name: sso\n  oidc:\n    issuer: http://127.0.0.1:{}\n    clientId: {client}\n    clientSecretFile: {}\n",
            self.port,
            secret.display()
        )
    }
}

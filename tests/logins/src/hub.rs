//! The `moorline` binary: a hub, and people at their machines.

use crate::{
    clock::{Shift, shift},
    process::{Process, port},
};
use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

pub struct Hub {
    pub dir: TempDir,
    pub port: u16,
    pub ops: u16,
    config: PathBuf,
    /// How far its clock is off.
    clock: Shift,
    /// What its log shows from the next start on.
    pub level: &'static str,
    process: Option<Process>,
}

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Built by `cargo build -p moorline-cli`.
pub fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap(); // target/debug/deps/it-…
    let path = tests.parent().and_then(Path::parent).unwrap().join("moorline");
    assert!(path.exists(), "{} is missing: cargo build -p moorline-cli", path.display());
    path
}

impl Hub {
    /// With these lines in its configuration besides the usual ones.
    pub fn start(more: &str) -> Self {
        Self::start_at(0, more)
    }

    /// With a clock that is off by `clock` seconds.
    pub fn start_at(clock: Shift, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (listen, ops) = (port(), port());
        let config = dir.path().join("hub.yaml");
        let mut made = Self { port: listen, ops, config, clock, level: "debug,h2=info,hyper=info", process: None, dir };
        made.configure(more);
        made
    }

    /// Again, with other lines.
    pub fn configure(&mut self, more: &str) {
        self.process = None;
        let text = format!(
            "dataDir: {}\nlisten: 127.0.0.1:{}\nopsListen: 127.0.0.1:{}\nnames: [127.0.0.1, localhost]\n\
             publicUrl: https://127.0.0.1:{}\n{more}",
            self.dir.path().join("data").display(),
            self.port,
            self.ops,
            self.port
        );
        std::fs::write(&self.config, text).unwrap();
        let mut command = Command::new(program());
        command.args(["hub", "--config"]).arg(&self.config).env("MOORLINE_LOG", self.level);
        shift(&mut command, self.clock);
        let log = self.dir.path().join("hub.log");
        self.process = Some(Process::start(command, &log, SocketAddr::from(([127, 0, 0, 1], self.port))));
        if !self.dir.path().join("people/admin").exists() {
            let password = std::fs::read_to_string(self.data("admin.password")).unwrap();
            self.moorline("admin", &["login", &self.url(), "--user", "admin", "--password-stdin"], &password).done();
        }
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::said).unwrap_or_default()
    }

    /// A command of somebody with settings of their own.
    pub fn command(&self, person: &str, words: &[&str]) -> Command {
        let home = self.dir.path().join("people").join(person);
        std::fs::create_dir_all(&home).unwrap();
        let mut command = Command::new(program());
        command.env("XDG_CONFIG_HOME", &home).env("HOME", &home).env("XDG_CACHE_HOME", &home).args(words);
        command.env_remove("SSH_CONNECTION").env_remove("DISPLAY").env_remove("MOORLINE_HUB");
        if words.first() == Some(&"login") {
            command.arg("--ca-file").arg(self.data("ca.crt"));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn moorline(&self, person: &str, words: &[&str], stdin: &str) -> Said {
        let mut child = self.command(person, words).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        end(child)
    }

    pub fn admin(&self, words: &[&str]) -> Said {
        self.moorline("admin", words, "").done()
    }

    /// A login of somebody with a password.
    pub fn login(&self, person: &str, provider: &str, user: &str, password: &str) -> Said {
        let words = ["login", &self.url(), "--provider", provider, "--user", user, "--password-stdin"];
        self.moorline(person, &words, &format!("{password}\n"))
    }

    /// Their access token.
    pub fn token(&self, person: &str) -> String {
        self.kept(person, "token")
    }

    /// The token by which they get the next one.
    pub fn refresh_token(&self, person: &str) -> String {
        self.kept(person, "refresh")
    }

    fn kept(&self, person: &str, name: &str) -> String {
        let path = self.dir.path().join("people").join(person).join("moorline/config.yaml");
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": ")).unwrap();
        line.trim_matches('"').to_owned()
    }

    /// A request as curl does it: status and body.
    pub fn curl(&self, words: &[&str]) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["-s", "-m", "20", "-w", "\n%{http_code}", "--cacert"]).arg(self.data("ca.crt")).args(words);
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let (body, code) = text.rsplit_once('\n').unwrap();
        (code.parse().unwrap(), body.to_owned())
    }

    /// Something that goes on until it is cut: a request of curl's whose answer has no end.
    pub fn watch(&self, bearer: &str, path: &str) -> Child {
        let mut command = Command::new("curl");
        command.args(["-sN", "-m", "120", "-o", "/dev/null", "-H", bearer, "--cacert"]).arg(self.data("ca.crt"));
        command.arg(format!("{}{path}", self.url())).spawn().unwrap()
    }

    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.data("audit.log")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// Waits for its end.
pub fn end(child: Child) -> Said {
    let out = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: out.status.code().unwrap_or(-1), out: text(&out.stdout), err: text(&out.stderr) }
}

impl Said {
    /// It went well.
    pub fn done(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }
    /// It did not, and said so in these words.
    pub fn failed(self, words: &str) -> Self {
        assert!(self.code != 0 && self.err.contains(words), "wanted {words:?}: {self:?}");
        self
    }
}

/// Until it is so, within `limit`.
pub fn soon(what: &str, limit: std::time::Duration, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

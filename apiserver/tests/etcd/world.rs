//! Real etcds on this machine, and a link to one that can be cut.

use crate::model::limits;
use base64::{Engine, engine::general_purpose::STANDARD};
use moorline_apiserver::{EtcdPlace, EtcdTls, Store};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    ffi::OsString,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener as AsyncListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

/// Longest wait for what comes in a second where the machine is not busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A port that is free, that nobody here was given before, and that no system gives to anybody.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Two test programs at once begin at different places.
        let n = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 2_000;
        let port = 28_500 + u16::try_from(n).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

struct Member {
    port: u16,
    child: Child,
    /// What it was started with.
    words: Vec<OsString>,
    log: PathBuf,
}

fn begin(words: &[OsString], log: &Path) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new("etcd");
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().expect("etcd is there: tests/deps.sh installs it")
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Etcds that know each other; they end with this.
pub struct Etcds {
    members: RefCell<Vec<Member>>,
    tls: bool,
    dir: tempfile::TempDir,
}

impl Etcds {
    pub fn start(count: usize) -> Self {
        let mut etcds = Self { members: RefCell::default(), tls: false, dir: tempfile::tempdir().unwrap() };
        etcds.spawn(count);
        etcds
    }

    /// One, that speaks TLS with those who have a certificate of its authority.
    pub fn with_tls() -> Self {
        let mut etcds = Self { members: RefCell::default(), tls: true, dir: tempfile::tempdir().unwrap() };
        for authority in ["ca", "other"] {
            let mut params = rcgen::CertificateParams::new([]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let key = rcgen::KeyPair::generate().unwrap();
            let made = params.self_signed(&key).unwrap();
            std::fs::write(etcds.file(authority), made.pem()).unwrap();
            let issuer = rcgen::Issuer::new(params, key);
            for name in ["server", "client"].iter().filter(|_| authority == "ca") {
                let params = rcgen::CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
                let key = rcgen::KeyPair::generate().unwrap();
                let made = params.signed_by(&key, &issuer).unwrap();
                std::fs::write(etcds.file(name), made.pem()).unwrap();
                std::fs::write(etcds.file(&format!("{name}-key")), key.serialize_pem()).unwrap();
            }
        }
        etcds.spawn(1);
        etcds
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.pem"))
    }

    fn spawn(&mut self, count: usize) {
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(i, (_, peer))| format!("m{i}=http://127.0.0.1:{peer}")).collect();
        for (i, (port, peer)) in ports.into_iter().enumerate() {
            let scheme = if self.tls { "https" } else { "http" };
            let (client, peer) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
            let mut command = Command::new("etcd");
            command
                .args(["--name", &format!("m{i}"), "--initial-cluster", &peers.join(",")])
                .arg("--data-dir")
                .arg(self.dir.path().join(format!("m{i}")))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--experimental-watch-progress-notify-interval", "1s"])
                .args(["--logger", "zap", "--log-outputs", "stderr"]);
            if self.tls {
                command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(self.file("ca"));
                command.arg("--cert-file").arg(self.file("server")).arg("--key-file").arg(self.file("server-key"));
            }
            let words: Vec<OsString> = command.get_args().map(OsString::from).collect();
            let log = self.dir.path().join(format!("m{i}.log"));
            let child = begin(&words, &log);
            self.members.borrow_mut().push(Member { port, child, words, log });
        }
    }

    pub fn address(&self) -> String {
        let ports: Vec<String> = self.members.borrow().iter().map(|m| format!("127.0.0.1:{}", m.port)).collect();
        format!("{}://{}", if self.tls { "etcds" } else { "etcd" }, ports.join(","))
    }

    pub fn place(&self, root: &str) -> EtcdPlace {
        let client = Some((self.file("client"), self.file("client-key")));
        let tls = self.tls.then(|| EtcdTls { ca: self.file("ca"), client });
        EtcdPlace::parse(&format!("{}/{root}", self.address()), tls).unwrap()
    }

    pub fn place_without_certificate(&self, root: &str) -> EtcdPlace {
        let tls = Some(EtcdTls { ca: self.file("ca"), client: None });
        EtcdPlace::parse(&format!("{}/{root}", self.address()), tls).unwrap()
    }

    pub fn place_of_another_authority(&self, root: &str) -> EtcdPlace {
        let tls = Some(EtcdTls { ca: self.file("other"), client: None });
        EtcdPlace::parse(&format!("{}/{root}", self.address()), tls).unwrap()
    }

    pub fn open(&self, root: &str) -> Store {
        Store::connect(self.place(root), None, &limits()).unwrap()
    }

    /// Whether a text stands anywhere in the first member's files.
    pub fn shows(&self, text: &str) -> bool {
        let (mut folders, mut files) = (vec![self.dir.path().join("m0")], 0);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                files += 1;
                if std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes()) {
                    return true;
                }
            }
        }
        assert!(files > 1, "there are files");
        false
    }

    pub fn port(&self, member: usize) -> u16 {
        self.members.borrow()[member].port
    }

    /// etcd's own words, by its JSON gateway.
    fn ask(&self, member: usize, path: &str, question: &Value) -> Option<Value> {
        let url = format!("http://127.0.0.1:{}/v3/{path}", self.port(member));
        let answer = Command::new("curl").args(["-sf", "--max-time", "5", "-d", &question.to_string(), &url]).output();
        serde_json::from_slice(&answer.unwrap().stdout).ok()
    }

    /// The same, once one of the members answers.
    fn insist(&self, path: &str, question: &Value) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let count = self.members.borrow().len();
            if let Some(answer) = (0..count).find_map(|member| self.ask(member, path, question)) {
                return answer;
            }
            assert!(Instant::now() < until, "no etcd answers");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn put(&self, key: &str, value: &str) {
        self.insist("kv/put", &json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) }));
    }

    /// Forgets all of the past.
    pub fn compact(&self) {
        let status = self.insist("maintenance/status", &json!({}));
        self.insist("kv/compaction", &json!({ "revision": status["header"]["revision"], "physical": true }));
    }

    /// Which member leads, as a member other than `except` has it.
    pub fn leader(&self) -> usize {
        let until = Instant::now() + PATIENCE;
        loop {
            let count = self.members.borrow().len();
            let leads = |member: &usize| {
                self.ask(*member, "maintenance/status", &json!({}))
                    .is_some_and(|s| s["leader"].is_string() && s["leader"] == s["header"]["member_id"])
            };
            if let Some(leader) = (0..count).find(leads) {
                return leader;
            }
            assert!(Instant::now() < until, "no leader");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn signal(&self, member: usize, signal: &str) {
        let pid = self.members.borrow()[member].child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// It is there and does nothing.
    pub fn freeze(&self, member: usize) {
        self.signal(member, "-STOP");
    }
    pub fn thaw(&self, member: usize) {
        self.signal(member, "-CONT");
    }
    pub fn kill(&self, member: usize) {
        self.members.borrow_mut()[member].child.kill().unwrap();
    }
    /// After it was killed: as it was, from what it had on its disk. Once it answers.
    pub fn revive(&self, member: usize) {
        {
            let mut members = self.members.borrow_mut();
            let dead = &mut members[member];
            dead.child.wait().unwrap();
            dead.child = begin(&dead.words, &dead.log);
        }
        let until = Instant::now() + PATIENCE;
        while self.ask(member, "maintenance/status", &json!({})).is_none() {
            self.lives(member);
            assert!(Instant::now() < until, "member {member} does not come back");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// One that ends by itself says why.
    fn lives(&self, member: usize) {
        let member = &mut self.members.borrow_mut()[member];
        if let Some(status) = member.child.try_wait().unwrap() {
            panic!("etcd ended, {status}:\n{}", std::fs::read_to_string(&member.log).unwrap_or_default());
        }
    }

    pub fn count(&self) -> usize {
        self.members.borrow().len()
    }

    /// All that is under a root: keys, values, and when they were written.
    pub fn content(&self, root: &str) -> Value {
        let key = |end: &str| STANDARD.encode(format!("/{root}{end}"));
        self.insist("kv/range", &json!({ "key": key("/"), "range_end": key("0") }))["kvs"].clone()
    }

    /// How many keys there are under a root.
    pub fn keys(&self, root: &str) -> u64 {
        let key = |end: &str| STANDARD.encode(format!("/{root}{end}"));
        let found = self.insist("kv/range", &json!({ "key": key("/"), "range_end": key("0"), "count_only": true }));
        found["count"].as_str().map_or(0, |count| count.parse().unwrap())
    }
}

/// A TCP forwarder that can be cut and joined again.
pub struct Link {
    pub port: u16,
    target: u16,
    cut: CancellationToken,
    task: Option<AbortOnDropHandle<()>>,
}

impl Link {
    pub async fn to(target: u16) -> Self {
        let mut link = Self { port: free_port(), target, cut: CancellationToken::new(), task: None };
        link.join().await;
        link
    }

    pub async fn join(&mut self) {
        self.cut = CancellationToken::new();
        let listener = AsyncListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let (cut, target) = (self.cut.clone(), self.target);
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(Ok((mut near, _))) = cut.run_until_cancelled(listener.accept()).await {
                let cut = cut.clone();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    cut.run_until_cancelled(tokio::io::copy_bidirectional(&mut near, &mut far)).await;
                });
            }
        })));
    }

    /// Every connection ends, and no new one is taken.
    pub async fn cut(&mut self) {
        self.cut.cancel();
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

/// Whose bytes are counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Way {
    There,
    Back,
}

/// Passes on what there is `left` of; `None` once that is spent.
async fn pass(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    left: &AtomicUsize,
) -> Option<()> {
    let mut buffer = vec![0; 2048];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let had = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |l| Some(l.saturating_sub(count)));
        let part = had.unwrap().min(count);
        if to.write_all(&buffer[..part]).await.is_err() {
            return Some(());
        }
        if part < count {
            return None;
        }
    }
    Some(())
}

/// A TCP forwarder that lets so many bytes pass towards the target, or back from it, and then nothing more.
pub struct Budget {
    pub port: u16,
    _task: AbortOnDropHandle<()>,
    spent: CancellationToken,
}

impl Budget {
    pub async fn of(target: u16, way: Way, bytes: usize) -> Self {
        let port = free_port();
        let listener = AsyncListener::bind(("127.0.0.1", port)).await.unwrap();
        let (spent, left) = (CancellationToken::new(), Arc::new(AtomicUsize::new(bytes)));
        let told = spent.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let (left, told) = (Arc::clone(&left), told.clone());
                connections.spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
                    let ((from, back), (answers, to)) = (near.into_split(), far.into_split());
                    let (mut counted, mut free) = match way {
                        Way::There => ((from, to), (answers, back)),
                        Way::Back => ((answers, back), (from, to)),
                    };
                    let bounded = async {
                        if pass(&mut counted.0, &mut counted.1, &left).await.is_none() {
                            told.cancel();
                            std::future::pending::<()>().await;
                        }
                    };
                    tokio::join!(bounded, async { drop(tokio::io::copy(&mut free.0, &mut free.1).await) });
                });
            }
        }));
        Self { port, _task: task, spent }
    }

    /// Once that is so.
    pub async fn spent(&self) {
        self.spent.cancelled().await;
    }
}

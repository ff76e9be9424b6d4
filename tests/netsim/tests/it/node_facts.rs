//! What a node tells when something on it turns bad, and when it is well again: on the parts that it looks at.

use crate::faults::ms;
use anyhow::{Result, ensure};
use moorline_e2e::process::{Process, run};
use moorline_netsim::{LONG, across::Across};
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};
use tokio_util::task::AbortOnDropHandle;

const DAY: Duration = Duration::from_secs(86_400);
/// The node's disk, in bytes, and how much of it is taken where less than a tenth is left.
const DISK: usize = 8 << 20;
const MUCH: usize = DISK / 100 * 94;
const ETCD: u16 = 12379;
/// The API server's and etcd's packets are dropped.
const CUT: &str =
    "table inet silent {\nchain out {\ntype filter hook output priority 0\ntcp dport { 6443, 12379 } drop\n}\n}\n";

/// A node: what its agent looks at.
struct Node {
    agent: Process,
    dir: PathBuf,
    state: PathBuf,
}

impl Node {
    /// Its agent, with a disk, a `/proc/meminfo` and, if it is to be wrong, a clock of its own.
    async fn start(scene: &Across, name: &str, clock: Option<&str>) -> Self {
        let (dir, state) = (scene.dir().join(format!("{name}-parts")), scene.dir().join(name));
        fs::create_dir_all(dir.join("pki")).unwrap();
        memory(&dir, 50);
        certificate(&dir, 400);
        let script = "mkdir -p \"$1\" && mount -t tmpfs -o mode=0700,size=$2 tmpfs \"$1\" && mount --bind \"$3\" /proc/meminfo \
                      && shift 3 && exec \"$@\"";
        let (at, size) = (state.display().to_string(), DISK.to_string());
        let meminfo = dir.join("meminfo").display().to_string();
        let mut by = vec!["unshare", "--mount", "sh", "-c", script, "sh", &at, &size, &meminfo];
        let faked = clock.map(|clock| [format!("LD_PRELOAD={}", faketime().display()), format!("FAKETIME={clock}")]);
        if let Some([library, clock]) = &faked {
            // What waits by the steady clock waits as long as it means to.
            by.extend(["env", library, clock, "FAKETIME_DONT_FAKE_MONOTONIC=1"]);
        }
        let (pki, etcd) = (dir.join("pki").display().to_string(), format!("http://127.0.0.1:{ETCD}"));
        let agent = scene.begin_node_by(&by, name, "tls", "{}", &["--pki-dirs", &pki, "--etcd", &etcd]).await.unwrap();
        scene.has_agent(name, LONG).await.unwrap_or_else(|e| panic!("{e}: {}", agent.log()));
        Self { agent, dir, state }
    }

    /// A file on its disk, as it sees it.
    fn file(&self) -> PathBuf {
        let root = Path::new("/proc").join(self.agent.id().to_string()).join("root");
        root.join(self.state.strip_prefix("/").unwrap()).join("much")
    }
}

/// What the program `faketime` has others loaded with. It would stand between the scene and the agent.
fn faketime() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten();
    let mut found =
        folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).filter(|file| file.exists());
    found.next().unwrap() // libfaketime: tests/deps.sh test
}

/// So much of its memory is left.
fn memory(dir: &Path, percent: u64) {
    let said = format!("MemTotal:        1000000 kB\nMemFree: 1 kB\nMemAvailable: {} kB\n", percent * 10_000);
    fs::write(dir.join("meminfo"), said).unwrap(); // the same file, for it is mounted
}

/// Its API server's certificate ends in so many days.
fn certificate(dir: &Path, days: u32) {
    let mut params = CertificateParams::default();
    params.not_after = (SystemTime::now() + DAY * days).into();
    let key = KeyPair::generate().unwrap();
    fs::write(dir.join("pki/apiserver.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
}

/// An etcd in name only.
fn etcd(scene: &Across) -> AbortOnDropHandle<()> {
    let listener = scene.link.inside.within(|| TcpListener::bind((Ipv4Addr::LOCALHOST, ETCD))).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    AbortOnDropHandle::new(tokio::spawn(async move {
        const SAYS: &str = "{\"health\":\"true\"}";
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && tcp.read_buf(&mut head).await.is_ok_and(|n| n > 0) {}
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{SAYS}", SAYS.len());
            let _ = tcp.write_all(answer.as_bytes()).await; // whoever asked may be gone
        }
    }))
}

/// In the network of the nodes.
fn nft(scene: &Across, rules: &str) -> Result<()> {
    let said = run(scene.link.inside.command("nft").args(["-f", "-"]), rules.as_bytes())?;
    ensure!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    Ok(())
}

/// Waits until the hub says so of these conditions of a node; gives its object.
async fn says(scene: &Across, name: &str, wanted: &[(&str, &str)]) -> Value {
    let begin = Instant::now();
    loop {
        let node = scene.admin.look(&format!("nodes/edge1.{name}")).await.unwrap_or_default();
        let is = |(what, status): &(&str, &str)| {
            let all = node["status"]["conditions"].as_array().into_iter().flatten();
            all.into_iter().any(|c| c["type"] == *what && c["status"] == *status)
        };
        if wanted.iter().all(is) {
            return node;
        }
        let missing: Vec<_> = wanted.iter().filter(|one| !is(one)).collect();
        assert!(begin.elapsed() < LONG, "{name} does not say {missing:?}: {node}");
        sleep(ms(100)).await;
    }
}

const WELL: [(&str, &str); 5] = [
    ("DiskPressure", "False"),
    ("MemoryPressure", "False"),
    ("CertificatesExpiring", "False"),
    ("ApiServerReachable", "True"),
    ("EtcdReachable", "True"),
];
const ILL: [(&str, &str); 5] = [
    ("DiskPressure", "True"),
    ("MemoryPressure", "True"),
    ("CertificatesExpiring", "True"),
    ("ApiServerReachable", "False"),
    ("EtcdReachable", "False"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_what_turns_bad_on_it_and_when_it_is_well_again() {
    let scene = Across::on("tls").await.unwrap();
    let _etcd = etcd(&scene);
    let (node, other) = (Node::start(&scene, "n1", Some("+20s")).await, Node::start(&scene, "n2", None).await);
    says(&scene, "n1", &WELL).await;
    // Two nodes on one machine, of which one has its clock wrong.
    let told = says(&scene, "n1", &[("ClockSkewed", "True")]).await;
    let skew = told["status"]["clockSkewMs"].as_i64().unwrap_or_default();
    assert!((19_000..=21_000).contains(&skew), "{told}");
    says(&scene, "n2", &[WELL.as_slice(), &[("ClockSkewed", "False")]].concat()).await;

    fs::write(node.file(), vec![b'x'; MUCH]).unwrap();
    memory(&node.dir, 5);
    certificate(&node.dir, 20);
    nft(&scene, CUT).unwrap();
    let told = says(&scene, "n1", &ILL).await;
    let message = |name: &str| {
        let all = told["status"]["conditions"].as_array().unwrap();
        all.iter().find(|c| c["type"] == name).unwrap()["message"].as_str().unwrap_or_default().to_owned()
    };
    assert!(message("CertificatesExpiring").contains("apiserver.crt"), "{told}");
    assert!(message("EtcdReachable").contains(&format!("127.0.0.1:{ETCD}")), "{told}");
    assert!(told["status"]["diskAvailablePercent"].as_u64() < Some(10), "{told}");
    // What is the other's own is as it was.
    says(&scene, "n2", &[&WELL[..3], &ILL[3..]].concat()).await;

    fs::remove_file(node.file()).unwrap();
    memory(&node.dir, 50);
    certificate(&node.dir, 400);
    nft(&scene, "delete table inet silent\n").unwrap();
    says(&scene, "n1", &WELL).await;
    drop(other.agent);
}

//! A hub whose etcd is away for a minute, with agents connected and streams open.

use crate::world::{API, Answer, World, eventually, read_answer, within};
use moorline_apiserver::EtcdPlace;
use moorline_hub::StorePlace;
use moorline_link::Carrier;
use serde_json::json;
use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

/// How long etcd is away (F35).
const AWAY: Duration = Duration::from_secs(60);
/// How long rights count without it at least, and at most.
const COUNT: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(30)];
/// When all has to be as usual again.
const NORMAL: Duration = Duration::from_secs(10);
/// Longest that a byte may take to the cluster and back on a busy machine.
const ECHO: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// One etcd, which ends with this.
struct Etcd {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Etcd {
    fn start() -> Self {
        let free = || TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let (dir, port) = (tempfile::tempdir().unwrap(), free());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free()));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(dir.path().join("etcd"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}"), "--logger", "zap", "--log-outputs", "stderr"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("etcd is there: tests/deps.sh installs it");
        Self { child, port, _dir: dir }
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A terminal in a cluster, which says what is said to it.
async fn terminal(world: &World, token: &str, cluster: &str) -> TlsStream<TcpStream> {
    let mut stream = world.connect("localhost", &[b"http/1.1"]).await;
    let ask = format!(
        "GET /k8s/clusters/{cluster}/api/v1/namespaces/a/pods/b/exec HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    );
    stream.write_all(ask.as_bytes()).await.unwrap();
    assert_eq!(read_answer(&mut stream).await.code, 101);
    stream
}

async fn echoes(stream: &mut TlsStream<TcpStream>, at: Duration) {
    let said = format!("{:>9}", at.as_millis());
    let mut heard = vec![0; said.len()];
    let both = async {
        stream.write_all(said.as_bytes()).await?;
        stream.flush().await?;
        stream.read_exact(&mut heard).await
    };
    timeout(ECHO, both).await.unwrap_or_else(|_| panic!("silent {at:?} after etcd")).unwrap();
    assert_eq!(heard, said.as_bytes());
}

async fn makes(world: &World, user: &str) -> Answer {
    let user =
        json!({ "apiVersion": "moorline.dev/v1alpha1", "kind": "User", "metadata": { "name": user }, "spec": {} });
    world.call(&world.admin, "POST", &format!("{API}/users"), &user).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs etcd, and takes a minute"]
async fn f35_tunnels_and_open_streams_outlive_an_etcd_that_is_away_and_rights_do_not() {
    let etcd = Etcd::start();
    let place = EtcdPlace::parse(&format!("etcd://127.0.0.1:{}", etcd.port), None).unwrap();
    let world = World::with(|config| config.store = StorePlace::Etcd(place)).await;
    let clusters = [("edge1", Carrier::Tls), ("edge2", Carrier::Quic), ("edge3", Carrier::WebSocket)];
    let mut agents = Vec::new();
    for (cluster, carrier) in clusters {
        agents.push(world.connected(cluster, carrier).await);
    }
    let token = world.user("anna", &clusters.map(|(cluster, _)| cluster)).await;
    let mut terminals = Vec::new();
    for (cluster, _) in clusters {
        terminals.push(terminal(&world, &token, cluster).await);
    }

    etcd.signal("-STOP");
    let gone = Instant::now();
    let write = async { (makes(&world, "bob").await, gone.elapsed()) };
    let calls = async {
        let mut refused = None;
        while gone.elapsed() < AWAY {
            for terminal in &mut terminals {
                echoes(terminal, gone.elapsed()).await;
            }
            for (cluster, _) in clusters {
                let asked = gone.elapsed();
                let answer = world.get(&token, &format!("/k8s/clusters/{cluster}/api")).await;
                match answer.code {
                    200 => {
                        assert!(asked < COUNT[1], "rights counted {asked:?} after etcd");
                        assert_eq!(refused, None, "and once they do not, they do not");
                    }
                    503 => {
                        assert!(COUNT[0] < gone.elapsed(), "refused {asked:?} after etcd: {answer:?}");
                        assert!(answer.body.contains("whether rights were taken away"), "{answer:?}");
                        refused.get_or_insert(asked);
                    }
                    _ => panic!("{answer:?}"),
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        refused
    };
    let ((answer, took), refused) = tokio::join!(write, calls);
    assert_eq!(answer.code, 503, "{answer:?}");
    println!("a write was refused after {took:?}, and everybody after {refused:?}");
    assert!(refused.is_some());
    assert_eq!(makes(&world, "carl").await.code, 503);

    etcd.signal("-CONT");
    let back = Instant::now();
    for (cluster, _) in clusters {
        let path = format!("/k8s/clusters/{cluster}/api");
        within(NORMAL, "a call", async || world.get(&token, &path).await.code == 200).await;
    }
    within(NORMAL, "a write", async || makes(&world, "dora").await.code == 201).await;
    println!("all is normal {:?} after etcd is", back.elapsed());
    assert!(back.elapsed() < NORMAL);
    for terminal in &mut terminals {
        echoes(terminal, gone.elapsed()).await;
    }
    // What is taken away now is so at once.
    assert_eq!(world.call(&world.admin, "DELETE", &format!("{API}/users/anna"), &json!(null)).await.code, 200);
    eventually("refused", async || world.get(&token, "/k8s/clusters/edge1/api").await.code == 401).await;
    drop(agents);
}

//! In-cluster services with programs that people use: Prometheus, PostgreSQL, dnsmasq, etcd's gRPC, a shell behind a
//! WebSocket. They run in edge1's network, on an address that is the agent's host's: the policy opens it.

use crate::world::{ALICE, BOB, World};
use anyhow::{Context, Result, ensure};
use moorline_e2e::{
    moorline::{Agent, SERVICES},
    process::{Process, eventually, run, text},
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    time::Duration,
};

const LONG: Duration = Duration::from_secs(30);

/// An agent whose policy opens the host's own address.
fn opening(world: &World) -> Result<Agent> {
    let network = world.edge1.network().context("a network")?;
    let (inside, url) = (&network.inside, format!("https://{}:{}", network.outside, world.hub.port));
    let policy = world.dir.join("services-policy.yaml");
    let text = format!(
        "apiVersion: moorline.dev/v1alpha1\nkind: EdgePolicy\nspec: {{services: {{allowAddresses: ['{inside}'], deny: ['real/denied']}}}}\n"
    );
    std::fs::write(&policy, text)?;
    let words = ["moorline", "agent", "--hub", &url].map(str::to_owned);
    let file = policy.display().to_string();
    Agent::start(&world.edge1, &words, &world.dir.join("agent-edge1"), &["--policy-file", &file])
}

/// Runs `scene` with such an agent, and puts the usual one back.
pub fn with_services(world: &mut World, scene: impl FnOnce(&World, &str) -> Result<()>) -> Result<()> {
    let inside = world.edge1.network().context("a network")?.inside.clone();
    world.agent1 = None;
    world.agent1 = Some(opening(world)?);
    world.hub.wait_connected("edge1", Duration::from_secs(60))?;
    let done = scene(world, &inside);
    let log = world.agent1.as_ref().map(|agent| agent.process.log()).unwrap_or_default();
    world.restart_agent1()?;
    done.with_context(|| format!("agent's log: {}", log.lines().rev().take(8).collect::<Vec<_>>().join("\n")))
}

/// A service of the namespace `real` that leads to this port of the host.
pub fn service(world: &World, inside: &str, name: &str, port: u16, protocol: &str) -> Result<()> {
    let objects = format!(
        r#"{{"apiVersion": "v1", "kind": "List", "items": [
        {{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "real"}}}},
        {{"apiVersion": "v1", "kind": "Service", "metadata": {{"name": "{name}", "namespace": "real"}},
          "spec": {{"ports": [{{"name": "main", "port": {port}, "protocol": "{protocol}"}}]}}}},
        {{"apiVersion": "v1", "kind": "Endpoints", "metadata": {{"name": "{name}", "namespace": "real"}},
          "subsets": [{{"addresses": [{{"ip": "{inside}"}}], "ports": [{{"name": "main", "port": {port}, "protocol": "{protocol}"}}]}}]}}]}}"#
    );
    let mut apply = world.edge1.command(moorline_e2e::moorline::kubectl());
    apply.arg("--kubeconfig").arg(world.edge1.kubeconfig()).args(["apply", "-f", "-"]);
    let made = run(&mut apply, objects.as_bytes())?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // The slices are made from the endpoints by a controller, a moment later.
    eventually("endpoint slices", LONG, || {
        let selector = format!("kubernetes.io/service-name={name}");
        let found = world.edge1.admin(&["-n", "real", "get", "endpointslices", "-l", &selector, "-o", "name"])?;
        ensure!(!found.is_empty(), "none yet");
        Ok(())
    })
}

pub fn grant(world: &World, name: &str) -> Result<()> {
    let args = [
        "grant",
        "service",
        &format!("alice-{name}"),
        "--user",
        ALICE,
        "--cluster",
        "edge1",
        "--namespace",
        "real",
        "--service",
        name,
    ];
    world.hub.moorline("admin", &args).map(drop)
}

/// `moorline forward`, and the local address that it prints for each forward.
pub fn forward(world: &World, user: &str, words: &[&str], count: usize) -> Result<(Process, Vec<SocketAddr>)> {
    let mut command = world.hub.cli(user);
    command.args(["forward", "edge1", "--address", "127.0.0.1"]).args(words);
    forwarded(world, command, words, count)
}

/// The same on a terminal, where it also draws its line.
fn forward_on_terminal(world: &World, user: &str, words: &[&str], count: usize) -> Result<(Process, Vec<SocketAddr>)> {
    let plain = world.hub.cli(user);
    let said = [plain.get_program()].into_iter().chain(plain.get_args()).map(|word| word.to_string_lossy());
    let said: Vec<_> = said.collect();
    let line = format!("{} forward edge1 --address 127.0.0.1 {}", said.join(" "), words.join(" "));
    let mut command = Command::new("script");
    command.args(["-qefc", &line, "/dev/null"]);
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    forwarded(world, command, words, count)
}

fn forwarded(world: &World, command: Command, words: &[&str], count: usize) -> Result<(Process, Vec<SocketAddr>)> {
    let log = world.dir.join(format!("forward-{}.log", words.join("-").replace(['/', ':'], "_")));
    let process = Process::spawn(command, &log)?;
    let found = eventually("forwarded ports", LONG, || {
        let log = process.log();
        let all: Vec<SocketAddr> = log
            .lines()
            .filter_map(|line| {
                line.strip_prefix("Forwarding from ").or_else(|| line.strip_prefix("SOCKS5 and HTTP CONNECT at "))
            })
            .filter_map(|line| line.split(' ').next()?.parse().ok())
            .collect();
        ensure!(all.len() == count, "{log}");
        Ok(all)
    })?;
    Ok((process, found))
}

pub fn curl(world: &World, token: &str, path: &str, more: &[&str]) -> Result<String> {
    let ca = world.hub.data().join("ca.crt");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--cacert"]).arg(ca).args(["-H", &format!("Authorization: Bearer {token}")]);
    text(curl.args(more).arg(format!("{}/k8s/clusters/edge1/services/real/{path}", world.hub.url())))
}

/// A real Prometheus outside takes in what one inside has, with a token and the hub's authority.
pub fn prometheus(world: &mut World) -> Result<()> {
    with_services(world, |world, inside| {
        let dir = world.dir.join("prometheus");
        std::fs::create_dir_all(&dir)?;
        let own = dir.join("inside.yml");
        let at = format!("{inside}:19090");
        std::fs::write(
            &own,
            format!(
                "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: deep, static_configs: [{{targets: ['{at}']}}]}}]\n"
            ),
        )?;
        let mut command = world.edge1.command("prometheus");
        prometheus_args(&mut command, &own, &dir.join("inside"), &at);
        let _inside = Process::spawn(command, &dir.join("inside.log"))?;
        service(world, inside, "prometheus", 19090, "TCP")?;
        grant(world, "prometheus")?;
        let token = world.bearer(ALICE)?;
        let ca = world.hub.data().join("ca.crt");
        let outside = dir.join("outside.yml");
        std::fs::write(dir.join("token"), &token)?;
        std::fs::write(
            &outside,
            format!(
                "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: edge1\n  honor_labels: true\n  scheme: https\n  \
                 metrics_path: /k8s/clusters/edge1/services/real/prometheus:main/federate\n  params: {{'match[]': ['{{job=\"deep\"}}']}}\n  \
                 authorization: {{credentials_file: {}}}\n  tls_config: {{ca_file: {}}}\n  static_configs: [{{targets: ['127.0.0.1:{}']}}]\n",
                dir.join("token").display(),
                ca.display(),
                world.hub.port
            ),
        )?;
        let mut command = Command::new("prometheus");
        prometheus_args(&mut command, &outside, &dir.join("outside"), "127.0.0.1:19091");
        let process = Process::spawn(command, &dir.join("outside.log"))?;
        eventually("federated series", LONG, || {
            let query = "http://127.0.0.1:19091/api/v1/query?query=prometheus_build_info";
            let found = text(Command::new("curl").args(["-sS", "--max-time", "5", query]))?;
            ensure!(found.contains("\"job\":\"deep\""), "{found}");
            Ok(())
        })
        .with_context(|| process.log())?;
        // And as a person asks it, by path: redirects lead to where they can be followed.
        let moved = curl(world, &token, "prometheus:main/", &["-i"])?;
        // Debian's leads to /classic/graph, others to /graph.
        let lead = "/k8s/clusters/edge1/services/real/prometheus:main/";
        let location =
            |l: &str| l.to_lowercase().starts_with("location:") && l.contains(lead) && l.trim().ends_with("graph");
        ensure!(moved.lines().any(location), "{moved}");
        let refused = curl(world, &world.bearer(BOB)?, "prometheus:main/", &["-i"])?;
        ensure!(refused.contains("403") && refused.contains("ServiceGrant"), "{refused}");
        by_name(world, &token)
    })
}

/// The same at a host of its own, where it is what it is: its redirects, its page and what the page loads.
fn by_name(world: &World, token: &str) -> Result<()> {
    let port = world.hub.port;
    let host = format!("main--prometheus--real--edge1.{SERVICES}");
    let ask = |path: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "20", "--resolve", &format!("{host}:{port}:127.0.0.1"), "--cacert"]);
        curl.arg(world.hub.data().join("ca.crt")).args(more);
        text(curl.arg(format!("https://{host}:{port}{path}")))
    };
    let known = ["-H", &format!("Authorization: Bearer {token}")];
    let found = ask("/api/v1/query?query=prometheus_build_info", &known)?;
    ensure!(found.contains("\"job\":\"deep\""), "{found}");
    let page = ask("/", &[&known[..], &["-L", "-w", "\n%{url_effective} %{http_code}"]].concat())?;
    let last = page.lines().last().unwrap_or_default();
    ensure!(last.starts_with(&format!("https://{host}:{port}/")) && last.ends_with("graph 200"), "{last}");
    let script = page.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next()).find(|to| to.contains(".js"));
    let script = script.context("a page that loads something")?;
    let script =
        if script.starts_with('/') { script.to_owned() } else { format!("/{}", script.trim_start_matches("./")) };
    let code = ask(&script, &[&known[..], &["-o", "/dev/null", "-w", "%{http_code}"]].concat())?;
    ensure!(code == "200", "{script}: {code}");
    // A browser without a login is sent to the hub; a program is told.
    let sent = ask("/graph", &["-H", "Accept: text/html", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}"])?;
    ensure!(sent.starts_with("303 https://") && sent.contains("/auth/browser?host="), "{sent}");
    let told = ask("/graph", &["-o", "/dev/null", "-w", "%{http_code}"])?;
    ensure!(told == "401", "{told}");
    Ok(())
}

fn prometheus_args(command: &mut Command, config: &Path, data: &Path, listen: &str) {
    command.arg(format!("--config.file={}", config.display())).arg(format!("--storage.tsdb.path={}", data.display()));
    command.arg(format!("--web.listen-address={listen}"));
}

/// psql to a real PostgreSQL, over a forwarded port, over SOCKS' kind of addresses, and after the agent has come back.
pub fn postgresql(world: &mut World) -> Result<()> {
    with_services(world, |world, inside| {
        let bin = std::fs::read_dir("/usr/lib/postgresql")?.next().context("PostgreSQL")??.path().join("bin");
        let dir = tempfile::Builder::new().prefix("mlpg").tempdir_in("/tmp")?;
        text(Command::new("chown").arg("postgres").arg(dir.path()))?;
        let as_postgres = |mut command: Command, program: &Path| {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
            command
        };
        let data = dir.path().join("data");
        text(
            as_postgres(Command::new("setpriv"), &bin.join("initdb"))
                .args(["-A", "trust", "--no-sync", "-D"])
                .arg(&data),
        )?;
        std::fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n")?;
        let mut server = as_postgres(world.edge1.command("setpriv"), &bin.join("postgres"));
        server.arg("-D").arg(&data).args(["-h", inside, "-p", "15432", "-k", ""]).args(["-F"]);
        let _server = Process::spawn(server, &world.dir.join("postgres.log"))?;
        let host = format!("{inside}:15432");
        world.hub.moorline(
            "admin",
            &["grant", "service", "alice-db", "--user", ALICE, "--cluster", "edge1", "--host", &host],
        )?;
        let (process, found) = forward_on_terminal(world, ALICE, &[&format!("tcp/{host}"), "0", "--socks", "0"], 2)?;
        // What the line said so far, the newest last.
        let drawn = || -> Vec<String> {
            let log = process.log();
            log.split("\r\x1b[K").filter(|line| line.starts_with("edge1: ")).map(str::to_owned).collect()
        };
        let says = |words: &str| {
            eventually(words, LONG, || {
                let last = drawn().pop().unwrap_or_default();
                ensure!(last.contains(words), "{last:?}");
                Ok(())
            })
        };
        says("edge1: up, 1 forwarded, 0 open, received 0 B (0 B/s), sent 0 B")?;
        let psql = |sql: &str| {
            let mut psql = Command::new("psql");
            psql.env("PGCONNECT_TIMEOUT", "20").args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-v",
                "ON_ERROR_STOP=1",
            ]);
            text(psql.args(["-p", &found[0].port().to_string(), "-c", sql]))
        };
        eventually("an answer of PostgreSQL", LONG, || {
            psql("select 6 * 7").and_then(|answer| {
                ensure!(answer.trim() == "42", "{answer}");
                Ok(())
            })
        })
        .with_context(|| process.log())?;
        // 20 MB there and back.
        let answer = psql(
            "create table t as select repeat(md5(i::text), 100) as x from generate_series(1, 6000) i; select sum(length(x)) from t",
        )?;
        ensure!(answer.trim() == "19200000", "{answer}");
        ensure!(psql("select x from t")?.len() > 19_200_000, "all rows");
        says(" MiB (0 B/s), sent ")?;
        let held = TcpStream::connect(found[0])?;
        says(", 1 open, ")?;
        drop(held);
        says(", 0 open, ")?;
        // What is not granted is refused, by the name that SOCKS clients know.
        let refused = socks(found[1], inside, 22)?;
        ensure!(refused == 2, "SOCKS reply {refused}");
        let opened = socks(found[1], inside, 15432)?;
        ensure!(opened == 0, "SOCKS reply {opened}");
        let other = run(world.hub.cli(BOB).args(["forward", "edge1", &format!("tcp/{host}")]), b"")?;
        ensure!(!other.status.success() && String::from_utf8_lossy(&other.stderr).contains("no access"), "{other:?}");
        for (port, code) in [(15432, "200"), (22, "403")] {
            let answer = http_connect(found[1], &format!("{inside}:{port}"))?;
            ensure!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "CONNECT: {answer}");
        }
        let audit = std::fs::read_to_string(world.hub.data().join("audit.log"))?;
        ensure!(audit.contains(&format!("/connect/host/{host}")), "the connection is in the audit log");
        // The agent is lost and comes back: what was forwarded is forwarded.
        world.agent1.as_ref().context("an agent")?.process.signal(libc::SIGKILL);
        eventually("the loss", Duration::from_secs(60), || {
            ensure!(!world.hub.connected("edge1")?, "still connected");
            Ok(())
        })?;
        let mut waits = TcpStream::connect(found[0])?;
        says("edge1: in trouble")?;
        let _back = opening(world)?;
        // It waits for the cluster, and is then what the others are: PostgreSQL knows no such greeting.
        waits.set_read_timeout(Some(Duration::from_secs(60)))?;
        waits.write_all(&[0, 0, 0, 8, 0, 0, 0, 0])?;
        ensure!(waits.read(&mut [0; 1])? == 1, "an answer by the new way");
        says("edge1: up")?;
        eventually("an answer after the agent has come back", Duration::from_secs(60), || {
            let answer = psql("select 7 * 6")?;
            ensure!(answer.trim() == "42", "{answer}");
            Ok(())
        })
        .with_context(|| process.log())
    })
}

/// The first line of an HTTP proxy's answer to a wish for a connection there.
fn http_connect(proxy: SocketAddr, to: &str) -> Result<String> {
    let mut socket = TcpStream::connect(proxy)?;
    socket.set_read_timeout(Some(LONG))?;
    socket.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes())?;
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8(line)?)
}

/// The reply code of a SOCKS5 proxy to a wish for this address.
fn socks(proxy: SocketAddr, ip: &str, port: u16) -> Result<u8> {
    let mut socket = TcpStream::connect(proxy)?;
    socket.set_read_timeout(Some(LONG))?;
    socket.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    socket.read_exact(&mut method)?;
    let mut ask = vec![5, 1, 0, 3, u8::try_from(ip.len())?];
    ask.extend_from_slice(ip.as_bytes());
    ask.extend_from_slice(&port.to_be_bytes());
    socket.write_all(&ask)?;
    let mut reply = [0; 10];
    socket.read_exact(&mut reply)?;
    Ok(reply[1])
}

/// A question to a real DNS server, over UDP.
pub fn dns(world: &mut World) -> Result<()> {
    with_services(world, |world, inside| {
        let mut server = world.edge1.command("dnsmasq");
        server.args([
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
            "--bind-interfaces",
            "--no-daemon",
        ]);
        server.args([&format!("--listen-address={inside}"), "--port=15353", "--address=/deep.test/10.1.2.3"]);
        let _server = Process::spawn(server, &world.dir.join("dnsmasq.log"))?;
        service(world, inside, "dns", 15353, "UDP")?;
        grant(world, "dns")?;
        let (process, found) = forward(world, ALICE, &["udp/svc/real/dns", ":main"], 1)?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in ["deep", "test"] {
            question.push(u8::try_from(label.len())?);
            question.extend_from_slice(label.as_bytes());
        }
        question.extend_from_slice(&[0, 0, 1, 0, 1]);
        eventually("an answer of dnsmasq", LONG, || {
            socket.send_to(&question, found[0])?;
            let mut answer = [0; 512];
            let (n, _) = socket.recv_from(&mut answer)?;
            ensure!(answer[..2] == [0x12, 0x34] && answer[n - 4..n] == [10, 1, 2, 3], "{:?}", &answer[..n]);
            Ok(())
        })
        .with_context(|| process.log())
    })
}

/// gRPC's own health check, of an etcd.
pub fn grpc(world: &mut World) -> Result<()> {
    with_services(world, |world, inside| {
        let at = format!("http://{inside}:12479");
        let peer = format!("http://{inside}:12480");
        let mut server = world.edge1.command("etcd");
        server.args(["--data-dir"]).arg(world.dir.join("etcd-grpc"));
        server.args(["--listen-client-urls", &at, "--advertise-client-urls", &at, "--listen-peer-urls", &peer]);
        server.args(["--initial-advertise-peer-urls", &peer, "--initial-cluster", &format!("default={peer}")]);
        let server = Process::spawn(server, &world.dir.join("etcd-grpc.log"))?;
        service(world, inside, "etcd", 12479, "TCP")?;
        grant(world, "etcd")?;
        let token = world.bearer(ALICE)?;
        let body = world.dir.join("grpc-question");
        std::fs::write(&body, [0; 5])?;
        let data = format!("@{}", body.display());
        let more = [
            "--http2",
            "-H",
            "Content-Type: application/grpc",
            "-H",
            "TE: trailers",
            "--data-binary",
            &data,
            "-D",
            "-",
            "-o",
        ];
        let out = world.dir.join("grpc-answer");
        let out_text = out.display().to_string();
        eventually("a healthy answer", LONG, || {
            let heads =
                curl(world, &token, "etcd:main/grpc.health.v1.Health/Check", &[&more[..], &[&out_text]].concat())?;
            let answer = std::fs::read(&out)?;
            // SERVING, and the status in the trailers.
            ensure!(
                answer == [0, 0, 0, 0, 2, 8, 1] && heads.to_lowercase().contains("grpc-status: 0"),
                "{heads} {answer:?}"
            );
            Ok(())
        })
        .with_context(|| server.log())
    })
}

const TERMINAL: &str = r#"
import asyncio, os, pty, sys
import websockets

async def serve(socket):
    pid, fd = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-i"])
    loop = asyncio.get_running_loop()
    out = asyncio.Queue()
    loop.add_reader(fd, lambda: out.put_nowait(os.read(fd, 4096)))
    async def down():
        while True:
            await socket.send(await out.get())
    task = loop.create_task(down())
    async for message in socket:
        os.write(fd, message if isinstance(message, bytes) else message.encode())
    task.cancel()

async def main():
    async with websockets.serve(serve, sys.argv[1], int(sys.argv[2]), subprotocols=["terminal"]):
        await asyncio.Future()

asyncio.run(main())
"#;

const TYPIST: &str = r#"
import asyncio, ssl, sys
import websockets

async def main():
    url, ca, token = sys.argv[1:]
    context = ssl.create_default_context(cafile=ca)
    headers = {"Authorization": "Bearer " + token}
    async with websockets.connect(url, ssl=context, extra_headers=headers, subprotocols=["terminal"]) as socket:
        assert socket.subprotocol == "terminal"
        await socket.send("echo $((6*7))-$((1+1))\n")
        seen = b""
        while b"42-2" not in seen:
            seen += await asyncio.wait_for(socket.recv(), 15)
        print("typed and read")

asyncio.run(main())
"#;

/// A shell behind a WebSocket, by path.
pub fn terminal(world: &mut World) -> Result<()> {
    with_services(world, |world, inside| {
        let (server, client) = (world.dir.join("terminal.py"), world.dir.join("typist.py"));
        std::fs::write(&server, TERMINAL)?;
        std::fs::write(&client, TYPIST)?;
        let mut command = world.edge1.command("/usr/bin/python3");
        command.arg(&server).args([inside, "17681"]);
        let process = Process::spawn(command, &world.dir.join("terminal.log"))?;
        service(world, inside, "terminal", 17681, "TCP")?;
        grant(world, "terminal")?;
        let token = world.bearer(ALICE)?;
        let url =
            format!("{}/k8s/clusters/edge1/services/real/terminal:main/", world.hub.url()).replace("https", "wss");
        eventually("a shell", LONG, || {
            let mut typist = Command::new("/usr/bin/python3");
            text(typist.arg(&client).arg(&url).arg(world.hub.data().join("ca.crt")).arg(&token)).map(drop)
        })
        .with_context(|| process.log())
    })
}

//! HTTP to services by path, as programs use it: events of a server, chunks with trailers, ranges, uploads without a length;
//! and what each failure is called. The server is Python's, in edge1's network.

use crate::{
    services::{curl, forward, grant, service, with_services},
    world::{ALICE, World},
};
use anyhow::{Context, Result, ensure};
use moorline_e2e::process::{Process, eventually, run, text};
use std::{process::Command, time::Duration};

const LONG: Duration = Duration::from_secs(30);

const SERVER: &str = r#"
import collections, http.server, sys, threading
go = collections.defaultdict(threading.Event)
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data)); self.wfile.flush()
    def do_GET(self):
        what, _, which = self.path[1:].partition("/")
        if what == "events":
            self.send_response(200); self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
            self.chunk(b"data: first\n\n"); go[which].wait(60); self.chunk(b"data: second\n\n"); self.wfile.write(b"0\r\n\r\n")
        elif what == "go":
            go[which].set(); self.answer(200, b"gone")
        elif self.path == "/trailers":
            self.send_response(200); self.send_header("Trailer", "X-Sum")
            self.send_header("Transfer-Encoding", "chunked"); self.end_headers()
            self.chunk(b"one "); self.chunk(b"two"); self.wfile.write(b"0\r\nX-Sum: 7\r\n\r\n")
        elif self.path == "/file":
            whole = b"0123456789" * 100
            asked = self.headers.get("Range")
            if not asked: return self.answer(200, whole)
            first, last = asked.removeprefix("bytes=").split("-")
            part = whole[int(first):int(last) + 1]
            self.answer(206, part, {"Content-Range": "bytes %s-%s/%d" % (first, last, len(whole))})
        else: self.answer(404, b"no such page")
    def do_POST(self):
        size, chunked = 0, self.headers.get("Transfer-Encoding") == "chunked"
        if chunked:
            while n := int(self.rfile.readline(), 16):
                size += len(self.rfile.read(n)); self.rfile.readline()
            self.rfile.readline()
        else: size = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200, b"%d %s" % (size, b"chunked" if chunked else b"whole"))
    def answer(self, code, body, more={}):
        self.send_response(code); self.send_header("Content-Length", str(len(body)))
        for name, value in more.items(): self.send_header(name, value)
        self.end_headers(); self.wfile.write(body)
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Page).serve_forever()
"#;

/// All of it.
pub fn all(world: &mut World) -> Result<()> {
    with_services(world, |world, inside| {
        let script = world.dir.join("pages.py");
        std::fs::write(&script, SERVER)?;
        let mut command = world.edge1.command("python3");
        command.arg(&script).args([inside, "19080"]);
        let _server = Process::spawn(command, &world.dir.join("pages.log"))?;
        let own = format!("http://{inside}:19080/file");
        eventually("web server", LONG, || text(world.edge1.command("curl").args(["-sSf", "--max-time", "5", &own])))?;
        for (name, port) in [("pages", 19080), ("closed", 19081)] {
            service(world, inside, name, port, "TCP")?;
            grant(world, name)?;
        }
        for name in ["denied", "none"] {
            grant(world, name)?;
        }
        let token = world.bearer(ALICE)?;
        for version in ["--http1.1", "--http2"] {
            events(world, &token, version)?;
            let said = curl(world, &token, "pages:main/trailers", &[version, "-i", "-H", "TE: trailers"])?;
            let lower = said.to_lowercase();
            ensure!(lower.contains("one two") && lower.contains("x-sum: 7"), "{version}: {said}");
            let part = curl(world, &token, "pages:main/file", &[version, "-i", "-H", "Range: bytes=10-14"])?;
            let lower = part.to_lowercase();
            ensure!(
                lower.contains(" 206") && lower.contains("content-range: bytes 10-14/1000") && part.ends_with("01234"),
                "{part}"
            );
            let sent = ["-X", "POST", "-H", "Content-Type: application/octet-stream", "--data-binary", "@-"];
            let piped = format!("@{}", script.display());
            let whole = curl(world, &token, "pages:main/", &[version, "-X", "POST", "--data-binary", &piped])?;
            ensure!(whole == format!("{} whole", SERVER.len()), "{version}: {whole}");
            let chunks =
                [&[version, "-H", "Transfer-Encoding: chunked"][..], &sent[..4], &["--data-binary", &piped]].concat();
            // HTTP/2 has no chunks: a length that is not told arrives as chunks all the same.
            if version == "--http1.1" {
                let whole = curl(world, &token, "pages:main/", &chunks)?;
                ensure!(whole == format!("{} chunked", SERVER.len()), "{whole}");
            }
        }
        for (path, code, reason, words) in [
            ("none:80/", "404", "NotFound", "there is no service"),
            ("pages:81/", "404", "NotFound", "it has: main"),
            ("closed:main/", "502", "ConnectionRefused", "does its process listen there"),
            ("https:pages:main/", "502", "TLSMismatch", "services.authorities"),
            ("denied:80/", "403", "Forbidden", "edge policy refuses"),
            ("other:80/", "403", "Forbidden", "moorline grant service"),
        ] {
            let answer = curl(world, &token, path, &["-w", " %{http_code}"])?;
            let told = answer.contains(&format!("\"reason\":\"{reason}\"")) && answer.contains(words);
            ensure!(told && answer.ends_with(code), "{path}: {answer}");
        }
        ports(world, inside)
    })
}

/// The same server at local ports: by service and by pod, by the short form, and by name through either kind of proxy.
fn ports(world: &World, inside: &str) -> Result<()> {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pages-0", "namespace": "real"},
        "spec": {"containers": [{"name": "c", "image": "none", "ports": [{"name": "web", "containerPort": 19080}]}]}}"#;
    let mut kubectl = world.edge1.command(moorline_e2e::moorline::kubectl());
    kubectl.arg("--kubeconfig").arg(world.edge1.kubeconfig()).args(["apply", "-f", "-"]);
    let made = run(&mut kubectl, pod.as_bytes())?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // There is no node here to say so.
    let runs =
        format!(r#"{{"status": {{"phase": "Running", "podIP": "{inside}", "podIPs": [{{"ip": "{inside}"}}]}}}}"#);
    world.edge1.admin(&[
        "-n",
        "real",
        "patch",
        "pod",
        "pages-0",
        "--subresource=status",
        "--type=merge",
        "-p",
        &runs,
    ])?;
    let pods = [
        "grant",
        "service",
        "alice-pod",
        "--user",
        ALICE,
        "--cluster",
        "edge1",
        "--namespace",
        "real",
        "--pod",
        "pages-0",
    ];
    world.hub.moorline("admin", &pods)?;
    let words =
        ["svc/real/pages", ":main", "pod/real/pages-0", ":web", "pages-0", ":19080", "-n", "real", "--socks", "0"];
    let (process, found) = forward(world, ALICE, &words, 4)?;
    let get = |more: &[&str], url: &str| {
        text(Command::new("curl").args(["-sSf", "--max-time", "20", "-r", "10-14"]).args(more).arg(url))
            .with_context(|| process.log())
    };
    for at in &found[..3] {
        eventually("an answer", LONG, || get(&[], &format!("http://{at}/file"))).and_then(|part| {
            ensure!(part == "01234", "{at}: {part}");
            Ok(())
        })?;
    }
    let named = "http://pages.real.svc:19080/file";
    for proxy in [format!("socks5h://{}", found[3]), format!("http://{}", found[3])] {
        let part = get(&["-p", "-x", &proxy], named)?;
        ensure!(part == "01234", "{proxy}: {part}");
    }
    world.edge1.admin(&["-n", "real", "delete", "pod", "pages-0", "--now"]).map(drop)
}

/// The first event is there while the second does not exist yet.
fn events(world: &World, token: &str, version: &str) -> Result<()> {
    let (which, seen) = (version.trim_start_matches('-'), world.dir.join(format!("events{version}")));
    let url = format!("{}/k8s/clusters/edge1/services/real/pages:main/events/{which}", world.hub.url());
    let mut command = Command::new("curl");
    command.args(["-sSN", version, "--max-time", "60", "--cacert"]).arg(world.hub.data().join("ca.crt"));
    command.args(["-H", &format!("Authorization: Bearer {token}"), &url, "-o"]).arg(&seen);
    let mut reading = Process::spawn(command, &seen.with_extension("log"))?;
    let arrives = |wanted: &str| {
        eventually(wanted, LONG, || {
            let now = std::fs::read_to_string(&seen).unwrap_or_default();
            ensure!(now.contains(wanted), "{now:?} {}", reading.log());
            Ok(now)
        })
    };
    let first = arrives("data: first\n\n")?;
    ensure!(!first.contains("second"), "{version}: {first}");
    curl(world, token, &format!("pages:main/go/{which}"), &[])?;
    arrives("data: second\n\n")?;
    ensure!(reading.wait(LONG)? == Some(0), "{version}: the end of the events: {}", reading.log());
    Ok(())
}

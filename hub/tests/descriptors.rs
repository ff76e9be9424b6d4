//! F30: no free file descriptor. A test program of its own: the bound is the whole process'.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use moorline_hub::{Config, Hub};
use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tracing::{Event, Metadata, Subscriber, span};

const DESCRIPTORS: usize = 256;
const SOON: Duration = Duration::from_secs(10);

/// Counts lines of the log that complain about accepting.
struct Complaints(Arc<AtomicUsize>);
impl Subscriber for Complaints {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &Event<'_>) {
        let metadata = event.metadata();
        if *metadata.level() == tracing::Level::ERROR && metadata.target().contains("listener") {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Waits for something that a retry of the accept loop brings about.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < SOON, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
    began.elapsed()
}

fn readyz(ops: std::net::SocketAddr) -> Option<u16> {
    let mut socket = TcpStream::connect(ops).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    socket.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

/// Whether the port answers at all: in words, to somebody who speaks no TLS.
fn answers(addr: std::net::SocketAddr) -> bool {
    let Ok(mut socket) = TcpStream::connect(addr) else { return false };
    let _ = socket.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = socket.write_all(b"GET / HTTP/1.1\r\n\r\n");
    let mut answer = String::new();
    let _ = socket.read_to_string(&mut answer);
    answer.contains("this port speaks TLS")
}

#[test]
fn f30_without_descriptors_the_hub_waits_says_so_once_a_second_and_goes_on() {
    let id = std::process::id().to_string();
    let bound = Command::new("prlimit").args(["--pid", &id, &format!("--nofile={DESCRIPTORS}")]).status().unwrap();
    assert!(bound.success());
    let complaints = Arc::new(AtomicUsize::new(0));
    tracing::subscriber::set_global_default(Complaints(Arc::clone(&complaints))).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let registry = prometheus::Registry::new();
    let mut config = Config::new(dir.path().join("hub"));
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.ops_listen = "127.0.0.1:0".parse().unwrap();
    config.names = vec!["localhost".to_owned()];
    let hub = runtime.block_on(Hub::start(config, &registry)).unwrap();
    let (addr, ops) = (hub.addr(), hub.ops_addr());
    let refused = || {
        let found = registry.gather().into_iter().find(|f| f.name() == "moorline_hub_accept_errors_total");
        found.map_or(0.0, |f| f.get_metric()[0].get_counter().get_value())
    };
    // Files take all descriptors but three. Clients take those, at least one of them unheard: each that the hub accepts
    // costs it one too.
    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
        assert!(files.len() < DESCRIPTORS);
    }
    files.truncate(files.len() - 3);
    let began = Instant::now();
    let mut clients = Vec::new();
    while let Ok(client) = TcpStream::connect(addr) {
        clients.push(client);
        assert!(clients.len() < 4);
    }
    eventually("failures", || refused() >= 8.0);
    let elapsed = began.elapsed().as_secs();
    let lines = complaints.load(Ordering::Relaxed);
    assert!(lines >= 1 && lines as u64 <= elapsed + 2, "{lines} lines in {elapsed} s");
    drop((files, clients));
    eventually("served again", || answers(addr));
    eventually("ready again", || readyz(ops) == Some(200));
    runtime.block_on(hub.shutdown());
}

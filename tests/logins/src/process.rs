//! Programs of others, ended with their owner.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// Longest wait for a program to serve.
const START: Duration = Duration::from_secs(60);

pub struct Process {
    child: Child,
    log: std::path::PathBuf,
}

impl Process {
    /// Starts it and waits until it takes connections. What it says lands in `log`.
    pub fn start(mut command: Command, log: &Path, serves: SocketAddr) -> Self {
        assert!(TcpStream::connect(serves).is_err(), "another program serves at {serves}: one that a run left?");
        let file = std::fs::File::create(log).unwrap();
        let program = command.get_program().to_owned();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        let child = command.spawn().unwrap_or_else(|e| panic!("{program:?}: {e}; tests/deps.sh installs it"));
        let mut process = Self { child, log: log.to_owned() };
        let begun = Instant::now();
        while TcpStream::connect_timeout(&serves, Duration::from_secs(1)).is_err() {
            let ended = process.child.try_wait().unwrap();
            assert!(ended.is_none() && begun.elapsed() < START, "{program:?} does not serve: {}", process.said());
            std::thread::sleep(Duration::from_millis(20));
        }
        process
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs to its end; panics with what it said where that is not success.
pub fn run(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; tests/deps.sh installs it"));
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{command:?}: {}{}", said(&out.stdout), said(&out.stderr));
}

/// A port that is free for TCP and UDP, that nobody here was given before, and that no system gives to anybody.
pub fn port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Two test programs at once begin at different places.
        let n = std::process::id().wrapping_mul(97).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 1_500;
        let at = ("127.0.0.1", 27_000 + u16::try_from(n).unwrap());
        if TcpListener::bind(at).is_ok() && UdpSocket::bind(at).is_ok() {
            return at.1;
        }
    }
}

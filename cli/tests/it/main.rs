//! The built program, as a person or a script meets it.

// The helpers below are the tests' own, though no test functions.
#![allow(clippy::unwrap_used)]

mod book;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod disk;
mod endpoint;
mod fake;
mod hub;
mod real;
mod relay;
#[cfg(unix)]
mod secrets;
mod service;
mod sessions;
mod usage;

use std::{
    io::Write,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The program with an empty home of its own and nothing of this environment.
fn moorline(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_moorline"));
    command.env_clear().env("HOME", home).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    moorline(home).args(args).output().unwrap()
}

/// Runs with a standard input.
fn feed(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A program that has no use for it may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Longest that anything may take: a debug build on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// A program that ends with the test.
struct Running(Child);
impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(mut command: Command, log: &Path) -> Running {
    let log = std::fs::File::create(log).unwrap();
    Running(command.stdout(Stdio::null()).stderr(log).spawn().unwrap())
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> Result<(), String>) {
    let begun = Instant::now();
    while let Err(why) = holds() {
        assert!(begun.elapsed() < SOON, "{what}: {why}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

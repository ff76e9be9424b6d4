//! The built program, as a person or a script meets it.

// The helpers below are the tests' own, though no test functions.
#![allow(clippy::unwrap_used)]

mod book;
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
    process::{Command, Output, Stdio},
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

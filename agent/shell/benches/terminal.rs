//! What a shell adds to a bare pseudo terminal: the echo of a key, and ten megabytes of output.
//!
//! The agent's part of the way: sandbox, terminal, WebSocket; hub and tunnel are measured by `bench/`. Needs root.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[allow(dead_code)]
#[path = "../tests/it/client.rs"]
mod client;

use client::House;
use moorline_shell::frames::Output;
use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use std::{
    fs::File,
    io::{Read, Write},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

const KEYS: usize = 2000;
const SIZE: usize = 10 << 20;

fn main() -> ExitCode {
    if let Some(code) = moorline_shell::inside() {
        return code;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (bare, bare_rate) = bare();
    let (shell, shell_rate) = runtime.block_on(shell());
    let at = |all: &[Duration], share: f64| all[((all.len() - 1) as f64 * share) as usize];
    println!("echo of a key        p50        p99");
    println!("bare terminal  {:>9.1?}  {:>9.1?}", at(&bare, 0.5), at(&bare, 0.99));
    println!("shell          {:>9.1?}  {:>9.1?}", at(&shell, 0.5), at(&shell, 0.99));
    println!("10 MB of output: bare terminal {bare_rate:.0} MB/s, shell {shell_rate:.0} MB/s");
    ExitCode::SUCCESS
}

fn rate(took: Duration) -> f64 {
    SIZE as f64 / 1e6 / took.as_secs_f64()
}

/// A terminal with nothing between.
fn bare() -> (Vec<Duration>, f64) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = ptsname(&master, Vec::new()).unwrap();
    let slave = rustix::fs::open(slave, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut master = File::from(master);
    let mut buffer = vec![0; 16 << 10];
    let mut echoes: Vec<Duration> = (0..KEYS)
        .map(|n| {
            let began = Instant::now();
            master.write_all(if n % 64 == 63 { b"\n" } else { b"x" }).unwrap();
            assert_ne!(master.read(&mut buffer).unwrap(), 0);
            began.elapsed()
        })
        .collect();
    echoes.sort();
    let mut head = Command::new("sh");
    head.args(["-c", &format!("stty -opost; head -c {SIZE} /dev/zero")]);
    head.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    let mut child = head.spawn().unwrap();
    drop(head);
    let (mut seen, mut began) = (0, None);
    while seen < SIZE {
        match master.read(&mut buffer) {
            Ok(n @ 1..) => {
                began.get_or_insert_with(Instant::now);
                seen += buffer[..n].iter().filter(|byte| **byte == 0).count();
            }
            _ => break,
        }
    }
    let took = began.unwrap().elapsed();
    child.wait().unwrap();
    (echoes, rate(took))
}

async fn shell() -> (Vec<Duration>, f64) {
    let house = House::new();
    let mut client = house.enter().await;
    // The terminal's own echo, as at the bare one: nobody reads what is typed.
    client.type_in("stty echo; echo rea''dy; sleep 1000\r").await;
    client.until("ready\r\n").await;
    let mut echoes = Vec::new();
    for _ in 0..KEYS {
        let began = Instant::now();
        client.type_in("x").await;
        while !matches!(client.hear().await, Some(Output::Shown(bytes)) if !bytes.is_empty()) {}
        echoes.push(began.elapsed());
    }
    echoes.sort();
    client.type_in("\x03").await;
    client.type_in(&format!("stty -echo -opost; head -c {SIZE} /dev/zero; exit\r")).await;
    let (mut seen, mut began) = (0, None);
    while seen < SIZE {
        let Some(Output::Shown(bytes)) = client.hear().await else { break };
        let zeros = bytes.iter().filter(|byte| **byte == 0).count();
        if zeros > 0 {
            began.get_or_insert_with(Instant::now);
        }
        seen += zeros;
    }
    (echoes, rate(began.unwrap().elapsed()))
}

//! The tunnel by itself, as a relay for TCP, against others that do the same in the same run.

use crate::{
    process::cpu_seconds,
    table::{Table, quantile},
};
use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use serde::Deserialize;
use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Bytes of a small message, each way.
const SMALL: usize = 64;
const CHUNK: usize = 64 << 10;
/// Bytes that the socket of a reader that stands still holds, or twice as many.
const LITTLE: u32 = 4096;
/// Pause between two small messages beside something else.
const PACE: Duration = Duration::from_millis(2);
/// A small message that is not back by then is an error.
const LOST: Duration = Duration::from_secs(10);

/// What a connection to the service is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Use {
    Down = b'd',
    Up = b'u',
    Both = b'b',
    Echo = b'e',
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum What {
    /// The service at the far end.
    Serve {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Measures the targets of a plan and prints one table.
    Run {
        /// A JSON file: targets, rounds, seconds.
        plan: PathBuf,
        /// Only measurements whose name contains this.
        #[arg(long, default_value = "")]
        only: String,
    },
}

#[derive(Deserialize)]
struct Plan {
    targets: Vec<Target>,
    rounds: usize,
    seconds: u64,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    address: SocketAddr,
    /// Processes of the relay, both ends.
    #[serde(default)]
    processes: Vec<u32>,
}

impl What {
    /// Does it.
    pub async fn run(self) -> Result<()> {
        match self {
            Self::Serve { listen } => serve(TcpListener::bind(listen).await?).await,
            Self::Run { plan, only } => {
                let text = std::fs::read(&plan).with_context(|| plan.display().to_string())?;
                measure(&serde_json::from_slice(&text)?, &only).await
            }
        }
    }
}

async fn serve(listener: TcpListener) -> Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async move {
            let _ = answer(socket).await; // whoever hangs up has what it wants
        });
    }
}

async fn answer(mut socket: TcpStream) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    match socket.read_u8().await? {
        b'd' => loop {
            socket.write_all(&buffer).await?;
        },
        b'u' => {
            let total = drain(&mut socket, &mut buffer).await?;
            socket.write_u64(total).await?;
        }
        b'b' => {
            let (mut read, mut write) = socket.split();
            let zeros = vec![0; CHUNK];
            tokio::select! {
                done = drain(&mut read, &mut buffer) => drop(done?),
                failed = async { loop { if let Err(e) = write.write_all(&zeros).await { break e; } } } => Err(failed)?,
            }
        }
        _ => loop {
            let n = socket.read(&mut buffer).await?;
            ensure!(0 < n, "the end");
            socket.write_all(&buffer[..n]).await?;
        },
    }
    Ok(())
}

async fn drain(from: &mut (impl AsyncReadExt + Unpin), buffer: &mut [u8]) -> Result<u64> {
    let mut total = 0;
    loop {
        match from.read(buffer).await? {
            0 => return Ok(total),
            n => total += n as u64,
        }
    }
}

async fn open(address: SocketAddr, what: Use) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    socket.write_u8(what as u8).await?;
    Ok(socket)
}

/// Bytes that one connection moved, and how long that took.
async fn moves(address: SocketAddr, what: Use, time: Duration) -> Result<(u64, Duration)> {
    let mut socket = open(address, what).await?;
    let (begun, mut buffer) = (Instant::now(), vec![0; CHUNK]);
    let mut bytes = 0;
    match what {
        Use::Down => {
            while begun.elapsed() < time {
                bytes += socket.read(&mut buffer).await? as u64;
            }
        }
        Use::Up => {
            while begun.elapsed() < time {
                socket.write_all(&buffer).await?;
            }
            socket.shutdown().await?;
            bytes = timeout(LOST, socket.read_u64()).await??; // as the service counts: nothing that lies on the way
        }
        Use::Both => {
            let (mut read, mut write) = socket.split();
            let zeros = vec![0; CHUNK];
            let up = async {
                let mut sent = 0;
                while begun.elapsed() < time {
                    write.write_all(&zeros).await?;
                    sent += zeros.len() as u64;
                }
                anyhow::Ok(sent)
            };
            let down = async {
                let mut seen = 0;
                while begun.elapsed() < time {
                    seen += read.read(&mut buffer).await? as u64;
                }
                anyhow::Ok(seen)
            };
            let (up, down) = timeout(time + LOST, async { tokio::join!(up, down) }).await.context("it stands still")?;
            bytes = up?.min(down?);
        }
        Use::Echo => unreachable!("it is no transfer"),
    }
    Ok((bytes, begun.elapsed()))
}

/// What is moved by so many connections at once, in Gbit/s; of both directions: by the slower one.
async fn bulk(address: SocketAddr, what: Use, streams: usize, time: Duration) -> Result<(f64, u64)> {
    let mut all = JoinSet::new();
    for _ in 0..streams {
        all.spawn(moves(address, what, time));
    }
    let (mut total, mut longest) = (0, Duration::ZERO);
    while let Some(done) = all.join_next().await {
        let (bytes, took) = done??;
        (total, longest) = (total + bytes, longest.max(took));
    }
    Ok((total as f64 * 8.0 / longest.as_secs_f64() / 1e9, total))
}

/// One small message there and back.
async fn ask(socket: &mut TcpStream) -> Result<Duration> {
    let begun = Instant::now();
    let mut message = [7; SMALL];
    let there_and_back = async {
        socket.write_all(&message).await?;
        socket.read_exact(&mut message).await
    };
    timeout(LOST, there_and_back).await.context("a small message is lost")??;
    Ok(begun.elapsed())
}

struct Asked {
    /// Microseconds, the shortest first.
    times: Vec<f64>,
    /// In a second.
    rate: f64,
}

/// Small messages over so many connections, each waiting for its answer; `pace`: and then for so long.
async fn asks(address: SocketAddr, connections: usize, pace: Duration, time: Duration) -> Result<Asked> {
    let mut sockets = Vec::new();
    for _ in 0..connections {
        let mut socket = open(address, Use::Echo).await?;
        ask(&mut socket).await?;
        sockets.push(socket);
    }
    let (begun, mut all) = (Instant::now(), JoinSet::new());
    for mut socket in sockets {
        all.spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < time {
                times.push(ask(&mut socket).await?.as_secs_f64() * 1e6);
                if !pace.is_zero() {
                    sleep(pace).await;
                }
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = all.join_next().await {
        times.extend(done??);
    }
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    Ok(Asked { times, rate })
}

/// A connection for each message, so many at once; messages in a second.
async fn connects(address: SocketAddr, at_once: usize, time: Duration) -> Result<f64> {
    let (begun, mut all) = (Instant::now(), JoinSet::new());
    for _ in 0..at_once {
        all.spawn(async move {
            let mut count = 0;
            while begun.elapsed() < time {
                ask(&mut open(address, Use::Echo).await?).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut total = 0;
    while let Some(done) = all.join_next().await {
        total += done??;
    }
    Ok(f64::from(total) / begun.elapsed().as_secs_f64())
}

/// Readers that take nothing of what they asked for, and whose sockets hold little of it.
async fn stalled(address: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut all = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(LITTLE)?;
        let mut socket = socket.connect(address).await?;
        socket.write_u8(Use::Down as u8).await?;
        all.push(socket);
    }
    sleep(Duration::from_secs(1)).await; // until every buffer on the way is full
    Ok(all)
}

async fn measure(plan: &Plan, only: &str) -> Result<()> {
    let (mut table, time) = (Table::default(), Duration::from_secs(plan.seconds));
    let names: Vec<String> = plan.targets.iter().map(|target| target.name.clone()).collect();
    for round in 0..plan.rounds {
        for target in &plan.targets {
            eprintln!("bench: round {} of {}: {}", round + 1, plan.rounds, target.name);
            one(target, time, only, &mut table).await.with_context(|| target.name.clone())?;
        }
    }
    table.print(&names);
    println!("{}", table.json());
    Ok(())
}

async fn one(target: &Target, time: Duration, only: &str, table: &mut Table) -> Result<()> {
    let (name, at) = (target.name.as_str(), target.address);
    let wanted = |row: &str| row.contains(only);
    for (row, what, streams) in [
        ("bulk down, 1 stream", Use::Down, 1),
        ("bulk up, 1 stream", Use::Up, 1),
        ("bulk down, 8 streams", Use::Down, 8),
        ("bulk up, 8 streams", Use::Up, 8),
        ("both directions, 1 stream, each", Use::Both, 1),
    ] {
        if !wanted(row) {
            continue;
        }
        let before = target.processes.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>()?;
        let (rate, bytes) = bulk(at, what, streams, time).await?;
        let after = target.processes.iter().map(|pid| cpu_seconds(*pid)).sum::<Result<f64>>()?;
        table.add(row, "Gbit/s", name, rate);
        if what == Use::Down && streams == 1 && !target.processes.is_empty() {
            let spent = (after - before) / (bytes as f64 / f64::from(1 << 30));
            table.add("both ends, down", "CPU-s/GiB", name, spent);
        }
    }
    if wanted("small") {
        let idle = asks(at, 1, Duration::ZERO, time).await?;
        table.add("small, 1 connection, p50", "µs", name, quantile(&idle.times, 0.5));
        table.add("small, 64 connections", "1/s", name, asks(at, 64, Duration::ZERO, time).await?.rate);
        table.add("small, a connection each, 16 at once", "1/s", name, connects(at, 16, time).await?);
        let paced = asks(at, 1, PACE, time).await?;
        table.add("small, paced, p50", "µs", name, quantile(&paced.times, 0.5));
        table.add("small, paced, p99", "µs", name, quantile(&paced.times, 0.99));
        let bulk = tokio::spawn(moves(at, Use::Down, 3 * time));
        sleep(Duration::from_millis(500)).await; // until it runs at its full speed
        let beside = asks(at, 1, PACE, time).await?;
        bulk.abort();
        table.add("small beside bulk, p50", "µs", name, quantile(&beside.times, 0.5));
        table.add("small beside bulk, p99", "µs", name, quantile(&beside.times, 0.99));
    }
    for count in [4, 64, 1000] {
        if !wanted("stalled") {
            continue;
        }
        let held = stalled(at, count).await?;
        let beside = asks(at, 1, PACE, time).await?;
        table.add(&format!("small beside {count} stalled, p50"), "µs", name, quantile(&beside.times, 0.5));
        table.add(&format!("small beside {count} stalled, p99"), "µs", name, quantile(&beside.times, 0.99));
        if count == 64 {
            let (rate, _) = bulk(at, Use::Down, 1, time).await?;
            table.add("bulk down beside 64 stalled", "Gbit/s", name, rate);
        }
        drop(held);
        sleep(Duration::from_millis(500)).await; // until what lay on the way is gone
    }
    Ok(())
}

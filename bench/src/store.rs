//! The store behind the hub's API, by itself: as large as it gets, written to all the time, watched by many, killed.

use anyhow::{Context, Result, ensure};
use moorline_apiserver::{Batch, Expect, Limits, Store};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{task::JoinSet, time::interval};

/// Bytes of an object's content, about what objects have.
const BYTES: usize = 1500;
/// Writes under way at a time while it is filled.
const WRITERS: usize = 512;
const CLUSTERS: usize = 1000;
const NODES: usize = 50;
const WATCHES: usize = 200;
/// What ends the watches.
const LAST: &str = "b/nodes/last";
/// Durable writes in a second.
const RATE: u64 = 500;

/// What is measured.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder to work in.
    dir: PathBuf,
    /// Bytes of objects that it is filled with before it is opened again.
    #[arg(long, default_value_t = 1 << 30)]
    bytes: usize,
    /// Seconds of steady writes.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Fills, writes on until it is killed: what the measurement starts as a process of its own.
    #[arg(long, hide = true)]
    victim: bool,
}

fn object(name: &str) -> serde_json::Value {
    serde_json::json!({ "metadata": { "name": name }, "spec": { "text": "x".repeat(BYTES) } })
}

async fn put(store: &Store, key: String, expect: Expect) -> Result<u64> {
    let value = object(&key);
    Ok(store.commit(Batch { object: Some((key, expect, Some(value))), private: Vec::new() }).await?)
}

async fn fill(store: &Store, keys: impl Iterator<Item = String>) -> Result<()> {
    let mut tasks = JoinSet::new();
    for key in keys {
        if tasks.len() == WRITERS {
            tasks.join_next().await.context("a writer")???;
        }
        let store = store.clone();
        tasks.spawn(async move { put(&store, key, Expect::Absent).await });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

fn open(path: &Path) -> Result<(Store, Duration)> {
    let begun = Instant::now();
    let store = Store::open(path, &Limits::default())?;
    Ok((store, begun.elapsed()))
}

fn resident() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).context("VmRSS")?;
    let kib: f64 = line.split_whitespace().nth(1).context("a number")?.parse()?;
    Ok(format!("{:.0} MiB", kib / 1024.0))
}

/// P11: opened after an end, and after a kill in the middle of writes.
fn size(args: &Args) -> Result<()> {
    let path = args.dir.join("large");
    let mut child = Command::new(std::env::current_exe()?);
    child.arg("store").arg(&args.dir).args(["--victim", "--bytes", &args.bytes.to_string()]);
    let mut child = child.stdout(Stdio::piped()).spawn()?;
    let said = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().context("its output")?)).next();
    child.kill()?;
    child.wait()?;
    ensure!(said.is_some_and(|line| line.is_ok_and(|line| line == "filled")), "it was not filled");
    let (store, after_kill) = open(&path)?;
    let file = std::fs::metadata(&path)?.len() >> 20;
    println!("opened after kill -9: {after_kill:.2?} (goal 10 s), file {file} MiB, resident {}", resident()?);
    store.close();
    let (store, after_end) = open(&path)?;
    println!("opened after an end: {after_end:.2?} (goal 5 s)");
    store.close();
    std::fs::remove_file(&path)?;
    Ok(())
}

/// L12: steady writes beside watches.
async fn load(args: &Args) -> Result<()> {
    let (store, _) = open(&args.dir.join("load"))?;
    let clusters = (0..CLUSTERS).map(|c| format!("b/clusters/{c:04}"));
    let nodes = (0..CLUSTERS * NODES).map(|n| format!("b/nodes/{n:05}"));
    fill(&store, clusters.chain(nodes)).await?;
    println!("{CLUSTERS} clusters of {NODES} nodes: resident {}", resident()?);
    let begun = Instant::now();
    let mut watches = JoinSet::new();
    let stamps = Arc::new(std::sync::Mutex::new(std::collections::BTreeMap::<u64, Instant>::new()));
    for _ in 0..WATCHES {
        let mut watcher = store.watch("b/nodes/", store.revision())?;
        let stamps = Arc::clone(&stamps);
        watches.spawn(async move {
            let mut worst = Duration::ZERO;
            while let Some(event) = watcher.next().await? {
                let made =
                    stamps.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&event.revision).copied();
                worst = worst.max(made.map_or(Duration::ZERO, |made| made.elapsed()));
                if *event.key == *LAST {
                    break;
                }
            }
            anyhow::Ok(worst)
        });
    }
    let (mut tick, mut tasks, mut took) =
        (interval(Duration::from_micros(1_000_000 / RATE)), JoinSet::new(), Vec::new());
    for i in 0..args.seconds * RATE {
        tick.tick().await;
        let (store, stamps) = (store.clone(), Arc::clone(&stamps));
        tasks.spawn(async move {
            let key = format!("b/nodes/{:05}", (i * 7919) % (CLUSTERS * NODES) as u64);
            let at = store.get(&key).context("it is there")?.revision;
            let begun = Instant::now();
            let revision = put(&store, key, Expect::Revision(at)).await?;
            let done = Instant::now();
            let mut stamps = stamps.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            stamps.insert(revision, done);
            // What every watch has seen long ago need not be remembered.
            while stamps.first_key_value().is_some_and(|(at, _)| at + 20 * RATE <= revision) {
                stamps.pop_first();
            }
            anyhow::Ok(done - begun)
        });
        while let Some(done) = tasks.try_join_next() {
            took.push(done??);
        }
    }
    while let Some(done) = tasks.join_next().await {
        took.push(done??);
    }
    let elapsed = begun.elapsed();
    put(&store, LAST.to_owned(), Expect::Absent).await?;
    let mut worst = Duration::ZERO;
    while let Some(seen) = watches.join_next().await {
        worst = worst.max(seen??);
    }
    took.sort_unstable();
    let at = |q: f64| took.get((took.len() as f64 * q) as usize).copied().unwrap_or_default();
    let rate = took.len() as f64 / elapsed.as_secs_f64();
    println!("{rate:.0} durable writes/s for {elapsed:.0?}: p50 {:.1?}, p99 {:.1?} (goal 50 ms)", at(0.5), at(0.99));
    println!("{WATCHES} watches: {worst:.0?} behind at worst (goal 250 ms), resident {}", resident()?);
    Ok(())
}

/// `moorline-bench store`
pub async fn run(args: Args) -> Result<()> {
    if args.victim {
        let (store, _) = open(&args.dir.join("large"))?;
        fill(&store, (0..args.bytes / BYTES).map(|i| format!("b/things/{i:08}"))).await?;
        println!("filled");
        return fill(&store, (0..).map(|i| format!("b/more/{i:08}"))).await;
    }
    std::fs::create_dir_all(&args.dir)?;
    // What it takes in memory is told first: it is small beside what the large one leaves behind.
    load(&args).await?;
    tokio::task::spawn_blocking(move || size(&args)).await?
}

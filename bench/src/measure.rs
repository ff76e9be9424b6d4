//! The measurements.

use crate::{
    client::{Connection, Target, Version, empty},
    origin::bytes_body,
    process::{cpu_seconds, rss_kib},
    table::{Table, quantile},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio::task::JoinSet;

/// What to measure against what.
#[derive(Deserialize)]
pub struct Plan {
    /// API servers: the first is the direct one.
    pub targets: Vec<Target>,
    /// Origins for bulk, in the same order of meaning.
    #[serde(default)]
    pub bulk: Vec<Target>,
    /// Processes whose CPU time and memory are counted for the target `moorline`.
    #[serde(default)]
    pub processes: Vec<(String, u32)>,
    /// Rounds; medians are of these.
    pub rounds: usize,
    /// Seconds of each timed measurement.
    pub seconds: u64,
}

const NAMESPACE: &str = "bench";
const SMALL: &str = "/api/v1/namespaces/bench";
const WATCHES: usize = 1000;
const WATCH_SECONDS: u64 = 10;
const BULK_BYTES: u64 = 512 << 20;

/// Makes the namespace, its pods and the config map that watches look at.
pub async fn fill(plan: &Plan, pods: usize) -> Result<()> {
    let target = Arc::new(plan.targets.first().context("no target")?.clone());
    let mut first = Connection::open(&target, Version::Two).await?;
    let post = |body: String| Full::new(Bytes::from(body)).boxed_unsync();
    let namespace = format!(r#"{{"metadata":{{"name":"{NAMESPACE}"}}}}"#);
    first.send("POST", "/api/v1/namespaces", Some("application/json"), post(namespace)).await?;
    let config = r#"{"metadata":{"name":"tick"},"data":{"at":"0"}}"#.to_owned();
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
    first.send("POST", &path, Some("application/json"), post(config)).await?;
    // Pods are admitted only once the namespace's own account is there; they mount no token of it, which comes later.
    loop {
        if first.get(&format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default")).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut tasks = JoinSet::new();
    for part in 0..8 {
        let target = Arc::clone(&target);
        tasks.spawn(async move {
            let mut connection = Connection::open(&target, Version::Two).await?;
            for i in (part..pods).step_by(8) {
                let pod = serde_json::json!({
                    "metadata": {"name": format!("pod-{i:05}"), "labels": {"app": format!("app-{}", i % 50)}},
                    "spec": {"automountServiceAccountToken": false, "nodeSelector": {"there": "is-none"}, "containers": [{
                        "name": "main", "image": "registry.example/some/image:v1.2.3",
                        "env": [{"name": "A", "value": "some value"}, {"name": "B", "value": "another value"}],
                        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}}
                    }]}
                });
                let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
                let body = Full::new(Bytes::from(pod.to_string())).boxed_unsync();
                let answer = connection.send("POST", &path, Some("application/json"), body).await?;
                let status = answer.status();
                let said = answer.into_body().collect().await?.to_bytes();
                let said = String::from_utf8_lossy(&said);
                ensure!(status == 201 || status == 409, "creating a pod: {status}: {said}");
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    println!("{pods} pods in the namespace {NAMESPACE}");
    Ok(())
}

struct Small {
    p50: f64,
    p99: f64,
    rate: f64,
}

async fn small(target: &Arc<Target>, version: Version, connections: usize, seconds: u64) -> Result<Small> {
    let mut open = Vec::new();
    for _ in 0..connections {
        let mut connection = Connection::open(target, version).await?;
        connection.get(SMALL).await?;
        open.push(connection);
    }
    let (start, mut tasks) = (Instant::now(), JoinSet::new());
    let end = start + Duration::from_secs(seconds);
    for mut connection in open {
        tasks.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let before = Instant::now();
                connection.get(SMALL).await?;
                times.push(before.elapsed().as_secs_f64() * 1e6);
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    Ok(Small { p50: quantile(&times, 0.5), p99: quantile(&times, 0.99), rate })
}

async fn list(target: &Arc<Target>) -> Result<f64> {
    let mut connection = Connection::open(target, Version::Two).await?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?resourceVersion=0");
    connection.get(&path).await?;
    let (start, mut bytes) = (Instant::now(), 0);
    for _ in 0..3 {
        bytes += connection.get(&path).await?;
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64() / 1e6)
}

struct Watched {
    p50: f64,
    p99: f64,
    lost: usize,
}

fn now_us() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_micros())
}

/// Every watcher sees every tick once: `lost` counts the missing ones.
async fn watch(target: &Arc<Target>, direct: &Arc<Target>) -> Result<Watched> {
    let ticks = WATCH_SECONDS as usize;
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let (mut connections, mut watchers) = (Vec::new(), JoinSet::new());
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps?watch=true&fieldSelector=metadata.name%3Dtick");
    for i in 0..WATCHES {
        if i % 100 == 0 {
            connections.push(Connection::open(target, Version::Two).await?);
        }
        let connection = connections.last_mut().context("connection")?;
        let response = connection.send("GET", &path, None, empty()).await?;
        ensure!(response.status() == 200, "watch: {}", response.status());
        let (mut body, seen) = (response.into_body(), seen.clone());
        watchers.spawn(async move {
            let mut line = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                for piece in frame.data_ref().into_iter().flat_map(|d| d.split_inclusive(|b| *b == b'\n')) {
                    line.extend_from_slice(piece);
                    if piece.ends_with(b"\n") {
                        let arrived = now_us();
                        let text = String::from_utf8_lossy(&line);
                        let at = text.split(r#""at":""#).nth(1).and_then(|r| r.split('"').next());
                        let sent: u128 = at.and_then(|n| n.parse().ok()).unwrap_or(0);
                        if text.contains("MODIFIED") && sent > 0 {
                            let _ = seen.send(arrived.saturating_sub(sent) as f64 / 1e3);
                        }
                        line.clear();
                    }
                }
            }
        });
    }
    let mut writer = Connection::open(direct, Version::Two).await?;
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.tick().await;
    for _ in 0..ticks {
        every.tick().await;
        let body = format!(r#"{{"data":{{"at":"{}"}}}}"#, now_us());
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/tick");
        let body = Full::new(Bytes::from(body)).boxed_unsync();
        let answer = writer.send("PATCH", &path, Some("application/merge-patch+json"), body).await?;
        ensure!(answer.status() == 200, "tick: {}", answer.status());
        answer.into_body().collect().await?;
    }
    let (mut delays, expected) = (Vec::new(), WATCHES * ticks);
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while delays.len() < expected {
        match tokio::time::timeout_at(end, arrivals.recv()).await {
            Ok(Some(delay)) => delays.push(delay),
            _ => break,
        }
    }
    watchers.shutdown().await;
    delays.sort_by(f64::total_cmp);
    Ok(Watched { p50: quantile(&delays, 0.5), p99: quantile(&delays, 0.99), lost: expected - delays.len() })
}

async fn bulk(target: &Arc<Target>, up: bool, streams: u64) -> Result<f64> {
    let mut open = Vec::new();
    for _ in 0..streams {
        open.push(Connection::open(target, Version::One).await?);
    }
    let (start, mut tasks) = (Instant::now(), JoinSet::new());
    for mut connection in open {
        tasks.spawn(async move {
            let bytes = BULK_BYTES / streams;
            if up {
                let answer = connection.send("POST", "/api/take", None, bytes_body(bytes)).await?;
                let taken = answer.into_body().collect().await?.to_bytes();
                ensure!(taken == format!("{bytes}\n"), "took {taken:?} of {bytes}");
            } else {
                let got = connection.get(&format!("/api/bulk/{bytes}")).await?;
                ensure!(got == bytes, "got {got} of {bytes}");
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(BULK_BYTES as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
}

/// Runs all rounds and prints the table, the ratios that have a goal, and the medians as JSON.
pub async fn run(plan: &Plan, only: Option<&str>) -> Result<()> {
    let wanted = |name: &str| only.is_none_or(|only| name.contains(only));
    let mut table = Table::default();
    let targets: Vec<_> = plan.targets.iter().cloned().map(Arc::new).collect();
    let origins: Vec<_> = plan.bulk.iter().cloned().map(Arc::new).collect();
    let memory = |table: &mut Table, when: &str| -> Result<()> {
        for (name, pid) in &plan.processes {
            table.add(&format!("resident memory {when}"), "MiB", name, rss_kib(*pid)? / 1024.0);
        }
        Ok(())
    };
    memory(&mut table, "idle")?;
    for round in 0..plan.rounds {
        eprintln!("round {} of {}", round + 1, plan.rounds);
        for version in [Version::One, Version::Two] {
            for connections in [1, 16, 64] {
                if !wanted("small GET") {
                    continue;
                }
                for target in &targets {
                    let name = format!("small GET {version:?} x{connections}");
                    let name = name.replace("One", "h1").replace("Two", "h2");
                    let s =
                        small(target, version, connections, plan.seconds).await.with_context(|| target.name.clone())?;
                    table.add(&format!("{name} p50"), "µs", &target.name, s.p50);
                    table.add(&format!("{name} p99"), "µs", &target.name, s.p99);
                    table.add(&format!("{name} rate"), "1/s", &target.name, s.rate);
                }
            }
        }
        if wanted("list") {
            for target in &targets {
                table.add("list of 5,000 pods", "MB/s", &target.name, list(target).await?);
            }
        }
        if wanted("bulk") {
            for (up, streams) in [(false, 1), (false, 8), (true, 1), (true, 8)] {
                for target in &origins {
                    let before: f64 = plan.processes.iter().map(|(_, p)| cpu_seconds(*p).unwrap_or(0.0)).sum();
                    let speed = bulk(target, up, streams).await.with_context(|| target.name.clone())?;
                    let after: f64 = plan.processes.iter().map(|(_, p)| cpu_seconds(*p).unwrap_or(0.0)).sum();
                    let name = format!("bulk {} x{streams}", if up { "up" } else { "down" });
                    table.add(&name, "Gbit/s", &target.name, speed);
                    if target.name.starts_with("moorline") {
                        let gib = BULK_BYTES as f64 / f64::from(1 << 30);
                        table.add(&format!("{name} CPU, hub + agent"), "s/GiB", &target.name, (after - before) / gib);
                    }
                }
            }
        }
    }
    if wanted("watch") {
        for target in &targets {
            let w = watch(target, &targets[0]).await.with_context(|| target.name.clone())?;
            table.add("1,000 watches, delay p50", "ms", &target.name, w.p50);
            table.add("1,000 watches, delay p99", "ms", &target.name, w.p99);
            table.add("1,000 watches, events lost", "", &target.name, w.lost as f64);
        }
    }
    if wanted("resident memory") {
        memory(&mut table, "under load")?;
        tokio::time::sleep(Duration::from_secs(60)).await;
        memory(&mut table, "a minute after")?;
    }
    let mut names: Vec<_> = plan.targets.iter().chain(&plan.bulk).map(|t| t.name.clone()).collect();
    names.extend(plan.processes.iter().map(|(n, _)| n.clone()));
    let mut unique = Vec::new();
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    table.print(&unique);
    goals(&table);
    println!("{}", table.json());
    Ok(())
}

fn goals(table: &Table) {
    println!("\ngoals");
    let verdict = |name: &str, value: f64, good: bool| {
        println!("  {} {name}: {value:.2}", if good { "met   " } else { "missed" });
    };
    let get = |row: &str, target: &str| table.get(row, target).unwrap_or(f64::NAN);
    for carrier in ["tls", "quic"] {
        let (ours, agent) = (format!("moorline-{carrier}"), format!("agent-{carrier}"));
        for v in ["h1", "h2"] {
            let row = format!("small GET {v} x1 p50");
            let (direct, nginx, us) = (get(&row, "direct"), get(&row, "nginx"), get(&row, &ours));
            let cost = (us - direct) / (nginx - direct);
            let name = format!("{carrier}, {v}: p50 of a small GET, (moorline − direct) / (nginx − direct) ≤ 2.5");
            verdict(&name, cost, cost <= 2.5);
            let row = format!("small GET {v} x64 rate");
            let ratio = get(&row, &ours) / get(&row, "nginx");
            verdict(&format!("{carrier}, {v}: rate at 64 connections against nginx ≥ 0.8"), ratio, ratio >= 0.8);
        }
        let ratio = get("list of 5,000 pods", &ours) / get("list of 5,000 pods", "nginx");
        verdict(&format!("{carrier}: list of 5,000 pods against nginx ≥ 0.9"), ratio, ratio >= 0.9);
        let ratio = get("1,000 watches, delay p99", &ours) / get("1,000 watches, delay p99", "direct");
        verdict(&format!("{carrier}: 1,000 watches, delay p99 against direct ≤ 2"), ratio, ratio <= 2.0);
        let lost = get("1,000 watches, events lost", &ours);
        verdict(&format!("{carrier}: 1,000 watches, events lost = 0"), lost, lost == 0.0);
        resident(table, &agent, 12.0);
    }
    resident(table, "hub", 30.0);
}

/// Memory goals of one process: idle under `limit` MiB, and back to within a tenth of it a minute after the load.
fn resident(table: &Table, name: &str, limit: f64) {
    let get = |row: &str| table.get(row, name).unwrap_or(f64::NAN);
    let (idle, after) = (get("resident memory idle"), get("resident memory a minute after"));
    let word = |good: bool| if good { "met   " } else { "missed" };
    println!("  {} {name}: resident memory idle ≤ {limit} MiB: {idle:.1}", word(idle <= limit));
    println!("  {} {name}: a minute after the load against idle ≤ 1.1: {:.2}", word(after / idle <= 1.1), after / idle);
}

//! The hub's own API against kube-apiserver: the same objects of the same kind, made, read, listed and watched.

use crate::{
    client::{Connection, Target, Version, empty},
    measure::Plan,
    table::{Table, quantile},
};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::mpsc, task::JoinSet};

/// Objects of the kind while lists and watches are measured.
const OBJECTS: usize = 5000;
/// Connections that make and read objects.
const CONNECTIONS: usize = 8;
const WATCHES: usize = 1000;
/// Watches that share a connection: kube-apiserver takes 250 streams of one.
const SHARE: usize = 100;
/// Changes that they all see.
const CHANGES: usize = 10;
/// Longest wait for the last watch to see a change.
const LATE: Duration = Duration::from_secs(60);

fn object(name: &str, tick: usize) -> String {
    let groups: Vec<String> = (0..10).map(|i| format!("group-{i:03}-of-some-department")).collect();
    serde_json::json!({
        "apiVersion": "moorline.dev/v1alpha1", "kind": "User",
        "metadata": {
            "name": name, "labels": { "team": "bench", "tick": tick.to_string() },
            "annotations": { "example.com/note": "an object of about the size that objects have ".repeat(8) },
        },
        "spec": { "displayName": format!("User {name}"), "groups": groups },
    })
    .to_string()
}

async fn write(connection: &mut Connection, method: &str, path: &str, body: String) -> Result<()> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let answer = connection.send(method, path, Some(kind), Full::new(Bytes::from(body)).boxed_unsync()).await?;
    let status = answer.status();
    let said = answer.into_body().collect().await?.to_bytes();
    ensure!(status.is_success() || status == 409, "{method} {path}: {status}: {}", String::from_utf8_lossy(&said));
    Ok(())
}

/// Makes objects `from..to` by all connections; returns how many a second.
async fn create(target: &Arc<Target>, prefix: &str, from: usize, to: usize) -> Result<f64> {
    let next = Arc::new(AtomicUsize::new(from));
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        open.push(Connection::open(target, Version::Two).await?);
    }
    let (began, mut tasks) = (Instant::now(), JoinSet::new());
    for mut connection in open {
        let (next, prefix) = (Arc::clone(&next), prefix.to_owned());
        tasks.spawn(async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if to <= at {
                    return anyhow::Ok(());
                }
                write(&mut connection, "POST", "", object(&format!("{prefix}-{at:06}"), 0)).await?;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok((to - from) as f64 / began.elapsed().as_secs_f64())
}

/// Reads one object after another for a while: how many a second.
async fn get(target: &Arc<Target>, seconds: u64) -> Result<f64> {
    let mut tasks = JoinSet::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    for part in 0..CONNECTIONS {
        let mut connection = Connection::open(target, Version::Two).await?;
        tasks.spawn(async move {
            let mut count = 0_usize;
            while Instant::now() < end {
                let at = (part + count * CONNECTIONS) % OBJECTS;
                connection.get(&format!("/bench-{at:06}")).await?;
                count += 1;
            }
            anyhow::Ok(count)
        });
    }
    let mut all = 0;
    while let Some(done) = tasks.join_next().await {
        all += done??;
    }
    Ok(all as f64 / seconds as f64)
}

async fn list(target: &Arc<Target>, seconds: u64) -> Result<f64> {
    let mut connection = Connection::open(target, Version::Two).await?;
    let (began, mut count) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(seconds) || count == 0 {
        let bytes = connection.get("").await?;
        ensure!(bytes > OBJECTS as u64 * 500, "a list of {bytes} bytes");
        count += 1;
    }
    Ok(began.elapsed().as_secs_f64() * 1000.0 / f64::from(count))
}

/// All watches see some changes: the 99th percentile, in milliseconds, from the moment that a change is sent.
async fn fan_out(target: &Arc<Target>) -> Result<(f64, usize)> {
    let (seen, mut told) = mpsc::unbounded_channel::<(usize, Instant)>();
    let mut tasks = JoinSet::new();
    for _ in 0..WATCHES / SHARE {
        let mut connection = Connection::open(target, Version::Two).await?;
        for _ in 0..SHARE {
            let path = "?watch=true&fieldSelector=metadata.name%3Dbench-000000";
            let answer = connection.send("GET", path, None, empty()).await?;
            ensure!(answer.status() == 200, "a watch: {}", answer.status());
            let (mut body, seen) = (answer.into_body(), seen.clone());
            tasks.spawn(async move {
                let mut text = Vec::new();
                while let Some(Ok(frame)) = body.frame().await {
                    text.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
                    while let Some(end) = text.iter().position(|b| *b == b'\n') {
                        let line: Vec<u8> = text.drain(..=end).collect();
                        let Ok(event) = serde_json::from_slice::<serde_json::Value>(&line) else { return };
                        let tick = event["object"]["metadata"]["labels"]["tick"].as_str().and_then(|t| t.parse().ok());
                        if let Some(tick) = tick {
                            let _ = seen.send((tick, Instant::now()));
                        }
                    }
                }
            });
        }
        // The connection lives for as long as its watches: they hold its streams.
        tasks.spawn(async move {
            std::future::pending::<()>().await;
            drop(connection);
        });
    }
    let mut writer = Connection::open(target, Version::Two).await?;
    // What is there first has another tick than all that follow.
    let first = usize::try_from(std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_millis())?;
    let (mut delays, mut lost) = (Vec::new(), 0);
    for tick in first..first + CHANGES {
        let sent = Instant::now();
        let patch = serde_json::json!({ "metadata": { "labels": { "tick": tick.to_string() } } }).to_string();
        write(&mut writer, "PATCH", "/bench-000000", patch).await?;
        let mut left = WATCHES;
        let all = async {
            while left > 0 {
                let Some((found, at)) = told.recv().await else { return };
                if found == tick {
                    delays.push(at.duration_since(sent).as_secs_f64() * 1000.0);
                    left -= 1;
                }
            }
        };
        let _ = tokio::time::timeout(LATE, all).await;
        lost += left;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    tasks.abort_all();
    delays.sort_by(f64::total_cmp);
    Ok((quantile(&delays, 0.99), lost))
}

/// Makes objects at one target.
pub async fn fill(plan: &Plan, target: &str, objects: usize) -> Result<()> {
    let target = plan.targets.iter().find(|known| known.name == target).context("no such target")?;
    create(&Arc::new(target.clone()), "bench", 0, objects).await.map(drop)
}

/// Measures every target of a plan in turn, as often as it says, and prints medians. `keep`: a file that gets the figures too.
pub async fn run(plan: &Plan, keep: Option<&Path>) -> Result<()> {
    let targets: Vec<Arc<Target>> = plan.targets.iter().cloned().map(Arc::new).collect();
    ensure!(!targets.is_empty(), "no targets");
    for target in &targets {
        create(target, "bench", 0, OBJECTS).await.with_context(|| target.name.clone())?;
    }
    let mut table = Table::default();
    for round in 0..plan.rounds {
        for target in &targets {
            let name = target.name.as_str();
            let each = 500;
            let prefix = format!("made-{round}");
            table.add("create, 8 connections", "/s", name, create(target, &prefix, 0, each).await?);
            // Gone again, so that lists stay as they are.
            let mut connection = Connection::open(target, Version::Two).await?;
            for at in 0..each {
                write(&mut connection, "DELETE", &format!("/{prefix}-{at:06}"), String::new()).await?;
            }
            table.add("get, 8 connections", "/s", name, get(target, plan.seconds).await?);
            table.add("list of 5,000", "ms", name, list(target, plan.seconds).await?);
            let (delay, lost) = fan_out(target).await?;
            table.add("1,000 watches: p99 from write to event", "ms", name, delay);
            table.add("… events lost", "", name, lost as f64);
        }
    }
    table.print(&targets.iter().map(|target| target.name.clone()).collect::<Vec<_>>());
    keep.map_or(Ok(()), |file| std::fs::write(file, table.figures()).with_context(|| file.display().to_string()))
}

//! A store of some size: what it takes to open it, after an end and after none.

use crate::limits;
use moorline_apiserver::{Batch, Expect, Store};
use serde_json::json;
use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Bytes of each object, and MiB of all: `MOORLINE_P11_BYTES` and `…_MIB` say otherwise. `bench/store.sh` does it with a GiB.
const BYTES: usize = 8_000;
const MIB: usize = 24;
/// The share of a GiB's five seconds, ten times over for a build without optimisation on a machine that others use.
const SOON: Duration = Duration::from_secs(20);

fn of(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

fn bytes() -> usize {
    of("MOORLINE_P11_BYTES", BYTES)
}

fn objects() -> usize {
    (of("MOORLINE_P11_MIB", MIB) << 20) / bytes()
}

async fn fill(path: &Path) -> Store {
    let store = Store::open(path, &limits()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..objects() {
        let store = store.clone();
        tasks.spawn(async move {
            let value = json!({ "metadata": { "name": format!("{i}") }, "spec": "x".repeat(bytes()) });
            let object = Some((format!("t/things/{i:06}"), Expect::Absent, Some(value)));
            store.commit(Batch { object, private: Vec::new() }).await.unwrap()
        });
        // As many at a time as a queue holds.
        if tasks.len() == 200 {
            tasks.join_next().await.unwrap().unwrap();
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    store
}

fn opens(path: &Path) -> (usize, Duration) {
    let begun = Instant::now();
    let store = Store::open(path, &limits()).unwrap();
    let took = begun.elapsed();
    let count = store.list("t/").1.len();
    store.close();
    (count, took)
}

#[tokio::test(flavor = "multi_thread")]
async fn p11_a_large_store_opens_soon_after_an_end_and_after_a_kill() {
    if let Some(path) = std::env::var_os("MOORLINE_P11") {
        // The child: says that it is filled, writes on, and is killed.
        let store = fill(Path::new(&path)).await;
        println!("filled");
        for i in 0.. {
            let object = Some((format!("t/more/{i}"), Expect::Absent, Some(json!({ "metadata": {} }))));
            store.commit(Batch { object, private: Vec::new() }).await.unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "large::p11_a_large_store_opens_soon_after_an_end_and_after_a_kill", "--nocapture"]);
    let mut child = child.env("MOORLINE_P11", &path).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert!(lines.any(|line| line.unwrap().contains("filled")));
    child.kill().unwrap();
    child.wait().unwrap();
    let (count, after_kill) = opens(&path);
    assert!(objects() <= count, "{count}");
    let (again, after_end) = opens(&path);
    assert_eq!(again, count);
    eprintln!("opened after a kill in {after_kill:?}, after an end in {after_end:?}");
    assert!(after_kill < SOON && after_end < SOON, "{after_kill:?} {after_end:?}");
}

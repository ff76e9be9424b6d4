//! A store of some size: what it takes to open it, after an end and after none.

use crate::limits;
use moorline_apiserver::{Batch, Expect, Limits, Store};
use serde_json::json;
use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Objects, and bytes of each: 24 MiB. `bench/store.sh` does it with a GiB.
const OBJECTS: usize = 3_000;
const BYTES: usize = 8_000;
/// The share of a GiB's five seconds, ten times over for a build without optimisation on a machine that others use.
const SOON: Duration = Duration::from_secs(20);

async fn fill(path: &Path) -> Store {
    let store = Store::open(path, &limits()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..OBJECTS {
        let store = store.clone();
        tasks.spawn(async move {
            let value = json!({ "metadata": { "name": format!("{i}") }, "spec": "x".repeat(BYTES) });
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
    assert!(OBJECTS <= count, "{count}");
    let (again, after_end) = opens(&path);
    assert_eq!(again, count);
    eprintln!("opened after a kill in {after_kill:?}, after an end in {after_end:?}");
    assert!(after_kill < SOON && after_end < SOON, "{after_kill:?} {after_end:?}");
}

/// Clusters, and nodes of each. `bench/store.sh` does it with fifty, for ten minutes.
const CLUSTERS: usize = 1000;
const NODES: usize = 3;
const WATCHES: usize = 200;
const CHANGES: u64 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn l12_two_hundred_watches_of_a_fleet_see_every_change_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), &Limits::default()).unwrap();
    let put = |key: String, expect| {
        let value = json!({ "metadata": { "name": key }, "spec": "x".repeat(300) });
        store.commit(Batch { object: Some((key, expect, Some(value))), private: Vec::new() })
    };
    let keys: Vec<String> = (0..CLUSTERS * NODES).map(|i| format!("t/nodes/{i:05}")).collect();
    for some in keys.chunks(200) {
        let made = some.iter().map(|key| put(key.clone(), Expect::Absent));
        assert!(futures_util::future::join_all(made).await.iter().all(Result::is_ok));
    }
    let from = store.revision();
    let mut watches = tokio::task::JoinSet::new();
    for _ in 0..WATCHES {
        let mut watcher = store.watch("t/nodes/", from).unwrap();
        watches.spawn(async move {
            for wanted in 1..=CHANGES {
                let event = watcher.next().await.unwrap().unwrap();
                assert_eq!(event.revision, from + wanted, "in order, without a gap");
                assert!(event.value().is_some_and(|value| value["metadata"]["name"] == *event.key));
            }
        });
    }
    for i in 0..CHANGES {
        let key = keys[usize::try_from(i).unwrap() * 7 % keys.len()].clone();
        let at = store.get(&key).unwrap().revision;
        put(key, Expect::Revision(at)).await.unwrap();
    }
    let seen = async {
        while let Some(seen) = watches.join_next().await {
            seen.unwrap();
        }
    };
    tokio::time::timeout(SOON, seen).await.unwrap();
}

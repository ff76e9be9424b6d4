//! A store that moves, and is killed on the way.

use super::*;
use crate::world::{Budget, PATIENCE, Way};
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tokio::time::timeout;

const NAME: &str = "moves::u06_a_move_that_is_killed_at_any_write_is_nothing_or_whole_and_can_be_made_again";
const BACK: &str = "moves::u06_a_move_back_that_is_killed_anywhere_is_nothing_or_whole_and_can_be_made_again";
/// Bytes towards etcd, or from it, or into the file, after which it is killed: each time so many more. A transaction has half a
/// MiB at most.
const STEP: usize = 24 << 10;

fn content(store: &Store) -> Vec<String> {
    let objects = store.list("g/").1.into_iter().map(|(k, e)| format!("{k} {} {}", e.revision, e.value));
    let records = (0..300).map(|i| format!("{:?}", store.private(&format!("g/k/{i}/hash"))));
    objects.chain(records).chain([store.revision().to_string()]).collect()
}

async fn fill(store: &Store) -> Vec<String> {
    for i in 0..300 {
        let mut batch = put(&format!("g/k/{i}"), Expect::Absent, "x".repeat(i * 10));
        batch.private.push((format!("g/k/{i}/hash"), Some(bytes::Bytes::from(vec![i as u8; 40]))));
        store.commit(batch).await.unwrap();
    }
    content(store)
}

/// One that moves and is killed: this test, told what to do.
fn mover(name: &str, path: &Path, address: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", name, "--ignored", "--nocapture"]).stdout(Stdio::null()).stderr(Stdio::null());
    child.env("MOORLINE_U06", format!("{} {address}", path.display())).spawn().unwrap()
}

/// What it was told, if this is such a one.
fn told() -> Option<(std::path::PathBuf, EtcdPlace)> {
    let text = std::env::var("MOORLINE_U06").ok()?;
    let (path, address) = text.split_once(' ').unwrap();
    Some((path.into(), EtcdPlace::parse(address, None).unwrap()))
}

/// Kills it once that is so; whether it had not ended by itself before.
async fn kill_when(child: &mut Child, so: impl Future<Output = ()>) -> bool {
    let ended = async {
        while child.try_wait().unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let killed = tokio::select! {
        reached = timeout(PATIENCE, so) => reached.is_ok(),
        () = ended => false,
    };
    let _ = child.kill();
    child.wait().unwrap();
    killed
}

/// Killed after any number of bytes: what is in etcd then is nothing, or refused as a part, or all; and made again it is all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn u06_a_move_that_is_killed_at_any_write_is_nothing_or_whole_and_can_be_made_again() {
    if let Some((path, place)) = told() {
        let file = Store::open(&path, &limits()).unwrap();
        tokio::task::spawn_blocking(move || file.copy_to_etcd(&place)).await.unwrap().unwrap();
        return;
    }
    let etcds = Etcds::start(1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let file = Store::open(&path, &limits()).unwrap();
    let before = fill(&file).await;
    file.close();
    let (mut nothing, mut parts, mut whole) = (0, 0, 0);
    for round in 0.. {
        let root = format!("moved/{round}");
        let budget = Budget::of(etcds.port(0), Way::There, 2048 + round * STEP).await;
        let mut child = mover(NAME, &path, &format!("etcd://127.0.0.1:{}/{root}", budget.port));
        let killed = kill_when(&mut child, budget.spent()).await;
        match etcds.keys(&root) {
            0 => nothing += 1,
            _ => match Store::connect(etcds.place(&root), None, &limits()) {
                Err(error) => {
                    parts += 1;
                    assert!(matches!(error, OpenError::Etcd { source: EtcdError::Unfinished, .. }), "{error}");
                }
                Ok(store) => {
                    whole += 1;
                    assert_eq!(content(&store), before, "after {round} steps");
                }
            },
        }
        let (from, place) = (path.clone(), etcds.place(&root));
        let again = tokio::task::spawn_blocking(move || {
            let file = Store::open(&from, &limits()).unwrap();
            let made = file.copy_to_etcd(&place);
            file.close();
            made
        });
        again.await.unwrap().unwrap();
        assert_eq!(content(&etcds.open(&root)), before, "after {round} steps, made again");
        if !killed {
            break;
        }
    }
    eprintln!("killed: {nothing} times nothing was there, {parts} times a part, {whole} times all");
    assert!(parts > 3 && whole > 0, "{nothing} {parts} {whole}");
}

/// Bytes that a process has written so far, to whatever it was; none of one that has ended.
fn written(child: &Child) -> Option<usize> {
    let io = std::fs::read_to_string(format!("/proc/{}/io", child.id())).ok()?;
    io.lines().find_map(|line| line.strip_prefix("wchar: "))?.parse().ok()
}

/// Killed while it reads etcd, after any number of bytes, and while it writes the file: under its name is nothing then, or all;
/// and made again it is all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn u06_a_move_back_that_is_killed_anywhere_is_nothing_or_whole_and_can_be_made_again() {
    if let Some((path, place)) = told() {
        Store::connect(place, None, &limits()).unwrap().backup(&path).unwrap();
        return;
    }
    let etcds = Etcds::start(1);
    let dir = tempfile::tempdir().unwrap();
    let store = etcds.open("back");
    let before = fill(&store).await;
    store.close();
    let address = |port: u16| format!("etcd://127.0.0.1:{port}/back");
    let (mut nothing, mut parts, mut whole) = (0, 0, 0);
    let mut judge = |path: &Path, how: &str| {
        let part = Path::new(&format!("{}.part", path.display())).exists();
        match path.exists() {
            true => whole += 1,
            false if part => parts += 1,
            false => nothing += 1,
        }
        if !path.exists() {
            etcds.open("back").backup(path).unwrap();
            assert!(!Path::new(&format!("{}.part", path.display())).exists(), "{how}");
        }
        let file = Store::open(path, &limits()).unwrap();
        assert_eq!(content(&file), before, "{how}");
        file.close();
    };
    for round in 0.. {
        let path = dir.path().join(format!("read-{round}"));
        let budget = Budget::of(etcds.port(0), Way::Back, 64 + round * STEP).await;
        let mut child = mover(BACK, &path, &address(budget.port));
        let killed = kill_when(&mut child, budget.spent()).await;
        assert!(!killed || !path.exists(), "it had not read all of it");
        judge(&path, &format!("after {round} steps of reading"));
        if !killed {
            break;
        }
    }
    for round in 0.. {
        let path = dir.path().join(format!("write-{round}"));
        let mut child = mover(BACK, &path, &address(etcds.port(0)));
        let until = Instant::now() + PATIENCE;
        // Looked at all the time: it writes fast.
        let killed = loop {
            assert!(Instant::now() < until, "it does not end");
            match written(&child) {
                _ if child.try_wait().unwrap().is_some() => break false,
                Some(bytes) if round * STEP <= bytes => break true,
                _ => std::hint::spin_loop(),
            }
        };
        let _ = child.kill();
        child.wait().unwrap();
        judge(&path, &format!("after {round} steps of writing"));
        if !killed {
            break;
        }
    }
    eprintln!("killed: {nothing} times nothing was there, {parts} times a part, {whole} times all");
    assert!(nothing > 3 && parts > 3 && whole > 0, "{nothing} {parts} {whole}");
}

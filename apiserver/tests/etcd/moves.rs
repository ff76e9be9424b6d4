//! A store that moves, and is killed on the way.

use super::*;
use crate::world::{Budget, PATIENCE};
use std::process::{Command, Stdio};
use tokio::time::timeout;

const NAME: &str = "moves::u06_a_move_that_is_killed_at_any_write_is_nothing_or_whole_and_can_be_made_again";
/// Bytes towards etcd after which it is killed: each time so many more. A transaction has half a MiB at most.
const STEP: usize = 24 << 10;

fn content(store: &Store) -> Vec<String> {
    let objects = store.list("g/").1.into_iter().map(|(k, e)| format!("{k} {} {}", e.revision, e.value));
    let records = (0..300).map(|i| format!("{:?}", store.private(&format!("g/k/{i}/hash"))));
    objects.chain(records).chain([store.revision().to_string()]).collect()
}

/// Killed after any number of bytes: what is in etcd then is nothing, or refused as a part, or all; and made again it is all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn u06_a_move_that_is_killed_at_any_write_is_nothing_or_whole_and_can_be_made_again() {
    if let Ok(text) = std::env::var("MOORLINE_U06") {
        // The child, which moves and is killed.
        let (path, address) = text.split_once(' ').unwrap();
        let file = Store::open(std::path::Path::new(path), &limits()).unwrap();
        let place = EtcdPlace::parse(address, None).unwrap();
        tokio::task::spawn_blocking(move || file.copy_to_etcd(&place)).await.unwrap().unwrap();
        println!("moved");
        return;
    }
    let etcds = Etcds::start(1);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let file = Store::open(&path, &limits()).unwrap();
    for i in 0..300 {
        let mut batch = put(&format!("g/k/{i}"), Expect::Absent, "x".repeat(i * 10));
        batch.private.push((format!("g/k/{i}/hash"), Some(bytes::Bytes::from(vec![i as u8; 40]))));
        file.commit(batch).await.unwrap();
    }
    let before = content(&file);
    file.close();
    let (mut nothing, mut parts, mut whole) = (0, 0, 0);
    for round in 0.. {
        let (root, budget) = (format!("moved/{round}"), Budget::to(etcds.port(0), 2048 + round * STEP).await);
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", NAME, "--ignored", "--nocapture"]).stdout(Stdio::null()).stderr(Stdio::null());
        child.env("MOORLINE_U06", format!("{} etcd://127.0.0.1:{}/{root}", path.display(), budget.port));
        let mut child = child.spawn().unwrap();
        let ended = async {
            while child.try_wait().unwrap().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let killed = tokio::select! {
            spent = timeout(PATIENCE, budget.spent()) => spent.is_ok(),
            () = ended => false,
        };
        let _ = child.kill();
        child.wait().unwrap();
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

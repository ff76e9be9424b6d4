//! Backups, and stores made of them.

use super::*;
use moorline_apiserver::{BackupError, Batch, Compacted, Expect, restore};

fn pair(i: u64, at: Option<u64>) -> [Batch; 2] {
    let one = |name: &str| Batch {
        object: Some((
            format!("t/things/{name}"),
            at.map_or(Expect::Absent, Expect::Revision),
            Some(json!({ "metadata": {}, "spec": i })),
        )),
        private: vec![(format!("t/things/{name}/n"), Some(Bytes::from(i.to_string())))],
    };
    [one("a"), one("b")]
}

/// Writes go on while backups are made: each backup is of one revision, which the objects and private records agree on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_a_backup_under_writes_is_of_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s"), &limits()).unwrap();
    let writer = store.clone();
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let writes = tokio::spawn(async move {
        let [mut at_a, mut at_b] = [None, None];
        let mut i = 0;
        while !stopped.is_cancelled() {
            let ([a, _], [_, b]) = (pair(i, at_a), pair(i, at_b));
            at_a = Some(writer.commit(a).await.unwrap());
            at_b = Some(writer.commit(b).await.unwrap());
            i += 1;
        }
    });
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..20 {
        let (file, made) = (dir.path().join(format!("backup-{n}")), dir.path().join(format!("store-{n}")));
        let source = store.clone();
        let (info, copy) = tokio::task::spawn_blocking(move || {
            let info = source.backup(&file).unwrap();
            restore(&file, &made, None).unwrap();
            (info, Store::open(&made, &limits()).unwrap())
        })
        .await
        .unwrap();
        let value = |key: &str| copy.get(key).map(|e| e.value["spec"].as_u64().unwrap());
        let (a, b) = (value("t/things/a"), value("t/things/b"));
        // `a` is written first: at every revision `b` is as far, or one behind.
        assert!(a == b || a == Some(b.map_or(0, |b| b + 1)), "{a:?} {b:?}");
        for (name, value) in [("a", a), ("b", b)] {
            let record = copy.private(&format!("t/things/{name}/n")).map(|r| String::from_utf8(r.to_vec()).unwrap());
            assert_eq!(record, value.map(|v| v.to_string()));
        }
        let newest = copy.list("t/").1.iter().map(|(_, e)| e.revision).max().unwrap_or(1);
        assert_eq!(newest, info.revision, "the last write before the backup is in it");
        seen.insert(info.revision);
    }
    stop.cancel();
    writes.await.unwrap();
    assert!(seen.len() > 5, "no writes went on: {seen:?}");
}

#[tokio::test]
async fn a_restored_store_does_not_give_old_revisions_a_second_meaning() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s"), &limits()).unwrap();
    let [a, b] = pair(1, None);
    store.commit(a).await.unwrap();
    let backup = store.backup(&dir.path().join("backup")).unwrap();
    let after = store.commit(b).await.unwrap();
    let (file, made) = (dir.path().join("backup"), dir.path().join("made"));
    let info = restore(&file, &made, None).unwrap();
    assert_eq!((backup.objects, info.objects), (1, 1));
    let restored = Store::open(&made, &limits()).unwrap();
    for seen in [backup.revision, after, after + 1] {
        assert!(matches!(restored.watch("t/", seen), Err(Compacted)), "{seen}");
    }
    let [_, b] = pair(2, None);
    assert!(restored.commit(b).await.unwrap() > after + 1000);
}

#[tokio::test]
async fn nothing_is_overwritten_and_nothing_broken_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("s"), dir.path().join("backup"));
    let store = Store::open(&path, &limits()).unwrap();
    std::fs::write(dir.path().join("backup.part"), "left by a crash").unwrap();
    store.backup(&file).unwrap();
    assert!(matches!(store.backup(&file), Err(BackupError::Exists(_))));
    assert!(matches!(restore(&file, &path, None), Err(BackupError::Exists(_))));
    let broken = dir.path().join("broken");
    std::fs::write(&broken, vec![7; 10_000]).unwrap();
    let made = dir.path().join("made");
    assert!(matches!(restore(&broken, &made, None), Err(BackupError::Open(_))));
    assert!(!made.exists() && !dir.path().join("made.part").exists());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "others cannot read it");
}

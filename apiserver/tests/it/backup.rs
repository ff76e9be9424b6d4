//! Backups, and stores made of them.

use super::*;
use crate::model::backups;
use moorline_apiserver::{BackupError, Batch, Compacted, Expect, restore};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p10_a_backup_under_writes_is_of_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s"), &limits()).unwrap();
    backups::are_of_one_revision(&store, store.clone(), dir.path()).await;
}

fn thing(name: &str) -> Batch {
    let object = json!({ "metadata": {}, "spec": 1 });
    Batch { object: Some((format!("t/things/{name}"), Expect::Absent, Some(object))), private: vec![] }
}

#[tokio::test]
async fn a_restored_store_does_not_give_old_revisions_a_second_meaning() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s"), &limits()).unwrap();
    store.commit(thing("a")).await.unwrap();
    let backup = store.backup(&dir.path().join("backup")).unwrap();
    let after = store.commit(thing("b")).await.unwrap();
    let (file, made) = (dir.path().join("backup"), dir.path().join("made"));
    let info = restore(&file, &made, None).unwrap();
    assert_eq!((backup.objects, info.objects), (1, 1));
    let restored = Store::open(&made, &limits()).unwrap();
    for seen in [backup.revision, after, after + 1] {
        assert!(matches!(restored.watch("t/", seen), Err(Compacted)), "{seen}");
    }
    assert!(restored.commit(thing("b")).await.unwrap() > after + 1000);
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

//! Stores whose values only their key opens.

use crate::model::{cases, holds, limits, op};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use moorline_apiserver::{
    BackupError, Batch, Expect, OpenError, SealError, Store, StoreKey, open_idle, restore, rotate,
};
use proptest::prelude::*;
use serde_json::json;
use std::path::Path;

fn key(byte: u8) -> StoreKey {
    StoreKey::read(&STANDARD.encode([byte; 32])).unwrap()
}

const OBJECT: &str = "hunter2-in-an-object";
const RECORD: &str = "hunter2-in-a-record";

async fn write(store: &Store) {
    for i in 0..20 {
        let object = json!({ "metadata": {}, "spec": format!("{OBJECT}-{i}") });
        let private = vec![(format!("t/things/{i}/hash"), Some(Bytes::from(format!("{RECORD}-{i}"))))];
        store
            .commit(Batch { object: Some((format!("t/things/{i}"), Expect::Absent, Some(object))), private })
            .await
            .unwrap();
    }
}

fn whole(store: &Store) -> bool {
    store.list("t/").1.len() == 20
        && store.get("t/things/7").is_some_and(|e| e.value["spec"] == format!("{OBJECT}-7"))
        && store.private("t/things/7/hash").is_some_and(|r| r == format!("{RECORD}-7"))
}

/// Whether anything of the values stands anywhere in the file, in what is used of it or not.
fn shows(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap();
    [OBJECT, RECORD].iter().any(|text| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
}

fn why(opened: Result<Store, OpenError>) -> SealError {
    match opened {
        Err(OpenError::Sealed { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(cases(8))]
    #[test]
    fn a_sealed_store_is_its_model_too(ops in prop::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        holds(&ops, || Store::open_sealed(&path, key(1), &limits()).unwrap())?;
    }
}

#[tokio::test]
async fn what_is_in_a_sealed_store_is_never_readable_and_only_its_key_opens_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, backup, made) = (dir.path().join("s"), dir.path().join("b"), dir.path().join("made"));
    let store = Store::open_sealed(&path, key(1), &limits()).unwrap();
    write(&store).await;
    store.backup(&backup).unwrap();
    store.close();
    assert!(!shows(&path) && !shows(&backup));
    for file in [&path, &backup] {
        assert_eq!(why(Store::open_sealed(file, key(2), &limits())), SealError::WrongKey);
        assert_eq!(why(Store::open(file, &limits())), SealError::KeyNeeded);
        assert!(whole(&open_idle(file, Some(key(1))).unwrap()));
    }
    for wrong in [None, Some(key(2))] {
        assert!(matches!(restore(&backup, &made, wrong), Err(BackupError::Open(OpenError::Sealed { .. }))));
        assert!(!made.exists());
    }
    restore(&backup, &made, Some(key(1))).unwrap();
    assert!(whole(&open_idle(&made, Some(key(1))).unwrap()));
    assert!(!shows(&made));
}

#[tokio::test]
async fn keys_are_rotated_and_nothing_of_before_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, &limits()).unwrap();
    write(&store).await;
    let revision = store.revision();
    assert!(matches!(rotate(&path, None, Some(key(1))), Err(BackupError::Open(OpenError::Database { .. }))), "in use");
    store.close();
    assert!(shows(&path), "this test sees what is readable");
    assert_eq!(why(Store::open_sealed(&path, key(1), &limits())), SealError::NotSealed);

    assert_eq!(rotate(&path, None, Some(key(1))).unwrap().revision, revision);
    assert!(!shows(&path));
    rotate(&path, Some(key(1)), Some(key(2))).unwrap();
    assert_eq!(why(open_idle(&path, Some(key(1)))), SealError::WrongKey);
    assert!(matches!(rotate(&path, Some(key(1)), None), Err(BackupError::Open(OpenError::Sealed { .. }))));
    let store = open_idle(&path, Some(key(2))).unwrap();
    assert!(whole(&store) && store.revision() == revision);
    assert!(store.watch("t/", revision).is_ok(), "who had seen all of it goes on");
    store.close();
    rotate(&path, Some(key(2)), None).unwrap();
    assert!(whole(&Store::open(&path, &limits()).unwrap()));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
}

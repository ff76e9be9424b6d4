//! Backups of a store that is written to: each is of one revision.

use super::limits;
use bytes::Bytes;
use moorline_apiserver::{Batch, CommitError, Expect, Store, restore};
use serde_json::json;
use std::{collections::BTreeSet, path::Path, time::Duration};
use tokio_util::sync::CancellationToken;

/// Backups that are made while the writes go on.
const BACKUPS: usize = 20;

/// Writes a number into an object and its private record, however often that takes where others write too.
async fn write(store: &Store, name: &str, number: u64) {
    let key = format!("g/things/{name}");
    loop {
        let found = store.get(&key);
        if found.as_ref().is_some_and(|entry| entry.value["spec"] == number) {
            return;
        }
        let expect = found.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision));
        let object = json!({ "metadata": { "name": name }, "spec": number });
        let private = vec![(format!("{key}/n"), Some(Bytes::from(number.to_string())))];
        match store.commit(Batch { object: Some((key.clone(), expect, Some(object))), private }).await {
            Ok(_) => return,
            Err(CommitError::Conflict(_)) => tokio::task::yield_now().await,
            Err(CommitError::Unavailable(_) | CommitError::Overloaded) => {
                // As a client does that is told when to come back.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(other) => panic!("{other}"),
        }
    }
}

/// `writer` writes two objects in turn while backups of `store` are made into `dir`: each is of one revision, which objects
/// and private records agree on.
pub async fn are_of_one_revision(store: &Store, writer: Store, dir: &Path) {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let writes = tokio::spawn(async move {
        let begin = writer.get("g/things/b").map_or(0, |entry| entry.value["spec"].as_u64().unwrap() + 1);
        for i in begin.. {
            write(&writer, "a", i).await;
            write(&writer, "b", i).await;
            if stopped.is_cancelled() {
                return;
            }
        }
    });
    let mut seen = BTreeSet::new();
    for n in 0..BACKUPS {
        let (file, made) = (dir.join(format!("backup-{n}")), dir.join(format!("store-{n}")));
        let source = store.clone();
        let (info, copy) = tokio::task::spawn_blocking(move || {
            let info = source.backup(&file).unwrap();
            restore(&file, &made, None).unwrap();
            (info, Store::open(&made, &limits()).unwrap())
        })
        .await
        .unwrap();
        let value = |key: &str| copy.get(key).map(|entry| entry.value["spec"].as_u64().unwrap());
        let (a, b) = (value("g/things/a"), value("g/things/b"));
        // `a` is written first: at every revision `b` is as far, or one behind.
        assert!(a == b || a == Some(b.map_or(0, |b| b + 1)), "{a:?} {b:?}");
        for (name, value) in [("a", a), ("b", b)] {
            let record = copy.private(&format!("g/things/{name}/n")).map(|r| String::from_utf8(r.to_vec()).unwrap());
            assert_eq!(record, value.map(|v| v.to_string()));
        }
        let newest = copy.list("g/").1.iter().map(|(_, entry)| entry.revision).max().unwrap_or(1);
        assert_eq!(newest, info.revision, "the last write before the backup is in it");
        seen.insert(info.revision);
    }
    stop.cancel();
    writes.await.unwrap();
    assert!(seen.len() > 5, "no writes went on: {seen:?}");
}

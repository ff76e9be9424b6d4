//! Backups of a store in an etcd.

use super::*;
use bytes::Bytes;
use moorline_apiserver::restore;
use std::{collections::BTreeSet, time::Duration};
use tokio_util::sync::CancellationToken;

/// Writes a number into an object and its private record, however often that takes on a busy etcd.
async fn write(store: &Store, name: &str, number: u64) {
    let key = format!("g/things/{name}");
    loop {
        let found = store.get(&key);
        if found.as_ref().is_some_and(|entry| entry.value["spec"] == number) {
            return;
        }
        let mut batch = put(&key, found.map_or(Expect::Absent, |entry| Expect::Revision(entry.revision)), number);
        batch.private.push((format!("{key}/n"), Some(Bytes::from(number.to_string()))));
        match store.commit(batch).await {
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

/// Writes go on, at the hub that makes the backups and at another: each backup is of one revision, which objects and private
/// records agree on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn p10_a_backup_under_writes_is_of_one_revision() {
    let (etcds, dir) = (Etcds::start(1), tempfile::tempdir().unwrap());
    let store = etcds.open("backup");
    for (here, writer) in [(true, store.clone()), (false, etcds.open("backup"))] {
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
        for n in 0..20 {
            let (file, made) = (dir.path().join(format!("{here}-{n}")), dir.path().join(format!("{here}-store-{n}")));
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
                let record =
                    copy.private(&format!("g/things/{name}/n")).map(|r| String::from_utf8(r.to_vec()).unwrap());
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
}

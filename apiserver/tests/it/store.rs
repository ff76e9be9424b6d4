//! The store in a file, against a model of it.

use crate::model::{
    cases, holds, limits,
    linear::{self, Course},
    op,
};
use moorline_apiserver::{Batch, CommitError, Expect, Limits, OpenError, Store};
use proptest::prelude::*;
use serde_json::json;

proptest! {
    #![proptest_config(cases(24))]
    #[test]
    fn the_store_is_its_model(ops in prop::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        holds(&ops, || Store::open(&path, &limits()).unwrap())?;
    }
}

#[tokio::test]
async fn many_writers_get_revisions_without_gap_or_double() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s"), &limits()).unwrap();
    let mut watcher = store.watch("g/", 1).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..40 {
        let store = store.clone();
        tasks.spawn(async move {
            let object = Some((format!("g/k/{i}"), Expect::Absent, Some(json!({ "metadata": {} }))));
            store.commit(Batch { object, private: vec![] }).await.unwrap()
        });
    }
    let mut got: Vec<u64> = tasks.join_all().await;
    got.sort_unstable();
    assert_eq!(got, (2..=41).collect::<Vec<_>>());
    for revision in 2..=41 {
        assert_eq!(watcher.next().await.unwrap().unwrap().revision, revision);
    }
}

/// Readers and writers of one process: all that they were told can be put in one order. `MOORLINE_P13_RUNS=100
/// MOORLINE_P13_OPERATIONS=2000` does it at length.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p13_what_readers_and_writers_are_told_is_linearizable() {
    let (runs, operations) = linear::runs();
    for _ in 0..runs {
        let dir = tempfile::tempdir().unwrap();
        let wide = Limits { history: 100_000, ..limits() };
        let store = Store::open(&dir.path().join("s"), &wide).unwrap();
        let (mut watcher, course) = (store.watch("g/", 1).unwrap(), Course::default());
        let work = (0..8).map(|who| tokio::spawn(course.clone().work(store.clone(), who, operations)));
        let told: Vec<_> = futures_util::future::try_join_all(work).await.unwrap();
        let changes = linear::acknowledged(&told) as u64;
        assert!(operations <= course.count() && operations / 10 < changes, "{changes} changes");
        linear::judge(&linear::history(&mut watcher, &told).await, &told, true);
    }
}

/// Who has lost against a change can read it: to read and to try again is enough.
#[tokio::test]
async fn what_a_writer_lost_against_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("db"), &limits()).unwrap();
    for round in 0..20 {
        let key = format!("g/things/{round}");
        let one = |i: u32| {
            let (store, key) = (store.clone(), key.clone());
            async move {
                let object = json!({ "metadata": { "name": key }, "spec": i });
                let batch = Batch { object: Some((key.clone(), Expect::Absent, Some(object))), private: vec![] };
                match store.commit(batch).await {
                    Err(CommitError::Conflict(at)) => assert_eq!(store.get(&key).map(|entry| entry.revision), at),
                    made => assert!(made.is_ok(), "{made:?}"),
                }
            }
        };
        futures_util::future::join_all((0..8).map(one)).await;
    }
}

/// Refused, and not a byte of it changed: what is newer may mean something else by anything. Also where the newer one was
/// killed, so that the file asks to be put right.
#[test]
fn p12_a_newer_store_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let ended = {
        let database = redb::Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 99).unwrap();
        write.commit().unwrap();
        let killed = std::fs::read(&path).unwrap();
        drop(database);
        std::fs::write(dir.path().join("killed"), killed).unwrap();
        path
    };
    for path in [ended, dir.path().join("killed")] {
        let before = std::fs::read(&path).unwrap();
        for _ in 0..2 {
            assert!(matches!(Store::open(&path, &limits()), Err(OpenError::Newer { found: 99, .. })));
            assert!(std::fs::read(&path).unwrap() == before, "{} was written to", path.display());
        }
    }
}

#[test]
fn a_store_has_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let _first = Store::open(&path, &limits()).unwrap();
    let second = Store::open(&path, &limits()).unwrap_err().to_string();
    assert!(second.contains("another hub"), "{second}");
    let garbage = dir.path().join("g");
    std::fs::write(&garbage, vec![7; 10_000]).unwrap();
    assert!(Store::open(&garbage, &limits()).is_err());
}

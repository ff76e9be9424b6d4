//! The store against a model of it.

use super::limits;
use bytes::Bytes;
use moorline_apiserver::{Batch, CommitError, Expect, OpenError, Store};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
enum Op {
    Put { key: u8, right: bool, value: u32 },
    Delete { key: u8 },
    Private { key: u8, value: Option<u8> },
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u8..5, any::<bool>(), any::<u32>()).prop_map(|(key, right, value)| Op::Put { key, right, value }),
        2 => (0u8..5).prop_map(|key| Op::Delete { key }),
        2 => (0u8..5, any::<Option<u8>>()).prop_map(|(key, value)| Op::Private { key, value }),
        1 => Just(Op::Reopen),
    ]
}

struct Model {
    objects: BTreeMap<String, (u64, u32)>,
    private: BTreeMap<String, u8>,
    revision: u64,
}

impl Model {
    /// An empty store has been at revision 1: 0 means "any" in requests.
    fn new() -> Self {
        Self { objects: BTreeMap::new(), private: BTreeMap::new(), revision: 1 }
    }
}

async fn step(store: &Store, model: &mut Model, op: &Op) -> Result<(), TestCaseError> {
    match *op {
        Op::Put { key, right, value } => {
            let key = format!("g/things/{key}");
            let at = model.objects.get(&key).map(|o| o.0);
            let expect = match (at, right) {
                (Some(at), true) => Expect::Revision(at),
                (None, true) => Expect::Absent,
                (Some(at), false) => Expect::Revision(at + 1000),
                (None, false) => Expect::Revision(1),
            };
            let object = json!({ "metadata": { "name": key }, "spec": value });
            let batch = Batch { object: Some((key.clone(), expect, Some(object))), private: vec![] };
            let result = store.commit(batch).await;
            if right {
                model.revision += 1;
                prop_assert_eq!(result, Ok(model.revision));
                if at.is_none() {
                    model.private.retain(|k, _| !k.starts_with(&format!("{key}/")));
                }
                model.objects.insert(key, (model.revision, value));
            } else {
                prop_assert_eq!(result, Err(CommitError::Conflict(at)));
            }
        }
        Op::Delete { key } => {
            let key = format!("g/things/{key}");
            if let Some((at, _)) = model.objects.remove(&key) {
                let batch = Batch { object: Some((key.clone(), Expect::Revision(at), None)), private: vec![] };
                model.revision += 1;
                prop_assert_eq!(store.commit(batch).await, Ok(model.revision));
                model.private.retain(|k, _| !k.starts_with(&format!("{key}/")));
            }
        }
        Op::Private { key, value } => {
            let key = format!("g/things/{key}/hash");
            let bytes = value.map(|v| Bytes::from(vec![v]));
            let batch = Batch { object: None, private: vec![(key.clone(), bytes)] };
            prop_assert_eq!(store.commit(batch).await, Ok(model.revision));
            match value {
                Some(value) => drop(model.private.insert(key, value)),
                None => drop(model.private.remove(&key)),
            }
        }
        Op::Reopen => {}
    }
    Ok(())
}

fn same(store: &Store, model: &Model) -> Result<(), TestCaseError> {
    let (revision, entries) = store.list("g/things/");
    prop_assert_eq!(revision, model.revision);
    let seen: BTreeMap<String, (u64, u32)> = entries
        .iter()
        .map(|(k, e)| (k.to_string(), (e.revision, e.value["spec"].as_u64().and_then(|v| v.try_into().ok()).unwrap())))
        .collect();
    prop_assert_eq!(&seen, &model.objects);
    for key in 0..5 {
        let key = format!("g/things/{key}/hash");
        prop_assert_eq!(store.private(&key).map(|b| b[0]), model.private.get(&key).copied());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever is done, also over closing and opening: what was acknowledged is there, and nothing else.
    #[test]
    fn the_store_is_its_model(ops in prop::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut model = Model::new();
        let mut store = Store::open(&path, &limits()).unwrap();
        for op in &ops {
            if matches!(op, Op::Reopen) {
                store.close();
                store = Store::open(&path, &limits()).unwrap();
            }
            runtime.block_on(step(&store, &mut model, op))?;
            same(&store, &model)?;
        }
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

#[test]
fn p12_a_newer_store_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    {
        let database = redb::Database::create(&path).unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(redb::TableDefinition::<&str, u64>::new("meta")).unwrap().insert("format", 99).unwrap();
        write.commit().unwrap();
    }
    assert!(matches!(Store::open(&path, &limits()), Err(OpenError::Newer { found: 99, .. })));
    assert!(matches!(Store::open(&path, &limits()), Err(OpenError::Newer { found: 99, .. })));
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

//! What a store is, as little as says it, and a property that holds a store to it: the same for every backend.

pub mod backups;
pub mod linear;

use bytes::Bytes;
use moorline_apiserver::{Batch, CommitError, Expect, Limits, Store, Watcher};
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;

/// Small, so that their ends are met.
pub fn limits() -> Limits {
    Limits { body: 64 * 1024, history: 50, object: 1024 * 1024, ..Limits::default() }
}

/// So many cases of a property, or `PROPTEST_CASES`, which a number that is given with it would override.
pub fn cases(usual: u32) -> ProptestConfig {
    let told = std::env::var_os("PROPTEST_CASES").is_some();
    let config = ProptestConfig::default();
    if told { config } else { ProptestConfig { cases: usual, ..config } }
}

#[derive(Debug, Clone)]
pub enum Op {
    Put { key: u8, right: bool, value: u32 },
    Delete { key: u8 },
    Private { key: u8, value: Option<u8> },
    Reopen,
}

pub fn op() -> impl Strategy<Value = Op> {
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
    /// The change that a watcher has to see next.
    changed: Option<(u64, String, Option<u32>)>,
}

impl Model {
    /// An empty store has been at revision 1: 0 means "any" in requests.
    fn new() -> Self {
        Self { objects: BTreeMap::new(), private: BTreeMap::new(), revision: 1, changed: None }
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
                model.changed = Some((model.revision, key.clone(), Some(value)));
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
                model.changed = Some((model.revision, key, None));
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

/// The one change that was made, if one was, and nothing else.
async fn watched(watcher: &mut Watcher, model: &mut Model) -> Result<(), TestCaseError> {
    if let Some((revision, key, value)) = model.changed.take() {
        let event = watcher.next().await.unwrap().unwrap();
        let seen = event.value().map(|object| object["spec"].as_u64().and_then(|v| v.try_into().ok()).unwrap());
        prop_assert_eq!((event.revision, &*event.key, seen), (revision, &*key, value));
    }
    let more = std::future::poll_fn(|context| std::task::Poll::Ready(std::pin::pin!(watcher.next()).poll(context)));
    prop_assert!(more.await.is_pending());
    Ok(())
}

/// Whatever is done, also over closing and opening: what was acknowledged is there, and nothing else; and who watches sees
/// each change once, in order.
pub fn holds(ops: &[Op], open: impl Fn() -> Store) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut model = Model::new();
    let mut store = open();
    let mut watcher = store.watch("g/", 1).unwrap();
    for op in ops {
        if matches!(op, Op::Reopen) {
            drop(watcher);
            store.close();
            store = open();
            watcher = store.watch("g/", model.revision).unwrap();
        }
        runtime.block_on(step(&store, &mut model, op))?;
        same(&store, &model)?;
        runtime.block_on(watched(&mut watcher, &mut model))?;
    }
    Ok(())
}

//! The store in an etcd: the real one, alone and as three, with its members stopped and killed.
//!
//! `make test` runs these, which need Debian's etcd: `cargo test -p moorline-apiserver --test etcd -- --ignored`.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking")]

mod backup;
mod faults;
mod histories;
mod idle;
#[path = "../model/mod.rs"]
mod model;
mod moves;
mod shared;
mod world;

use base64::{Engine, engine::general_purpose::STANDARD};
use model::{cases, holds, limits, op};
use moorline_apiserver::{Batch, CommitError, EtcdError, EtcdPlace, Expect, OpenError, SealError, Store, StoreKey};
use proptest::prelude::*;
use serde_json::json;
use world::Etcds;

fn put(key: &str, expect: Expect, spec: impl serde::Serialize) -> Batch {
    let object = json!({ "metadata": { "name": key }, "spec": spec });
    Batch { object: Some((key.to_owned(), expect, Some(object))), private: vec![] }
}

/// The same property that holds the store in a file.
#[test]
#[ignore = "needs etcd"]
fn the_store_is_its_model() {
    let etcds = Etcds::start(1);
    let rounds = std::cell::Cell::new(0);
    let config = ProptestConfig { failure_persistence: None, ..cases(16) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let done = runner.run(&prop::collection::vec(op(), 1..60), |ops| {
        rounds.set(rounds.get() + 1);
        holds(&ops, || etcds.open(&format!("model/{}", rounds.get())))
    });
    done.unwrap();
    assert!(rounds.get() >= 16);
}

#[test]
#[ignore = "needs etcd"]
fn p12_what_is_no_store_of_this_version_is_refused_untouched() {
    let etcds = Etcds::start(1);
    let connect = |root: &str| Store::connect(etcds.place(root), None, &limits()).map(drop);
    etcds.put("/newer/head", r#"{"format":99,"revision":5,"by":"x"}"#);
    etcds.put("/cut/objects/g/k/1", "{}");
    etcds.put("/broken/head", "{");
    let content = || ["newer", "cut", "broken"].map(|root| etcds.content(root));
    let before = content();
    assert!(before.iter().all(|found| found.as_array().is_some_and(|keys| keys.len() == 1)), "{before:?}");
    for _ in 0..2 {
        assert!(matches!(connect("newer"), Err(OpenError::Etcd { source: EtcdError::Newer { found: 99 }, .. })));
        assert!(matches!(connect("cut"), Err(OpenError::Etcd { source: EtcdError::Unfinished, .. })));
        assert!(matches!(connect("broken"), Err(OpenError::Etcd { source: EtcdError::Corrupt(_), .. })));
    }
    assert_eq!(content(), before, "not a key of them was written, nor written again");
    // A store beside them, whose root begins with the same letters, is another one.
    connect("new").unwrap();
}

#[tokio::test]
#[ignore = "needs etcd"]
async fn an_object_that_etcd_does_not_take_is_refused_and_harms_nobody() {
    let etcds = Etcds::start(1);
    let store = etcds.open("large");
    let large = "x".repeat(1600 << 10);
    assert!(matches!(store.commit(put("g/k/1", Expect::Absent, large)).await, Err(CommitError::TooLarge(_))));
    assert_eq!(store.healthy(), Ok(()));
    assert_eq!(store.commit(put("g/k/1", Expect::Absent, "x".repeat(1 << 20))).await, Ok(2));
    store.close();
    let store = etcds.open("large");
    assert_eq!(store.get("g/k/1").unwrap().value["spec"].as_str().unwrap().len(), 1 << 20);
}

#[test]
#[ignore = "needs etcd"]
fn no_etcd_is_said_with_its_address() {
    let place = EtcdPlace::parse(&format!("etcd://127.0.0.1:{}", world::free_port()), None).unwrap();
    let error = Store::connect(place, None, &limits()).unwrap_err().to_string();
    assert!(error.contains("etcd://127.0.0.1") && error.contains("does not answer"), "{error}");
}

/// A store goes from a file to an etcd and back: the same objects, records and revisions, and its history goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs etcd"]
async fn u06_a_store_moves_to_etcd_and_back() {
    let etcds = Etcds::start(1);
    let dir = tempfile::tempdir().unwrap();
    let file = Store::open(&dir.path().join("s"), &limits()).unwrap();
    for i in 0..300 {
        let mut batch = put(&format!("g/k/{i}"), Expect::Absent, "x".repeat(i * 10));
        batch.private.push((format!("g/k/{i}/hash"), Some(bytes::Bytes::from(vec![i as u8; 40]))));
        file.commit(batch).await.unwrap();
    }
    file.commit(Batch { object: Some(("g/k/7".into(), Expect::Revision(9), None)), private: vec![] }).await.unwrap();
    let content = |store: &Store| {
        let objects: Vec<_> =
            store.list("g/").1.into_iter().map(|(k, e)| (k, e.revision, e.value.to_string())).collect();
        let records: Vec<_> = (0..300).map(|i| store.private(&format!("g/k/{i}/hash"))).collect();
        (store.revision(), objects, records)
    };
    let before = content(&file);
    // An earlier one that was cut short leaves what is no store, and what is no object of this one.
    etcds.put("/moved/objects/g/k/stale", "{}");
    assert!(matches!(Store::connect(etcds.place("moved"), None, &limits()), Err(OpenError::Etcd { .. })));
    file.freeze().await.unwrap();
    assert_eq!(file.commit(put("g/late", Expect::Absent, 1)).await, Err(CommitError::Moving));
    assert_eq!(content(&file), before, "and it can be read");
    let place = etcds.place("moved");
    let (source, there) = (file.clone(), place.clone());
    let info = tokio::task::spawn_blocking(move || source.copy_to_etcd(&there)).await.unwrap().unwrap();
    assert_eq!((info.revision, info.objects), (302, 299));
    // Made again, as after one that was cut short at its very end.
    let (source, there) = (file.clone(), place.clone());
    let again = tokio::task::spawn_blocking(move || source.copy_to_etcd(&there)).await.unwrap().unwrap();
    assert_eq!(again, info);

    let moved = etcds.open("moved");
    assert_eq!(content(&moved), before);
    assert!(moved.watch("g/", before.0).is_ok(), "who had seen all of it goes on");
    assert_eq!(moved.commit(put("g/late", Expect::Absent, 1)).await, Ok(303));
    // It has gone on, and is nobody's copy.
    let (source, there) = (file.clone(), place.clone());
    let again = tokio::task::spawn_blocking(move || source.copy_to_etcd(&there)).await.unwrap().unwrap_err();
    assert!(matches!(again, OpenError::Etcd { source: EtcdError::Exists, .. }), "{again}");
    let (source, to) = (moved.clone(), dir.path().join("back"));
    tokio::task::spawn_blocking(move || source.backup(&to)).await.unwrap().unwrap();
    let back = Store::open(&dir.path().join("back"), &limits()).unwrap();
    assert_eq!(content(&back), content(&moved));
    file.thaw();
    assert_eq!(file.commit(put("g/late", Expect::Absent, 1)).await, Ok(303));
}

/// Neither in etcd's answers nor in its files.
#[tokio::test]
#[ignore = "needs etcd"]
async fn what_a_sealed_store_keeps_in_etcd_is_never_readable() {
    let etcds = Etcds::start(1);
    let key = |byte| Some(StoreKey::read(&STANDARD.encode([byte; 32])).unwrap());
    let open = |key| Store::connect(etcds.place("sealed"), key, &limits());
    let store = open(key(1)).unwrap();
    let mut batch = put("g/k/1", Expect::Absent, "hunter2-in-an-object");
    batch.private.push(("g/k/1/hash".into(), Some(bytes::Bytes::from_static(b"hunter2-in-a-record"))));
    store.commit(batch).await.unwrap();
    assert!(etcds.shows("g/k/1"), "this test sees what is readable");
    assert!(!etcds.shows("hunter2"));
    // Another hub sees its changes, and moves it elsewhere as it is.
    let other = open(key(1)).unwrap();
    let at = store.commit(put("g/k/2", Expect::Absent, 2)).await.unwrap();
    let mut watcher = other.watch("g/", 2).unwrap();
    assert_eq!(watcher.next().await.unwrap().unwrap().revision, at);
    let copy = etcds.place("copy");
    tokio::task::spawn_blocking(move || other.copy_to_etcd(&copy)).await.unwrap().unwrap();
    assert!(!etcds.shows("hunter2"));
    store.close();
    for root in ["sealed", "copy"] {
        let open = |key| Store::connect(etcds.place(root), key, &limits());
        assert!(matches!(open(None), Err(OpenError::Sealed { source: SealError::KeyNeeded, .. })));
        assert!(matches!(open(key(2)), Err(OpenError::Sealed { source: SealError::WrongKey, .. })));
        let again = open(key(1)).unwrap();
        assert_eq!(again.get("g/k/1").unwrap().value["spec"], "hunter2-in-an-object");
        assert_eq!(again.private("g/k/1/hash").unwrap(), "hunter2-in-a-record");
    }
    etcds.open("plain").close();
    let refused = Store::connect(etcds.place("plain"), key(1), &limits());
    assert!(matches!(refused, Err(OpenError::Sealed { source: SealError::NotSealed, .. })));
}

/// Only who has the right certificate, and only an etcd that has one.
#[tokio::test]
#[ignore = "needs etcd"]
async fn etcd_is_reached_by_tls() {
    let etcds = Etcds::with_tls();
    let store = Store::connect(etcds.place("tls"), None, &limits()).unwrap();
    assert_eq!(store.commit(put("g/k/1", Expect::Absent, 1)).await, Ok(2));
    store.close();
    for stranger in [etcds.place_without_certificate("tls"), etcds.place_of_another_authority("tls")] {
        let error =
            tokio::task::spawn_blocking(move || Store::connect(stranger, None, &limits()).unwrap_err().to_string());
        let error = error.await.unwrap();
        assert!(error.contains("certificate") || error.contains("tls") || error.contains("handshake"), "{error}");
    }
}

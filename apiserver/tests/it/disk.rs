//! What a failing disk does to the store: nothing half written, reads go on, and a clear word on what comes next.

use super::*;
use moorline_apiserver::{Batch, CommitError, Disk, Expect, StorageBackend};
use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicI64, AtomicU8, Ordering},
    },
    time::Duration,
};

const WELL: u8 = 0;
const FULL: u8 = 1;
const SYNC: u8 = 2;
const SYNC_FULL: u8 = 3;
/// The write is done, and said to have failed.
const LATE: u8 = 4;

/// A disk in memory that fails on demand.
#[derive(Debug, Clone, Default)]
struct Faulty(Arc<Inner>);

/// What a system has of a file: what it shows to who reads, and what is on the disk.
#[derive(Debug, Default)]
struct Pages {
    seen: Vec<u8>,
    kept: Vec<u8>,
    /// What of the one is not in the other yet. `None` for the bytes: it was made longer or shorter.
    dirty: Vec<(usize, Option<Vec<u8>>)>,
}

impl Pages {
    /// Linux takes what a failed sync could not write for written: who reads sees it, and no later sync writes it.
    fn sync(&mut self, fails: bool) {
        for (at, data) in self.dirty.drain(..).filter(|_| !fails) {
            match data {
                None => self.kept.resize(at, 0),
                Some(data) => {
                    let end = self.kept.len().max(at + data.len());
                    self.kept.resize(end, 0);
                    self.kept[at..at + data.len()].copy_from_slice(&data);
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    pages: Mutex<Pages>,
    fault: AtomicU8,
    /// Writes that still succeed once the fault is set.
    grace: AtomicI64,
}

impl Faulty {
    fn set(&self, fault: u8, after: i64) {
        self.0.grace.store(after, Ordering::SeqCst);
        self.0.fault.store(fault, Ordering::SeqCst);
    }

    /// The machine starts anew: what did not get to the disk is gone.
    fn restart(&self) {
        let mut pages = self.0.pages.lock().unwrap();
        pages.seen = pages.kept.clone();
        pages.dirty.clear();
    }

    fn is_full(&self, fault: u8) -> io::Result<()> {
        if self.0.fault.load(Ordering::SeqCst) == fault && self.0.grace.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.pages.lock().unwrap().seen.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (offset, pages) = (usize::try_from(offset).unwrap(), self.0.pages.lock().unwrap());
        out.copy_from_slice(&pages.seen[offset..offset + out.len()]);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.is_full(FULL)?;
        let (len, mut pages) = (usize::try_from(len).unwrap(), self.0.pages.lock().unwrap());
        pages.seen.resize(len, 0);
        pages.dirty.push((len, None));
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        let fault = self.0.fault.load(Ordering::SeqCst);
        self.0.pages.lock().unwrap().sync(matches!(fault, SYNC | SYNC_FULL));
        match fault {
            SYNC => Err(io::Error::from_raw_os_error(5)),
            SYNC_FULL => Err(io::ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.is_full(FULL)?;
        {
            let (offset, mut pages) = (usize::try_from(offset).unwrap(), self.0.pages.lock().unwrap());
            pages.seen[offset..offset + data.len()].copy_from_slice(data);
            pages.dirty.push((offset, Some(data.to_vec())));
        }
        self.is_full(LATE)
    }
}

impl Disk for Faulty {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }
    fn name(&self) -> String {
        "memory".into()
    }
}

fn quick() -> Limits {
    Limits { full_retry: Duration::ZERO, ..limits() }
}

fn thing(i: u32) -> Batch {
    let object = json!({ "metadata": {}, "spec": "x".repeat(2000) });
    let private = vec![(format!("t/things/{i}/hash"), Some(Bytes::from_static(b"h")))];
    Batch { object: Some((format!("t/things/{i}"), Expect::Absent, Some(object))), private }
}

fn world(disk: &Faulty) -> World {
    let store = Store::open_on(disk.clone(), &quick()).unwrap();
    World::over(store, tempfile::tempdir().unwrap(), quick())
}

fn store_errors(world: &World) -> f64 {
    let all = world.registry.gather();
    all.iter().find(|f| f.name() == "moorline_apiserver_store_errors_total").unwrap().get_metric()[0]
        .get_counter()
        .get_value()
}

#[tokio::test]
async fn f32_a_full_disk_refuses_writes_and_takes_them_again() {
    let disk = Faulty::default();
    let world = world(&disk);
    world.boat("ada", json!({})).await;
    disk.set(FULL, 0);
    let boat = json!({ "metadata": { "name": "bob" }, "spec": { "metres": 1 } }).to_string();
    let (code, status) = world.call("POST", "/boats", "application/json", &boat).await;
    assert_eq!((code.as_u16(), &status["reason"]), (503, &json!("ServiceUnavailable")));
    assert_eq!(status["details"]["retryAfterSeconds"], 5);
    assert!(status["message"].as_str().unwrap().contains("until there is space"), "{status}");
    assert!(world.server.store().healthy().is_err());
    assert!(store_errors(&world) >= 1.0);
    assert_eq!(world.get("/boats/ada").await.0, 200, "reads go on");
    assert_eq!(world.get("/boats/bob").await.0, 404);

    disk.set(WELL, 0);
    let (code, made) = world.call("POST", "/boats", "application/json", &boat).await;
    assert!(matches!(code.as_u16(), 201 | 409), "{made}");
    assert_eq!(world.server.store().healthy(), Ok(()));
    assert_eq!(world.get("/boats").await.1["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn f32_a_readiness_probe_is_enough_to_come_back() {
    let disk = Faulty::default();
    let store = Store::open_on(disk.clone(), &quick()).unwrap();
    disk.set(FULL, 0);
    assert!(matches!(store.commit(thing(1)).await, Err(CommitError::Full(_))));
    disk.set(WELL, 0);
    // Each probe asks the writer for one attempt; how soon it comes to it is its own.
    let probing = async {
        while store.healthy().is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), probing).await.expect("it came back");
}

/// Wherever in a commit the space ends: after it is there again, and after a restart, each object is whole or not there,
/// all that was acknowledged is, and revisions go on.
#[tokio::test]
async fn p06_space_that_ends_at_any_write_leaves_nothing_half_there() {
    let (mut refused, mut came_true) = (0, 0);
    for (fault, after) in [FULL, LATE].into_iter().flat_map(|fault| (0..40).map(move |after| (fault, after))) {
        let disk = Faulty::default();
        let store = Store::open_on(disk.clone(), &quick()).unwrap();
        let first = store.commit(thing(0)).await.unwrap();
        disk.set(fault, after);
        let second = store.commit(thing(1)).await;
        refused += u32::from(second.is_err());
        assert!(matches!(second, Ok(_) | Err(CommitError::Full(_))), "{second:?}");
        disk.set(WELL, 0);
        let third = store.commit(thing(2)).await.unwrap();
        assert!(first < third, "{first} {third}");
        let check = |store: &Store| {
            assert_eq!(store.revision(), third);
            assert!(store.get("t/things/0").is_some() && store.get("t/things/2").is_some());
            let (object, private) = (store.get("t/things/1"), store.private("t/things/1/hash"));
            assert_eq!(object.is_some(), private.is_some(), "half of a batch after {after} writes");
            assert!(second.is_err() || object.is_some(), "an acknowledged write is lost");
            object.is_some()
        };
        let there = check(&store);
        came_true += u32::from(second.is_err() && there);
        store.close();
        assert_eq!(check(&Store::open_on(disk, &quick()).unwrap()), there, "a restart sees something else");
    }
    assert!(refused > 2, "the fault never struck");
    assert!(came_true > 0, "no refused write was found to be there after all");
}

#[tokio::test]
async fn f33_a_failed_fsync_stops_writes_for_good_and_loses_nothing_acknowledged() {
    // Also one that only says that the disk is full: what was written before it is as uncertain.
    for fault in [SYNC, SYNC_FULL] {
        fails_to_sync(fault).await;
    }
}

async fn fails_to_sync(fault: u8) {
    let disk = Faulty::default();
    let world = world(&disk);
    world.boat("ada", json!({})).await;
    disk.set(fault, 0);
    let boat = json!({ "metadata": { "name": "bob" }, "spec": { "metres": 1 } }).to_string();
    let (code, status) = world.call("POST", "/boats", "application/json", &boat).await;
    assert_eq!((code.as_u16(), &status["reason"]), (500, &json!("InternalError")));
    disk.set(WELL, 0);
    // The disk may say that all is well: what the failed fsync left is not known.
    let (code, status) = world.call("POST", "/boats", "application/json", &boat).await;
    assert_eq!(code, 500);
    assert!(status["message"].as_str().unwrap().contains("until it is started again"), "{status}");
    assert!(world.server.store().healthy().is_err());
    assert_eq!(world.get("/boats/ada").await.0, 200);
    drop(world);
    disk.restart();
    let store = Store::open_on(disk.clone(), &quick()).unwrap();
    assert!(store.has("moorline.dev/boats/ada"));
    assert!(!store.has("moorline.dev/boats/bob"), "this test loses what the sync did not write");
    // Of what is written now all is kept.
    let (at, thing) = (store.revision(), thing(1));
    assert_eq!(store.commit(thing).await, Ok(at + 1));
    store.close();
    disk.restart();
    let store = Store::open_on(disk, &quick()).unwrap();
    assert!(store.has("moorline.dev/boats/ada") && store.has("t/things/1"));
}

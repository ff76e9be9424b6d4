//! A disk that stands still: who reads does not wait for it, who writes is told in time, and what was acknowledged stays.

use super::*;
use futures_util::FutureExt;
use moorline_apiserver::{Batch, CommitError, Disk, Expect, StorageBackend};
use redb::backends::InMemoryBackend;
use std::{
    io,
    sync::{Condvar, Mutex},
    time::{Duration, Instant},
};

/// A disk in memory whose syncs wait for as long as it stands still.
#[derive(Debug, Clone, Default)]
struct Slow(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: InMemoryBackend,
    /// Whether it stands still, and how many wait for it.
    still: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Default for Inner {
    fn default() -> Self {
        Self { bytes: InMemoryBackend::new(), still: Mutex::default(), changed: Condvar::new() }
    }
}

impl Slow {
    fn stand(&self, still: bool) {
        self.0.still.lock().unwrap().0 = still;
        self.0.changed.notify_all();
    }

    fn waits(&self) -> bool {
        0 < self.0.still.lock().unwrap().1
    }
}

impl StorageBackend for Slow {
    fn len(&self) -> io::Result<u64> {
        self.0.bytes.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.bytes.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.bytes.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut still = self.0.still.lock().unwrap();
        still.1 += 1;
        still = self.0.changed.wait_while(still, |(still, _)| *still).unwrap();
        still.1 -= 1;
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.bytes.write(offset, data)
    }
}

impl Disk for Slow {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(self.clone()))
    }
    fn name(&self) -> String {
        "memory".into()
    }
}

/// Longest that a writer waits, and how many do at a time.
const PATIENCE: Duration = Duration::from_millis(500);
const WRITERS: usize = 40;

fn boat(name: &str) -> String {
    json!({ "metadata": { "name": name }, "spec": { "metres": 1 } }).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_stands_still_holds_up_nobody_who_reads() {
    let disk = Slow::default();
    let limits = Limits { write_time: PATIENCE, queued_writes: 8, ..limits() };
    let store = Store::open_on(disk.clone(), &limits).unwrap();
    let world = World::over(store, tempfile::tempdir().unwrap(), limits);
    world.boat("ada", json!({})).await;
    let at = world.server.store().revision();
    let mut watcher = world.server.store().watch("moorline.dev/boats/", at).unwrap();
    disk.stand(true);
    let begun = Instant::now();
    let (asked, read) = (boat("first"), async {
        waits(&disk).await;
        // What is not known to be on the disk is shown to nobody.
        for _ in 0..50 {
            assert_eq!(world.get("/boats/ada").await.0, 200);
            assert_eq!(world.get("/boats").await.1["items"].as_array().unwrap().len(), 1);
            assert_eq!(world.get("/boats/first").await.0, 404);
        }
        assert!(watcher.next().now_or_never().is_none());
    });
    let ((code, status), ()) = tokio::join!(world.call("POST", "/boats", "application/json", &asked), read);
    assert_eq!((code.as_u16(), &status["details"]["retryAfterSeconds"]), (503, &json!(5)), "{status}");
    // More than there are places for: each is told, and none waits for the others.
    let names: Vec<String> = (0..WRITERS).map(|i| boat(&format!("n{i}"))).collect();
    let more = names.iter().map(|body| world.call("POST", "/boats", "application/json", body));
    for (code, status) in futures_util::future::join_all(more).await {
        assert_eq!(code, 503, "{status}");
    }
    // Two waits one after the other; the rest of it guards against a hang alone.
    assert!(begun.elapsed() < PATIENCE * 2 + Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(world.get("/boats").await.1["items"].as_array().unwrap().len(), 1);

    disk.stand(false);
    // What was refused may have been made after all: it says so, and nothing is there twice or in part.
    let again = async {
        while world.call("POST", "/boats", "application/json", &asked).await.0 == 503 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("it is taken again");
    assert_eq!(world.call("POST", "/boats", "application/json", &asked).await.0, 409);
    assert_eq!(world.server.store().healthy(), Ok(()));
    let event = watcher.next().await.unwrap().unwrap();
    assert_eq!((event.revision, &*event.key), (at + 1, "moorline.dev/boats/first"), "no gap");
}

/// Until a write has come to the disk.
async fn waits(disk: &Slow) {
    let comes = async {
        while !disk.waits() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), comes).await.is_ok(), "no write comes to the disk");
}

/// Who was told that it took too long may have asked for something else since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_waits_for_any_more_is_not_written() {
    let disk = Slow::default();
    let store = Store::open_on(disk.clone(), &Limits { write_time: PATIENCE, ..limits() }).unwrap();
    let put = |key: &str| {
        let object = Some((format!("t/{key}"), Expect::Absent, Some(json!({ "metadata": {} }))));
        store.commit(Batch { object, private: vec![] })
    };
    disk.stand(true);
    let late = async {
        waits(&disk).await;
        put("second").await
    };
    let (first, second) = tokio::join!(put("first"), late);
    assert_eq!((first, second), (Err(CommitError::Overloaded), Err(CommitError::Overloaded)));
    disk.stand(false);
    // Whoever comes after them has them behind it.
    let after = async { while let Err(CommitError::Overloaded) = put("third").await {} };
    tokio::time::timeout(Duration::from_secs(20), after).await.expect("it is taken again");
    assert!(store.has("t/first"), "it was being written");
    assert!(!store.has("t/second"), "it was not, and was refused");
}

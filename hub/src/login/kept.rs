//! Locks outlive the hub: who is locked out is one record of the store, written when that changes and read at the start.
//! Hubs that share a store share the record: each puts its own locks beside those that are there, takes out what it let in
//! again, and lets in what another took out.
//! Failures that lock nobody yet are not kept: strangers would cause a write with each.

use super::lockout::{Had, Lockouts, Locks, Merged};
use crate::records::{RecordError, Records};
use bytes::Bytes;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// Where they are kept, in the keyspace that no API serves.
const RECORD: &str = "moorline.dev/lockouts";
/// Locks of users, and of addresses, that are kept at most: those that end last. A name has 256 bytes at most, so all of
/// them stay under what one write to etcd may have (1.5 MiB).
const MOST: usize = 500;
/// Between two writes, whether the first failed or not.
const PAUSE: Duration = Duration::from_secs(5);

/// What is kept, and until when of all changes it is.
#[derive(Debug)]
pub(super) struct Kept {
    lockouts: Arc<Lockouts>,
    /// Held while it is being written.
    written: tokio::sync::Mutex<Written>,
}

/// What this hub has written, or read at the start.
#[derive(Debug, Default)]
struct Written {
    /// The last change of it.
    changes: u64,
    /// All locks that the hub had then, and what was kept of them.
    had: Arc<Had>,
}

/// Makes the record of what stands there by then.
type Merge = Box<dyn Fn(Option<Bytes>) -> Result<Bytes, RecordError> + Send + Sync>;

impl Kept {
    /// Takes up the locks that an earlier hub has kept.
    pub fn open(lockouts: Arc<Lockouts>, records: &Records) -> Self {
        let record = read(records.secret(RECORD)).unwrap_or_default();
        lockouts.take_up(record.clone(), SystemTime::now());
        Self::of(lockouts, &record)
    }

    fn of(lockouts: Arc<Lockouts>, record: &Locks) -> Self {
        let had = Arc::new(Had::new(&lockouts.locks(SystemTime::now()), record));
        Self { lockouts, written: tokio::sync::Mutex::new(Written { changes: 0, had }) }
    }

    /// Writes what has changed since the last write, if anything has. Logins do not wait for it.
    ///
    /// # Errors
    /// The store's; what was locked stays so in memory.
    pub async fn write(&self, records: &Records) -> Result<(), RecordError> {
        self.write_by(|merge| records.merge_secret(RECORD, merge)).await
    }

    async fn write_by<W>(&self, put: impl FnOnce(Merge) -> W) -> Result<(), RecordError>
    where
        W: Future<Output = Result<(), RecordError>>,
    {
        let mut written = self.written.lock().await;
        let changes = self.lockouts.changes();
        if changes != written.changes {
            let ours = Arc::new(self.lockouts.locks(SystemTime::now()));
            let done = Arc::new(Mutex::new(Merged::default()));
            let (own, had, told) = (Arc::clone(&ours), Arc::clone(&written.had), Arc::clone(&done));
            // It may be written though no answer comes, and then what is let in again has to be taken out.
            written.had = Arc::new(had.perhaps(&ours, SystemTime::now()));
            put(Box::new(move |kept| {
                let merged = own.merged(&had, read(kept), SystemTime::now(), MOST);
                let bytes = serde_json::to_vec(&merged.locks).map(Bytes::from);
                *told.lock().unwrap_or_else(PoisonError::into_inner) = merged;
                bytes.map_err(|e| RecordError::Failed(e.to_string()))
            }))
            .await?;
            let Merged { locks, lifted } = std::mem::take(&mut *done.lock().unwrap_or_else(PoisonError::into_inner));
            self.lockouts.lift(&lifted, SystemTime::now());
            *written = Written { changes, had: Arc::new(Had::new(&ours, &locks)) };
        }
        Ok(())
    }

    /// Keeps them until `stop`: one write at a time, of everything that has changed by then.
    pub async fn run(&self, records: &Records, stop: CancellationToken) {
        let put = |merge| records.merge_secret(RECORD, merge);
        stop.run_until_cancelled(self.run_by(put)).await;
    }

    async fn run_by<W>(&self, put: impl Fn(Merge) -> W)
    where
        W: Future<Output = Result<(), RecordError>>,
    {
        loop {
            self.lockouts.changed().await;
            while let Err(error) = self.write_by(&put).await {
                tracing::warn!("who is locked out is known to this run of the hub alone: {error}");
                tokio::time::sleep(PAUSE).await;
            }
            // Strangers lock out whom they like: what they cause is one write now and then.
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// `None`: there is nothing, or what is there cannot be read.
fn read(kept: Option<Bytes>) -> Option<Locks> {
    let told = |error: &serde_json::Error| {
        tracing::error!("who was locked out is so no more, for what was kept of it cannot be read: {error}");
    };
    serde_json::from_slice(&kept?).inspect_err(told).ok()
}

#[cfg(test)]
mod tests {
    use super::{super::lockout::Lockout, *};
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::Mutex,
    };
    use tokio::sync::{Notify, mpsc};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn kept(user_failures: u32) -> Kept {
        let rules = Lockout { user_failures, address_failures: 1000, seconds: 900 };
        Kept::of(Arc::new(Lockouts::new(&rules, 10_000)), &Locks::default())
    }

    /// A hub that starts with what is in the record.
    fn started(seconds: u64, record: &[u8]) -> Kept {
        let rules = Lockout { user_failures: 1, address_failures: 1000, seconds };
        let (lockouts, record) = (Arc::new(Lockouts::new(&rules, 10_000)), read(Some(Bytes::copy_from_slice(record))));
        let record = record.unwrap();
        lockouts.take_up(record.clone(), SystemTime::now());
        Kept::of(lockouts, &record)
    }

    /// What a hub makes of a record, and whether it hears that it has.
    async fn keep(hub: &Kept, record: &Mutex<Option<Bytes>>, heard: bool) -> Vec<String> {
        let put = |merge: Merge| {
            let mut record = record.lock().unwrap();
            *record = Some(merge(record.take()).unwrap());
            std::future::ready(if heard { Ok(()) } else { Err(RecordError::Failed("no answer".to_owned())) })
        };
        assert_eq!(hub.write_by(put).await.is_ok(), heard);
        let mut names = names(record.lock().unwrap().as_ref().unwrap());
        names.sort();
        names
    }

    /// A store that nobody else writes to.
    fn alone(merge: Merge) -> Bytes {
        merge(None).unwrap()
    }

    fn wrong(kept: &Kept, user: &str) {
        drop(kept.lockouts.attempt(user, HERE));
    }

    fn names(bytes: &[u8]) -> Vec<String> {
        let known = kept(1);
        known.lockouts.take_up(serde_json::from_slice(bytes).unwrap(), SystemTime::now());
        known.lockouts.locked().into_iter().map(|one| one.name).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn locks_are_written_as_they_come_and_go_and_failures_are_not() {
        let kept = Arc::new(kept(2));
        let (told, mut seen) = mpsc::unbounded_channel();
        let put = move |merge| std::future::ready(told.send(alone(merge)).map_err(|_| RecordError::NotFound));
        let running = Arc::clone(&kept);
        let task = tokio::spawn(async move { running.run_by(put).await });
        wrong(&kept, "ann");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(seen.try_recv().is_err(), "one failure locks nobody");
        wrong(&kept, "ann");
        assert_eq!(names(&seen.recv().await.unwrap()), ["ann"]);
        wrong(&kept, "ann");
        assert!(kept.lockouts.unlock_user("ann"));
        assert!(names(&seen.recv().await.unwrap()).is_empty(), "who was let in again is not locked out by a restart");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(seen.try_recv().is_err(), "one write for each");
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_fails_or_hangs_opens_no_lock_and_holds_up_no_login() {
        let kept = Arc::new(kept(1));
        let (gate, tries) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
        let (told, mut seen) = mpsc::unbounded_channel();
        let (at, noted) = (Arc::clone(&gate), Arc::clone(&tries));
        let put = move |merge| {
            noted.lock().unwrap().push(names(&alone(merge)));
            let (at, told, first) = (Arc::clone(&at), told.clone(), noted.lock().unwrap().len() == 1);
            async move {
                told.send(()).unwrap();
                at.notified().await;
                if first { Err(RecordError::Failed("full".to_owned())) } else { Ok(()) }
            }
        };
        let running = Arc::clone(&kept);
        let task = tokio::spawn(async move { running.run_by(put).await });
        let mut next_try = async || tokio::time::timeout(2 * PAUSE, seen.recv()).await.expect("it is tried").unwrap();
        wrong(&kept, "ann");
        next_try().await;
        // It is being written, and does not come to an end: nobody waits for it.
        assert!(kept.lockouts.attempt("ann", HERE).is_err());
        gate.notify_one();
        next_try().await;
        assert!(kept.lockouts.attempt("ann", HERE).is_err(), "a write that failed lets nobody in, and is made again");
        wrong(&kept, "ben");
        assert!(kept.lockouts.attempt("ben", HERE).is_err());
        gate.notify_one();
        next_try().await;
        gate.notify_one();
        kept.write_by(|_| async { panic!("there was nothing left to write") }).await.unwrap();
        let want = [vec!["ann"], vec!["ann"], vec!["ann", "ben"]];
        assert_eq!(*tries.lock().unwrap(), want, "what came meanwhile goes with the next");
        task.abort();
    }

    /// Two hubs on one store, whose record each reads as it stands when it writes.
    #[tokio::test]
    async fn hubs_that_share_a_store_keep_each_others_locks() {
        let (one, other, record) = (kept(1), kept(1), Mutex::new(None));
        let keep = async |hub: &Kept| keep(hub, &record, true).await;
        wrong(&one, "ann");
        assert_eq!(keep(&one).await, ["ann"]);
        wrong(&other, "ben");
        assert_eq!(keep(&other).await, ["ann", "ben"]);
        wrong(&one, "cid");
        assert_eq!(keep(&one).await, ["ann", "ben", "cid"]);
        assert!(one.lockouts.unlock_user("ann"));
        assert_eq!(keep(&one).await, ["ben", "cid"], "what it let in again is not brought back by its own record");
        wrong(&other, "dan");
        assert_eq!(keep(&other).await, ["ben", "cid", "dan"]);
    }

    #[tokio::test]
    async fn who_was_let_in_again_is_not_brought_back_by_the_record() {
        let (one, record) = (kept(1), Mutex::new(None));
        ["ann", "ben", "cid"].iter().for_each(|user| wrong(&one, user));
        assert_eq!(keep(&one, &record, true).await, ["ann", "ben", "cid"]);
        let bytes = || record.lock().unwrap().clone().unwrap();
        // The rules of the others are milder than the lock that is in the record.
        let (mild, other) = (started(60, &bytes()), started(60, &bytes()));
        assert!(mild.lockouts.unlock_user("ann"));
        assert_eq!(keep(&mild, &record, true).await, ["ben", "cid"]);
        // One that has it from the record still learns of it as it writes.
        assert!(other.lockouts.attempt("ann", HERE).is_err());
        wrong(&other, "dan");
        assert_eq!(keep(&other, &record, true).await, ["ben", "cid", "dan"]);
        assert!(other.lockouts.attempt("ann", HERE).is_ok());
        assert_eq!(keep(&other, &record, true).await, ["ann", "ben", "cid", "dan"], "who fails anew is locked anew");
        // What was written without an answer is taken out as well.
        wrong(&mild, "eve");
        assert!(keep(&mild, &record, false).await.contains(&"eve".to_owned()));
        assert!(mild.lockouts.unlock_user("eve"));
        assert_eq!(keep(&mild, &record, true).await, ["ann", "ben", "cid", "dan"]);
    }

    #[tokio::test]
    async fn as_many_are_kept_as_one_write_takes() {
        let kept = kept(1);
        // The longest name there is, of what takes most room as text.
        (0..=MOST).for_each(|n| wrong(&kept, &format!("{n:03}{}", "\u{1}".repeat(253))));
        let mut size = 0;
        let put = |merge| {
            let bytes = alone(merge);
            size = bytes.len();
            assert_eq!(names(&bytes).len(), MOST);
            std::future::ready(Ok(()))
        };
        kept.write_by(put).await.unwrap();
        assert!((1..1_500_000).contains(&size), "{size}");
    }
}

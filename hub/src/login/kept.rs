//! Locks outlive the hub: who is locked out is one record of the store, written when that changes and read at the start.
//! Failures that lock nobody yet are not kept: strangers would cause a write with each.

use super::lockout::{Lockouts, Locks};
use crate::records::{RecordError, Records};
use bytes::Bytes;
use std::{
    sync::Arc,
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
    /// The last change that was written; held while one is being written.
    written: tokio::sync::Mutex<u64>,
}

impl Kept {
    /// Takes up the locks that an earlier hub has kept.
    pub fn open(lockouts: Arc<Lockouts>, records: &Records) -> Self {
        match records.secret(RECORD).map(|bytes| serde_json::from_slice::<Locks>(&bytes)).transpose() {
            Ok(locks) => lockouts.take_up(locks.unwrap_or_default(), SystemTime::now()),
            Err(error) => tracing::error!("nobody is locked out any more, for what was kept cannot be read: {error}"),
        }
        Self { lockouts, written: tokio::sync::Mutex::default() }
    }

    /// Writes what has changed since the last write, if anything has. Logins do not wait for it.
    ///
    /// # Errors
    /// The store's; what was locked stays so in memory.
    pub async fn write(&self, records: &Records) -> Result<(), RecordError> {
        self.write_by(|bytes| records.set_secret(RECORD.to_owned(), bytes)).await
    }

    async fn write_by<W>(&self, put: impl FnOnce(Bytes) -> W) -> Result<(), RecordError>
    where
        W: Future<Output = Result<(), RecordError>>,
    {
        let mut written = self.written.lock().await;
        let changes = self.lockouts.changes();
        if changes != *written {
            let locks = self.lockouts.locks(SystemTime::now(), MOST);
            let bytes = serde_json::to_vec(&locks).map_err(|e| RecordError::Failed(e.to_string()))?;
            put(bytes.into()).await?;
            *written = changes;
        }
        Ok(())
    }

    /// Keeps them until `stop`: one write at a time, of everything that has changed by then.
    pub async fn run(&self, records: &Records, stop: CancellationToken) {
        let put = |bytes| records.set_secret(RECORD.to_owned(), bytes);
        stop.run_until_cancelled(self.run_by(put)).await;
    }

    async fn run_by<W>(&self, put: impl Fn(Bytes) -> W)
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
        Kept { lockouts: Arc::new(Lockouts::new(&rules, 10_000)), written: tokio::sync::Mutex::default() }
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
        let put = move |bytes: Bytes| std::future::ready(told.send(bytes).map_err(|_| RecordError::NotFound));
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
        let put = move |bytes: Bytes| {
            noted.lock().unwrap().push(names(&bytes));
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

    #[tokio::test]
    async fn as_many_are_kept_as_one_write_takes() {
        let kept = kept(1);
        // The longest name there is, of what takes most room as text.
        (0..=MOST).for_each(|n| wrong(&kept, &format!("{n:03}{}", "\u{1}".repeat(253))));
        let mut size = 0;
        let put = |bytes: Bytes| {
            size = bytes.len();
            assert_eq!(names(&bytes).len(), MOST);
            std::future::ready(Ok(()))
        };
        kept.write_by(put).await.unwrap();
        assert!((1..1_500_000).contains(&size), "{size}");
    }
}

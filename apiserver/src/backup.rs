//! A store's content as one file: a backup is a store of its own, and restoring it is opening it.

use crate::{
    Limits,
    disk::{Disk, File, Redb, With},
    etcd::{Etcd, EtcdPlace},
    seal::StoreKey,
    store::{OpenError, Store},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why there is no backup, or why it was not put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file is in the way: no backup overwrites another, and no restore a store.
    #[error("{0} is there already")]
    Exists(PathBuf),
    /// It cannot be written or read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is no store, or one of a newer version.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupInfo {
    /// The one revision at which all of it was so.
    pub revision: u64,
    /// Objects in it.
    pub objects: usize,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}

impl Store {
    /// Writes all that is stored at this moment into a new file, while reads and writes go on. It is sealed as the store
    /// is. Blocks.
    ///
    /// The file appears under its name once it is whole and on disk.
    ///
    /// # Errors
    /// See [`BackupError`].
    pub fn backup(&self, to: &Path) -> Result<BackupInfo, BackupError> {
        self.copy(to, &self.sealed().into())
    }

    fn copy(&self, to: &Path, with: &With) -> Result<BackupInfo, BackupError> {
        if to.exists() {
            return Err(BackupError::Exists(to.to_owned()));
        }
        let part = part_of(to);
        let _ = fs::remove_file(&part);
        let made = self.copy_on(&File(part.clone()), with).and_then(|info| publish(&part, to).map(|()| info));
        if made.is_err() {
            // On a disk that is full, what was begun is in the way of everybody.
            let _ = fs::remove_file(&part);
        }
        made
    }

    /// Writes all that is stored at this moment to a disk that has nothing yet.
    fn copy_on(&self, disk: &dyn Disk, with: &With) -> Result<BackupInfo, BackupError> {
        let moment = self.moment();
        let (redb, _) = Redb::open(disk, with).map_err(|e| e.named(&disk.name()))?;
        redb.write(&moment.events, &moment.private, Some(moment.revision))
            .map_err(|e| io_error(Path::new(&disk.name()))(io::Error::other(e.to_string())))?;
        Ok(BackupInfo { revision: moment.revision, objects: moment.events.len() })
    }
}

impl Store {
    /// Writes all that is stored at this moment into an etcd that has no store at this place, sealed as the store is. Its
    /// revisions go on there. Blocks.
    ///
    /// # Errors
    /// There is one, or etcd cannot be written: then what is there is no store, and the next try begins anew.
    pub fn copy_to_etcd(&self, place: &EtcdPlace) -> Result<BackupInfo, OpenError> {
        let named = |error: crate::EtcdError| error.named(place.to_string());
        let moment = self.moment();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| named(crate::EtcdError::Unreachable(e.to_string())))?;
        runtime.block_on(Etcd::fill(place, &moment, self.sealed())).map_err(named)?;
        Ok(BackupInfo { revision: moment.revision, objects: moment.events.len() })
    }
}

/// How far a restored store is ahead of its backup. Revisions that clients saw after the backup was made must not come
/// again with other content: all of them are older than this, and a watch from one is told to list again.
const LEAP: u64 = 1_000_000_000;

/// Makes a store out of a backup. The store must not be there yet; its server must not run.
///
/// # Errors
/// See [`BackupError`].
pub fn restore(backup: &Path, to: &Path, key: Option<StoreKey>) -> Result<BackupInfo, BackupError> {
    if to.exists() {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let part = part_of(to);
    let made = prepare(backup, &part, &key.into()).and_then(|info| publish(&part, to).map(|()| info));
    if made.is_err() {
        let _ = fs::remove_file(&part);
    }
    made
}

fn prepare(backup: &Path, part: &Path, with: &With) -> Result<BackupInfo, BackupError> {
    fs::copy(backup, part).map_err(io_error(backup))?;
    // Read as a server will read it: what cannot be opened does not get the name.
    let disk = File(part.to_owned());
    let (redb, state) = Redb::open(&disk, with).map_err(|e| e.named(&disk.name()))?;
    let revision = state.revision.saturating_add(LEAP);
    redb.write(&[], &[], Some(revision)).map_err(|e| io_error(part)(io::Error::other(e.to_string())))?;
    Ok(BackupInfo { revision, objects: state.objects.len() })
}

/// Opens a store for what does not serve it: to back it up while its server does not run.
///
/// # Errors
/// See [`OpenError`]; also when its server does run.
pub fn open_idle(path: &Path, key: Option<StoreKey>) -> Result<Store, OpenError> {
    if !path.exists() {
        return Err(OpenError::Database { path: path.display().to_string(), why: "there is no such file".into() });
    }
    match key {
        Some(key) => Store::open_sealed(path, key, &Limits::default()),
        None => Store::open(path, &Limits::default()),
    }
}

/// Writes a store anew, under a new key of its own that `new` opens, in the place of the old file: nothing that `old` opened,
/// or that was never sealed, is left in it. `new` of `None` leaves it open. Its server must not run. Blocks.
///
/// # Errors
/// See [`BackupError`]; then the store is as it was.
pub fn rotate(path: &Path, old: Option<StoreKey>, new: Option<StoreKey>) -> Result<BackupInfo, BackupError> {
    let store = open_idle(path, old)?;
    let made = part_of(&part_of(path));
    let _ = fs::remove_file(&made);
    let info = store.copy(&made, &new.into());
    let replaced = info.and_then(|info| {
        // The old one is closed only now, so that no other process can have opened it in between and written to it.
        fs::rename(&made, path).map_err(io_error(path))?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder))?;
        Ok(info)
    });
    store.close();
    replaced
}

fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

/// Gives a whole file its name, on disk too.
fn publish(part: &Path, to: &Path) -> Result<(), BackupError> {
    let sync = || {
        fs::File::open(part)?.sync_all()?;
        // Unlike a rename, a link does not replace what came in the meantime.
        fs::hard_link(part, to)?;
        fs::remove_file(part)?;
        match to.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => fs::File::open(".")?.sync_all(),
        }
    };
    sync().map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(to.to_owned()),
        _ => io_error(to)(e),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Batch, Expect};
    use redb::{StorageBackend, backends::InMemoryBackend};
    use std::sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    };

    /// Has room for so many more writes.
    #[derive(Debug, Clone)]
    struct Narrow(Arc<InMemoryBackend>, Arc<AtomicI64>);

    impl Narrow {
        fn room(&self) -> io::Result<()> {
            if self.1.fetch_sub(1, Ordering::SeqCst) <= 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }
    impl StorageBackend for Narrow {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.room().and_then(|()| self.0.set_len(len))
        }
        fn sync_data(&self) -> io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.room().and_then(|()| self.0.write(offset, data))
        }
    }
    impl Disk for Narrow {
        fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
            Ok(Box::new(self.clone()))
        }
        fn name(&self) -> String {
            "narrow".to_owned()
        }
    }

    fn content(store: &Store) -> Vec<String> {
        store.list("g/").1.into_iter().map(|(key, entry)| format!("{key} {} {}", entry.revision, entry.value)).collect()
    }

    #[tokio::test]
    async fn p09_a_disk_that_is_full_in_the_middle_of_a_backup_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store"), &Limits::default()).unwrap();
        let put = |i: u32, text: &str| {
            let object =
                Some((format!("g/k/{i}"), Expect::Absent, Some(serde_json::json!({ "metadata": {}, "spec": text }))));
            store.commit(Batch { object, private: Vec::new() })
        };
        for i in 0..40 {
            put(i, &"x".repeat(2000)).await.unwrap();
        }
        let before = content(&store);
        let mut fails = 0;
        for room in 0.. {
            let narrow = Narrow(Arc::new(InMemoryBackend::new()), Arc::new(AtomicI64::new(room)));
            match store.copy_on(&narrow, &With::Nothing) {
                Err(_) => fails += 1,
                Ok(info) => {
                    assert_eq!(info.objects, 40);
                    break;
                }
            }
            assert_eq!(content(&store), before, "the store is as it was");
        }
        assert!(10 < fails, "it was full at {fails} places");
        // Nothing is left under the name, nor beside it, and the next try succeeds.
        let to = dir.path().join("backup");
        std::fs::create_dir(part_of(&to)).unwrap();
        assert!(store.backup(&to).is_err() && !to.exists());
        std::fs::remove_dir(part_of(&to)).unwrap();
        put(40, "after").await.unwrap();
        assert_eq!(store.backup(&to).unwrap().objects, 41);
        assert!(!part_of(&to).exists());
        assert_eq!(content(&Store::open(&to, &Limits::default()).unwrap()), content(&store));
    }
}

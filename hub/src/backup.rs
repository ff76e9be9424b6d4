//! A hub's whole state as one folder: its objects at one revision, its authority and its secrets.

use crate::place::{self, StorePlace, StoreSettings};
use moorline_apiserver::{OpenError, Store, StoreKey};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Name of the store's file, in a data folder and in a backup.
pub(crate) const STORE: &str = "hub.redb";

/// Why there is no backup, or why it was not put back.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Something is in the way: nothing is ever overwritten.
    #[error("{0} is there already; nothing was overwritten")]
    Exists(PathBuf),
    /// It is no backup, or one that was cut short.
    #[error("{0} is no whole backup: it has no {STORE}")]
    NotWhole(PathBuf),
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] moorline_apiserver::BackupError),
    /// The store of a hub that does not run.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Where the store is to go is where it is, or is not a place.
    #[error("{0}")]
    Place(String),
    /// The hub that runs on this folder refused, or did not answer.
    #[error("the hub that runs on this folder: {0}")]
    Hub(String),
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BackupInfo {
    /// The one revision at which all objects were so.
    pub revision: u64,
    /// Objects in it.
    pub objects: usize,
}

impl From<moorline_apiserver::BackupInfo> for BackupInfo {
    fn from(info: moorline_apiserver::BackupInfo) -> Self {
        Self { revision: info.revision, objects: info.objects }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::AlreadyExists => BackupError::Exists(path),
        _ => BackupError::Io { path, source },
    }
}

/// What is not copied as a file: the store has its own way, the audit log stays where it was written, and the rest
/// belongs to a process.
fn is_state(name: &str) -> bool {
    let passing = [".sock", ".part", ".tmp", ".lock"].iter().any(|end| name.ends_with(end));
    !(passing || name.starts_with(STORE) || name.starts_with("audit"))
}

/// A new folder that its owner alone can look into.
fn private_folder() -> fs::DirBuilder {
    #[allow(unused_mut)] // where there are no modes
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
}

/// A new file that its owner alone can read.
fn private_file() -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn copy_files(from: &Path, to: &Path) -> Result<(), BackupError> {
    for entry in fs::read_dir(from).map_err(at(from))? {
        let entry = entry.map_err(at(from))?;
        let name = entry.file_name();
        let source = entry.path();
        if !entry.file_type().map_err(at(&source))?.is_file() || !name.to_str().is_some_and(is_state) {
            continue;
        }
        let target = to.join(&name);
        let mut read = fs::File::open(&source).map_err(at(&source))?;
        let mut write = private_file().open(&target).map_err(at(&target))?;
        io::copy(&mut read, &mut write).and_then(|_| write.sync_all()).map_err(at(&target))?;
    }
    Ok(())
}

/// Writes a backup of a data folder whose store is open into the new folder `to`. Blocks.
pub(crate) fn take(store: &Store, data: &Path, to: &Path) -> Result<BackupInfo, BackupError> {
    private_folder().create(to).map_err(at(to))?;
    copy_files(data, to)?;
    // Last: a folder without it is no backup.
    let info = store.backup(&to.join(STORE))?;
    fs::File::open(to).and_then(|folder| folder.sync_all()).map_err(at(to))?;
    Ok(info.into())
}

/// Writes all of a hub's state into the new folder `to`: through the hub that runs on `data`, which goes on serving, or
/// from its files where none runs. Blocks. Who has the folder has the hub: it holds the authority's key.
///
/// # Errors
/// See [`BackupError`].
pub fn backup(data: &Path, (from, key): (&StorePlace, Option<StoreKey>), to: &Path) -> Result<BackupInfo, BackupError> {
    let to = std::path::absolute(to).map_err(at(to))?;
    #[cfg(unix)]
    let asked = crate::control::ask(data, crate::control::Question::Backup(to.clone()))?;
    #[cfg(not(unix))]
    let asked: Option<BackupInfo> = None;
    match asked {
        Some(info) => Ok(info),
        None => {
            let store = from.open_idle(data, key)?;
            let taken = take(&store, data, &to);
            store.close();
            taken
        }
    }
}

/// Moves a hub's objects: from the file in `data` to an etcd, or from an etcd to the file. Revisions go on, so that nobody
/// who watches has to begin again. Through the hub that runs on `data`, which goes on serving all that reads and refuses
/// writes until it is started with the new place; or while none runs. Blocks.
///
/// # Errors
/// See [`BackupError`]; the store stays where it was.
pub fn migrate(
    data: &Path,
    (from, key): (&StorePlace, Option<StoreKey>),
    to: StoreSettings,
) -> Result<BackupInfo, BackupError> {
    let to = to.absolute().map_err(at(data))?;
    let place = to.place().map_err(|e| BackupError::Place(e.to_string()))?;
    #[cfg(unix)]
    if let Some(info) = crate::control::ask(data, crate::control::Question::Migrate(to))? {
        return Ok(info);
    }
    // A hub that is about to start must find it here, or there.
    let _lock = place::lock(data).map_err(at(data))?;
    let store = from.open_idle(data, key)?;
    let moved = transfer(&store, data, from, &place);
    store.close();
    moved
}

/// Seals the file of a hub that does not run with another key, anew: what the old one opened is gone. Either may be `None`,
/// for a store that was, or is to be, open. Blocks.
///
/// # Errors
/// See [`BackupError`]; then the store is as it was.
pub fn rotate(data: &Path, old: Option<StoreKey>, new: Option<StoreKey>) -> Result<BackupInfo, BackupError> {
    let _lock = place::lock(data).map_err(at(data))?;
    Ok(moorline_apiserver::rotate(&data.join(STORE), old, new)?.into())
}

/// Copies a store whose writes have ended, and puts the file away that is not the store any more.
pub(crate) fn transfer(
    store: &Store,
    data: &Path,
    from: &StorePlace,
    to: &StorePlace,
) -> Result<BackupInfo, BackupError> {
    let file = data.join(STORE);
    let info = match (from, to) {
        _ if from == to => return Err(BackupError::Place("the store is there already".to_owned())),
        (_, StorePlace::File) => store.backup(&file)?,
        (_, StorePlace::Etcd(place)) => store.copy_to_etcd(place)?,
    };
    if *from == StorePlace::File {
        let moved = data.join(place::MOVED);
        fs::rename(&file, &moved).map_err(at(&moved))?;
    }
    Ok(info.into())
}

/// Makes the data folder `data` out of a backup. No hub may have been there. Blocks.
///
/// # Errors
/// See [`BackupError`].
pub fn restore(from: &Path, data: &Path, key: Option<StoreKey>) -> Result<BackupInfo, BackupError> {
    let store = from.join(STORE);
    if !store.is_file() {
        return Err(BackupError::NotWhole(from.to_owned()));
    }
    private_folder().recursive(true).create(data).map_err(at(data))?;
    for name in [STORE, "ca.key"] {
        let there = data.join(name);
        if there.exists() {
            return Err(BackupError::Exists(there));
        }
    }
    copy_files(from, data)?;
    Ok(moorline_apiserver::restore(&store, &data.join(STORE), key)?.into())
}

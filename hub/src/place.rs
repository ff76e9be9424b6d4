//! Where a hub keeps its objects: in a file of its data folder, or in an etcd.

use crate::{Config, HubError, backup::STORE};
use moorline_apiserver::{EtcdError, EtcdPlace, EtcdTls, Limits, OpenError, SealError, Store, StoreKey};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// What the file of a store is called once its content is in an etcd.
pub(crate) const MOVED: &str = "hub.redb.moved";
/// Held by the hub that runs on a data folder.
const LOCK: &str = "hub.lock";
/// How often a folder or a store is tried that the last hub may hold for a moment longer.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);

/// Where a hub keeps its objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StorePlace {
    /// `hub.redb` in the data folder.
    #[default]
    File,
    /// An etcd.
    Etcd(EtcdPlace),
}

/// The same as it is written: in flags, in a file, on the control socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StoreSettings {
    /// `redb`, `etcd://…` or `etcds://…`.
    pub store: Option<String>,
    /// File of the authority that etcd's certificates are of.
    pub store_ca: Option<PathBuf>,
    /// Files of this hub's certificate for etcd, and of its key.
    pub store_cert: Option<PathBuf>,
    /// See [`StoreSettings::store_cert`].
    pub store_key: Option<PathBuf>,
}

/// Settings of a store that do not go together.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The address, or what it needs.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// One of two that come together.
    #[error("a certificate for etcd and its key come together")]
    Half,
    /// The file of the key that the store is sealed with.
    #[error("{}: {why}", file.display())]
    Seal {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Files of TLS without an etcd.
    #[error("there are files for TLS to an etcd, and the store is none")]
    NoEtcd,
}

impl StoreSettings {
    /// What they come to.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn place(&self) -> Result<StorePlace, PlaceError> {
        let client = match (&self.store_cert, &self.store_key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => return Err(PlaceError::Half),
        };
        let tls = self.store_ca.clone().map(|ca| EtcdTls { ca, client: client.clone() });
        match self.store.as_deref() {
            None | Some("redb") if tls.is_some() || client.is_some() => Err(PlaceError::NoEtcd),
            None | Some("redb") => Ok(StorePlace::File),
            Some(address) => Ok(StorePlace::Etcd(EtcdPlace::parse(address, tls)?)),
        }
    }

    /// With paths that mean the same in every folder.
    ///
    /// # Errors
    /// The folder of this process is gone.
    pub fn absolute(mut self) -> io::Result<Self> {
        for path in [&mut self.store_ca, &mut self.store_cert, &mut self.store_key].into_iter().flatten() {
            *path = std::path::absolute(&path)?;
        }
        Ok(self)
    }
}

impl StorePlace {
    /// Opens the store, or makes it; with a key: sealed. Blocks.
    pub(crate) fn open(&self, data: &Path, key: Option<StoreKey>) -> Result<Store, OpenError> {
        let file = data.join(STORE);
        match (self, key) {
            (Self::File, None) => Store::open(&file, &Limits::default()),
            (Self::File, Some(key)) => Store::open_sealed(&file, key, &Limits::default()),
            (Self::Etcd(place), key) => Store::connect(place.clone(), key, &Limits::default()),
        }
    }

    /// Opens one that has to be there, for what does not serve it. Blocks.
    pub(crate) fn open_idle(&self, data: &Path, key: Option<StoreKey>) -> Result<Store, OpenError> {
        match self {
            Self::File => moorline_apiserver::open_idle(&data.join(STORE), key),
            Self::Etcd(place) => Store::connect(place.clone(), key, &Limits::default()),
        }
    }

    /// Whether the objects that a hub had in this folder are elsewhere now: then a new store would be an empty one.
    pub(crate) fn was_left(&self, data: &Path) -> bool {
        *self == Self::File && !data.join(STORE).exists() && data.join(MOVED).exists()
    }
}

/// Reads the key of a store from a file.
///
/// # Errors
/// It cannot be read, or is no key.
pub fn seal_key(file: &Path) -> Result<StoreKey, PlaceError> {
    let bad = |why: String| PlaceError::Seal { file: file.to_owned(), why };
    let text = fs::read_to_string(file).map_err(|e| bad(e.to_string()))?;
    StoreKey::read(&text).map_err(|e: SealError| bad(e.to_string()))
}

/// Takes a data folder for this process, for as long as the file is open: with its store in an etcd nothing else would
/// keep a second hub from its files.
///
/// # Errors
/// Another hub has it.
pub(crate) fn lock(data: &Path) -> io::Result<fs::File> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(data.join(LOCK))?;
    file.try_lock().map_err(|error| match error {
        fs::TryLockError::WouldBlock => io::Error::new(io::ErrorKind::ResourceBusy, "another hub runs on this folder"),
        fs::TryLockError::Error(error) => error,
    })?;
    Ok(file)
}

/// The same for a hub, which may come after one that ends at this moment.
pub(crate) async fn take(data: &Path) -> io::Result<fs::File> {
    let mut tries = 0;
    loop {
        match lock(data) {
            Err(_) if tries < TRIES => tries += 1,
            done => return done,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Opens a hub's store, or makes it.
pub(crate) async fn open_store(config: &Config) -> Result<Store, HubError> {
    let failed = |why: String| HubError::Store { path: config.data_dir.clone(), why };
    if config.store.was_left(&config.data_dir) {
        let why = "this hub's objects were moved to an etcd: start it with --store, or move them back with: moorline hub \
                   migrate --from etcd://… --to redb";
        return Err(failed(why.to_owned()));
    }
    let mut tries = 0;
    loop {
        let (place, data, key) = (config.store.clone(), config.data_dir.clone(), config.seal_key.clone());
        let opened = tokio::task::spawn_blocking(move || place.open(&data, key)).await;
        match opened.map_err(|e| failed(e.to_string()))? {
            Ok(store) => return Ok(store),
            // Its file is held by the last hub for a moment longer.
            Err(OpenError::Database { .. }) if tries < TRIES => tries += 1,
            Err(why) => return Err(failed(why.to_string())),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_a_place_or_an_error() {
        let with = |store: &str| StoreSettings { store: Some(store.to_owned()), ..StoreSettings::default() };
        assert_eq!(StoreSettings::default().place().unwrap(), StorePlace::File);
        assert_eq!(with("redb").place().unwrap(), StorePlace::File);
        assert!(matches!(with("etcd://localhost").place().unwrap(), StorePlace::Etcd(_)));
        assert!(matches!(with("sqlite").place(), Err(PlaceError::Etcd(EtcdError::Address { .. }))));
        let half = StoreSettings { store_cert: Some("c".into()), ..with("etcds://e") };
        assert!(matches!(half.place(), Err(PlaceError::Half)));
        let lost = StoreSettings { store_ca: Some("c".into()), ..with("redb") };
        assert!(matches!(lost.place(), Err(PlaceError::NoEtcd)));
    }
}

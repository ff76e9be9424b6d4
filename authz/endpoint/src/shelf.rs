//! The folder in which a cluster keeps the newest bundle that it accepted, sealed. Agents put bundles there, `moorline
//! endpoint import` does, and endpoints read them; each checks for itself.

use crate::{
    limits, now,
    seal::{self, Key, NotOpened},
    trust::Anchors,
};
use moorline_authz::bundle::{
    self, Bundle, BundleError,
    delta::{self, DeltaError},
};
use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// Why a bundle did not get onto the shelf, or off it.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// It is refused.
    #[error(transparent)]
    Refused(#[from] BundleError),
    /// It is a delta, and comes to nothing: the whole is needed.
    #[error(transparent)]
    Delta(#[from] DeltaError),
    /// It was sealed with another key.
    #[error(transparent)]
    NotOpened(#[from] NotOpened),
    /// The folder.
    #[error("cannot use {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl ShelfError {
    /// One word, from a fixed set.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(why) => why.label(),
            Self::Delta(DeltaError::Base) => "base",
            Self::Delta(_) => "delta",
            Self::NotOpened(_) => "sealed",
            Self::Io { .. } => "unreadable",
        }
    }
}

/// One cluster's folder.
#[derive(Debug, Clone)]
pub struct Shelf {
    dir: PathBuf,
    cluster: String,
    anchors: Anchors,
    key: Key,
}

impl Shelf {
    /// The folder `dir`, which is made where it is missing. What is in it is sealed with the key in the file `key`; by
    /// default with one that lies beside it, and is made the first time.
    ///
    /// # Errors
    /// It cannot be made, or there is no key.
    pub fn open(dir: &Path, cluster: &str, anchors: Anchors, key: Option<&Path>) -> Result<Self, ShelfError> {
        make_private(dir).map_err(|source| ShelfError::Io { path: dir.to_owned(), source })?;
        let path = key.map_or_else(|| dir.join("seal.key"), Path::to_owned);
        let read = if key.is_some() { Key::read(&path) } else { Key::read_or_make(&path) };
        let key = read.map_err(|source| ShelfError::Io { path, source })?;
        Ok(Self { dir: dir.to_owned(), cluster: cluster.to_owned(), anchors, key })
    }

    /// The bundle's file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// Whose it is.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The same folder as somebody sees it who believes other authorities.
    pub fn believing(&self, anchors: Anchors) -> Self {
        Self { anchors, ..self.clone() }
    }

    /// Writes a file beside the bundle: after a crash there is all of it, or what was there before.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        write(&self.dir.join(name), bytes)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What lies there, as the hub signed it. What somebody put there unsealed is taken as well: it is signed all the same.
    fn bytes(&self) -> Result<Option<Vec<u8>>, ShelfError> {
        let path = self.file();
        let broken = |source| ShelfError::Io { path: path.clone(), source };
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(broken(error)),
        };
        let mut bytes = Vec::new();
        file.take((limits::BUNDLE + seal::MORE) as u64 + 1).read_to_end(&mut bytes).map_err(broken)?;
        self.unsealed(bytes).map(Some)
    }

    fn unsealed(&self, bytes: Vec<u8>) -> Result<Vec<u8>, ShelfError> {
        if seal::is_sealed(&bytes) { Ok(self.key.open(&self.cluster, &bytes, limits::BUNDLE)?) } else { Ok(bytes) }
    }

    /// The bundle that is there; `None`: there is none.
    ///
    /// # Errors
    /// It cannot be read, or would be refused now. `have` is the serial of what is in use.
    pub fn read(&self, have: Option<u64>) -> Result<Option<Bundle>, ShelfError> {
        let Some(bytes) = self.bytes()? else { return Ok(None) };
        Ok(Some(self.check(&bytes, have)?))
    }

    fn check(&self, bytes: &[u8], have: Option<u64>) -> Result<Bundle, BundleError> {
        bundle::open(bytes, |message, signature| self.anchors.verify(message, signature), &self.cluster, have)
    }

    /// Puts a bundle onto the shelf, if it is newer than the one there: all of it or nothing.
    ///
    /// # Errors
    /// It is refused, or cannot be kept. What was there is left as it is.
    pub fn put(&self, bytes: &[u8]) -> Result<Bundle, ShelfError> {
        let have = self.read(None).ok().flatten().map(|bundle| bundle.serial);
        let bundle = self.check(bytes, have)?;
        bundle.check_time(now())?;
        let broken = |source| ShelfError::Io { path: self.file(), source };
        let sealed = self.key.seal(&self.cluster, bytes).map_err(broken)?;
        write(&self.file(), &sealed).map_err(broken)?;
        Ok(bundle)
    }

    /// Puts what a delta makes of the bundle there. It is checked as one that came whole.
    ///
    /// # Errors
    /// As [`Self::put`], and where the delta does not fit what is there.
    pub fn put_delta(&self, bytes: &[u8]) -> Result<Bundle, ShelfError> {
        let base = self.bytes()?.ok_or(DeltaError::Base)?;
        self.put(&delta::apply(bytes, &base)?)
    }

    /// What is there, sealed, and its serial: to be kept elsewhere too.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn sealed(&self) -> Result<Option<(u64, Vec<u8>)>, ShelfError> {
        let Some(bytes) = self.bytes()? else { return Ok(None) };
        let serial = self.check(&bytes, None)?.serial;
        let sealed = self.key.seal(&self.cluster, &bytes);
        Ok(Some((serial, sealed.map_err(|source| ShelfError::Io { path: self.file(), source })?)))
    }

    /// The serial of what was kept elsewhere.
    ///
    /// # Errors
    /// It was sealed with another key, or would be refused.
    pub fn serial_of(&self, sealed: Vec<u8>) -> Result<u64, ShelfError> {
        Ok(self.check(&self.unsealed(sealed)?, None)?.serial)
    }

    /// Takes what was kept elsewhere, like any bundle.
    ///
    /// # Errors
    /// As [`Self::put`], and when it was sealed with another key.
    pub fn put_sealed(&self, sealed: Vec<u8>) -> Result<Bundle, ShelfError> {
        self.put(&self.unsealed(sealed)?)
    }
}

/// Makes a folder that only its owner may look into.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Writes a file so that after a crash there is all of it or nothing.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
}

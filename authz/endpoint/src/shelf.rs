//! The folder in which a cluster keeps the newest bundle that it accepted. Agents put bundles there, `moorline endpoint
//! import` does, and endpoints read them; each checks for itself.

use crate::{limits, now, trust::Anchors};
use moorline_authz::bundle::{self, Bundle, BundleError};
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

/// One cluster's folder.
#[derive(Debug, Clone)]
pub struct Shelf {
    dir: PathBuf,
    cluster: String,
    anchors: Anchors,
}

impl Shelf {
    /// The folder `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// It cannot be.
    pub fn open(dir: &Path, cluster: &str, anchors: Anchors) -> Result<Self, ShelfError> {
        let shelf = Self { dir: dir.to_owned(), cluster: cluster.to_owned(), anchors };
        make_private(dir).map_err(|source| ShelfError::Io { path: dir.to_owned(), source })?;
        Ok(shelf)
    }

    /// The bundle's file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// Whose it is.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The bundle that is there; `None`: there is none.
    ///
    /// # Errors
    /// It cannot be read, or would be refused now. `have` is the serial of what is in use.
    pub fn read(&self, have: Option<u64>) -> Result<Option<Bundle>, ShelfError> {
        let path = self.file();
        let broken = |source| ShelfError::Io { path: path.clone(), source };
        let file = match fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(broken(error)),
        };
        let mut bytes = Vec::new();
        file.take(limits::BUNDLE as u64 + 1).read_to_end(&mut bytes).map_err(broken)?;
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
        write(&self.file(), bytes).map_err(|source| ShelfError::Io { path: self.file(), source })?;
        Ok(bundle)
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

//! Files that plans fetch, by their checksums.

use moorline_authz::hex::sha256 as sha256_of;
use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

/// Largest file, in bytes.
pub(crate) const FILE: usize = 64 << 20;
/// All of them together, in bytes.
const ALL: u64 = 1 << 30;

/// Why a file is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("it has the checksum {0}, not the one that was named")]
    Checksum(String),
    #[error("the hub keeps as much as it may: delete files in its data folder's plan-files")]
    Full,
    #[error("it cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// The folder that holds them.
#[derive(Debug)]
pub(crate) struct Files {
    dir: PathBuf,
    next: AtomicU64,
}

impl Files {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, next: AtomicU64::new(0) }
    }

    /// Keeps `bytes` if they have this checksum.
    pub fn put(&self, sha256: &str, bytes: &[u8]) -> Result<(), FileError> {
        let found = sha256_of(bytes);
        if found != sha256 {
            return Err(FileError::Checksum(found));
        }
        crate::files::private_folder(&self.dir)?;
        let used: u64 = fs::read_dir(&self.dir)?.flatten().filter_map(|e| e.metadata().ok()).map(|m| m.len()).sum();
        if ALL < used + bytes.len() as u64 {
            return Err(FileError::Full);
        }
        let part = self.dir.join(format!(".{sha256}.{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let mut file = fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(fs::rename(&part, self.dir.join(sha256))?)
    }

    /// One of them.
    pub fn get(&self, sha256: &str) -> Option<Vec<u8>> {
        let plain = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
        plain.then(|| fs::read(self.dir.join(sha256)).ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_kept_under_its_own_checksum_alone() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().join("plan-files"));
        let sum = sha256_of(b"hello");
        assert!(matches!(files.put(&"0".repeat(64), b"hello"), Err(FileError::Checksum(found)) if found == sum));
        files.put(&sum, b"hello").unwrap();
        assert_eq!(files.get(&sum).as_deref(), Some(&b"hello"[..]));
        assert_eq!(files.get("../hub.redb"), None);
    }
}

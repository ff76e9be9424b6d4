//! Recordings that wait to be fetched, as whoever gives them away sees them: another process than the one that writes them.

use super::{folder, keeper::sha_of};
use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
};

/// A folder that a [`Store`](super::Store) with [`Over::Fetched`](super::Over::Fetched) writes. Everything here reads files:
/// call it off the runtime.
#[derive(Debug, Clone)]
pub struct Outbox {
    dir: PathBuf,
}

impl Outbox {
    /// The folder `dir`, whether it is there or not.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The oldest that are over, `most` of them.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self, most: usize) -> io::Result<Vec<String>> {
        let mut all: Vec<_> = match folder::files(&self.dir) {
            Ok(all) => all.into_iter().filter(|(_, open, _)| !open).map(|(name, ..)| name).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        all.sort();
        all.truncate(most);
        Ok(all)
    }

    /// Bytes of all, those that are open too.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn bytes(&self) -> io::Result<u64> {
        Ok(folder::files(&self.dir)?.iter().map(|(_, _, bytes)| bytes).sum())
    }

    /// At most `most` bytes of one, from `from` on; none: that is its end. `None`: none of that name is over.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn piece(&self, name: &str, from: u64, most: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(mut file) = self.find(name)? else { return Ok(None) };
        file.seek(SeekFrom::Start(from))?;
        let mut piece = Vec::new();
        file.take(most).read_to_end(&mut piece)?;
        Ok(Some(piece))
    }

    /// Removes one that somebody else has, whose SHA-256 there is `sha256`. `false`: it is another one, and stays. One that
    /// is not there is removed.
    ///
    /// # Errors
    /// It cannot be read, or not be removed.
    pub fn forget(&self, name: &str, sha256: &str) -> io::Result<bool> {
        if self.find(name)?.is_none() {
            return Ok(true);
        }
        let path = folder::path(&self.dir, name, false);
        if sha_of(&path)?.0 != sha256 {
            return Ok(false);
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(true),
        }
    }

    fn find(&self, name: &str) -> io::Result<Option<fs::File>> {
        if !folder::is_name(name) {
            return Ok(None);
        }
        match fs::File::open(folder::path(&self.dir, name, false)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

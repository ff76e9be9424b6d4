//! Tar archives that depend on nothing but what is put into them.

use sha2::{Digest, Sha256};
use std::{io, io::Write};

/// A tar being written: every entry has the same time, no names of owners, and the mode that is said.
pub struct Archive<W: Write> {
    tar: tar::Builder<W>,
    epoch: u64,
}

/// Who owns an entry, and who may do what with it.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Owner and group, as numbers.
    pub owner: u64,
    /// Permission bits.
    pub mode: u32,
}

impl Access {
    /// Root's, for all to read.
    pub const FILE: Self = Self { owner: 0, mode: 0o644 };
    /// Root's, for all to run.
    pub const PROGRAM: Self = Self { owner: 0, mode: 0o755 };
}

impl<W: Write> Archive<W> {
    /// A new one; `epoch` is the time of each entry, in seconds since 1970.
    pub fn new(out: W, epoch: u64) -> Self {
        Self { tar: tar::Builder::new(out), epoch }
    }

    /// Adds a file.
    ///
    /// # Errors
    /// The output cannot be written, or the path is no path in a tar.
    pub fn file(&mut self, path: &str, access: Access, content: &[u8]) -> io::Result<()> {
        self.entry(path, tar::EntryType::Regular, access, content)
    }

    /// Adds a folder.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub fn folder(&mut self, path: &str, access: Access) -> io::Result<()> {
        self.entry(&format!("{path}/"), tar::EntryType::Directory, access, &[])
    }

    fn entry(&mut self, path: &str, kind: tar::EntryType, access: Access, content: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(access.mode);
        header.set_uid(access.owner);
        header.set_gid(access.owner);
        header.set_mtime(self.epoch);
        self.tar.append_data(&mut header, path, content)
    }

    /// Writes the end and gives the output back.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(self) -> io::Result<W> {
        self.tar.into_inner()
    }
}

/// SHA-256, in hex.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

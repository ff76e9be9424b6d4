//! The folder of recordings: what is in it, and how one is read.

use super::{Store, keeper::hex};
use crate::tape::cast::{About, Head};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{self, BufRead, Read, Seek},
    path::{Path, PathBuf},
};

/// Longest first line that is read back, in bytes: a request's target has 32 KiB at most.
const FIRST_LINE: u64 = 128 << 10;
/// Ending of a recording that is over, and of one that is not.
const OVER: &str = "cast";
const OPEN_END: &str = "part";

/// One that is kept.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// What it is asked for by.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Whether its session goes on.
    pub open: bool,
    /// Of what it is.
    #[serde(flatten)]
    pub about: About,
}

impl Store {
    /// The newest, `most` of them, for which `fits`. Reads files: call it off the runtime.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self, most: usize, fits: impl Fn(&Kept) -> bool) -> io::Result<Vec<Kept>> {
        let mut all = files(&self.settings.dir)?;
        all.sort_by(|a, b| b.cmp(a));
        let read = all.into_iter().filter_map(|(name, open, bytes)| {
            let file = fs::File::open(path(&self.settings.dir, &name, open)).ok()?;
            Some(Kept { name, bytes, open, about: about(file)? })
        });
        Ok(read.filter(fits).take(most).collect())
    }

    /// One, as it is by now, and its file at the beginning; `None`: there is none of that name. Reads a file: call it off
    /// the runtime.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn find(&self, name: &str) -> io::Result<Option<(Kept, fs::File)>> {
        if !is_name(name) {
            return Ok(None);
        }
        for open in [false, true, false] {
            // Between two looks one that was open may be over.
            match fs::File::open(path(&self.settings.dir, name, open)) {
                Ok(mut file) => {
                    let bytes = file.metadata()?.len();
                    let about = about(file.try_clone()?).unwrap_or_default();
                    file.rewind()?;
                    return Ok(Some((Kept { name: name.to_owned(), bytes, open, about }, file)));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// All of one, as it is by now; `None`: there is none of that name. Reads a file: call it off the runtime.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some((_, mut file)) = self.find(name)? else { return Ok(None) };
        let mut all = Vec::new();
        file.read_to_end(&mut all)?;
        Ok(Some(all))
    }
}

/// What a file's first line says.
pub(super) fn about(file: fs::File) -> Option<About> {
    let mut first = Vec::new();
    io::BufReader::new(file.take(FIRST_LINE)).read_until(b'\n', &mut first).ok()?;
    Some(serde_json::from_slice::<Head>(&first).ok()?.moorline)
}

/// What ends the names of recordings that were made in `cluster` and not at the hub.
pub(super) fn mark(cluster: &str) -> String {
    hex(Sha256::digest(cluster).get(..8).unwrap_or_default())
}

/// Whether a recording of this name may have been made by the own endpoint of `cluster`. None that was made at the hub, or in
/// another cluster, has such a name: so a cluster can say nothing of a recording that is not its own.
pub fn is_of(name: &str, cluster: &str) -> bool {
    let made = name.rsplit_once('-').filter(|(rest, _)| rest.contains('-'));
    is_name(name) && made.is_some_and(|(_, end)| end == mark(cluster))
}

/// A name that [`Store::begin`] may have made: a time, the call's id, and perhaps the cluster's mark.
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= 64 && !name.is_empty() && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

pub(super) fn path(dir: &Path, name: &str, open: bool) -> PathBuf {
    dir.join(format!("{name}.{}", if open { OPEN_END } else { OVER }))
}

/// Name, whether it is open, length.
pub(super) fn files(dir: &Path) -> io::Result<Vec<(String, bool, u64)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file = entry.file_name();
        let Some((name, end)) = file.to_str().and_then(|file| file.rsplit_once('.')) else { continue };
        if is_name(name) && matches!(end, OVER | OPEN_END) {
            all.push((name.to_owned(), end == OPEN_END, entry.metadata().map_or(0, |data| data.len())));
        }
    }
    Ok(all)
}

//! Recordings that were made elsewhere, on their way into the folder: piece by piece beside it, and then at once.

use super::{
    Job, PATIENCE, Store, folder,
    keeper::{hex, sha_of},
    lock,
};
use sha2::{Digest, Sha256};
use std::{
    collections::HashSet,
    fs,
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
};

/// Longest one that is taken, in bytes: the longest that may be made, and what was under way when it was that long.
pub const LONGEST_TAKEN: u64 = 61 << 20;
/// Ending of one that is not whole yet.
const PART: &str = "take";

/// What is known of one before it is fetched.
pub enum Take {
    /// It is to be fetched.
    Begun(Taking),
    /// It is here already, with this SHA-256.
    Have(String),
    /// Somebody else fetches it at this moment.
    Busy,
}

/// Why one is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// No recording that was made in this cluster has such a name.
    #[error("no recording of this cluster has such a name")]
    Name,
    /// It says that it is of another cluster.
    #[error("it is of another cluster")]
    Foreign,
    /// Over [`LONGEST_TAKEN`].
    #[error("it is longer than {LONGEST_TAKEN} bytes")]
    Long,
    /// The folder cannot be written, or does not keep up.
    #[error("the store of recordings cannot be written: {0}")]
    Io(#[from] io::Error),
}

impl TakeError {
    /// Whether it would be the same the next time.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Name | Self::Foreign | Self::Long => true,
            Self::Io(_) => false,
        }
    }
}

impl Store {
    /// Begins to take the recording `name`, which the own endpoint of `cluster` made. Writes files, as everything does that
    /// can be done with what comes of it: call it off the runtime.
    ///
    /// # Errors
    /// See [`TakeError`].
    pub fn take(&self, name: &str, cluster: &str) -> Result<Take, TakeError> {
        if !folder::is_of(name, cluster) {
            return Err(TakeError::Name);
        }
        if !lock(&self.taking).insert(name.to_owned()) {
            return Ok(Take::Busy);
        }
        let place = Arc::new(Place { taking: Arc::clone(&self.taking), name: name.to_owned() });
        match sha_of(&folder::path(&self.settings.dir, name, false)) {
            Ok((sha256, _)) => return Ok(Take::Have(sha256)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let path = self.settings.dir.join(format!("{name}.{PART}"));
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path)?;
        let (sha, bytes, jobs, cluster) = (Sha256::new(), 0, self.jobs.clone(), cluster.to_owned());
        Ok(Take::Begun(Taking { file, sha, bytes, jobs, cluster, path, place }))
    }
}

/// One of those that are taken.
struct Place {
    taking: Arc<Mutex<HashSet<String>>>,
    name: String,
}
impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.taking).remove(&self.name);
    }
}

/// One that is being taken. Dropped before its end, there is nothing of it.
pub struct Taking {
    file: fs::File,
    sha: Sha256,
    bytes: u64,
    jobs: mpsc::Sender<Job>,
    cluster: String,
    path: PathBuf,
    place: Arc<Place>,
}

impl Taking {
    /// What there is of it, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next piece.
    ///
    /// # Errors
    /// See [`TakeError`].
    pub fn push(&mut self, piece: &[u8]) -> Result<(), TakeError> {
        let bytes = self.bytes + piece.len() as u64;
        if LONGEST_TAKEN < bytes {
            return Err(TakeError::Long);
        }
        self.file.write_all(piece)?;
        self.sha.update(piece);
        self.bytes = bytes;
        Ok(())
    }

    /// That is all of it. It is on disk, and in the folder, when this is answered with its SHA-256.
    ///
    /// # Errors
    /// See [`TakeError`].
    pub fn keep(mut self) -> Result<String, TakeError> {
        self.file.rewind()?;
        // One that says nothing was cut short by a crash. What is true of it says the log.
        if folder::about(self.file.try_clone()?).is_some_and(|about| about.cluster != self.cluster) {
            return Err(TakeError::Foreign);
        }
        self.file.sync_data()?;
        let whole = Whole {
            name: self.place.name.clone(),
            mark: folder::mark(&self.cluster),
            path: self.path.clone(),
            bytes: self.bytes,
            _place: Arc::clone(&self.place),
        };
        let (done, taken) = mpsc::channel();
        let gone = || io::Error::new(io::ErrorKind::TimedOut, "it does not keep up");
        self.jobs.send(Job::Take(whole, done)).map_err(|_| gone())?;
        taken.recv_timeout(PATIENCE).map_err(|_| gone())??;
        Ok(hex(&std::mem::take(&mut self.sha).finalize()))
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // what was kept has another name by now
    }
}

/// One that is all there, beside the folder's others.
pub(super) struct Whole {
    pub(super) name: String,
    /// How the names of all that its cluster brings end.
    pub(super) mark: String,
    path: PathBuf,
    pub(super) bytes: u64,
    /// Nobody begins it anew before this is over, be it that nobody waits for it any more.
    _place: Arc<Place>,
}

impl Whole {
    /// Puts it among the others, so that it would be there after a power cut.
    pub(super) fn settle(&self, dir: &Path) -> io::Result<()> {
        let there = folder::path(dir, &self.name, false);
        if there.exists() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(&self.path, there)?;
        #[cfg(unix)]
        fs::File::open(dir)?.sync_all()?;
        Ok(())
    }
}

/// Removes what an earlier run had not whole: it is fetched again.
pub(super) fn forget_parts(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == PART) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

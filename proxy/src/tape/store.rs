//! Recordings on disk: a folder of asciicast files, written by one thread, bounded in size and age.

mod folder;
mod keeper;
mod outbox;
mod take;
mod tape;

pub use folder::{Kept, is_of};
pub use outbox::Outbox;
pub use take::{LONGEST_TAKEN, Take, TakeError, Taking};
pub use tape::Tape;

use super::cast::{About, Head};
use crate::audit::OnFailure;
use keeper::Keeper;
use std::{
    collections::HashSet,
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Sessions that are recorded at a time.
pub const OPEN: usize = 256;
/// Longest wait for a file to be begun, and to be sealed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How recordings are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The folder.
    pub dir: PathBuf,
    /// Longest recording, in bytes.
    pub max_file: u64,
    /// All together, in bytes: the oldest go, where they are kept. While those that are open have more alone, none is begun.
    pub max_total: u64,
    /// The oldest age.
    pub keep: Duration,
    /// What becomes of sessions whose recording fails.
    pub policy: OnFailure,
    /// What becomes of recordings that are over.
    pub over: Over,
}

/// What becomes of recordings that are over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Over {
    /// They stay until they are too old or too much.
    #[default]
    Kept,
    /// Somebody fetches them, and takes them away: see [`Outbox`]. Until then they stay, whatever their age, and while they
    /// leave no room none is begun, and none goes on. Their names tell of which cluster they are: see [`is_of`].
    Fetched,
}

/// Why a session is not recorded, or not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoTape {
    /// The folder cannot be written.
    #[error("the store of recordings cannot be written")]
    Failed,
    /// It does not keep up.
    #[error("the store of recordings does not keep up")]
    Slow,
    /// [`OPEN`] are being recorded.
    #[error("too many sessions are recorded at this moment")]
    TooMany,
    /// Those that are open, or that nobody has fetched, have all the room that there is.
    #[error("the store of recordings is full")]
    Full,
    /// It is as long as one may be.
    #[error("the recording is as long as one may be")]
    Long,
    /// What passes is not what a terminal's protocol says.
    #[error(transparent)]
    Unreadable(super::Unreadable),
}

impl NoTape {
    /// For metrics and the audit log: one of a fixed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Failed => "recording_failed",
            Self::Slow => "recording_slow",
            Self::TooMany => "recording_too_many",
            Self::Full => "recording_full",
            Self::Long => "recording_too_long",
            Self::Unreadable(_) => "unrecordable",
        }
    }
}

/// How a recording ended, for the audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seal {
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
    /// Bytes of the terminal that are not in it.
    pub lost: u64,
}

/// One that was sealed when nobody waited for it any more: after a crash, or by a disk that stood still; or that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Its name.
    pub name: String,
    /// Empty: it was removed.
    pub sha256: String,
}

/// What becomes of a recording that goes.
type Tell = Box<dyn Fn(Lost) + Send>;

/// The folder. Dropping it ends its thread once all recordings are over.
pub struct Store {
    settings: Settings,
    jobs: mpsc::Sender<Job>,
    open: Arc<AtomicUsize>,
    /// Names of those that are on their way here.
    taking: Arc<Mutex<HashSet<String>>>,
}

enum Job {
    Begin(Arc<Tape>, Vec<u8>, oneshot::Sender<Result<(), NoTape>>),
    Write(Arc<Tape>),
    /// `true`: it is kept.
    End(Arc<Tape>, bool, oneshot::Sender<Seal>),
    Take(take::Whole, mpsc::Sender<io::Result<()>>),
}

impl Store {
    /// Opens a folder (making it with mode 0700), seals what a crash left open, and removes what is too much. `tell` hears
    /// of both, then and later, and of what is sealed after [`Tape::finish`] has given up.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(settings: Settings, tell: impl Fn(Lost) + Send + 'static) -> io::Result<Arc<Self>> {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.recursive(true).create(&settings.dir)?;
        let mut keeper = Keeper::new(settings.clone(), Box::new(tell))?;
        let (jobs, todo) = mpsc::channel();
        std::thread::Builder::new().name("recordings".to_owned()).spawn(move || {
            while let Ok(job) = todo.recv() {
                keeper.take(job);
            }
        })?;
        Ok(Arc::new(Self { settings, jobs, open: Arc::default(), taking: Arc::default() }))
    }

    /// What becomes of sessions whose recording fails.
    pub fn policy(&self) -> OnFailure {
        self.settings.policy
    }

    /// Begins one.
    ///
    /// # Errors
    /// There is none; nothing is left behind.
    pub async fn begin(&self, about: &About) -> Result<Arc<Tape>, NoTape> {
        let slot = Slot(Arc::clone(&self.open));
        if OPEN <= self.open.fetch_add(1, Ordering::AcqRel) {
            return Err(NoTape::TooMany);
        }
        let stamp: String = about.started.chars().take(19).filter(char::is_ascii_digit).collect();
        let id: String = about.audit_id.chars().filter(|c| c.is_ascii_hexdigit()).take(32).collect();
        let name = match self.settings.over {
            Over::Kept => format!("{stamp}-{id}"),
            Over::Fetched => format!("{stamp}-{id}-{}", folder::mark(&about.cluster)),
        };
        let tape = Arc::new(Tape {
            name,
            begun: Instant::now(),
            input: about.input,
            policy: self.settings.policy,
            jobs: self.jobs.clone(),
            state: Mutex::default(),
            out: Mutex::default(),
            _slot: slot,
        });
        let mut first = serde_json::to_vec(&Head::new(about)).map_err(|_| NoTape::Failed)?;
        first.push(b'\n');
        let (done, begun) = oneshot::channel();
        self.jobs.send(Job::Begin(Arc::clone(&tape), first, done)).map_err(|_| NoTape::Failed)?;
        // Who asked may go at any time, also when the file is there and nobody knows yet.
        let mut unbegun = Unbegun(Some(tape));
        match tokio::time::timeout(PATIENCE, begun).await {
            Ok(Ok(Ok(()))) => unbegun.0.take().ok_or(NoTape::Failed),
            Ok(Ok(Err(why))) => Err(why),
            Ok(Err(_)) => Err(NoTape::Failed),
            Err(_) => Err(NoTape::Slow),
        }
    }
}

/// Dropped, there is nothing of it.
struct Unbegun(Option<Arc<Tape>>);
impl Drop for Unbegun {
    fn drop(&mut self) {
        if let Some(tape) = &self.0 {
            tape.discard();
        }
    }
}

/// One of [`OPEN`].
struct Slot(Arc<AtomicUsize>);
impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

//! Recordings on disk: a folder of asciicast files, written by one thread, bounded in size and age.

use super::cast::{About, Head, Text, event};
use crate::audit::OnFailure;
use sha2::{Digest, Sha256};
use std::{
    collections::VecDeque,
    fs,
    io::{self, BufRead, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::oneshot;

/// Sessions that are recorded at a time.
pub const OPEN: usize = 256;
/// What one of them may have waiting for the disk, in bytes: with [`OPEN`] it bounds what all hold.
pub const QUEUE: usize = 256 << 10;
/// Longest wait for a file to be begun, and to be sealed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest first line that is read back, in bytes: a request's target has 32 KiB at most.
const FIRST_LINE: u64 = 128 << 10;
/// How often what is too old is looked for.
const LOOK: Duration = Duration::from_secs(600);
/// Ending of a recording that is over, and of one that is not.
const OVER: &str = "cast";
const OPEN_END: &str = "part";

/// How recordings are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The folder.
    pub dir: PathBuf,
    /// Longest recording, in bytes.
    pub max_file: u64,
    /// All together, in bytes: the oldest go. While those that are open have more alone, none is begun.
    pub max_total: u64,
    /// The oldest age.
    pub keep: Duration,
    /// What becomes of sessions whose recording fails.
    pub policy: OnFailure,
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
    /// Those that are open have all the room that there is.
    #[error("the store of recordings is full of sessions that go on")]
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

/// What becomes of a recording that goes.
type Tell = Box<dyn Fn(Lost) + Send>;

/// The folder. Dropping it ends its thread once all recordings are over.
pub struct Store {
    settings: Settings,
    jobs: mpsc::Sender<Job>,
    open: Arc<AtomicUsize>,
}

enum Job {
    Begin(Arc<Tape>, Vec<u8>, oneshot::Sender<Result<(), NoTape>>),
    Write(Arc<Tape>),
    /// `true`: it is kept.
    End(Arc<Tape>, bool, oneshot::Sender<Seal>),
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
        Ok(Arc::new(Self { settings, jobs, open: Arc::default() }))
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
        let tape = Arc::new(Tape {
            name: format!("{stamp}-{id}"),
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
fn about(file: fs::File) -> Option<About> {
    let mut first = Vec::new();
    io::BufReader::new(file.take(FIRST_LINE)).read_until(b'\n', &mut first).ok()?;
    Some(serde_json::from_slice::<Head>(&first).ok()?.moorline)
}

/// A name that [`Store::begin`] may have made: a time, and the call's id.
pub fn is_name(name: &str) -> bool {
    name.len() <= 64 && !name.is_empty() && name.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

fn path(dir: &Path, name: &str, open: bool) -> PathBuf {
    dir.join(format!("{name}.{}", if open { OPEN_END } else { OVER }))
}

/// Name, whether it is open, length.
fn files(dir: &Path) -> io::Result<Vec<(String, bool, u64)>> {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// One recording. What is pushed is written soon, in order.
pub struct Tape {
    name: String,
    begun: Instant,
    input: bool,
    policy: OnFailure,
    jobs: mpsc::Sender<Job>,
    state: Mutex<State>,
    /// Of the thread alone.
    out: Mutex<Option<Out>>,
    _slot: Slot,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread knows that something waits.
    told: bool,
    failed: Option<NoTape>,
    lost: u64,
    /// Bytes that were left out since the last one that was not.
    gap: u64,
    waker: Option<Waker>,
    shown: Text,
    typed: Text,
}

impl Tape {
    /// What it is asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ready once there is room for more, and at once where sessions go on without.
    ///
    /// # Errors
    /// It has failed, and its session must end.
    pub fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), NoTape>> {
        let mut state = lock(&self.state);
        match state.failed {
            Some(failed @ NoTape::Unreadable(_)) => Poll::Ready(Err(failed)),
            Some(failed) if self.policy == OnFailure::Refuse => Poll::Ready(Err(failed)),
            _ if self.policy == OnFailure::Continue || state.waiting.len() < QUEUE => Poll::Ready(Ok(())),
            _ => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Nothing more is recorded, and why: the first reason stays.
    pub fn fail(&self, why: NoTape) -> NoTape {
        let mut state = lock(&self.state);
        let why = *state.failed.get_or_insert(why);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
        why
    }

    /// Why nothing more is recorded.
    pub fn failed(&self) -> Option<NoTape> {
        lock(&self.state).failed
    }

    /// The terminal shows this.
    pub fn shown(self: &Arc<Self>, bytes: &[u8]) {
        self.push(bytes.len(), |state, at| {
            let text = state.shown.read(bytes);
            if !text.is_empty() {
                event(&mut state.waiting, at, 'o', &text);
            }
        });
    }

    /// This is typed. Kept where the policy wants it.
    pub fn typed(self: &Arc<Self>, bytes: &[u8]) {
        if self.input {
            self.push(bytes.len(), |state, at| {
                let text = state.typed.read(bytes);
                if !text.is_empty() {
                    event(&mut state.waiting, at, 'i', &text);
                }
            });
        }
    }

    /// The window has this size now.
    pub fn resized(self: &Arc<Self>, columns: u16, rows: u16) {
        self.push(0, |state, at| event(&mut state.waiting, at, 'r', &format!("{columns}x{rows}")));
    }

    fn push(self: &Arc<Self>, bytes: usize, write: impl FnOnce(&mut State, f64)) {
        let mut state = lock(&self.state);
        if state.failed.is_some() || (self.policy == OnFailure::Continue && QUEUE <= state.waiting.len()) {
            state.lost += bytes as u64;
            state.gap += bytes as u64;
            return;
        }
        let at = self.begun.elapsed().as_secs_f64();
        let gap = std::mem::take(&mut state.gap);
        if gap != 0 {
            event(&mut state.waiting, at, 'm', &format!("{gap} bytes are missing here"));
        }
        write(&mut state, at);
        self.tell(&mut state);
    }

    fn tell(self: &Arc<Self>, state: &mut State) {
        if !state.told && !state.waiting.is_empty() {
            // The thread lives as long as somebody can ask it.
            state.told = self.jobs.send(Job::Write(Arc::clone(self))).is_ok();
        }
    }

    /// Its session is over: what waits is written, and the file sealed. `None`: that was not done in time, and is done
    /// later, or at the next start; whoever opened the store is told.
    pub async fn finish(self: &Arc<Self>, ended: &str) -> Option<Seal> {
        {
            let mut state = lock(&self.state);
            let at = self.begun.elapsed().as_secs_f64();
            event(&mut state.waiting, at, 'm', &format!("ended: {ended}"));
        }
        let (done, mut sealed) = oneshot::channel();
        self.jobs.send(Job::End(Arc::clone(self), true, done)).ok()?;
        match tokio::time::timeout(PATIENCE, &mut sealed).await {
            Ok(seal) => seal.ok(),
            Err(_) => {
                sealed.close(); // from here on somebody else is told
                sealed.try_recv().ok()
            }
        }
    }

    /// There was no session: nothing of it stays.
    pub fn discard(self: &Arc<Self>) {
        let (done, _) = oneshot::channel();
        let _ = self.jobs.send(Job::End(Arc::clone(self), false, done));
    }
}

/// What a recording is written to.
trait Disk: Write + Send {
    /// Makes it so long; what is written next comes after that.
    fn cut(&mut self, length: u64) -> io::Result<()>;
    /// What was written would be there after a power cut.
    fn settle(&mut self) -> io::Result<()>;
}

impl Disk for fs::File {
    fn cut(&mut self, length: u64) -> io::Result<()> {
        self.set_len(length)?;
        self.seek(SeekFrom::Start(length)).map(drop)
    }
    fn settle(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// A file that is written.
struct Out {
    file: Box<dyn Disk>,
    sha: Sha256,
    bytes: u64,
    /// There may be more in it than was counted.
    torn: bool,
}

impl Out {
    /// All of it, or nothing: a full disk takes a part.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            self.torn |= self.file.cut(self.bytes).is_err();
            return Err(error);
        }
        self.sha.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Hash and length of what is at `path`: as counted, or else as found.
    fn settled(mut self, path: &Path) -> io::Result<(String, u64)> {
        self.file.settle()?;
        if self.torn { sha_of(path) } else { Ok((hex(&self.sha.finalize()), self.bytes)) }
    }
}

/// What the thread knows.
struct Keeper {
    settings: Settings,
    tell: Tell,
    /// Name and length of those that are over, the oldest first.
    over: VecDeque<(String, u64)>,
    /// Of all, in bytes.
    total: u64,
    looked: Instant,
}

impl Keeper {
    fn new(settings: Settings, tell: Tell) -> io::Result<Self> {
        let mut found = files(&settings.dir)?;
        found.sort();
        let mut this = Self { settings, tell, over: VecDeque::new(), total: 0, looked: Instant::now() };
        for (name, open, bytes) in found {
            if open {
                let (sha256, _) = sha_of(&this.path(&name, true))?;
                fs::rename(this.path(&name, true), this.path(&name, false))?;
                tracing::warn!(recording = name, "a recording was cut short when the hub stopped; it is sealed now");
                (this.tell)(Lost { name: name.clone(), sha256 });
            }
            this.total += bytes;
            this.over.push_back((name, bytes));
        }
        this.trim();
        Ok(this)
    }

    fn path(&self, name: &str, open: bool) -> PathBuf {
        path(&self.settings.dir, name, open)
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Begin(tape, first, done) => {
                self.trim();
                let begun = if self.settings.max_total < self.total {
                    Err(tape.fail(NoTape::Full))
                } else {
                    self.begin(&tape, &first).map_err(|error| {
                        tracing::error!(recording = tape.name, "a recording cannot be begun: {error}");
                        tape.fail(NoTape::Failed)
                    })
                };
                if done.send(begun).is_err() {
                    self.end(&tape, false); // nobody waits for it any more
                }
            }
            Job::Write(tape) => self.write(&tape),
            Job::End(tape, keep, done) => {
                self.write(&tape);
                if let Some(seal) = self.end(&tape, keep)
                    && let Err(seal) = done.send(seal)
                {
                    // Its session's record says that nobody knows: this one says it.
                    (self.tell)(Lost { name: tape.name.clone(), sha256: seal.sha256 });
                }
            }
        }
        if LOOK <= self.looked.elapsed() {
            self.trim();
        }
    }

    fn begin(&mut self, tape: &Tape, first: &[u8]) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = Box::new(options.open(self.path(&tape.name, true))?);
        let mut out = Out { file, sha: Sha256::new(), bytes: 0, torn: false };
        let written = out.write(first);
        self.total += out.bytes;
        *lock(&tape.out) = Some(out);
        if written.is_err() {
            self.end(tape, false);
        }
        written
    }

    fn write(&mut self, tape: &Tape) {
        let (waiting, waker) = {
            let mut state = lock(&tape.state);
            state.told = false;
            (std::mem::take(&mut state.waiting), state.waker.take())
        };
        if let Some(out) = &mut *lock(&tape.out) {
            let before = out.bytes;
            if let Err(error) = out.write(&waiting) {
                tracing::error!(recording = tape.name, "a recording cannot be written: {error}");
                tape.fail(NoTape::Failed);
            } else if self.settings.max_file < out.bytes {
                tape.fail(NoTape::Long);
            }
            self.total += out.bytes - before;
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        if self.settings.max_total < self.total {
            self.trim();
        }
    }

    fn end(&mut self, tape: &Tape, keep: bool) -> Option<Seal> {
        let out = lock(&tape.out).take()?;
        let (open, counted) = (self.path(&tape.name, true), out.bytes);
        if !keep {
            self.total -= counted.min(self.total);
            if let Err(error) = fs::remove_file(open) {
                tracing::error!(recording = tape.name, "what was recorded of nothing cannot be removed: {error}");
            }
            return None;
        }
        // It counts as sealed once it would be there after a power cut.
        let settled = out.settled(&open);
        let sealed = settled.and_then(|found| fs::rename(&open, self.path(&tape.name, false)).map(|()| found));
        let (sha256, bytes) = match sealed {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(recording = tape.name, "a recording cannot be sealed: {error}");
                tape.fail(NoTape::Failed);
                return None;
            }
        };
        self.total = self.total - counted.min(self.total) + bytes;
        self.over.push_back((tape.name.clone(), bytes));
        let lost = lock(&tape.state).lost;
        Some(Seal { sha256, bytes, lost })
    }

    /// Removes what is too old, and the oldest of what is too much.
    fn trim(&mut self) {
        self.looked = Instant::now();
        while let Some((name, bytes)) = self.over.front().cloned() {
            let file = self.path(&name, false);
            let written = fs::metadata(&file).and_then(|data| data.modified());
            let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
            if self.total <= self.settings.max_total && age <= self.settings.keep {
                return;
            }
            match fs::remove_file(&file) {
                Ok(()) => (self.tell)(Lost { name, sha256: String::new() }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::error!(recording = name, "an old recording cannot be removed: {error}");
                    return;
                }
            }
            self.total -= bytes.min(self.total);
            self.over.pop_front();
        }
    }
}

/// Hash and length of a file.
fn sha_of(path: &Path) -> io::Result<(String, u64)> {
    let (mut sha, mut file, mut bytes) = (Sha256::new(), fs::File::open(path)?, 0);
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hex(&sha.finalize()), bytes)),
            n => {
                sha.update(buffer.get(..n).unwrap_or_default());
                bytes += n as u64;
            }
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;

//! The one thread that writes recordings, seals them, and removes what is too old or too much.

use super::{Job, Lost, NoTape, Over, Seal, Settings, Tape, Tell, folder, lock, take};
use sha2::{Digest, Sha256};
use std::{
    collections::VecDeque,
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

/// How often what is too old is looked for.
const LOOK: Duration = Duration::from_secs(600);

/// Room that a session finds where recordings are fetched, in bytes, or it does not begin: so that it does not end at once.
const ROOM: u64 = 1 << 20;

/// Of all room, one part in so many is for what one cluster brings; and so many recordings.
const SHARE: u64 = 4;
const MOST_OF_ONE: usize = 10_000;

/// What a recording is written to.
pub(super) trait Disk: Write + Send {
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
pub(super) struct Out {
    pub(super) file: Box<dyn Disk>,
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
pub(super) struct Keeper {
    settings: Settings,
    tell: Tell,
    /// Name and length of those that are over and kept, the oldest first.
    over: VecDeque<(String, u64)>,
    /// Of all, in bytes.
    total: u64,
    looked: Instant,
}

impl Keeper {
    pub(super) fn new(settings: Settings, tell: Tell) -> io::Result<Self> {
        take::forget_parts(&settings.dir)?;
        let mut found = folder::files(&settings.dir)?;
        // By when they were over, not by name: those of elsewhere have a name of their own time, and come when they come.
        found.sort_by_cached_key(|(name, open, _)| {
            let written = fs::metadata(folder::path(&settings.dir, name, *open)).and_then(|data| data.modified());
            (written.ok(), name.clone())
        });
        let mut this = Self { settings, tell, over: VecDeque::new(), total: 0, looked: Instant::now() };
        for (name, open, bytes) in found {
            if open {
                let (sha256, _) = sha_of(&this.path(&name, true))?;
                fs::rename(this.path(&name, true), this.path(&name, false))?;
                tracing::warn!(recording = name, "a recording was cut short when its writer stopped; it is sealed now");
                (this.tell)(Lost { name: name.clone(), sha256 });
            }
            this.total += bytes;
            this.is_over(name, bytes);
        }
        this.trim();
        Ok(this)
    }

    fn path(&self, name: &str, open: bool) -> PathBuf {
        folder::path(&self.settings.dir, name, open)
    }

    pub(super) fn take(&mut self, job: Job) {
        match job {
            Job::Begin(tape, first, done) => {
                self.trim();
                let least = match self.settings.over {
                    Over::Kept => 0,
                    Over::Fetched => self.settings.max_file.min(ROOM),
                };
                let begun = if self.is_full(least) {
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
            Job::Take(whole, done) => {
                let settled = self.settle(&whole);
                drop(whole); // who asked may ask for it at once, and is not told that it is being taken
                let _ = done.send(settled); // they may not have waited; the next time it is there
            }
        }
        if LOOK <= self.looked.elapsed() {
            self.trim();
        }
    }

    /// Puts one among the others that was made elsewhere. What its cluster has brought makes room for it, and nothing of
    /// others: a cluster that somebody has broken into must not be able to empty the folder.
    fn settle(&mut self, whole: &take::Whole) -> io::Result<()> {
        if self.settings.max_total < whole.bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        whole.settle(&self.settings.dir)?;
        self.total += whole.bytes;
        self.is_over(whole.name.clone(), whole.bytes);
        let own = |name: &str| name.strip_suffix(&whole.mark).is_some_and(|rest| rest.ends_with('-'));
        let share = (self.settings.max_total / SHARE).max(whole.bytes);
        loop {
            let brought = self.over.iter().filter(|(name, _)| own(name));
            let (count, bytes) = brought.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes));
            let oldest = self.over.iter().position(|(name, _)| own(name));
            match oldest {
                Some(at) if MOST_OF_ONE < count || share < bytes => self.remove(at)?,
                _ => break,
            }
        }
        self.trim();
        // Those that go on may have left no room for it: then it stays where it was made.
        let kept = self.over.back().is_some_and(|(name, _)| *name == whole.name);
        if kept { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    /// Removes one of those that are over.
    fn remove(&mut self, at: usize) -> io::Result<()> {
        let Some((name, bytes)) = self.over.get(at).cloned() else { return Ok(()) };
        match fs::remove_file(self.path(&name, false)) {
            Ok(()) => (self.tell)(Lost { name, sha256: String::new() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(recording = name, "an old recording cannot be removed: {error}");
                return Err(error);
            }
        }
        self.total -= bytes.min(self.total);
        self.over.remove(at);
        Ok(())
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
        // What nobody has fetched makes no room: a session ends before there is more than there may be.
        let full = self.settings.over == Over::Fetched && self.is_full(waiting.len() as u64);
        if let Some(out) = &mut *lock(&tape.out) {
            let before = out.bytes;
            if full {
                tape.fail(NoTape::Full);
            } else if let Err(error) = out.write(&waiting) {
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

    /// Whether there is no room for so many bytes more. What somebody fetches goes without a word: so it is looked.
    fn is_full(&mut self, more: u64) -> bool {
        let full = |total: u64| self.settings.max_total < total + more;
        if full(self.total) && self.settings.over == Over::Fetched {
            match folder::files(&self.settings.dir) {
                Ok(all) => self.total = all.iter().map(|(_, _, bytes)| bytes).sum(),
                Err(error) => tracing::error!("the folder of recordings cannot be read: {error}"),
            }
        }
        full(self.total)
    }

    fn is_over(&mut self, name: String, bytes: u64) {
        if self.settings.over == Over::Kept {
            self.over.push_back((name, bytes));
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
        self.is_over(tape.name.clone(), bytes);
        let lost = lock(&tape.state).lost;
        Some(Seal { sha256, bytes, lost })
    }

    /// Removes what is too old, and the oldest of what is too much: of those that are kept here.
    fn trim(&mut self) {
        self.looked = Instant::now();
        while let Some((name, _)) = self.over.front() {
            let written = fs::metadata(self.path(name, false)).and_then(|data| data.modified());
            let age = written.ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
            let stays = self.total <= self.settings.max_total && age <= self.settings.keep;
            if stays || self.remove(0).is_err() {
                return;
            }
        }
    }
}

/// Hash and length of a file.
pub(super) fn sha_of(path: &Path) -> io::Result<(String, u64)> {
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

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

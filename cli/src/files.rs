//! Files that hold secrets: written whole or not at all, readable by their owner alone, one writer at a time.

use crate::failure::advise;
use anyhow::Context;
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long to wait for another writer's lock. client-go gives up at once; its writers hold the lock for milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Largest file read, in bytes: a kubeconfig of thousands of clusters stays far below.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The lock that client-go takes before it writes a kubeconfig: a file `<name>.lock` that must not exist yet.
pub struct FileLock(PathBuf);

impl FileLock {
    /// Takes the lock on `path`, waiting up to [`LOCK_WAIT`].
    pub fn take(path: &Path) -> anyhow::Result<Self> {
        if let Some(dir) = path.parent() {
            make_private_dir(dir)?;
        }
        let lock = with_suffix(path, ".lock");
        let started = Instant::now();
        loop {
            match OpenOptions::new().write(true).create_new(true).open(&lock) {
                Ok(_) => return Ok(Self(lock)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && started.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(advise(
                        format!("{} is being written by another program", path.display()),
                        format!("if no kubectl or moorline is running, delete {}", lock.display()),
                    ));
                }
                Err(e) => return Err(e).with_context(|| format!("cannot create {}", lock.display())),
            }
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A lock that the system itself lets go of when its holder ends, however that happens: for work that takes a while.
pub struct ProcessLock {
    _file: File,
}

impl ProcessLock {
    /// Takes the lock `<path>.lock`, waiting for at most `patience`.
    pub async fn take(path: &Path, patience: Duration) -> anyhow::Result<Self> {
        if let Some(dir) = path.parent() {
            make_private_dir(dir)?;
        }
        let lock = with_suffix(path, ".lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(fs::TryLockError::WouldBlock) if started.elapsed() < patience => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(fs::TryLockError::WouldBlock) => {
                    return Err(advise(
                        format!("another program holds {} for too long", lock.display()),
                        "see which moorline still runs, and end it",
                    ));
                }
                Err(fs::TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", lock.display()));
                }
            }
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Creates a directory and its parents; the ones that are new are readable by their owner alone.
pub fn make_private_dir(dir: &Path) -> anyhow::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).with_context(|| format!("cannot create {}", dir.display()))
}

/// Replaces the file in one step, mode 0600. A symbolic link stays one: its target is replaced.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Some(dir) = target.parent() {
        make_private_dir(dir)?;
    }
    let temporary = with_suffix(&target, &format!(".{}.tmp", std::process::id()));
    let written = write_new(&temporary, content).and_then(|()| fs::rename(&temporary, &target));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", target.display()))
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// The file's text; `None` if there is none.
pub fn read_text(path: &Path) -> anyhow::Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut text = String::new();
    let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
    let size = read.with_context(|| format!("cannot read {}", path.display()))?;
    anyhow::ensure!(size as u64 <= MAX_FILE, "{} is larger than {MAX_FILE} bytes", path.display());
    Ok(Some(text))
}

/// The user's home directory.
pub fn home() -> anyhow::Result<PathBuf> {
    std::env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .ok_or_else(|| advise("this user has no home directory", "set HOME"))
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_private_file_is_replaced_whole_and_0600() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/config");
        write_private(&path, b"one").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn a_symbolic_link_stays_one() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_private(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "new");
    }

    #[test]
    fn a_lock_is_one_writers_and_ends_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let lock = FileLock::take(&path).unwrap();
        assert!(dir.path().join("config.lock").exists());
        drop(lock);
        assert!(!dir.path().join("config.lock").exists());
    }
}

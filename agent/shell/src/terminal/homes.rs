//! The shells' own folders. Each goes with its shell, or is swept by the next agent.
//!
//! A folder cannot tell whether its shell still runs. So each has a file beside it that its agent holds open, for itself
//! alone, from before the folder is made until after it is removed; Windows removes that file with its last handle, however
//! the agent ends. Whoever gets to hold it has the folder.

use crate::limits;
use moorline_windows::Sandbox;
use std::{
    env, fs, io,
    os::windows::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
};

/// What the folders' names begin with, in the agent's folder for what is temporary.
const PREFIX: &str = "moorline-shell-";
/// What the name of the file beside a folder ends with.
const HELD: &str = "held";

// Windows' *File access rights* and *CreateFileW*.
const DELETE: u32 = 0x0001_0000;
const FILE_WRITE_DATA: u32 = 0x0000_0002;
const FILE_FLAG_DELETE_ON_CLOSE: u32 = 0x0400_0000;
/// A link that somebody put there is not followed.
const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;

/// A shell's own folder. Goes with it.
pub(super) struct Home {
    path: PathBuf,
    _held: fs::File,
}

impl Home {
    pub fn new(sandbox: &Sandbox) -> io::Result<Self> {
        let home = Self::hold(env::temp_dir().join(format!("{PREFIX}{:016x}", rand::random::<u64>())))?;
        sandbox.make_folder(&home.path)?;
        Ok(home)
    }

    /// This folder, whether or not it is there yet, unless it is somebody's who lives.
    fn hold(path: PathBuf) -> io::Result<Self> {
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).access_mode(DELETE | FILE_WRITE_DATA).share_mode(0);
        options.custom_flags(FILE_FLAG_DELETE_ON_CLOSE | FILE_FLAG_OPEN_REPARSE_POINT);
        let held = options.open(path.with_extension(HELD))?;
        Ok(Self { path, _held: held })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Its processes were told to end just now: until they have, what they have open stays.
        for _ in 0..limits::HOME_TRIES {
            match fs::remove_dir_all(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => thread::sleep(limits::HOME_PAUSE),
                _ => return,
            }
        }
        tracing::warn!(folder = %self.path.display(), "what a shell left behind cannot be removed");
    }
}

/// Removes what shells left behind whose agents have ended, on a thread that has time.
pub(crate) fn sweep() {
    let begun = thread::Builder::new().name("shells".to_owned()).spawn(|| {
        let left = match fs::read_dir(env::temp_dir()) {
            Ok(all) => all.flatten().filter(is_home).filter_map(|entry| Home::hold(entry.path()).ok()),
            Err(error) => return tracing::warn!(cause = %error, "what shells left behind cannot be looked for"),
        };
        let swept = left.take(limits::SWEPT).map(drop).count();
        if swept > 0 {
            tracing::info!(folders = swept, "removed what shells of agents that have ended left behind");
        }
    });
    if let Err(error) = begun {
        tracing::warn!(cause = %error, "what shells left behind is not removed");
    }
}

fn is_home(entry: &fs::DirEntry) -> bool {
    entry.file_name().to_string_lossy().starts_with(PREFIX) && entry.file_type().is_ok_and(|kind| kind.is_dir())
}

//! Plans on disk: each with its progress, in files that are whole or not there.

use crate::limits;
use moorline_authz::plan::{Plan, Progress};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The folder.
pub(super) struct Store(PathBuf);

#[derive(Serialize, Deserialize)]
struct Kept {
    plan: Plan,
    progress: Progress,
}

impl Store {
    pub fn open(dir: &Path) -> io::Result<Self> {
        for dir in [dir.to_owned(), dir.join("files"), dir.join("fetched")] {
            fs::create_dir_all(&dir)?;
            #[cfg(unix)]
            fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        }
        Ok(Self(dir.to_owned()))
    }

    /// Every plan that is there. A file that cannot be read is no plan: it is told and passed over.
    pub fn all(&self) -> Vec<(String, Plan, Progress)> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten().take(4 * limits::PLANS) {
            let path = entry.path();
            let Some(uid) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".json")) else {
                continue;
            };
            let kept = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok());
            match kept {
                Some(kept) if kept.plan.uid == uid => all.push((uid.to_owned(), kept.plan, kept.progress)),
                _ => {
                    tracing::error!(path = %path.display(), "a plan that was kept cannot be read; it is not gone on with")
                }
            }
        }
        all
    }

    /// Keeps a plan that was taken, and how far it is.
    pub fn take(&self, plan: &Plan, progress: &Progress) -> io::Result<()> {
        let kept =
            serde_json::to_vec(&Kept { plan: plan.clone(), progress: progress.clone() }).map_err(io::Error::other)?;
        // Somebody may have emptied the state folder. That itself is made elsewhere, for its owner alone.
        if self.0.parent().is_some_and(Path::exists) {
            Self::open(&self.0)?;
        }
        replace(&self.0.join(format!("{}.json", plan.uid)), &kept, 0o600)
    }

    /// Forgets a plan and the files that it has left.
    pub fn forget(&self, uid: &str) {
        let gone = |path: PathBuf| match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), "not removed: {error}");
            }
            _ => {}
        };
        gone(self.0.join(format!("{uid}.json")));
        for entry in fs::read_dir(self.0.join("files")).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&format!("{uid}.")) {
                gone(entry.path());
            }
        }
    }

    /// Where a step leaves a file for the hub.
    pub fn file(&self, uid: &str, step: &str) -> PathBuf {
        self.0.join("files").join(format!("{uid}.{step}"))
    }

    /// Where a file of the hub's is kept until its step.
    pub fn fetched(&self, sha256: &str) -> PathBuf {
        self.0.join("fetched").join(sha256)
    }
}

/// Puts a whole file in the place of what is there: a link is replaced, not followed.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let part = path.with_file_name(format!(".{name}.moorline-part"));
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&part)?;
    file.write_all(bytes)?;
    #[cfg(unix)]
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    #[cfg(not(unix))]
    let _ = mode;
    file.sync_all()?;
    fs::rename(&part, path)?;
    if let Some(dir) = path.parent().and_then(|dir| fs::File::open(dir).ok()) {
        let _ = dir.sync_all(); // where folders cannot be synced the rename is all there is
    }
    Ok(())
}

//! What the endpoints of a folder say of themselves, for the agent beside them and so for the hub.

use crate::{limits, live::Live, now, shelf};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Endpoints of one folder that are told of.
const MOST: usize = 16;
/// Largest file of one, in bytes.
const SIZE: u64 = 4096;
const PREFIX: &str = "in-use.";

/// One endpoint that serves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct InUse {
    /// `proxy` or `webhook`.
    pub mode: String,
    /// Serial of its bundle; 0: it has none.
    pub serial: u64,
    /// Whether anybody gets in: its bundle's time is not over.
    pub current: bool,
    /// When it said so, in seconds since 1970.
    pub at: u64,
}

/// What an endpoint said, which is taken back when it ends.
struct Said(PathBuf);
impl Drop for Said {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0); // who is silent is soon not there either
    }
}

/// Says it, for ever: when it changes, and every [`limits::BEAT`].
///
/// # Cancel safety
/// Safe; what was said is taken back.
pub async fn tell(dir: &Path, mode: &str, live: &Live) {
    let mut told = InUse::default();
    let _said = Said(file(dir, mode));
    loop {
        let serial = live.standing().map_or(0, |standing| standing.serial());
        let next = InUse { mode: mode.to_owned(), serial, current: live.is_current(), at: now() };
        let same = InUse { at: told.at, ..next.clone() } == told;
        if !same || told.at + limits::BEAT.as_secs() <= next.at {
            match write(dir, &next) {
                Ok(()) => told = next,
                Err(error) => {
                    tracing::warn!("the folder cannot be written, so the hub hears nothing of this endpoint: {error}")
                }
            }
        }
        tokio::time::sleep(limits::LOOK).await;
    }
}

fn file(dir: &Path, mode: &str) -> PathBuf {
    dir.join(format!("{PREFIX}{mode}.json"))
}

fn write(dir: &Path, word: &InUse) -> io::Result<()> {
    shelf::write(&file(dir, &word.mode), &serde_json::to_vec(word)?)
}

/// Those that said something lately.
pub fn all(dir: &Path) -> Vec<InUse> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let named = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    let mut found: Vec<InUse> = named
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "json"))
        .filter(|entry| entry.metadata().is_ok_and(|found| found.len() <= SIZE))
        .filter_map(|entry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok())
        .filter(|word: &InUse| now() < word.at + limits::SILENT.as_secs())
        .collect();
    found.sort_by(|a, b| a.mode.cmp(&b.mode));
    found.truncate(MOST);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let word = |mode: &str, at| InUse { mode: mode.to_owned(), serial: 7, current: true, at };
        write(dir.path(), &word("webhook", now())).unwrap();
        write(dir.path(), &word("proxy", now() - limits::SILENT.as_secs())).unwrap();
        fs::write(dir.path().join("in-use.broken.json"), "{").unwrap();
        fs::write(dir.path().join("in-use.large.json"), vec![b' '; 1 << 20]).unwrap();
        let found = all(dir.path());
        assert_eq!(found.iter().map(|word| word.mode.as_str()).collect::<Vec<_>>(), ["webhook"]);
        assert_eq!(all(&dir.path().join("none")), []);
    }
}

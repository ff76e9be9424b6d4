//! What an agent keeps on disk: its key, and who it is.
//!
//! Two files in a folder of its owner's alone: `agent.key` (PKCS #8, PEM) and `agent.json` (everything else); once the hub
//! has dropped an authority, `former-pins` too. Each is replaced as a whole, so that a crash leaves the old one or the new
//! one.

use crate::{
    config::AgentRole,
    limits::{FORMER_PINS, MAX_FILE},
    membership::{Membership, certificates, to_pem},
};
use moorline_authz::hex::hex;
use moorline_link::tls;
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

const KEY: &str = "agent.key";
const FACTS: &str = "agent.json";
/// Pins of authorities that were believed once, in hex, one a line: a file of its own, which earlier versions leave alone.
const FORMER: &str = "former-pins";
/// What is not made anew with each certificate: gone from the folder, it would be gone for good.
const LASTING: [&str; 2] = [KEY, FORMER];
/// Shows that the folder can be written.
const PROBE: &str = "probe";
/// Of the layout of `agent.json`.
const VERSION: u32 = 1;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder or a file in it cannot be used.
    #[error("state folder: cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file is there and is not what this agent wrote.
    #[error(
        "state folder: {path} is corrupt: {cause}. To join anew, delete the folder and start the agent with a new token: \
         moorline token create --cluster <cluster>"
    )]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// Another agent has begun to use the folder.
    #[error("state folder: {path} is another agent's key by now; give each agent a state folder of its own")]
    Taken {
        /// Where its key is.
        path: PathBuf,
    },
}

/// `agent.json`
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    version: u32,
    hub: String,
    cluster: String,
    name: String,
    #[serde(default)]
    role: AgentRole,
    trust_domain: String,
    chain: Vec<String>,
    bundle: Vec<String>,
}

/// The folder.
#[derive(Debug, Clone)]
pub struct StateDir {
    dir: PathBuf,
    /// Told of each change; clones share it.
    changed: Arc<watch::Sender<()>>,
    /// What the folder has to have: files that last, as they were read or written last, and who the agent is even where that
    /// could not be written. Clones share it.
    known: Arc<Mutex<BTreeMap<&'static str, Vec<u8>>>>,
}

impl StateDir {
    /// Makes the folder if it is missing and proves that it can be written, before a token is spent on it.
    ///
    /// # Errors
    /// It cannot be made, or not be written.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let state = Self { dir: dir.to_owned(), changed: Arc::default(), known: Arc::default() };
        state.make()?;
        state.replace(PROBE, b"")?;
        let probe = dir.join(PROBE);
        fs::remove_file(&probe).map_err(|source| StateError::Io { what: "write", path: probe, source })?;
        for name in LASTING {
            // One that cannot be read is told once it is needed.
            if let Ok(Some(text)) = state.read(name) {
                state.known().insert(name, text.into_bytes());
            }
        }
        Ok(state)
    }

    /// Makes the folder where it is missing, its owner's alone.
    fn make(&self) -> Result<(), StateError> {
        #[cfg(windows)]
        let made = moorline_windows::private_folder(&self.dir);
        #[cfg(not(windows))]
        let made = {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true);
            #[cfg(unix)]
            std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
            builder.create(&self.dir)
        };
        made.map_err(|source| StateError::Io { what: "make", path: self.dir.clone(), source })
    }

    /// The key; a new one (ECDSA P-256) the first time.
    ///
    /// # Errors
    /// It cannot be read or written, or is not a key.
    pub fn key(&self) -> Result<KeyPair, StateError> {
        let path = self.dir.join(KEY);
        let corrupt = |e: rcgen::Error| StateError::Corrupt { path: path.clone(), cause: e.to_string() };
        if let Some(text) = self.read(KEY)? {
            let key = KeyPair::from_pem(&text).map_err(corrupt)?;
            self.known().insert(KEY, text.into_bytes());
            return Ok(key);
        }
        let key = KeyPair::generate().map_err(corrupt)?;
        self.replace(KEY, key.serialize_pem().as_bytes())?;
        Ok(key)
    }

    /// Who this agent is; `None` before it joined.
    ///
    /// # Errors
    /// What is there cannot be read, or does not fit `key`.
    pub fn membership(&self, key: &KeyPair) -> Result<Option<Membership>, StateError> {
        let Some(text) = self.read(FACTS)? else { return Ok(None) };
        let corrupt = |cause: String| StateError::Corrupt { path: self.dir.join(FACTS), cause };
        let file: File = serde_json::from_str(&text).map_err(|e| corrupt(e.to_string()))?;
        if file.version != VERSION {
            return Err(corrupt(format!("layout {} is not known to this version", file.version)));
        }
        let name = |e: moorline_proto::id::InvalidName| corrupt(e.to_string());
        let membership = Membership {
            cluster: file.cluster.parse().map_err(name)?,
            name: file.name.parse().map_err(name)?,
            role: file.role,
            trust_domain: file.trust_domain.parse().map_err(name)?,
            chain: certificates(&file.chain).map_err(corrupt)?,
            bundle: certificates(&file.bundle).map_err(corrupt)?,
        };
        // An expired certificate is no corruption: the hub says what is to be done about it.
        membership.check_names(key).map_err(|e| corrupt(e.to_string()))?;
        Ok(Some(membership))
    }

    /// Keeps who this agent is. `hub` is for people who look into the file.
    ///
    /// # Errors
    /// It cannot be written, or the folder is another agent's by now; what was there before is still there.
    pub fn keep(&self, hub: &str, membership: &Membership) -> Result<(), StateError> {
        self.mend()?;
        let text = self.encoded(hub, membership)?;
        self.replace(FACTS, &text)?;
        self.changed.send_replace(());
        Ok(())
    }

    /// Has it in [`Self::files`] though the folder cannot be written; and which of the authorities of `old` it drops.
    ///
    /// # Errors
    /// Never in practice: it cannot be written as JSON.
    pub fn hold(&self, hub: &str, membership: &Membership, old: &[CertificateDer<'static>]) -> Result<(), StateError> {
        let text = self.encoded(hub, membership)?;
        let former = self.former().unwrap_or_else(|_| self.known_former());
        let former = with_dropped(former, old, &membership.bundle);
        let mut known = self.known();
        known.insert(FACTS, text);
        if !former.is_empty() {
            known.insert(FORMER, lines(&former));
        }
        drop(known);
        self.changed.send_replace(());
        Ok(())
    }

    fn encoded(&self, hub: &str, membership: &Membership) -> Result<Vec<u8>, StateError> {
        let file = File {
            version: VERSION,
            hub: hub.to_owned(),
            cluster: membership.cluster.to_string(),
            name: membership.name.to_string(),
            role: membership.role,
            trust_domain: membership.trust_domain.to_string(),
            chain: membership.chain.iter().map(to_pem).collect(),
            bundle: membership.bundle.iter().map(to_pem).collect(),
        };
        serde_json::to_vec_pretty(&file)
            .map_err(|e| StateError::Corrupt { path: self.dir.join(FACTS), cause: e.to_string() })
    }

    /// Writes again what somebody has taken out of the folder meanwhile: a certificate without its key is nobody's.
    fn mend(&self) -> Result<(), StateError> {
        self.make()?;
        let known = self.known().clone();
        for (name, known) in LASTING.into_iter().filter_map(|name| known.get_key_value(name)) {
            let path = self.dir.join(name);
            let found = match self.read(name) {
                Err(StateError::Corrupt { .. }) => None,
                found => found?,
            };
            match found {
                Some(found) if *name != KEY || found.as_bytes() == known => continue,
                Some(found) => match (public_key(found.as_bytes()), public_key(known)) {
                    (None, _) => {}
                    (found, known) if found == known => continue,
                    _ => return Err(StateError::Taken { path }),
                },
                None => {}
            }
            tracing::warn!(path = %path.display(), "was gone from the state folder, and is written anew");
            self.replace(name, known)?;
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<&'static str, Vec<u8>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers which authorities of `old` are not in `new`: a token that pins one of them has done its work.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn forgo(&self, old: &[CertificateDer<'static>], new: &[CertificateDer<'static>]) -> Result<(), StateError> {
        self.mend()?;
        let before = self.former()?;
        let pins = with_dropped(before.clone(), old, new);
        if pins == before { Ok(()) } else { self.replace(FORMER, &lines(&pins)) }
    }

    /// Whether an authority with this pin was believed once.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn was_trusted(&self, pin: &[u8; 32]) -> Result<bool, StateError> {
        Ok(self.former()?.contains(&hex(pin)))
    }

    fn former(&self) -> Result<Vec<String>, StateError> {
        // Until it is written again, what was in a folder that somebody has emptied holds.
        let read = self.read(FORMER)?;
        Ok(read.map_or_else(|| self.known_former(), |text| text.lines().map(str::to_owned).collect()))
    }

    fn known_former(&self) -> Vec<String> {
        let known = self.known();
        let text = known.get(FORMER).map(|known| String::from_utf8_lossy(known)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// What the folder has to have, by name: what is known of it, or else is in it.
    ///
    /// # Errors
    /// A file cannot be read, and who the agent is is not known without.
    pub fn files(&self) -> Result<BTreeMap<String, Vec<u8>>, StateError> {
        let known = self.known().clone();
        let there = [KEY, FACTS, FORMER].into_iter().filter_map(|name| match known.get(name) {
            Some(bytes) => Some(Ok((name.to_owned(), bytes.clone()))),
            None => match self.read(name) {
                Ok(text) => text.map(|text| Ok((name.to_owned(), text.into_bytes()))),
                Err(_) if known.contains_key(FACTS) => None,
                Err(e) => Some(Err(e)),
            },
        });
        there.collect()
    }

    /// Puts files as [`Self::files`] gave them into the folder; others are left out.
    ///
    /// # Errors
    /// One cannot be written.
    pub fn fill(&self, files: &BTreeMap<String, Vec<u8>>) -> Result<(), StateError> {
        let known = [KEY, FACTS, FORMER].into_iter().filter_map(|name| Some((name, files.get(name)?)));
        let mut known = known.filter(|(_, bytes)| !bytes.is_empty());
        known.try_for_each(|(name, bytes)| self.replace(name, bytes))
    }

    /// Whether the folder has all that makes an agent who it is, and none of it is corrupt.
    ///
    /// # Errors
    /// A file is there and cannot be read: that says nothing of what is in it.
    pub fn is_whole(&self) -> Result<bool, StateError> {
        let whole = || {
            let Some(text) = self.read(KEY)? else { return Ok(false) };
            let Ok(key) = KeyPair::from_pem(&text) else { return Ok(false) };
            Ok(self.membership(&key)?.is_some())
        };
        match whole() {
            Err(StateError::Corrupt { .. }) => Ok(false),
            other => other,
        }
    }

    /// Hears of each change from now on.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn read(&self, name: &str) -> Result<Option<String>, StateError> {
        let path = self.dir.join(name);
        match read_text(&path) {
            Ok(text) => Ok(Some(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(StateError::Corrupt { path, cause: e.to_string() }),
            Err(source) => Err(StateError::Io { what: "read", path, source }),
        }
    }

    /// Writes beside, syncs, renames over. What lies beside is not written into: somebody else may have laid it there.
    fn replace(&self, name: &'static str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.dir.join(name);
        let beside = self.dir.join(format!("{name}.new"));
        let write = || -> io::Result<()> {
            match fs::remove_file(&beside) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            #[cfg(unix)]
            fs::File::open(&self.dir)?.sync_all()?;
            Ok(())
        };
        write().map_err(|source| StateError::Io { what: "write", path: path.clone(), source })?;
        self.known().insert(name, bytes.to_owned());
        Ok(())
    }
}

/// Pins, with those of the authorities of `old` that `new` has not: the newest of them.
fn with_dropped(
    mut pins: Vec<String>,
    old: &[CertificateDer<'static>],
    new: &[CertificateDer<'static>],
) -> Vec<String> {
    for cert in old.iter().filter(|cert| !new.contains(cert)) {
        if let Ok(pin) = tls::spki_sha256(cert).map(|pin| hex(&pin))
            && !pins.contains(&pin)
        {
            pins.push(pin);
        }
    }
    pins.split_off(pins.len().saturating_sub(FORMER_PINS))
}

fn lines(pins: &[String]) -> Vec<u8> {
    format!("{}\n", pins.join("\n")).into_bytes()
}

/// Of a private key as PEM; `None`: it is none.
fn public_key(pem: &[u8]) -> Option<Vec<u8>> {
    Some(KeyPair::from_pem(std::str::from_utf8(pem).ok()?).ok()?.subject_public_key_info())
}

/// Reads a text file of bounded size.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE { Err(io::Error::new(io::ErrorKind::InvalidData, "too large")) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::tests::{AGENT, membership};

    #[test]
    fn what_is_kept_is_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(&dir.path().join("state")).unwrap();
        let key = state.key().unwrap();
        assert_eq!(state.membership(&key).unwrap(), None);
        let kept = membership(&key, AGENT);
        kept.check(&key).unwrap();
        state.keep("hub:1", &kept).unwrap();
        assert_eq!(state.key().unwrap().serialize_der(), key.serialize_der());
        assert_eq!(state.membership(&key).unwrap(), Some(kept));
    }

    #[cfg(unix)]
    #[test]
    fn s68_folder_and_files_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let key = state.key().unwrap();
        state.keep("hub:1", &membership(&key, AGENT)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join(KEY)), mode(&path.join(FACTS))), (0o700, 0o600, 0o600));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 2, "nothing else is left behind");
    }

    #[test]
    fn p16_half_a_state_is_not_whole() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert!(!state.is_whole().unwrap());
        let key = state.key().unwrap();
        assert!(!state.is_whole().unwrap(), "it is nobody yet");
        state.keep("hub:1", &membership(&key, AGENT)).unwrap();
        assert!(state.is_whole().unwrap());
        for (file, bad) in [(FACTS, String::new()), (KEY, KeyPair::generate().unwrap().serialize_pem())] {
            let good = fs::read(dir.path().join(file)).unwrap();
            fs::write(dir.path().join(file), bad).unwrap();
            assert!(!state.is_whole().unwrap(), "{file}");
            fs::write(dir.path().join(file), good).unwrap();
        }
        assert!(state.is_whole().unwrap());
        // What cannot be read is not overwritten from elsewhere.
        fs::remove_file(dir.path().join(FACTS)).unwrap();
        fs::create_dir(dir.path().join(FACTS)).unwrap();
        assert!(matches!(state.is_whole(), Err(StateError::Io { .. })));
    }

    #[test]
    fn p16_a_corrupt_state_says_how_to_join_anew() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let key = state.key().unwrap();
        state.keep("hub:1", &membership(&key, AGENT)).unwrap();
        let path = dir.path().join(FACTS);
        let good = fs::read_to_string(&path).unwrap();
        for bad in [
            String::new(),
            good[..good.len() / 2].to_owned(),
            good.replace("\"c1\"", "\"c2\""),
            good.replace("BEGIN", "BEG"),
        ] {
            fs::write(&path, bad).unwrap();
            let said = state.membership(&key).unwrap_err().to_string();
            assert!(said.contains("corrupt") && said.contains("moorline token create"), "{said}");
        }
        fs::write(&path, good).unwrap();
        assert!(state.membership(&KeyPair::generate().unwrap()).is_err(), "a certificate for another key");
        fs::write(dir.path().join(KEY), "half a key").unwrap();
        assert!(matches!(state.key(), Err(StateError::Corrupt { .. })));
    }

    #[test]
    fn p16_what_was_taken_out_of_the_folder_is_in_it_again_with_what_is_kept_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let state = StateDir::open(&path).unwrap();
        let key = state.key().unwrap();
        let (before, kept) = (membership(&key, AGENT), membership(&key, AGENT));
        state.forgo(&before.bundle, &kept.bundle).unwrap();
        let whole = |what: &str| {
            // As a process that was started again has it.
            let state = StateDir::open(&path).unwrap();
            state.keep("hub:1", &kept).unwrap();
            for took in [KEY, FORMER] {
                let _ = fs::remove_file(path.join(took));
            }
            state.keep("hub:1", &kept).unwrap();
            let read = StateDir::open(&path).unwrap();
            assert_eq!(read.key().unwrap().serialize_der(), key.serialize_der(), "{what}");
            assert_eq!(read.membership(&key).unwrap().as_ref(), Some(&kept), "{what}");
            assert!(read.was_trusted(&tls::spki_sha256(&before.bundle[0]).unwrap()).unwrap(), "{what}");
        };
        whole("files");
        fs::remove_dir_all(&path).unwrap();
        let pin = tls::spki_sha256(&before.bundle[0]).unwrap();
        assert!(state.was_trusted(&pin).unwrap(), "it is not forgotten for as long as it is not written again");
        state.keep("hub:1", &kept).unwrap();
        whole("the folder");
        fs::write(path.join(KEY), "half a key").unwrap();
        state.keep("hub:1", &kept).unwrap();
        whole("half a key");

        let same = fs::read_to_string(path.join(KEY)).unwrap().replace('\n', "\r\n");
        fs::write(path.join(KEY), same).unwrap();
        state.keep("hub:1", &kept).unwrap();

        let other = KeyPair::generate().unwrap().serialize_pem();
        fs::write(path.join(KEY), &other).unwrap();
        assert!(state.files().unwrap().contains_key(KEY), "who looks at it does not make it this agent's");
        let said = state.keep("hub:1", &kept).unwrap_err().to_string();
        assert!(said.contains("another agent's key"), "{said}");
        assert_eq!(fs::read_to_string(path.join(KEY)).unwrap(), other, "it is not taken from the other one");
    }

    #[cfg(unix)]
    #[test]
    fn what_somebody_laid_beside_a_file_is_not_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let (path, elsewhere) = (dir.path().join("state"), dir.path().join("elsewhere"));
        let state = StateDir::open(&path).unwrap();
        fs::write(&elsewhere, "as it was").unwrap();
        std::os::unix::fs::symlink(&elsewhere, path.join("agent.key.new")).unwrap();
        state.key().unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "as it was");
        assert!(fs::symlink_metadata(path.join(KEY)).unwrap().is_file());
    }

    #[test]
    fn p16_a_folder_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let said = StateDir::open(&file.join("state")).unwrap_err().to_string();
        assert!(said.contains("state folder") && said.contains("file/state"), "{said}");
    }

    #[test]
    fn f26_what_was_believed_once_is_remembered_and_copied_and_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let key = state.key().unwrap();
        let all: Vec<_> = (0..FORMER_PINS + 2).map(|_| membership(&key, AGENT).bundle.remove(0)).collect();
        let pin = |at: usize| tls::spki_sha256(&all[at]).unwrap();
        state.forgo(&all[..1], &all[..2]).unwrap();
        assert!(!state.was_trusted(&pin(0)).unwrap(), "it is believed still");
        for at in 1..all.len() {
            state.forgo(&all[at - 1..at], &all[at..=at]).unwrap();
        }
        let last = all.len() - 1;
        assert!(state.was_trusted(&pin(last - 1)).unwrap() && !state.was_trusted(&pin(last)).unwrap());
        assert!(!state.was_trusted(&pin(0)).unwrap(), "the oldest make room");
        let copy = tempfile::tempdir().unwrap();
        let other = StateDir::open(copy.path()).unwrap();
        other.fill(&state.files().unwrap()).unwrap();
        assert!(other.was_trusted(&pin(last - 1)).unwrap(), "a pod's Secret has it too");
    }
}

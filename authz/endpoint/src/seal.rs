//! Bundles at rest: compressed, and encrypted with a key that lies elsewhere.
//!
//! A bundle's signature says that it is the hub's; sealing keeps its content from whoever finds a copy of it: a backup of
//! etcd or of a disk, a folder that was mounted once too often. In it are the names and groups of all who may use the
//! cluster, and hashes of API keys.
//!
//! The key is one of its own, in a file that agent and endpoints share: not the key of an agent's identity. Each agent has
//! another of those, an endpoint has to read bundles where no agent is, and whoever holds an agent's key is the cluster to
//! the hub: more than reading a list of names is worth. AES-256-GCM (NIST SP 800-38D), a random nonce each time; the name of
//! the cluster is authenticated with it. The key comes from the file's text by HKDF-SHA256 (RFC 5869).

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    hkdf::{HKDF_SHA256, Salt},
};
use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};
use moorline_authz::hex::hex;
use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

/// What a sealed bundle begins with.
const MAGIC: &[u8] = b"moorline-sealed/1\n";
/// Fewest and most bytes of a key file's text.
const TEXT: (usize, u64) = (32, 4096);
const NONCE: usize = 12;
/// Bytes that sealing adds to what cannot be compressed, at most: the head, nonce and tag, and a header for each 64 KiB.
pub const MORE: usize = 64 << 10;

/// Seals and opens. Clones share.
#[derive(Clone)]
pub struct Key(Arc<RandomizedNonceKey>);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What was sealed with another key, for another cluster, or was altered since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bundle was sealed with another key, or was altered")]
pub struct NotOpened;

impl Key {
    /// From the text of a key file.
    ///
    /// # Errors
    /// It is too short to be one.
    pub fn from_text(text: &[u8]) -> io::Result<Self> {
        let text = text.trim_ascii();
        if text.len() < TEXT.0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a key has {} characters or more", TEXT.0)));
        }
        let failed = |_| io::Error::other("no key can be derived");
        let mut bytes = [0; 32];
        let root = Salt::new(HKDF_SHA256, MAGIC).extract(text);
        root.expand(&[b"bundle"], &AES_256_GCM).and_then(|okm| okm.fill(&mut bytes)).map_err(failed)?;
        RandomizedNonceKey::new(&AES_256_GCM, &bytes).map(|key| Self(Arc::new(key))).map_err(failed)
    }

    /// The key in this file.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut text = Vec::new();
        fs::File::open(path)?.take(TEXT.1).read_to_end(&mut text)?;
        Self::from_text(&text)
    }

    /// The key in this file, which is made where it is missing: once, whoever comes first.
    ///
    /// # Errors
    /// It cannot be read or made.
    pub fn read_or_make(path: &Path) -> io::Result<Self> {
        match Self::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        let text = hex(&rand::random::<[u8; 32]>());
        let beside = path.with_file_name(format!(".seal.{}", std::process::id()));
        crate::shelf::write(&beside, format!("{text}\n").as_bytes())?;
        // A link is made whole or not at all, and never over what is there.
        let linked = fs::hard_link(&beside, path);
        fs::remove_file(&beside)?;
        match linked {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Self::read(path),
        }
    }

    /// Compresses and encrypts.
    ///
    /// # Errors
    /// The library's: a defect.
    pub fn seal(&self, cluster: &str, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut packer = DeflateEncoder::new(Vec::new(), Compression::default());
        packer.write_all(bytes)?;
        let mut packed = packer.finish()?;
        let sealed = self.0.seal_in_place_append_tag(Aad::from(aad(cluster)), &mut packed);
        let nonce = sealed.map_err(|_| io::Error::other("the bundle cannot be sealed"))?;
        Ok([MAGIC, &nonce.as_ref()[..], &packed].concat())
    }

    /// The bytes that were sealed for `cluster`, at most `most` of them and one more.
    ///
    /// # Errors
    /// See [`NotOpened`].
    pub fn open(&self, cluster: &str, bytes: &[u8], most: usize) -> Result<Vec<u8>, NotOpened> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(NotOpened)?;
        let (nonce, packed) = rest.split_at_checked(NONCE).ok_or(NotOpened)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotOpened)?;
        let mut packed = packed.to_vec();
        let packed = self.0.open_in_place(nonce, Aad::from(aad(cluster)), &mut packed).map_err(|_| NotOpened)?;
        let mut out = Vec::new();
        DeflateDecoder::new(&*packed).take(most as u64 + 1).read_to_end(&mut out).map_err(|_| NotOpened)?;
        Ok(out)
    }
}

/// Whether these bytes were sealed.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

fn aad(cluster: &str) -> Vec<u8> {
    [MAGIC, cluster.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::from_text(text.as_bytes()).unwrap()
    }

    const TEXT: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn what_is_sealed_is_opened_by_the_same_key_for_the_same_cluster() {
        let bytes = "anna, bob, ".repeat(1000).into_bytes();
        let sealed = key(TEXT).seal("edge1", &bytes).unwrap();
        assert!(is_sealed(&sealed) && sealed.len() < bytes.len() / 4, "{}", sealed.len());
        assert!(!sealed.windows(4).any(|part| part == b"anna"));
        assert_eq!(key(&format!("{TEXT}\n")).open("edge1", &sealed, 1 << 20), Ok(bytes.clone()));
        assert_ne!(key(TEXT).seal("edge1", &bytes).unwrap(), sealed, "another nonce each time");
        assert_eq!(key(TEXT).open("edge2", &sealed, 1 << 20), Err(NotOpened));
        assert_eq!(key(&TEXT.replace('0', "1")).open("edge1", &sealed, 1 << 20), Err(NotOpened));
        assert_eq!(key(TEXT).open("edge1", &sealed, 100).map(|out| out.len()), Ok(101), "bounded");
        for at in [0, MAGIC.len(), MAGIC.len() + NONCE, sealed.len() - 1] {
            let mut bent = sealed.clone();
            bent[at] ^= 1;
            assert_eq!(key(TEXT).open("edge1", &bent, 1 << 20), Err(NotOpened), "byte {at}");
            assert_eq!(key(TEXT).open("edge1", &sealed[..at], 1 << 20), Err(NotOpened), "cut at {at}");
        }
    }

    #[test]
    fn a_key_is_made_once_and_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        let made: Vec<_> = (0..8).map(|_| (path.clone(), Key::read_or_make(&path).unwrap())).collect();
        let sealed = made[0].1.seal("e", b"x").unwrap();
        assert!(made.iter().all(|(_, key)| key.open("e", &sealed, 9).is_ok()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
        fs::write(&path, "short").unwrap();
        assert!(Key::read_or_make(&path).is_err(), "half a key is none, and is not replaced");
        assert!(Key::read(&dir.path().join("none")).is_err());
    }
}

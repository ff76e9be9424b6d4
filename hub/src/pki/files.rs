//! The authority's files, and the order in which they change.
//!
//! | file | what |
//! |---|---|
//! | `ca.crt`, `ca.key` | the authority that vouches for the hub |
//! | `ca-next.crt`, `ca-next.key` | the next one; it is there once its certificate is |
//! | `ca-retire` | the next one is taking the first one's place |
//! | `ca-retired` | when that was done last, in seconds since 1970 |
//!
//! Each file is there as a whole or not at all, and each change leaves a folder that a start understands: what was begun
//! before `ca-next.crt` is as if it never was, and what was begun after `ca-retire` is brought to its end.

use super::{AUTHORITY_LIFE, BACKDATE, CaError, root::Root};
use moorline_proto::id::TrustDomain;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _};
use sha2::{Digest as _, Sha256};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// Bytes of a key's hash that stand in its authority's name.
const TOLD: usize = 4;
/// Words of an authority's name before that: "moorline authority of", and the trust domain.
const WORDS: usize = 4;
/// How many authorities an authority may vouch for in a row: the one before it.
const PATH: u8 = 1;

/// Where everything is.
pub(super) struct Place {
    dir: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
    pub next_cert: PathBuf,
    pub next_key: PathBuf,
    retire: PathBuf,
    retired: PathBuf,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CaError {
    move |source| CaError::Io { action, path: path.to_owned(), source }
}

fn exists(path: &Path) -> Result<bool, CaError> {
    path.try_exists().map_err(failed("look for", path))
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    crate::files::write_atomically(path, bytes, mode).map_err(failed("write", path))
}

impl Place {
    pub fn of(dir: &Path) -> Self {
        let at = |name: &str| dir.join(name);
        Self {
            dir: dir.to_owned(),
            cert: at("ca.crt"),
            key: at("ca.key"),
            next_cert: at("ca-next.crt"),
            next_key: at("ca-next.key"),
            retire: at("ca-retire"),
            retired: at("ca-retired"),
        }
    }

    /// Whether there is a next authority.
    pub fn has_next(&self) -> Result<bool, CaError> {
        // A key alone is what a hub that was killed had begun with.
        exists(&self.next_cert)
    }

    /// When the last authority was dropped, in seconds since 1970.
    pub fn dropped(&self) -> Result<Option<u64>, CaError> {
        match fs::read_to_string(&self.retired) {
            Ok(text) => match text.trim().parse() {
                Ok(at) => Ok(Some(at)),
                Err(_) => Err(CaError::Broken { path: self.retired.clone(), why: "it holds no time".to_owned() }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("read", &self.retired)(error)),
        }
    }

    /// Removes a file so that a crash after this does not bring it back.
    fn remove(&self, path: &Path) -> Result<(), CaError> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove", path)(error)),
            _ => {}
        }
        #[cfg(unix)]
        fs::File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed("write", &self.dir))?;
        Ok(())
    }

    /// Ends a retirement that was begun.
    fn finish(&self) -> Result<(), CaError> {
        if !exists(&self.retire)? {
            return Ok(());
        }
        if exists(&self.next_cert)? {
            let read = |path: &Path| fs::read(path).map_err(failed("read", path));
            // The next ones stay until both are in place: between these two writes the pair is a mixture.
            write(&self.key, &read(&self.next_key)?, 0o600)?;
            write(&self.cert, &read(&self.next_cert)?, 0o644)?;
            write(&self.retired, format!("{}\n", now()).as_bytes(), 0o644)?;
            self.remove(&self.next_cert)?;
        }
        self.remove(&self.next_key)?;
        self.remove(&self.retire)
    }
}

/// Makes the first authority where there is none, and ends what was begun.
///
/// # Errors
/// The disk; or one of the two files is there without the other.
pub(super) fn prepare(dir: &Path, domain: &TrustDomain) -> Result<(), CaError> {
    let place = Place::of(dir);
    place.finish()?;
    match (exists(&place.cert)?, exists(&place.key)?) {
        (true, true) => {}
        (false, false) => {
            let (cert, key) = generate(&format!("moorline authority of {domain}"), KeyPair::generate()?)?;
            // The key first: without its certificate it is of no use to anybody, and the next start says what to do.
            write(&place.key, key.as_bytes(), 0o600)?;
            write(&place.cert, cert.as_bytes(), 0o644)?;
        }
        (true, false) => return Err(CaError::Half { present: place.cert, missing: place.key }),
        (false, true) => return Err(CaError::Half { present: place.key, missing: place.cert }),
    }
    match (place.has_next()?, exists(&place.next_key)?) {
        (true, false) => Err(CaError::Half { present: place.next_cert, missing: place.next_key }),
        _ => Ok(()),
    }
}

/// Ends what was begun.
///
/// # Errors
/// The disk.
pub(super) fn settle(dir: &Path) -> Result<(), CaError> {
    Place::of(dir).finish()
}

/// Makes the next authority beside the one in `dir`.
///
/// # Errors
/// [`CaError::Turning`], an authority that cannot be replaced, or the disk; there is none then.
pub(super) fn begin(dir: &Path) -> Result<(), CaError> {
    let place = Place::of(dir);
    place.finish()?;
    if place.has_next()? {
        return Err(CaError::Turning);
    }
    let serving = Root::load(&place.cert, &place.key)?;
    let key = KeyPair::generate()?;
    // A name of its own: certificates say by the name alone whose they are.
    let pin = moorline_authz::hex::hex(&Sha256::digest(key.subject_public_key_info())[..TOLD]);
    let name: Vec<_> = serving.name().split(' ').take(WORDS).map(str::to_owned).collect();
    let (cert, key) = generate(&format!("{} {pin}", name.join(" ")), key)?;
    write(&place.next_key, key.as_bytes(), 0o600)?;
    // What nobody has seen yet is tried where a failure costs nothing.
    let tried = place.dir.join("ca-next.tried");
    write(&tried, cert.as_bytes(), 0o644)?;
    let usable = Root::load(&tried, &place.next_key).and_then(|next| next.vouch(&serving, SystemTime::now()));
    place.remove(&tried)?;
    usable?;
    write(&place.next_cert, cert.as_bytes(), 0o644)
}

/// Puts the next authority into the place of the first one, whose key is gone then.
///
/// # Errors
/// [`CaError::Settled`], or the next one cannot be used, and nothing has changed; or the disk.
pub(super) fn retire(dir: &Path) -> Result<(), CaError> {
    let place = Place::of(dir);
    if exists(&place.retire)? {
        return place.finish(); // an earlier call failed half way
    }
    if !place.has_next()? {
        return Err(CaError::Settled);
    }
    Root::load(&place.next_cert, &place.next_key)?;
    write(&place.retire, b"", 0o644)?;
    place.finish()
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// An authority's certificate and key, PEM.
fn generate(name: &str, key: KeyPair) -> Result<(String, String), CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(PATH));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), key.serialize_pem()))
}

//! Files of the data folder.

use std::{fs, io, io::Write, path::Path};

/// Makes a folder that is its owner's alone, and what is missing above it. On Windows it has the rights of the folder
/// that it is in.
pub(crate) fn private_folder(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Writes a file so that after a crash there is all of it or nothing.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    #[cfg(not(unix))]
    let _ = mode; // the folder's rights hold
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // Windows opens no folder; NTFS keeps a log of renames.
    match path.parent() {
        Some(dir) if cfg!(unix) => fs::File::open(dir)?.sync_all(),
        _ => Ok(()),
    }
}

/// The random bytes of a file that only its owner may read, made at the first call. A file of another length is no such
/// secret (a full disk, a wrong copy) and is made anew.
pub(crate) fn secret<const N: usize>(path: &Path) -> io::Result<[u8; N]> {
    match fs::read(path) {
        Ok(bytes) => match bytes.try_into() {
            Ok(bytes) => return Ok(bytes),
            Err(_) => tracing::warn!(path = %path.display(), "this file is no secret of {N} bytes; it is made anew"),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let bytes = std::array::from_fn(|_| rand::random());
    write_atomically(path, &bytes, 0o600)?;
    Ok(bytes)
}

/// DER as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let body = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_made_once_and_kept_to_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let first: [u8; 32] = secret(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(secret(&path).unwrap(), first);
        fs::write(&path, b"short").unwrap();
        let second: [u8; 32] = secret(&path).unwrap();
        assert_ne!(second, first);
        assert_eq!(secret(&path).unwrap(), second);
        assert!(secret::<32>(dir.path()).is_err(), "what cannot be read is not replaced");
    }
}

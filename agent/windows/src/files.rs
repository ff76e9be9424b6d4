//! Folders that are their owner's alone.

use crate::sandbox::{current_user, make_folder};
use std::{io, path::Path};

/// Makes a folder, and those above it that are missing, that only its owner, the system and the administrators may
/// look into. One that is there stays as it is.
///
/// # Errors
/// It cannot be made.
pub fn private_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        std::fs::create_dir_all(above)?;
    }
    let owner = current_user()?;
    make_folder(path, &format!("D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;{owner})"))
}

//! What is left of memory and disk.

use crate::win::{done, wide};
use std::{io, path::Path, ptr::null_mut};
use windows_sys::Win32::{
    Storage::FileSystem::GetDiskFreeSpaceExW,
    System::SystemInformation::{GlobalMemoryStatusEx, MEMORYSTATUSEX},
};

/// Bytes of the node's memory: what programs may still have, and all of it.
///
/// # Errors
/// Windows does not say.
pub fn memory() -> io::Result<(u64, u64)> {
    let mut status = MEMORYSTATUSEX::default();
    status.dwLength = u32::try_from(size_of_val(&status)).map_err(io::Error::other)?;
    // SAFETY: the structure is its own, with its size in it.
    done(unsafe { GlobalMemoryStatusEx(&mut status) })?;
    Ok((status.ullAvailPhys, status.ullTotalPhys))
}

/// Bytes of the volume that this folder is on: what this process may still write, and all of it.
///
/// # Errors
/// There is no such folder.
pub fn disk(folder: &Path) -> io::Result<(u64, u64)> {
    let name = wide(folder)?;
    let (mut left, mut all) = (0, 0);
    // SAFETY: `name` ends with a zero; the two are where the answers go, the third is not asked for.
    done(unsafe { GetDiskFreeSpaceExW(name.as_ptr(), &mut left, &mut all, null_mut()) })?;
    Ok((left, all))
}

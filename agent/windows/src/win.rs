//! What Windows' calls are given and give, as values that clean up after themselves.

use std::{
    ffi::{OsStr, c_void},
    io,
    os::windows::{ffi::OsStrExt, io::FromRawHandle, io::OwnedHandle},
    ptr::null_mut,
};
use windows_sys::Win32::{
    Foundation::{HANDLE, LocalFree},
    Security::{
        ACL, Authorization::ConvertStringSecurityDescriptorToSecurityDescriptorW,
        Authorization::ConvertStringSidToSidW, Authorization::SDDL_REVISION_1, GetSecurityDescriptorDacl,
    },
};

/// Text as Windows wants it. A zero within it would cut it short, so it is refused.
pub fn wide(text: impl AsRef<OsStr>) -> io::Result<Vec<u16>> {
    let mut wide: Vec<u16> = text.as_ref().encode_wide().collect();
    if wide.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a zero within a name"));
    }
    wide.push(0);
    Ok(wide)
}

/// What a call that says `FALSE` for trouble has said.
pub fn done(ok: windows_sys::core::BOOL) -> io::Result<()> {
    if ok == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Says which step failed.
pub fn at(step: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{step}: {error}"))
}

/// A handle that a call has just given.
pub fn own(handle: HANDLE) -> io::Result<OwnedHandle> {
    if handle.is_null() {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just given to us, and nobody else has it.
    Ok(unsafe { OwnedHandle::from_raw_handle(handle) })
}

/// Memory that Windows gave and wants back.
pub struct Local(pub *mut c_void);
impl Drop for Local {
    fn drop(&mut self) {
        // SAFETY: from one of the calls that say so, and given back once.
        unsafe { LocalFree(self.0) };
    }
}

/// A security identifier, from `S-1-…`.
pub fn sid(text: &str) -> io::Result<Local> {
    let text = wide(text)?;
    let mut sid = null_mut();
    // SAFETY: `text` ends with a zero; `sid` is where the answer goes.
    done(unsafe { ConvertStringSidToSidW(text.as_ptr(), &mut sid) })?;
    Ok(Local(sid))
}

/// A security descriptor, from Windows' own language for them (SDDL).
pub struct Descriptor(pub Local);
impl Descriptor {
    pub fn new(sddl: &str) -> io::Result<Self> {
        let text = wide(sddl)?;
        let mut descriptor = null_mut();
        // SAFETY: `text` ends with a zero; `descriptor` is where the answer goes; its size is not asked for.
        done(unsafe {
            ConvertStringSecurityDescriptorToSecurityDescriptorW(
                text.as_ptr(),
                SDDL_REVISION_1,
                &mut descriptor,
                null_mut(),
            )
        })?;
        Ok(Self(Local(descriptor)))
    }

    /// Its list of who may do what; valid as long as `self`.
    pub fn dacl(&self) -> io::Result<*mut ACL> {
        let (mut present, mut defaulted, mut dacl) = (0, 0, null_mut());
        // SAFETY: the descriptor is valid, and the three are where the answers go.
        done(unsafe { GetSecurityDescriptorDacl(self.0.0, &mut present, &mut dacl, &mut defaulted) })?;
        // None at all would let everybody do everything.
        if present == 0 || dacl.is_null() { Err(io::Error::other("a descriptor without a list")) } else { Ok(dacl) }
    }
}

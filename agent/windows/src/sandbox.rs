//! The rights of one shell: a restricted token (Windows' *restricted tokens*, *mandatory integrity control*).
//!
//! Windows lets such a token do what both its user and one of its *restricting* identifiers may. Those are everybody,
//! the node's ordinary users, and one that was made up for this shell: so it reads what every user of the node may read,
//! that is its programs, and what was given to this shell; what is the system's, the administrators' or another
//! shell's it does not, whoever the agent runs as. Integrity *low* takes the right to write from it that others have.

use crate::win::{Descriptor, Local, at, done, own, sid, wide};
use std::{
    ffi::c_void,
    io,
    os::windows::io::{AsRawHandle, OwnedHandle},
    path::Path,
    ptr::{from_ref, null, null_mut},
};
use windows_sys::Win32::{
    Foundation::{ERROR_SUCCESS, HANDLE},
    Security::{
        AccessCheck,
        Authorization::{ConvertSidToStringSidW, GetNamedSecurityInfoW, SE_FILE_OBJECT},
        CreateRestrictedToken, DACL_SECURITY_INFORMATION, DISABLE_MAX_PRIVILEGE, DuplicateToken, GENERIC_MAPPING,
        GROUP_SECURITY_INFORMATION, GetLengthSid, GetTokenInformation, OWNER_SECURITY_INFORMATION, PRIVILEGE_SET,
        SECURITY_ATTRIBUTES, SID_AND_ATTRIBUTES, SecurityImpersonation, SetKernelObjectSecurity, SetTokenInformation,
        TOKEN_ADJUST_DEFAULT, TOKEN_ASSIGN_PRIMARY, TOKEN_DEFAULT_DACL, TOKEN_DUPLICATE, TOKEN_MANDATORY_LABEL,
        TOKEN_QUERY, TOKEN_USER, TokenDefaultDacl, TokenIntegrityLevel, TokenUser,
    },
    Storage::FileSystem::{
        CreateDirectoryW, FILE_ALL_ACCESS, FILE_GENERIC_EXECUTE, FILE_GENERIC_READ, FILE_GENERIC_WRITE, FILE_READ_DATA,
        WRITE_DAC,
    },
    System::{
        SystemServices::SE_GROUP_INTEGRITY,
        Threading::{GetCurrentProcess, OpenProcessToken},
    },
};

/// Groups whose rights the shell has not: administrators, power users, the operators' groups, local administrators.
const NOT_OF: [&str; 8] = [
    "S-1-5-32-544",
    "S-1-5-32-547",
    "S-1-5-32-548",
    "S-1-5-32-549",
    "S-1-5-32-550",
    "S-1-5-32-551",
    "S-1-5-32-578",
    "S-1-5-114",
];
/// Everybody, the node's users, and whatever is open to restricted tokens: less, and no program begins.
const ONLY_AS: [&str; 3] = ["S-1-1-0", "S-1-5-32-545", "S-1-5-12"];
/// Integrity level *low*.
const LOW: &str = "S-1-16-4096";

/// The rights of one shell.
pub struct Sandbox {
    pub(crate) token: OwnedHandle,
    /// Made up for this shell, and nobody else's.
    only: String,
    /// Whoever the agent runs as.
    owner: String,
}

impl Sandbox {
    /// Rights that no other shell has.
    ///
    /// # Errors
    /// In words: the step that Windows refused.
    pub fn new() -> io::Result<Self> {
        let mut token = null_mut();
        let access = TOKEN_DUPLICATE | TOKEN_QUERY | TOKEN_ASSIGN_PRIMARY | TOKEN_ADJUST_DEFAULT;
        // SAFETY: the process is this one, and `token` is where the answer goes.
        done(unsafe { OpenProcessToken(GetCurrentProcess(), access, &mut token) })
            .map_err(at("open the agent's token"))?;
        let token = own(token)?;
        let owner = user(token.as_raw_handle()).map_err(at("read the agent's token"))?;
        // Authority 9 is that of programs which keep things of their own; random like this nobody has it twice.
        let only = rand::random::<[u32; 8]>().iter().fold("S-1-9".to_owned(), |sid, part| format!("{sid}-{part}"));
        let token = restrict(&token, &only).map_err(at("restrict the token"))?;
        let sandbox = Self { token, only, owner };
        sandbox.own_objects().map_err(at("set the token's default rights"))?;
        sandbox.lower().map_err(at("lower the integrity"))?;
        Ok(sandbox)
    }

    /// Who may do what with processes and the like of this shell: it, and the agent. Not another shell, though it has the
    /// same user.
    fn own_objects(&self) -> io::Result<()> {
        let rights = self.rights()?;
        let rights = TOKEN_DEFAULT_DACL { DefaultDacl: rights.dacl()? };
        self.set(TokenDefaultDacl, &rights, 0)
    }

    fn rights(&self) -> io::Result<Descriptor> {
        Descriptor::new(&format!("D:(A;;GA;;;SY)(A;;GA;;;{})(A;;GA;;;{})", self.owner, self.only))
    }

    /// The same for its first process, which is the agent's until it is given away: with a process, its thread, and its
    /// token, which Windows copies with the agent's rights.
    pub(crate) fn give<T>(&self, start: impl FnOnce(&SECURITY_ATTRIBUTES) -> io::Result<T>) -> io::Result<T> {
        let rights = self.rights()?;
        start(&attributes(&rights)?)
    }

    /// See [`Sandbox::give`].
    pub(crate) fn give_token(&self, process: HANDLE) -> io::Result<()> {
        let (rights, mut token) = (self.rights()?, null_mut());
        // SAFETY: the process's handle is open, and `token` is where the answer goes.
        done(unsafe { OpenProcessToken(process, WRITE_DAC, &mut token) })?;
        let token = own(token)?;
        // SAFETY: handle and descriptor are valid.
        done(unsafe { SetKernelObjectSecurity(token.as_raw_handle(), DACL_SECURITY_INFORMATION, rights.0.0) })
    }

    fn lower(&self) -> io::Result<()> {
        let low = sid(LOW)?;
        #[allow(clippy::cast_sign_loss)] // a flag
        let label = SID_AND_ATTRIBUTES { Sid: low.0, Attributes: SE_GROUP_INTEGRITY as u32 };
        // SAFETY: the identifier is valid.
        self.set(TokenIntegrityLevel, &TOKEN_MANDATORY_LABEL { Label: label }, unsafe { GetLengthSid(low.0) })
    }

    fn set<T>(&self, class: i32, value: &T, more: u32) -> io::Result<()> {
        let size = u32::try_from(size_of::<T>()).map_err(io::Error::other)? + more;
        // SAFETY: each caller pairs a class with its own structure, whose pointers live until the call is over.
        done(unsafe { SetTokenInformation(self.token.as_raw_handle(), class, from_ref(value).cast(), size) })
    }

    /// Whoever the agent runs as, `S-1-…`.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Whether a shell could read this file, or list this folder.
    ///
    /// # Errors
    /// Its rights cannot be read.
    pub fn may_read(&self, path: &Path) -> io::Result<bool> {
        let name = wide(path)?;
        let mut descriptor = null_mut();
        let parts = OWNER_SECURITY_INFORMATION | GROUP_SECURITY_INFORMATION | DACL_SECURITY_INFORMATION;
        // SAFETY: `name` ends with a zero; the parts are wanted as one descriptor alone, whose place is given.
        let code = unsafe {
            let none = null_mut;
            GetNamedSecurityInfoW(
                name.as_ptr(),
                SE_FILE_OBJECT,
                parts,
                none(),
                none(),
                null_mut(),
                null_mut(),
                &mut descriptor,
            )
        };
        if code != ERROR_SUCCESS {
            #[allow(clippy::cast_possible_wrap)] // as `from_raw_os_error` has it
            return Err(io::Error::from_raw_os_error(code as i32));
        }
        let descriptor = Local(descriptor);
        let mut asking = null_mut();
        // SAFETY: the token is open, and `asking` is where the answer goes.
        done(unsafe { DuplicateToken(self.token.as_raw_handle(), SecurityImpersonation, &mut asking) })?;
        let asking = own(asking)?;
        let mapping = GENERIC_MAPPING {
            GenericRead: FILE_GENERIC_READ,
            GenericWrite: FILE_GENERIC_WRITE,
            GenericExecute: FILE_GENERIC_EXECUTE,
            GenericAll: FILE_ALL_ACCESS,
        };
        let (mut privileges, mut granted, mut may) = (PRIVILEGE_SET::default(), 0, 0);
        let mut size = u32::try_from(size_of_val(&privileges)).map_err(io::Error::other)?;
        // SAFETY: descriptor and token are valid; the rest is where answers go, with its size.
        done(unsafe {
            AccessCheck(
                descriptor.0,
                asking.as_raw_handle(),
                FILE_READ_DATA,
                &mapping,
                &mut privileges,
                &mut size,
                &mut granted,
                &mut may,
            )
        })?;
        Ok(may != 0)
    }

    /// Makes a folder that this shell and the agent may use, and nobody else.
    ///
    /// # Errors
    /// It is there already, or cannot be made.
    pub fn make_folder(&self, path: &Path) -> io::Result<()> {
        let (owner, only) = (&self.owner, &self.only);
        let rights = format!("D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;OICI;FA;;;{owner})(A;OICI;FA;;;{only})");
        make_folder(path, &format!("{rights}S:(ML;OICI;NW;;;LW)"))
    }
}

/// Makes a folder with these rights from the beginning.
pub(crate) fn make_folder(path: &Path, rights: &str) -> io::Result<()> {
    let (name, rights) = (wide(path)?, Descriptor::new(rights)?);
    let attributes = attributes(&rights)?;
    // SAFETY: `name` ends with a zero, and the descriptor is valid.
    done(unsafe { CreateDirectoryW(name.as_ptr(), &attributes) })
}

/// As calls want it that make something. Valid as long as the descriptor.
fn attributes(rights: &Descriptor) -> io::Result<SECURITY_ATTRIBUTES> {
    Ok(SECURITY_ATTRIBUTES {
        nLength: u32::try_from(size_of::<SECURITY_ATTRIBUTES>()).map_err(io::Error::other)?,
        lpSecurityDescriptor: rights.0.0,
        bInheritHandle: 0,
    })
}

/// The user of this process, as `S-1-…`.
pub(crate) fn current_user() -> io::Result<String> {
    let mut token = null_mut();
    // SAFETY: the process is this one, and `token` is where the answer goes.
    done(unsafe { OpenProcessToken(GetCurrentProcess(), TOKEN_QUERY, &mut token) })?;
    user(own(token)?.as_raw_handle())
}

fn user(token: HANDLE) -> io::Result<String> {
    // Of eight bytes each, for what it begins with holds pointers; an identifier has at most 68 bytes.
    let mut answer = [0u64; 16];
    let size = u32::try_from(size_of_val(&answer)).map_err(io::Error::other)?;
    let mut used = 0;
    // SAFETY: the token is open, and the answer's place has the size that is said.
    done(unsafe { GetTokenInformation(token, TokenUser, answer.as_mut_ptr().cast(), size, &mut used) })?;
    let mut text = null_mut();
    // SAFETY: Windows wrote a TOKEN_USER there, aligned; its pointer is into the same place.
    done(unsafe { ConvertSidToStringSidW((*answer.as_ptr().cast::<TOKEN_USER>()).User.Sid, &mut text) })?;
    let text = Local(text.cast::<c_void>());
    let mut letters = Vec::new();
    let mut next = text.0.cast::<u16>().cast_const();
    // SAFETY: a text of Windows' ends with a zero, and it is not read further.
    while let letter @ 1.. = unsafe { *next } {
        letters.push(letter);
        next = next.wrapping_add(1);
    }
    String::from_utf16(&letters).map_err(io::Error::other)
}

fn restrict(token: &OwnedHandle, only: &str) -> io::Result<OwnedHandle> {
    let sids = |texts: &[&str]| texts.iter().map(|text| sid(text)).collect::<io::Result<Vec<_>>>();
    let (not_of, only_as) = (sids(&NOT_OF)?, sids(&[&ONLY_AS[..], &[only]].concat())?);
    let list = |sids: &[Local]| -> Vec<_> {
        sids.iter().map(|sid| SID_AND_ATTRIBUTES { Sid: sid.0, Attributes: 0 }).collect()
    };
    let (not_of, only_as) = (list(&not_of), list(&only_as));
    let count = |list: &[_]| u32::try_from(list.len()).map_err(io::Error::other);
    let mut restricted = null_mut();
    // SAFETY: the token is open, the lists have the lengths that are said, their identifiers live until the call is over.
    done(unsafe {
        CreateRestrictedToken(
            token.as_raw_handle(),
            DISABLE_MAX_PRIVILEGE,
            count(&not_of)?,
            not_of.as_ptr(),
            0,
            null(),
            count(&only_as)?,
            only_as.as_ptr(),
            &mut restricted,
        )
    })?;
    own(restricted)
}

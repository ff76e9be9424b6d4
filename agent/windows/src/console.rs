//! A pseudo console and the program in it (Windows' *Creating a Pseudoconsole session*).

use crate::{
    job::{Bounds, Job},
    sandbox::Sandbox,
    win::{at, done, own, wide},
};
use std::{
    ffi::{OsStr, OsString},
    io,
    os::windows::{
        ffi::OsStrExt,
        io::{AsRawHandle, OwnedHandle},
    },
    path::Path,
    ptr::{null, null_mut},
    sync::{Arc, Mutex, PoisonError},
};
use windows_sys::Win32::{
    Foundation::S_OK,
    Security::SECURITY_ATTRIBUTES,
    System::{
        Console::{COORD, ClosePseudoConsole, CreatePseudoConsole, HPCON, ResizePseudoConsole},
        Threading::{
            CREATE_SUSPENDED, CREATE_UNICODE_ENVIRONMENT, CreateProcessAsUserW, DeleteProcThreadAttributeList,
            EXTENDED_STARTUPINFO_PRESENT, GetExitCodeProcess, INFINITE, InitializeProcThreadAttributeList,
            LPPROC_THREAD_ATTRIBUTE_LIST, PROC_THREAD_ATTRIBUTE_PSEUDOCONSOLE, PROCESS_INFORMATION, ResumeThread,
            STARTF_USESTDHANDLES, STARTUPINFOEXW, TerminateProcess, UpdateProcThreadAttribute, WaitForSingleObject,
        },
    },
};

/// What is to run.
pub struct Program<'a> {
    /// The file.
    pub file: &'a Path,
    /// Its command line, which begins with its name.
    pub line: &'a str,
    /// All of its environment.
    pub environment: &'a [(&'a str, OsString)],
    /// Where it begins.
    pub folder: &'a Path,
}

/// Closed when dropped, which waits until what it has shown is taken or nobody takes it any more.
struct Pseudo(HPCON);
impl Drop for Pseudo {
    fn drop(&mut self) {
        // SAFETY: it is open, and closed once.
        unsafe { ClosePseudoConsole(self.0) };
    }
}

struct Shared {
    job: Job,
    /// `None`: it is being closed.
    pseudo: Mutex<Option<Pseudo>>,
}

/// A program in a pseudo console. Dropping it ends every process of it.
pub struct Console(Arc<Shared>);

impl Console {
    /// Starts a program with a shell's rights, of which nothing runs outside its bounds. What is typed is read from
    /// `typed`, what it shows is written to `shown`: pipes that are not overlapped. Somebody has to [`Waiter::wait`].
    ///
    /// # Errors
    /// In words: the step that Windows refused.
    pub fn start(
        sandbox: &Sandbox,
        program: &Program<'_>,
        bounds: Bounds,
        (columns, rows): (u16, u16),
        (typed, shown): (OwnedHandle, OwnedHandle),
    ) -> io::Result<(Self, Waiter)> {
        let job = Job::new(bounds).map_err(at("make a job"))?;
        let mut console = 0;
        // SAFETY: both pipes are open; the console keeps handles of its own to them.
        let code = unsafe {
            CreatePseudoConsole(cells(columns, rows), typed.as_raw_handle(), shown.as_raw_handle(), 0, &mut console)
        };
        succeeded(code).map_err(at("make a pseudo console"))?;
        let pseudo = Pseudo(console);
        let process = spawn(sandbox, program, &pseudo, &job)?;
        let shared = Arc::new(Shared { job, pseudo: Mutex::new(Some(pseudo)) });
        Ok((Self(shared.clone()), Waiter { process, shared }))
    }

    /// What changes its size. It does not keep the program's processes alive.
    pub fn window(&self) -> Window {
        Window(self.0.clone())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.0.job.end();
    }
}

/// Changes a console's size, on a thread that has time.
pub struct Window(Arc<Shared>);

impl Window {
    /// The client's window changed. Where nobody takes what the console shows this may wait until somebody does, or
    /// nobody can any more: Windows says it by a pipe, to a console that does not read while it has to write.
    ///
    /// # Errors
    /// The console cannot be that large.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match &*self.0.pseudo.lock().unwrap_or_else(PoisonError::into_inner) {
            // SAFETY: it is open as long as it is in there.
            Some(pseudo) => succeeded(unsafe { ResizePseudoConsole(pseudo.0, cells(columns, rows)) }),
            None => Ok(()),
        }
    }
}

/// Waits for a console's program, on a thread that has time.
pub struct Waiter {
    process: OwnedHandle,
    shared: Arc<Shared>,
}

impl Waiter {
    /// Its exit code, once it has ended.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn wait(&self) -> io::Result<u32> {
        let process = self.process.as_raw_handle();
        let mut code = 0;
        // SAFETY: the process's handle is open.
        unsafe {
            WaitForSingleObject(process, INFINITE);
            done(GetExitCodeProcess(process, &mut code))?;
        }
        Ok(code)
    }

    /// Ends what the program left behind.
    pub fn end(&self) {
        self.shared.job.end();
    }

    /// Closes the console. Before Windows 11 24H2 this waits until the rest of what was shown is taken, or the pipe's
    /// other end is closed.
    pub fn close(self) {
        let pseudo = self.shared.pseudo.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(pseudo); // outside the lock: it waits
    }
}

/// Columns or rows of a console, at most.
const MOST_CELLS: u16 = 1024;

fn cells(columns: u16, rows: u16) -> COORD {
    // Cells are the console's memory, which no job bounds; and at one column it loops on a wide letter
    // (microsoft/terminal#19922).
    let fit = |cells: u16| cells.clamp(2, MOST_CELLS).cast_signed();
    COORD { X: fit(columns), Y: fit(rows) }
}

fn succeeded(code: i32) -> io::Result<()> {
    if code == S_OK { Ok(()) } else { Err(io::Error::other(format!("error {code:#010x}"))) }
}

/// What a process is given when it begins, as Windows keeps it.
struct Attributes(Vec<u64>);

impl Attributes {
    fn new(pseudo: &Pseudo) -> io::Result<Self> {
        let mut size = 0;
        // SAFETY: without a list it only tells the size that a list of one has.
        unsafe { InitializeProcThreadAttributeList(null_mut(), 1, 0, &mut size) };
        let mut place = vec![0u64; size.div_ceil(size_of::<u64>())];
        // SAFETY: the place has that size.
        done(unsafe { InitializeProcThreadAttributeList(place.as_mut_ptr().cast(), 1, 0, &mut size) })?;
        let mut list = Self(place);
        let console = std::ptr::without_provenance(pseudo.0.cast_unsigned()); // its handle itself, as Windows wants it
        // SAFETY: the list is initialised, and the console outlives it.
        done(unsafe {
            UpdateProcThreadAttribute(
                list.raw(),
                0,
                PROC_THREAD_ATTRIBUTE_PSEUDOCONSOLE as usize,
                console,
                size_of::<HPCON>(),
                null_mut(),
                null(),
            )
        })?;
        Ok(list)
    }

    fn raw(&mut self) -> LPPROC_THREAD_ATTRIBUTE_LIST {
        self.0.as_mut_ptr().cast()
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: it was initialised, and is given up once.
        unsafe { DeleteProcThreadAttributeList(self.raw()) };
    }
}

fn spawn(sandbox: &Sandbox, program: &Program<'_>, pseudo: &Pseudo, job: &Job) -> io::Result<OwnedHandle> {
    let (file, folder) = (wide(program.file)?, wide(program.folder)?);
    let mut line = wide(program.line)?;
    let environment = environment(program.environment)?;
    let mut attributes = Attributes::new(pseudo).map_err(at("prepare the process"))?;
    let mut start = STARTUPINFOEXW::default();
    start.StartupInfo.cb = u32::try_from(size_of::<STARTUPINFOEXW>()).map_err(io::Error::other)?;
    // With none given, the console's: else it has the agent's own, where those are files.
    start.StartupInfo.dwFlags = STARTF_USESTDHANDLES;
    start.lpAttributeList = attributes.raw();
    let mut made = PROCESS_INFORMATION::default();
    // SAFETY: the token is open, every text ends with a zero, the environment with two; `start` is the larger structure
    // that the flags say, its attributes live until the call is over; no handle is inherited.
    let begin = |attributes: &SECURITY_ATTRIBUTES| unsafe {
        done(CreateProcessAsUserW(
            sandbox.token.as_raw_handle(),
            file.as_ptr(),
            line.as_mut_ptr(),
            attributes,
            attributes,
            0,
            EXTENDED_STARTUPINFO_PRESENT | CREATE_UNICODE_ENVIRONMENT | CREATE_SUSPENDED,
            environment.as_ptr().cast(),
            folder.as_ptr(),
            &raw const start.StartupInfo,
            &mut made,
        ))
    };
    sandbox.give(begin).map_err(at("start the shell"))?;
    let (process, thread) = (own(made.hProcess)?, own(made.hThread)?);
    let raw = process.as_raw_handle();
    // It has not begun yet: nothing of it was ever outside the job.
    let ready = job.take(raw).map_err(at("put the shell into its job"));
    let ready = ready.and_then(|()| sandbox.give_token(raw).map_err(at("give the shell its token")));
    // SAFETY: both handles are open.
    unsafe {
        if let Err(error) = ready {
            TerminateProcess(raw, 1);
            return Err(error);
        }
        if ResumeThread(thread.as_raw_handle()) == u32::MAX {
            return Err(at("let the shell begin")(io::Error::last_os_error()));
        }
    }
    Ok(process)
}

/// `NAME=value`, a zero after each and one more at the end; sorted, as Windows wants it.
fn environment(variables: &[(&str, OsString)]) -> io::Result<Vec<u16>> {
    let mut lines = Vec::new();
    for (name, value) in variables {
        let mut line: Vec<u16> = OsStr::new(name).encode_wide().chain([u16::from(b'=')]).collect();
        line.extend(wide(value)?);
        lines.push((name.to_ascii_uppercase(), line));
    }
    lines.sort();
    Ok(lines.into_iter().flat_map(|(_, line)| line).chain([0]).collect())
}

//! The agent's end of a shell on Windows: a pseudo console, and a listener on the node's loopback.
//!
//! Windows has neither network namespaces nor a root of one's own. So the listener asks for a key, and a shell is given
//! only where its rights do not reach what it must not see.

use crate::{
    frames::Size,
    kube::{Door, kubeconfig},
    limits,
    serve::Plan,
    terminal::{homes::Home, newest},
};
use moorline_windows::{Bounds, Console, Program, Sandbox, Waiter};
use std::{
    env,
    ffi::OsString,
    fs, io,
    os::windows::io::OwnedHandle,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread::Builder,
};
use tokio::{
    net::{
        TcpListener,
        windows::named_pipe::{NamedPipeServer, ServerOptions},
    },
    runtime::Handle,
    sync::watch,
    task::spawn_blocking,
};

/// What of the agent's environment a program needs to find Windows.
const SYSTEM: [&str; 6] =
    ["SystemRoot", "SystemDrive", "windir", "OS", "PROCESSOR_ARCHITECTURE", "NUMBER_OF_PROCESSORS"];
/// What of the shells' root a shell runs first, if it is there: another shell, or where to begin.
const BEGIN: &str = "shell.cmd";
/// Programs by their endings.
const PATHEXT: &str = ".COM;.EXE;.BAT;.CMD";

/// A shell that runs. Dropping it ends every process of it.
pub(crate) struct Terminal {
    _console: Console,
    /// What it is to be sized to. A console may keep who sizes it waiting while nobody reads it: not us.
    sizes: watch::Sender<Size>,
    shown: NamedPipeServer,
    typed: NamedPipeServer,
    /// What was typed last is a return.
    returned: AtomicBool,
    /// Its exit code, once it has ended.
    code: watch::Receiver<Option<i32>>,
}

impl Terminal {
    /// Starts a shell; and what listens for its calls to the API server.
    ///
    /// # Errors
    /// In words: what stands against it.
    pub async fn start(plan: &Plan, size: Size) -> io::Result<(Self, Door)> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let door = Door::with_key(listener);
        let server = door.server()?;
        let (typed, from) = pipe(ServerOptions::new().access_inbound(false), fs::OpenOptions::new().read(true)).await?;
        let (shown, to) = pipe(ServerOptions::new().access_outbound(false), fs::OpenOptions::new().write(true)).await?;
        let plan = plan.clone();
        let begun = spawn_blocking(move || begin(&plan, size, &server, (from, to))).await??;
        let (console, waiter, home) = begun;
        let (tell, code) = watch::channel(None);
        let (sizes, wanted) = watch::channel(size);
        let (window, runtime) = (console.window(), Handle::current());
        // As long as the shell: threads of its own, for the runtime waits for those that it lends out.
        thread().spawn(move || {
            // Of a console that cannot have it: it stays as it is.
            newest::each(&runtime, wanted, |size| drop(window.resize(size.width, size.height)));
        })?;
        thread().spawn(move || {
            let ended = waiter.wait().map_or(i32::from(super::NOT_MADE), u32::cast_signed);
            tell.send_replace(Some(ended));
            waiter.end();
            // Neither waits for the other: a console closes when what it has shown is read, however late.
            if let Err(error) = thread().spawn(move || waiter.close()) {
                tracing::warn!(cause = %error, "a shell's console closes with its client");
            }
            drop(home);
        })?;
        Ok((Self { _console: console, sizes, shown, typed, returned: AtomicBool::new(false), code }, door))
    }

    /// What the terminal shows; 0: nothing more.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.shown.readable().await?;
            match self.shown.try_read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
                result => return result,
            }
        }
    }

    /// Types as many of these bytes as the terminal takes at once, and says how many. Waits while the shell does not read.
    /// A line may end as on any system: Windows knows the key for it, a return, alone.
    ///
    /// # Cancel safety
    /// Safe: nothing was typed then.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let taken = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(0) if self.returned.swap(false, Ordering::Relaxed) => return Ok(1),
            Some(0) => return self.write_plain(b"\r").await,
            Some(end) => self.write_plain(bytes.get(..end).unwrap_or_default()).await?,
            None => self.write_plain(bytes).await?,
        };
        let last = taken.checked_sub(1).and_then(|last| bytes.get(last));
        self.returned.store(last == Some(&b'\r'), Ordering::Relaxed);
        Ok(taken)
    }

    async fn write_plain(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.typed.writable().await?;
            match self.typed.try_write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// What is typed where no more is: the end of a program's input, and of a shell that reads a line.
    pub const END: &[u8] = b"\x1a\rexit\r";

    /// The client's window changed.
    pub fn resize(&self, size: Size) {
        self.sizes.send_replace(size);
    }

    /// Its exit code, when it has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ended(&mut self) -> io::Result<i32> {
        let code = self.code.wait_for(Option::is_some).await.map_err(io::Error::other)?;
        code.ok_or_else(|| io::Error::other("no exit code"))
    }
}

fn thread() -> Builder {
    Builder::new().name("shell".to_owned())
}

/// A pipe: our end, which the runtime waits for, and the console's, which waits by itself.
async fn pipe(ours: &mut ServerOptions, theirs: &fs::OpenOptions) -> io::Result<(NamedPipeServer, OwnedHandle)> {
    // Whoever guessed the name could only come between: then ours finds it taken, and no shell begins.
    let name = format!(r"\\.\pipe\moorline-shell-{:032x}", rand::random::<u128>());
    let buffer = u32::try_from(limits::PIPE).unwrap_or(u32::MAX);
    ours.first_pipe_instance(true).reject_remote_clients(true).max_instances(1);
    let server = ours.in_buffer_size(buffer).out_buffer_size(buffer).create(&name)?;
    let client = theirs.open(&name)?;
    server.connect().await?;
    Ok((server, client.into()))
}

fn begin(
    plan: &Plan,
    size: Size,
    server: &str,
    pipes: (OwnedHandle, OwnedHandle),
) -> io::Result<(Console, Waiter, Home)> {
    let sandbox = Sandbox::new()?;
    for hidden in plan.hidden.iter().filter(|path| path.exists()) {
        let may = sandbox.may_read(hidden);
        if may.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", hidden.display())))? {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, open_to_all(hidden, sandbox.owner())));
        }
    }
    let home = Home::new(&sandbox)?;
    let config = home.path().join("kubeconfig");
    fs::write(&config, kubeconfig(&plan.cluster, server))?;
    let system = env::var_os("SystemRoot").map_or_else(|| PathBuf::from(r"C:\Windows"), PathBuf::from);
    let shell = system.join(r"System32\cmd.exe");
    // UTF-8, and nothing of what the registry says that each cmd.exe is to begin with; but what the node's owner does.
    let mut begin = "chcp 65001>nul".to_owned();
    let script = plan.root.join(BEGIN);
    if script.is_file() {
        begin = format!("{begin} & \"{}\"", script.display());
    }
    let line = format!("\"{}\" /D /S /K \"{begin}\"", shell.display());
    let environment = environment(plan, &system, home.path(), config.into_os_string())?;
    let program = Program { file: &shell, line: &line, environment: &environment, folder: home.path() };
    let bounds = Bounds {
        processes: u32::try_from(limits::PROCESSES).unwrap_or(u32::MAX),
        process_memory: usize::try_from(limits::DATA).unwrap_or(usize::MAX),
        memory: limits::MEMORY,
    };
    let (console, waiter) = Console::start(&sandbox, &program, bounds, (size.width, size.height), pipes)?;
    Ok((console, waiter, home))
}

/// What to do about a file that keeps shells from a node. `owner`: whoever the agent runs as.
fn open_to_all(path: &Path, owner: &str) -> String {
    let (all, path) = (if path.is_dir() { "(OI)(CI)F" } else { "F" }, path.display());
    let grants = ["S-1-5-18", "S-1-5-32-544", owner].map(|who| format!(" *{who}:{all}")).concat();
    format!(
        "every user of this node may read {path}, and so could a shell: leave it to SYSTEM, administrators and the agent \
         (icacls \"{path}\" /inheritance:r /grant{grants})"
    )
}

/// All of a shell's environment.
fn environment(plan: &Plan, system: &Path, home: &Path, config: OsString) -> io::Result<Vec<(&'static str, OsString)>> {
    let mut all: Vec<_> = SYSTEM.iter().filter_map(|name| Some((*name, env::var_os(name)?))).collect();
    let system32 = system.join("System32");
    let powershell = system32.join(r"WindowsPowerShell\v1.0");
    let path =
        env::join_paths([&plan.root, &system32, &system.to_path_buf(), &powershell]).map_err(io::Error::other)?;
    let home = home.as_os_str().to_owned();
    all.extend([
        ("ComSpec", system32.join("cmd.exe").into_os_string()),
        ("PATH", path),
        ("PATHEXT", PATHEXT.into()),
        ("PROMPT", format!("{} $P$G", plan.cluster).into()),
        ("TERM", plan.term.clone().into()),
        ("KUBECONFIG", config),
        ("USERNAME", "shell".into()),
    ]);
    // Where programs look for a home, and for a place to write.
    all.extend(["HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "TEMP", "TMP"].map(|name| (name, home.clone())));
    Ok(all)
}

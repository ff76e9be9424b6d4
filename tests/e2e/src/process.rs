//! Child processes that end with their guard, and commands that fail in words.

use anyhow::{Context, Result, bail};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Between two looks at a program that is followed.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A program in the background; dropping it ends it: SIGTERM, then SIGKILL after ten seconds.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with its output in the file `log`.
    ///
    /// # Errors
    /// When the log cannot be written or the program cannot be started.
    pub fn spawn(mut command: Command, log: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        // A group of its own, so that what it starts in turn ends with it.
        let child = command.process_group(0).spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal to it and to what it started.
    pub fn signal(&self, signal: i32) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        // SAFETY: kill(2) has no memory effects; the group is led by a child that was not waited for yet.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(-pid, signal);
        }
    }

    /// Waits for the end and gives the exit code; `None` when a signal ended it.
    ///
    /// # Errors
    /// When it has not ended after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<i32>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            if end < Instant::now() {
                bail!("still runs after {limit:?}: {}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(libc::SIGTERM);
        if self.wait(Duration::from_secs(10)).is_err() {
            self.signal(libc::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Runs `command` to its end, with `input` on its standard input.
///
/// # Errors
/// When it cannot be started.
pub fn run(command: &mut Command, input: &[u8]) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let input = input.to_owned();
    // A program may end without reading its input: a broken pipe here is no error.
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output()?;
    let _ = feeder.join();
    Ok(output)
}

/// Runs `command`, wants exit code 0, and gives its standard output as text.
///
/// # Errors
/// When it fails, with both outputs in the message.
pub fn text(command: &mut Command) -> Result<String> {
    let output = run(command, b"")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?} ended with {}:\n{out}{err}", output.status);
    }
    Ok(out.into_owned())
}

/// Tries `probe` until it gives a value.
///
/// # Errors
/// When there is none after `limit`, with the last error.
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if end < Instant::now() => {
                return Err(error).with_context(|| format!("no {what} after {limit:?}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A program whose output is followed while it runs; dropping it kills it.
pub struct Followed {
    child: Child,
    shown: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    errors: File,
}

impl Followed {
    /// Starts `command`, with a pipe on its standard input only where the command says so.
    ///
    /// # Errors
    /// When the program cannot be started, or there is no place for what it says on its standard error.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let errors = tempfile::tempfile()?;
        command.stdout(Stdio::piped()).stderr(errors.try_clone()?);
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut out = child.stdout.take().context("no stdout")?;
        let shown: Arc<Mutex<Vec<u8>>> = Arc::default();
        let seen = Arc::clone(&shown);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Reads to the end whoever looks: a program whose output pipe is full or closed may end over it.
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                seen.lock().unwrap_or_else(PoisonError::into_inner).extend(buffer.iter().take(n));
            }
        });
        Ok(Self { child, shown, reader, errors })
    }

    /// Its standard input, once, where it was asked to be a pipe.
    ///
    /// # Errors
    /// When there is none, or it was taken before.
    pub fn input(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().context("no stdin")
    }

    /// All that it printed on its standard output so far.
    #[must_use]
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.shown.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until all that it printed so far satisfies `enough`, and gives it.
    ///
    /// # Errors
    /// When its output ends or `limit` passes first; the message has both of its outputs.
    pub fn until(&mut self, limit: Duration, enough: impl Fn(&str) -> bool) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            // Asked before the output is looked at: what was printed last is looked at too.
            let over = self.reader.is_finished();
            let text = self.shown();
            if enough(&text) {
                return Ok(text);
            }
            if over {
                let status = self.ends(Duration::from_secs(5))?;
                bail!("ended with {status} before enough was read; read so far:\n{text}{}", self.errors()?);
            }
            if end < Instant::now() {
                bail!("not enough read in {limit:?}; read so far:\n{text}{}", self.errors()?);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// How it ended, where it has.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`; the message has both of its outputs.
    pub fn ends(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if end < Instant::now() {
                bail!("still runs after {limit:?}; read so far:\n{}{}", self.shown(), self.errors()?);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn errors(&mut self) -> Result<String> {
        let mut said = Vec::new();
        self.errors.seek(SeekFrom::Start(0))?;
        self.errors.read_to_end(&mut said)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

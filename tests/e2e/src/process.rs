//! Child processes that end with their guard, and commands that fail in words.

use anyhow::{Context, Result, bail};
use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

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

/// Reads from `from` until its text satisfies `enough`, on a thread of its own.
///
/// # Errors
/// When the input ends or `limit` passes first; the message has what was read.
pub fn read_until(
    mut from: impl Read + Send + 'static,
    limit: Duration,
    enough: impl Fn(&str) -> bool,
) -> Result<String> {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        // Reads on when nobody listens any more: a program whose output pipe closes may end over it.
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            let _ = send.send(buffer[..n].to_vec());
        }
    });
    let (end, mut seen) = (Instant::now() + limit, Vec::new());
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if enough(&text) {
            return Ok(text);
        }
        match receive.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(bytes) => seen.extend(bytes),
            Err(why) => bail!("{why} before enough was read; read so far:\n{text}"),
        }
    }
}

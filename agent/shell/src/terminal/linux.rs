//! The agent's end of a shell on Linux: a pseudo terminal, the sandbox's processes, and the listener within their network.

use crate::{
    frames::Size,
    kube::{Door, kubeconfig},
    limits,
    sandbox::{self, OUTER, PORT},
    serve::Plan,
};
use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize},
};
use std::{
    io::{self, Write},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
};
use tokio::{
    net::{TcpListener, unix::pipe},
    process::{Child, Command},
    runtime::Handle,
    task::spawn_blocking,
    time::timeout,
};

/// A shell that runs. Dropping it ends every process of it.
pub(crate) struct Terminal {
    master: OwnedFd,
    /// The same, as what the runtime can wait for: to it a terminal is a pipe each way.
    shown: pipe::Receiver,
    typed: pipe::Sender,
    child: Option<Child>,
    /// Closed, the sandbox ends.
    control: UnixStream,
}

impl Drop for Terminal {
    /// Has the sandbox end by itself: ended by a signal it would leave what it waits for to others, and nobody waits for
    /// orphans in a pod.
    fn drop(&mut self) {
        let _ = self.control.shutdown(Shutdown::Both); // who has ended has closed it
        if let (Some(mut child), Ok(runtime)) = (self.child.take(), Handle::try_current()) {
            // Dropped there, it is ended after all.
            runtime.spawn(async move { drop(timeout(limits::END, child.wait()).await) });
        }
    }
}

impl Terminal {
    /// Starts a shell; and what listens in its network for its calls to the API server.
    ///
    /// # Errors
    /// In words: what the sandbox wrote to its terminal before it gave up.
    pub async fn start(plan: &Plan, size: Size) -> io::Result<(Self, Door)> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        set_size(&master, size)?;
        erases_letters(&master)?;
        let slave = ptsname(&master, Vec::new())?;
        let slave = rustix::fs::open(slave, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
        let (mut control, theirs) = UnixStream::pair()?;
        let mut outer = Command::new("/proc/self/exe");
        outer.arg(OUTER).env_clear().kill_on_drop(true);
        outer.stdin(OwnedFd::from(theirs)).stdout(slave.try_clone()?).stderr(slave);
        let child = outer.spawn()?;
        drop(outer); // its copies of the terminal's other end: while they are open the terminal has no end
        let plan = sandbox::Plan {
            root: plan.root.clone(),
            uid: limits::FIRST_UID + plan.place,
            cluster: plan.cluster.clone(),
            term: plan.term.clone(),
            kubeconfig: kubeconfig(&plan.cluster, &format!("http://127.0.0.1:{PORT}")),
        };
        let mut line = serde_json::to_vec(&plan)?;
        line.push(b'\n');
        control.set_read_timeout(Some(limits::START))?;
        control.set_write_timeout(Some(limits::START))?;
        let (control, listener) = spawn_blocking(move || {
            control.write_all(&line)?;
            let listener = sandbox::receive_fd(&control)?;
            Ok::<_, io::Error>((control, listener))
        })
        .await??;
        let shown = pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?;
        let typed = pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?;
        let terminal = Self { master, shown, typed, child: Some(child), control };
        let Some(listener) = listener else {
            let mut said = vec![0; 1024];
            let n = tokio::time::timeout(limits::LAST_OUTPUT, terminal.read(&mut said)).await.map_or(Ok(0), |n| n)?;
            let said = String::from_utf8_lossy(said.get(..n).unwrap_or_default());
            return Err(io::Error::other(said.trim().to_owned()));
        };
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true)?;
        Ok((terminal, Door::new(TcpListener::from_std(listener)?)))
    }

    /// What the terminal shows; 0: nobody has it open any more.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            self.shown.readable().await?;
            match self.shown.try_read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // Linux's way to say that the other end is closed.
                Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(0),
                result => return result,
            }
        }
    }

    /// Types as many of these bytes as the terminal takes at once, and says how many. Waits while the shell does not read.
    ///
    /// # Cancel safety
    /// Safe: nothing was typed then.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.typed.writable().await?;
            match self.typed.try_write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// What is typed where no more is: ^D ends the line that is being read, and the shell at an empty one. Every read
    /// finds the end, as of a file that has ended.
    pub const END: &[u8] = &[4];

    /// The client's window changed.
    pub fn resize(&self, size: Size) {
        drop(set_size(&self.master, size)); // of a shell that just ended
    }

    /// Its exit code, when it has ended.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ended(&mut self) -> io::Result<i32> {
        let child = self.child.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let status = child.wait().await?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
    }
}

/// The terminal itself takes back a whole letter, of however many bytes (termios(3), `IUTF8`): shells' language is in UTF-8.
fn erases_letters(master: &OwnedFd) -> io::Result<()> {
    let mut modes = tcgetattr(master)?;
    modes.input_modes |= InputModes::IUTF8;
    Ok(tcsetattr(master, OptionalActions::Now, &modes)?)
}

fn set_size(master: &OwnedFd, size: Size) -> io::Result<()> {
    let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(master, size)?)
}

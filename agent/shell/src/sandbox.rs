//! From the agent's binary, started anew, to a shell that can do little.
//!
//! Two processes. The *outer* one makes the namespaces, hands a listener of the new network back to the agent, and
//! waits, with an eye on the memory of all others: its end, or the agent's, is the end of all. The *inner* one is the
//! first process of the new process namespace: it makes the root, gives up every right, and becomes the shell. When it
//! ends the kernel ends all others.

mod filter;
mod memory;
mod network;
pub(crate) use network::receive_fd;
mod root;

use crate::{limits, terminal::NOT_MADE};
use nix::{
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, setrlimit},
        signal::Signal,
    },
    unistd::{Gid, Uid, setgroups, sethostname, setresgid, setresuid, setsid},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, getpid, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU};
use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt, process::ExitStatusExt},
    },
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
};

/// First argument of the outer process.
pub(crate) const OUTER: &str = "shell-outer";
/// First argument of the inner one.
const INNER: &str = "shell-inner";
/// Where the inner one finds its [`Plan`].
const PLAN: &str = "MOORLINE_SHELL_PLAN";
/// The port of the listener within the shell's network.
pub(crate) const PORT: u16 = 6443;
/// Name and home of the user within the shell.
const USER: &str = "shell";

/// What a shell is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Whose programs it may run: a folder with `bin`, `usr` and so on.
    pub root: PathBuf,
    /// Its user and group id.
    pub uid: u32,
    /// The cluster, shown as the host's name.
    pub cluster: String,
    /// The client's `TERM`.
    pub term: String,
    /// The shell's kubeconfig.
    pub kubeconfig: String,
}

/// Becomes a shell, if that is what this process was started for. To be called first thing in `main`.
///
/// # Errors
/// None: what goes wrong is written to the shell's terminal and told by the exit code.
pub fn inside() -> Option<ExitCode> {
    let done = match env::args_os().nth(1)?.to_str()? {
        OUTER => outer(),
        INNER => inner(),
        _ => return None,
    };
    Some(done.unwrap_or_else(|error| {
        eprintln!("the shell cannot be made: {error}\r");
        ExitCode::from(NOT_MADE)
    }))
}

/// Says which step failed.
fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> io::Error {
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{step}: {error}"))
    }
}

fn outer() -> io::Result<ExitCode> {
    let control = UnixStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let mut line = String::new();
    BufReader::new((&control).take(64 << 10)).read_line(&mut line).map_err(at("read the plan"))?;
    let plan: Plan = serde_json::from_str(&line).map_err(io::Error::other)?;
    // Handed down to all that comes from here: where the node's memory, or the pod's, is at its end, the kernel looks
    // here for what to kill, and not at the agent.
    fs::write("/proc/self/oom_score_adj", limits::OOM_SCORE).map_err(at("be the first to go"))?;
    // What the sandbox needs and a container often lacks is named as a whole.
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWPID;
    unshare(all).map_err(at("make namespaces (the node agent needs CAP_SYS_ADMIN for shells)"))?;
    network::loopback_up().map_err(at("bring the loopback up"))?;
    let listener = std::net::TcpListener::bind(("127.0.0.1", PORT)).map_err(at("listen in the shell's network"))?;
    network::send_fd(&control, listener.as_fd()).map_err(at("hand the listener to the agent"))?;
    drop(listener);
    let terminal: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let own = pidfd_open(getpid(), PidfdFlags::empty()).map_err(at("be watched"))?;
    let mut inner = Command::new("/proc/self/exe");
    inner.arg(INNER).env_clear().env(PLAN, line).stdin(Stdio::from(terminal)).stdout(Stdio::from(own));
    let mut inner = inner.spawn().map_err(at("start the inner process"))?;
    // Its death signal, too, is one from a user to another: without CAP_KILL, as in a pod, the shell's own user may send it.
    let root = Uid::from_raw(0);
    setresuid(Uid::from_raw(plan.uid), root, root).map_err(at("be one with the shell's user"))?;
    // The agent is gone, or has had enough: so has the shell, by the death signal of its parent. No thread could wait
    // for that: with a process namespace for its children a process can start none.
    let id = i32::try_from(inner.id()).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no process id"))?;
    let alive = pidfd_open(id, PidfdFlags::empty()).map_err(at("watch the inner process"))?;
    let mut either = [PollFd::new(&alive, PollFlags::IN), PollFd::new(&control, PollFlags::IN)];
    let look = Timespec::try_from(limits::MEMORY_LOOK).map_err(io::Error::other)?;
    loop {
        match poll(&mut either, Some(&look)) {
            Ok(0) => memory::bound(plan.uid)?,
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if either[0].revents().is_empty() {
        // Its death signal is one that a program may renounce.
        let _ = pidfd_send_signal(&alive, rustix::process::Signal::KILL); // it may just have ended by itself
        inner.wait()?;
        return Ok(ExitCode::from(NOT_MADE));
    }
    let ended = inner.wait()?;
    let code = ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or_default());
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(NOT_MADE)))
}

/// What the agent ignores, as everything does that was started in the background or by `nohup`, its shells would ignore
/// for good: a shell cannot undo it (POSIX, `trap`). A signal with a handler has its default action again after `exec`.
fn hear_signals() -> io::Result<()> {
    for signal in [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGTTIN, SIGTTOU] {
        signal_hook::flag::register(signal, Arc::default())?;
    }
    Ok(())
}

fn inner() -> io::Result<ExitCode> {
    // What stands in the place of its output: its parent. It is in no process namespace of this one's and has no number.
    let parent = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    rustix::stdio::dup2_stdout(rustix::stdio::stdin())?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    hear_signals().map_err(at("hear signals"))?;
    let plan = env::var(PLAN).map_err(io::Error::other)?;
    let plan: Plan = serde_json::from_str(&plan).map_err(io::Error::other)?;
    let home = format!("/home/{USER}");
    root::make(&plan, &home)?;
    sethostname(&plan.cluster).map_err(at("set the host name"))?;
    setsid().map_err(at("begin a session"))?;
    rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(at("take the terminal"))?;
    bound()?;
    give_up(plan.uid)?;
    // A change of the user has cleared it.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let mut gone = [PollFd::new(&parent, PollFlags::IN)];
    if 0 < poll(&mut gone, Some(&Timespec::default()))? {
        return Err(io::Error::other("its parent is gone"));
    }
    filter::apply().map_err(at("filter system calls"))?;

    let shell = ["/bin/bash", "/bin/sh"].into_iter().find(|path| PathBuf::from(path).exists());
    let shell = shell.ok_or_else(|| io::Error::other("its root has neither /bin/bash nor /bin/sh"))?;
    let mut command = Command::new(shell);
    command.env_clear().current_dir(&home).args(shell.ends_with("bash").then_some("-l"));
    let path = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";
    for (name, value) in [("HOME", home.as_str()), ("USER", USER), ("LOGNAME", USER), ("SHELL", shell), ("PATH", path)]
    {
        command.env(name, value);
    }
    command.env("TERM", &plan.term).env("LANG", "C.UTF-8").env("KUBECONFIG", format!("{home}/.kube/config"));
    Err(at("start the shell")(command.exec()))
}

fn bound() -> io::Result<()> {
    let bounds = [
        (Resource::RLIMIT_NPROC, limits::PROCESSES),
        (Resource::RLIMIT_NOFILE, limits::FILES),
        (Resource::RLIMIT_FSIZE, limits::FILE_SIZE),
        (Resource::RLIMIT_DATA, limits::DATA),
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_MEMLOCK, 0),
        // However high the agent's own are: nobody goes before others.
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_RTPRIO, 0),
        // Messages that nobody takes are the kernel's memory.
        (Resource::RLIMIT_MSGQUEUE, 0),
    ];
    for (resource, most) in bounds {
        setrlimit(resource, most, most).map_err(at("bound resources"))?;
    }
    // Who computes for long gives way to the agent and to those who type.
    let nice = rustix::process::getpriority_process(None).map_err(at("give way"))?.max(limits::NICE);
    rustix::process::setpriority_process(None, nice).map_err(at("give way"))?;
    Ok(())
}

/// Gives up user, groups and every capability, for good.
fn give_up(uid: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    for bit in 0..u64::BITS {
        // The first that this kernel does not know ends the list.
        let one = rustix::thread::CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(at("give up capabilities (the node agent needs CAP_SETPCAP for shells)")(error)),
        }
    }
    setgroups(&[]).map_err(at("leave all groups"))?;
    setresgid(group, group, group).map_err(at("change the group"))?;
    setresuid(user, user, user).map_err(at("change the user"))?; // from root to another: clears the capabilities
    prctl::set_no_new_privs().map_err(at("renounce new rights"))?;
    Ok(())
}

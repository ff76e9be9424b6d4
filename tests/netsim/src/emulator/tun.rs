//! TUN devices, and the namespaces that they lead into.

use anyhow::{Context, Result, bail};
use moorline_e2e::process::text;
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

/// Largest packet that a device takes.
pub const MTU: usize = 1500;

/// A TUN device: what the kernel sends into it is read here, what is written here arrives there.
#[derive(Debug)]
pub struct Tun(File);

impl Tun {
    /// Makes a device named `name`, at most 15 letters. It goes with the guard.
    ///
    /// # Errors
    /// The system has no TUN, or this process may not.
    #[allow(unsafe_code)]
    pub fn make(name: &str) -> Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
        // struct ifreq of <linux/if.h>: 16 bytes of name, then the flags.
        let mut request = [0u8; 40];
        request.iter_mut().zip(name.bytes().take(15)).for_each(|(to, from)| *to = from);
        let flags = u16::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: TUNSETIFF reads and writes one ifreq, which is 40 bytes; the buffer lives across the call.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
        if made < 0 {
            return Err(io::Error::last_os_error()).context("TUNSETIFF");
        }
        rustix::io::ioctl_fionbio(&file, true)?;
        Ok(Self(file))
    }

    /// The next packet; `None` while there is none.
    pub fn receive(&mut self, space: &mut [u8]) -> Option<usize> {
        self.0.read(space).ok().filter(|n| *n > 0)
    }

    /// Hands a packet to the kernel. One that it does not want is lost, as packets are.
    pub fn send(&mut self, packet: &[u8]) {
        let _ = self.0.write(packet);
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A network namespace; it goes with the guard.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// Numbers of what this process makes.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Addresses of one scene: 10.A.B.0/24, chosen so that scenes that run at once do not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet(pub u8, pub u8);

impl Subnet {
    /// The address `.host` in it.
    pub fn host(self, host: u8) -> std::net::Ipv4Addr {
        std::net::Ipv4Addr::new(10, self.0, self.1, host)
    }
}

impl Namespace {
    /// Makes one, with a device on this side and one inside, each with an address: `.1` here, `.2` inside.
    ///
    /// # Errors
    /// This process is not root, or the system has no namespaces.
    pub fn make() -> Result<(Self, Subnet, Tun, Tun)> {
        let mut last = None;
        for _ in 0..16 {
            // Scenes of other processes are told apart by the process, whose number may come again: then the next.
            let number = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id().wrapping_mul(61);
            let [low, high, ..] = number.to_le_bytes();
            let subnet = Subnet(64 + (high & 63), low);
            match Self::at(subnet) {
                Ok((namespace, near, far)) => return Ok((namespace, subnet, near, far)),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) => Err(error),
            None => bail!("no subnet was tried"),
        }
    }

    fn at(subnet: Subnet) -> Result<(Self, Tun, Tun)> {
        let tag = format!("{}-{}", subnet.0, subnet.1);
        let name = format!("mln{tag}");
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        let (here, there) = (format!("mlh{tag}"), format!("mli{tag}"));
        let (near, far) = (Tun::make(&here)?, Tun::make(&there)?);
        ip(&["link", "set", &there, "netns", &namespace.name])?;
        ip(&["addr", "add", &format!("{}/24", subnet.host(1)), "dev", &here])?;
        ip(&["link", "set", &here, "up"])?;
        let inside = ["-n", &namespace.name];
        let within = |args: &[&str]| ip(&[&inside[..], args].concat());
        within(&["link", "set", "lo", "up"])?;
        within(&["addr", "add", &format!("{}/24", subnet.host(2)), "dev", &there])?;
        within(&["link", "set", &there, "up"])?;
        Ok((namespace, near, far))
    }

    /// A command that runs inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg("--").arg(program);
        command
    }

    /// Does `work`, which opens sockets, inside; they stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered, or what `work` says.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> Result<T> {
        let at = File::open(format!("/run/netns/{}", self.name))?;
        let kind = rustix::thread::LinkNameSpaceType::Network;
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                rustix::thread::move_into_link_name_space(at.as_fd(), Some(kind))?;
                work()
            });
            match inside.join() {
                Ok(done) => Ok(done?),
                Err(_) => bail!("the thread inside the namespace failed"),
            }
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&["netns", "delete", &self.name]);
    }
}

fn ip(args: &[&str]) -> Result<()> {
    text(Command::new("ip").args(args)).map(drop)
}

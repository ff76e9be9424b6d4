//! The agent's end of a shell. Each system has its own, all of one shape: a `Terminal` to read from, write to and
//! resize, that tells its exit code and whose end is the end of the shell's processes; beside it the [`Door`] to the
//! API server.
//!
//! [`Door`]: crate::kube::Door

#[cfg(windows)]
mod homes;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(windows, test))]
mod newest;
#[cfg(windows)]
mod windows;

#[cfg(target_os = "linux")]
pub(crate) use self::linux::Terminal;
#[cfg(windows)]
pub(crate) use self::{homes::sweep, windows::Terminal};

/// Exit code of a shell that could not be made; shells themselves use others.
pub(crate) const NOT_MADE: u8 = 125;
